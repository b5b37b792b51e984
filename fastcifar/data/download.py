"""Fetches CIFAR's archives from their original site: resumed, limited in size, checked before anything is read."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.data.errors import DataError, quote, refuse

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, bytes done, bytes in all)."""

# Long enough for a handshake across the world, short enough that a machine without a network is not kept waiting.
CONNECT_S = 4.0
STALL_S = 20.0
MAX_ATTEMPTS = 4
_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class Archive:
    """A file on a server, and what it must be."""

    url: str
    num_bytes: int
    md5: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


# Sizes and sums: https://www.cs.toronto.edu/~kriz/cifar.html
ARCHIVES = {
    "cifar10": Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", 170_498_071, "c58f30108f718f92721af3b95e74349a"
    ),
    "cifar100": Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", 169_001_437, "eb9058c3a382ffc7106e4002c42a8d85"
    ),
}


class _InterruptedError(Exception):
    """The connection failed in a way that another attempt may mend."""


def download(
    archive: Archive,
    folder: Path,
    *,
    on_progress: Progress | None = None,
    connect_s: float = CONNECT_S,
    stall_s: float = STALL_S,
    max_attempts: int = MAX_ATTEMPTS,
) -> Path:
    """The archive's path in `folder`, fetched unless it is there already.

    What has arrived is kept in `<name>.part` and gone on from, in this call (`max_attempts` in all) or in a later one.
    The file gets its name only when its size and MD5 are right; one with a wrong sum is kept as `<name>.wrong`.
    Two processes that fetch the same file take turns. `DataError` when it cannot be had: no connection in `connect_s`
    seconds, nothing arriving for `stall_s` seconds, another size than the archive's, a wrong sum, a full disk.
    """
    target = folder / archive.name
    if target.exists():
        return target
    part = folder / f"{archive.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _turn(folder / f"{archive.name}.lock"):
            if target.exists():
                return target
            _fetch_all(archive, part, on_progress, connect_s, stall_s, max_attempts)
            _check(archive, part, target.with_name(f"{archive.name}.wrong"), on_progress)
            part.replace(target)
            return target
    except OSError as error:
        raise refuse(error.filename or part, f"cannot be written ({error.strerror or error})") from None


@contextlib.contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """Waits until no other process works on the same file. The system ends the lock of a process that dies."""
    with open(lock, "ab") as file:
        try:
            import fcntl
        except ImportError:  # Windows: the last one to finish wins, with the same bytes
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch_all(
    archive: Archive, part: Path, on_progress: Progress | None, connect_s: float, stall_s: float, max_attempts: int
) -> None:
    for attempt in range(1, max_attempts + 1):
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch_rest(archive, part, on_progress, connect_s, stall_s)
            return
        except _InterruptedError as error:
            have = part.stat().st_size if part.exists() else 0
            if attempt == max_attempts or (attempt > 1 and have == before) or not have:
                kept = f"; {have:,} of {archive.num_bytes:,} bytes are kept in {part} to go on from" if have else ""
                raise DataError(f"{archive.url}: {error}{kept}") from None
        time.sleep(min(0.2 * attempt, 1.0))


def _fetch_rest(archive: Archive, part: Path, on_progress: Progress | None, connect_s: float, stall_s: float) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have > archive.num_bytes:
        part.unlink()
        have = 0
    if have == archive.num_bytes:
        return
    with contextlib.closing(_open(archive, have, connect_s, stall_s)) as answer:
        have = _check_answer(archive, answer, have)
        with open(part, "r+b" if have else "wb") as file:
            file.seek(have)
            while have < archive.num_bytes:
                try:
                    # read1: what is there now, so that a slow line shows progress and keeps what came.
                    chunk = answer.read1(min(_CHUNK_BYTES, archive.num_bytes - have))
                except TimeoutError:
                    raise _InterruptedError(f"nothing arrived for {stall_s:g} s") from None
                except (OSError, http.client.HTTPException) as error:
                    raise _InterruptedError(f"the connection broke ({_reason(error)})") from None
                if not chunk:
                    raise _InterruptedError("the connection ended early")
                file.write(chunk)
                have += len(chunk)
                if on_progress:
                    on_progress(f"downloading {archive.name}", have, archive.num_bytes)


def _open(archive: Archive, have: int, connect_s: float, stall_s: float) -> Any:
    """The server's answer to a request for the bytes from `have` on.

    Asked for in a thread: looking up a name has no time limit of its own, and takes long where there is no network.
    """
    headers = {"User-Agent": "fastcifar", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(archive.url, headers=headers)
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    given_up = threading.Event()

    def ask() -> None:
        try:
            answer: Any = _opener().open(request, timeout=stall_s)
        except Exception as error:  # handed to the caller, whatever it is
            answer = error
        answers.put(answer)
        if given_up.is_set() and hasattr(answer, "close"):
            answer.close()

    threading.Thread(target=ask, daemon=True, name="fastcifar-download").start()
    try:
        answer = answers.get(timeout=connect_s)
    except queue.Empty:
        given_up.set()
        raise _InterruptedError(f"no answer in {connect_s:g} s") from None
    if isinstance(answer, urllib.error.HTTPError):
        with contextlib.closing(answer):
            if answer.code >= 500:
                raise _InterruptedError(f"the server answers {answer.code} ({quote(str(answer.reason))})")
            # urllib's words for a circle and for a way out of HTTP stand in the reason.
            reason = quote(" ".join(str(answer.reason).split()), 120)
            raise refuse(archive.url, f"the server answers {answer.code} ({reason})", "the archive")
    if isinstance(answer, OSError | http.client.HTTPException | ValueError):  # ValueError: a Location that is no URL
        raise _InterruptedError(f"no connection ({_reason(answer)})")
    if isinstance(answer, Exception):
        raise answer
    return answer


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS only, so that no redirect leads to a local file; proxies from the environment as usual."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", error)
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def _check_answer(archive: Archive, answer: Any, have: int) -> int:
    """Where in the file the answer's bytes belong: `have`, or 0 from a server that does not resume."""
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)", answer.headers.get("Content-Range", ""))
        if not found or int(found[1]) != have or found[2] not in ("*", str(archive.num_bytes)):
            offered = quote(answer.headers.get("Content-Range"))
            raise refuse(archive.url, f"the server sends {offered}", f"bytes {have}-/{archive.num_bytes}")
        return have
    if answer.status != 200:
        raise refuse(archive.url, f"the server answers {answer.status}", "200 or 206")
    length = answer.headers.get("Content-Length")
    if length is not None and length != str(archive.num_bytes):
        raise refuse(archive.url, f"the server has a file of {quote(length)} bytes", f"{archive.num_bytes:,}")
    return 0


def _check(archive: Archive, part: Path, wrong: Path, on_progress: Progress | None) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    done = 0
    with open(part, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            done += len(chunk)
            if on_progress:
                on_progress(f"checking {archive.name}", done, archive.num_bytes)
        os.fsync(file.fileno())
    if digest.hexdigest() != archive.md5:
        part.replace(wrong)
        found = f"the file that came has MD5 {digest.hexdigest()} and is kept as {wrong}"
        raise refuse(archive.url, found, f"MD5 {archive.md5}")
