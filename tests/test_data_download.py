"""Downloads against a server on loopback that stalls, breaks off, redirects and lies."""

import gc
import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from fastcifar.data import DataError, locate
from fastcifar.data.download import ARCHIVES, Archive, download

BODY = np.random.default_rng(0).integers(0, 256, 700_000, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """The first part of the path says how the server behaves."""

    protocol_version = "HTTP/1.1"
    ranges: ClassVar[list[str | None]] = []
    release = threading.Event()

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.ranges.append(self.headers.get("Range"))
        self.close_connection = True
        getattr(self, self.path.split("/")[1])()

    def body(self, data: bytes, *, first: int = 0, status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{len(BODY) - 1}/{len(BODY)}")
        self.end_headers()
        self.wfile.write(data)

    def first(self) -> int:
        wanted = self.headers.get("Range")
        return int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0

    def good(self) -> None:
        first = self.first()
        self.body(BODY[first:], first=first, status=206 if first else 200)

    def no_ranges(self) -> None:
        self.body(BODY)

    def no_length(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(BODY + b"more")

    def breaks_off(self) -> None:
        """300,000 bytes at a time, of the rest that it promises."""
        first = self.first()
        rest = BODY[first:]
        self.body(rest[:300_000], first=first, status=206 if first else 200, length=len(rest))

    def breaks_off_for_good(self) -> None:
        first = self.first()
        self.body(BODY[first:1000], first=first, status=206 if first else 200, length=len(BODY) - first)

    def stalls(self) -> None:
        self.body(BODY[:1000], length=len(BODY))
        self.wfile.flush()
        self.release.wait(10)

    def silent(self) -> None:
        self.release.wait(10)

    def wrong(self) -> None:
        self.body(b"\0" + BODY[1:])

    def wrong_size(self) -> None:
        self.body(b"<html>please log in</html>")

    def wrong_range(self) -> None:
        self.body(BODY[10:], first=10, status=206)

    def circle(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def to_good(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/good/data.tar.gz")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def to_file(self) -> None:
        self.send_response(302)
        self.send_header("Location", "file:///etc/passwd")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def to_ftp(self) -> None:
        self.send_response(302)
        self.send_header("Location", "ftp://127.0.0.1:9/data")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def to_nonsense(self) -> None:
        self.send_response(302)
        self.send_header("Location", "http://[nonsense/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def missing(self) -> None:
        self.send_error(404)

    def broken(self) -> None:
        self.send_error(503)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{instance.server_port}"
    Handler.release.set()
    instance.shutdown()
    thread.join()
    instance.server_close()


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    Handler.ranges.clear()
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetch(server: str, behaviour: str, folder: Path, **settings: float) -> Path:
    archive = Archive(f"{server}/{behaviour}/data.tar.gz", len(BODY), MD5)
    return download(archive, folder, **({"connect_s": 5.0, "stall_s": 5.0} | settings))  # type: ignore[arg-type]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("behaviour", ["good", "no_ranges", "no_length", "to_good"])
def test_a_file_is_fetched_once_and_checked(behaviour: str, server: str, tmp_path: Path) -> None:
    path = fetch(server, behaviour, tmp_path / "new")
    assert path == tmp_path / "new" / "data.tar.gz"
    assert path.read_bytes() == BODY
    assert leftovers(tmp_path / "new") == ["data.tar.gz"]
    num_requests = len(Handler.ranges)
    assert fetch(server, behaviour, tmp_path / "new") == path
    assert len(Handler.ranges) == num_requests


def test_progress_counts_to_the_end(server: str, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    archive = Archive(f"{server}/good/data.tar.gz", len(BODY), MD5)
    download(archive, tmp_path, on_progress=lambda *call: calls.append(call))
    for what in ("downloading data.tar.gz", "checking data.tar.gz"):
        done = [call[1] for call in calls if call[0] == what]
        assert done == sorted(done)
        assert done[-1] == len(BODY)
    assert {call[2] for call in calls} == {len(BODY)}


def test_a_connection_that_breaks_off_is_resumed(server: str, tmp_path: Path) -> None:
    assert fetch(server, "breaks_off", tmp_path).read_bytes() == BODY
    assert Handler.ranges == [None, "bytes=300000-", "bytes=600000-"]


def test_what_came_is_kept_and_a_later_call_goes_on_from_it(server: str, tmp_path: Path) -> None:
    message = rf"ended early; 1,000 of 700,000 bytes are kept in {tmp_path}/data\.tar\.gz\.part to go on from"
    with pytest.raises(DataError, match=message):
        fetch(server, "breaks_off_for_good", tmp_path)
    assert leftovers(tmp_path) == ["data.tar.gz.part"]
    Handler.ranges.clear()
    assert fetch(server, "good", tmp_path).read_bytes() == BODY
    assert Handler.ranges == ["bytes=1000-"]


def test_a_server_that_cannot_resume_sends_all_of_it(server: str, tmp_path: Path) -> None:
    (tmp_path / "data.tar.gz.part").write_bytes(BODY[:5000])
    assert fetch(server, "no_ranges", tmp_path).read_bytes() == BODY
    assert Handler.ranges == ["bytes=5000-"]


@pytest.mark.parametrize("num_bytes", [len(BODY), len(BODY) + 5])
def test_a_part_that_is_long_enough_is_checked_or_thrown_away(num_bytes: int, server: str, tmp_path: Path) -> None:
    (tmp_path / "data.tar.gz.part").write_bytes((BODY + b"12345")[:num_bytes])
    assert fetch(server, "good", tmp_path).read_bytes() == BODY
    assert Handler.ranges == ([] if num_bytes == len(BODY) else [None])


def test_a_wrong_sum_keeps_the_file_aside_and_says_both(server: str, tmp_path: Path) -> None:
    wrong = hashlib.md5(b"\0" + BODY[1:], usedforsecurity=False).hexdigest()
    message = f"has MD5 {wrong} and is kept as {tmp_path}/data.tar.gz.wrong; expected MD5 {MD5}"
    with pytest.raises(DataError, match=message):
        fetch(server, "wrong", tmp_path)
    assert leftovers(tmp_path) == ["data.tar.gz.wrong"]
    assert fetch(server, "good", tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("wrong_size", "the server has a file of '26' bytes; expected 700,000"),
        ("circle", "the server answers 302 .*infinite loop"),
        ("to_file", "the server answers 302 .*not allowed"),
        ("to_ftp", "the server answers 302"),
        ("missing", "the server answers 404"),
        ("broken", "the server answers 503"),
    ],
)
def test_a_server_that_has_something_else_is_refused(behaviour: str, message: str, server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^{server}/{behaviour}/data\.tar\.gz: .*{message}"):
        fetch(server, behaviour, tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_redirect_to_nonsense_is_refused(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no connection"):
        fetch(server, "to_nonsense", tmp_path)
    gc.collect()  # urllib leaves the first answer open here; the warning belongs to this test


def test_a_wrong_range_is_refused_and_what_came_is_kept(server: str, tmp_path: Path) -> None:
    (tmp_path / "data.tar.gz.part").write_bytes(BODY[:5000])
    with pytest.raises(DataError, match="sends 'bytes 10-699999/700000'; expected bytes 5000-/700000"):
        fetch(server, "wrong_range", tmp_path)
    assert (tmp_path / "data.tar.gz.part").read_bytes() == BODY[:5000]


def test_a_server_that_stalls_is_left_in_time(server: str, tmp_path: Path) -> None:
    start_s = time.perf_counter()
    with pytest.raises(DataError, match=r"nothing arrived for 0\.3 s; 1,000 of 700,000 bytes are kept"):
        fetch(server, "stalls", tmp_path, stall_s=0.3, max_attempts=1)
    with pytest.raises(DataError, match=r"no answer in 0\.3 s"):
        fetch(server, "silent", tmp_path / "other", connect_s=0.3)
    assert time.perf_counter() - start_s < 5


def test_no_server_is_told_at_once(tmp_path: Path) -> None:
    start_s = time.perf_counter()
    with pytest.raises(DataError, match=r"no connection \(Connection refused\)"):
        fetch("http://127.0.0.1:9", "good", tmp_path)
    assert time.perf_counter() - start_s < 2


def test_a_target_that_cannot_be_written_is_named(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file/sub: cannot be written \(Not a directory\)"):
        fetch(server, "good", tmp_path / "file" / "sub")


def test_two_at_once_fetch_it_once(server: str, tmp_path: Path) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(server, "good", tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [tmp_path / "data.tar.gz"] * 4
    assert paths[0].read_bytes() == BODY
    assert len(Handler.ranges) == 1


def test_a_set_is_downloaded_into_the_cache_and_read_from_there(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cifar_files

    made = cifar_files.make_archive(tmp_path / "made")
    data = made.path.read_bytes()
    monkeypatch.setattr("test_data_download.BODY", data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    archive = Archive(f"{server}/good/cifar-10-python.tar.gz", len(data), md5)
    monkeypatch.setitem(ARCHIVES, "cifar10", archive)
    source = locate()
    assert (source.dataset, source.layout, source.note) == ("cifar10", "tar", "")
    assert source.path == tmp_path / "cache" / "fastcifar" / "cifar-10-python.tar.gz"
    np.testing.assert_array_equal(source.load().test.images_nhwc, made.test_images)
    assert locate() == source
    assert Handler.ranges == [None]
