"""A conversion that dies leaves the old artefact or none; one at a time writes a folder; the cache mends itself."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from artefact_sets import FORMATS, bytes_of, made_dataset

from fastcifar import artefacts
from fastcifar.artefacts.index import dumps
from fastcifar.claims import claimed
from fastcifar.data import DataError, Dataset, cache_dir

formats = pytest.mark.parametrize("to", FORMATS)

# Says when it has come to the moment that it is told, and waits there to be killed.
VICTIM = """
import os, sys
sys.path.insert(0, sys.argv[1])
from artefact_sets import made_dataset
from fastcifar import artefacts

def stop_before(module, name, number):
    calls, original = [], getattr(module, name)

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            print("here", flush=True)
            sys.stdin.read()
        return original(*args, **kwargs)

    setattr(module, name, wrapped)

_, _, to, dest, name, number = sys.argv
if name != "progress":
    stop_before(os, name, int(number))
seen = []

def on_progress(done, total):
    seen.append(done)
    if name == "progress" and len(seen) == int(number):
        print("here", flush=True)
        sys.stdin.read()

artefacts.convert(made_dataset(4000, 50, seed=2), to, dest, on_progress=on_progress)
"""
# Of `os`: utime comes before the index is whole; the first rename moves the old artefact away where there is one.
MOMENTS = [
    ("npy", "mkdir", 1),
    ("ffcv", "mkdir", 2),
    ("dali", "write", 3),
    ("npy", "progress", 1),
    ("ffcv", "progress", 3),
    ("dali", "fsync", 1),
    ("npy", "utime", 1),
    ("dali", "utime", 3),
    ("ffcv", "rename", 1),
    ("npy", "rename", 2),
]


def kill_at(to: str, name: str, number: int, dest: Path) -> None:
    command = [sys.executable, "-c", VICTIM, str(Path(__file__).parent), to, str(dest), name, str(number)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        line = victim.stdout.readline()
        victim.send_signal(signal.SIGKILL)
    if (name, number) != ("rename", 2):  # there is no second one where there was no old artefact
        assert line == b"here\n"


@pytest.mark.parametrize(("to", "moment", "number"), MOMENTS)
def test_a_killed_conversion_leaves_the_old_artefact_or_none(tmp_path: Path, to: str, moment: str, number: int) -> None:
    old, new = made_dataset(20, 5, seed=1), made_dataset(4000, 50, seed=2)
    before = bytes_of(artefacts.convert(old, to, tmp_path / "replaced"))
    for name in ("replaced", "fresh"):
        kill_at(to, moment, number, tmp_path / name)
        left = tmp_path / name
        if left.exists():
            whole = new if left == tmp_path / "fresh" else old
            assert all(finding.passed for finding in artefacts.verify(left, whole))
            assert left == tmp_path / "fresh" or bytes_of(left) == before
        else:
            with pytest.raises(DataError, match="is not there"):
                artefacts.read(left, "train")
        # The next conversion clears away what is left, and goes through.
        artefacts.convert(new, to, left)
        assert all(finding.passed for finding in artefacts.verify(left, new))
    assert sorted(os.listdir(tmp_path)) == ["fresh", "replaced"]


def test_killed_between_two_renames_the_old_artefact_comes_back(tmp_path: Path) -> None:
    old = made_dataset(20, 5, seed=1)
    dest = artefacts.convert(old, "npy", tmp_path / "a")
    kill_at("npy", "rename", 2, dest)
    assert not dest.exists()
    with pytest.raises(KeyboardInterrupt):
        artefacts.convert(made_dataset(9, 9), "npy", dest, on_progress=interrupt)
    assert all(finding.passed for finding in artefacts.verify(dest, old))
    assert os.listdir(tmp_path) == ["a"]


def interrupt(done: int, total: int) -> None:
    raise KeyboardInterrupt


@formats
def test_an_interrupted_conversion_leaves_nothing_behind(tmp_path: Path, to: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        artefacts.convert(made_dataset(3000), to, tmp_path / "a", on_progress=interrupt)
    assert os.listdir(tmp_path) == []
    before = bytes_of(artefacts.convert(made_dataset(seed=1), to, tmp_path / "a"))
    with pytest.raises(KeyboardInterrupt):
        artefacts.convert(made_dataset(3000, seed=2), to, tmp_path / "a", on_progress=interrupt)
    assert bytes_of(tmp_path / "a") == before
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["write", "fsync"])
def test_a_disk_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*args: object) -> int:
        raise OSError(28, "No space left on device")

    dest = artefacts.convert(made_dataset(seed=1), "npy", tmp_path / "a")
    before = bytes_of(dest)
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(DataError, match=r"a: cannot be written \(No space left on device\); expected room"):
            artefacts.convert(made_dataset(3000, seed=2), "npy", dest)
    assert bytes_of(dest) == before
    assert os.listdir(tmp_path) == ["a"]


@dataclass
class Source:
    """A data set that counts how often it is read."""

    made: Dataset
    digest: str = "0123456789abcdef" * 4
    dataset: str = "noise"
    loads: list[int] = field(default_factory=list)

    def fingerprint(self) -> str:
        return self.digest

    def load(self) -> Dataset:
        self.loads.append(1)
        return self.made


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Source(made_dataset())


def test_one_at_a_time(tmp_path: Path, source: Source) -> None:
    # The first conversion is held at its first image; a second one is told who has it, the cache waits for it.
    begun, go_on, results = threading.Event(), threading.Event(), []

    def hold(done: int, total: int) -> None:
        begun.set()
        assert go_on.wait(30)

    first = threading.Thread(target=lambda: results.append(artefacts.cached(source, "npy", hold)))
    first.start()
    assert begun.wait(30)
    dest = cache_dir() / "artefacts" / "noise-0123456789abcdef-npy"
    with pytest.raises(DataError, match=rf"npy: process {os.getpid()} on .* is writing it; try again"):
        artefacts.convert(source.made, "npy", dest)
    second = threading.Thread(target=lambda: results.append(artefacts.cached(source, "npy")))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    go_on.set()
    first.join(30)
    second.join(30)
    assert results == [dest, dest]
    assert source.loads == [1]
    assert os.listdir(dest.parent) == [dest.name]


def test_a_claim_is_exclusive_while_others_come_and_go(tmp_path: Path) -> None:
    inside: list[int] = []
    most = []

    def come_and_go() -> None:
        for _ in range(100):
            with claimed(tmp_path / "a", wait=True):
                inside.append(1)
                time.sleep(0.0001)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1] * 400
    assert os.listdir(tmp_path) == []


def test_many_processes_at_once_make_one_artefact(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_artefacts_atomic import Source, made_dataset;"
        "from fastcifar import artefacts; source = Source(made_dataset(3000));"
        "path = artefacts.cached(source, 'ffcv'); assert all(f.passed for f in artefacts.verify(path));"
        "print(len(source.loads))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True))
            for _ in range(3)
        ]
        outputs = [process.communicate()[0] for process in processes]
    assert sorted(outputs) == ["0\n", "0\n", "1\n"]


@formats
def test_the_cache_converts_once(source: Source, to: str) -> None:
    calls: list[int] = []
    path = artefacts.cached(source, to, lambda done, total: calls.append(done))
    assert path == cache_dir() / "artefacts" / f"noise-0123456789abcdef-{to}"
    assert calls[-1] == 240
    before = bytes_of(path)
    assert artefacts.cached(source, to) == path
    assert source.loads == [1]
    other = Source(made_dataset(seed=3), "f" * 64)
    assert artefacts.cached(other, to) != path
    assert bytes_of(path) == before
    with pytest.raises(ValueError, match="format: got 'zip'"):
        artefacts.cached(source, "zip")


@formats
def test_the_cache_mends_what_is_damaged(source: Source, to: str) -> None:
    path = artefacts.cached(source, to)
    good = bytes_of(path)
    for count, name in enumerate(good, 1):
        damaged = bytearray(good[name])
        damaged[len(damaged) // 2] ^= 1
        for data in (bytes(damaged), good[name][:-1], b""):
            (path / name).write_bytes(data)
            source.loads.clear()
            artefacts.cached(source, to)
            assert source.loads == [1], (count, name)
            assert bytes_of(path) == good
        (path / name).unlink()
        artefacts.cached(source, to)
        assert bytes_of(path) == good


def test_the_cache_keeps_what_was_only_touched(source: Source) -> None:
    path = artefacts.cached(source, "ffcv")
    os.utime(path / "train.beton")
    artefacts.cached(source, "ffcv")
    assert source.loads == [1]
    # Hashed once, it is quick again.
    times = {name.stat().st_mtime_ns for name in path.iterdir()}
    assert len(times) == 1


def test_the_cache_replaces_what_is_of_other_data_or_another_version(source: Source) -> None:
    path = artefacts.cached(source, "npy")
    source.digest = "0123456789abcdef" * 3 + "f" * 16  # the same folder
    artefacts.cached(source, "npy")
    assert len(source.loads) == 2
    assert artefacts.read_index(path).fingerprint == source.digest
    index = path / "index.json"
    index.write_bytes(dumps(artefacts.read_index(path)).replace(b'"version": 1', b'"version": 0'))
    artefacts.cached(source, "npy")
    assert len(source.loads) == 3


def test_a_cache_that_cannot_be_written_is_named(source: Source, tmp_path: Path) -> None:
    (tmp_path / "fastcifar").write_text("a file")
    with pytest.raises(DataError, match=r"artefacts/.*: cannot be written"):
        artefacts.cached(source, "npy")
