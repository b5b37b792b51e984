"""One process at a time writes a folder."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastcifar.data.errors import DataError, quote, refuse


@contextmanager
def claimed(folder: Path, *, wait: bool) -> Iterator[None]:
    """While open, no other process that asks gets the same folder. The system ends the claim of one that dies.

    The lock is a file `.<name>.lock` beside the folder, gone afterwards. Where another process has it: waits for that
    one with `wait`, else `DataError` says which it is.
    """
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(lock, folder, wait)
    except OSError as error:
        raise refuse(folder, f"cannot be written ({error.strerror or error})", "a place that can be written") from None
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(lock: Path, folder: Path, wait: bool) -> int:
    try:
        import fcntl
    except ImportError:  # Windows: the last one to finish wins
        return os.open(lock, os.O_RDWR | os.O_CREAT)
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Its last holder may have removed the file while we waited: then others lock another one.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                    return descriptor
        except BlockingIOError:
            holder = quote(os.pread(descriptor, 80, 0)).strip("'") or "another process"
            os.close(descriptor)
            raise DataError(f"{folder}: {holder} is writing it; try again when that is done") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
