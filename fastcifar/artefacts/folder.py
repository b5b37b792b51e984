"""Folders that come into being whole or not at all, each written by one process at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastcifar.artefacts.index import FILE_SUFFIXES, NAME, PARTS, file_names
from fastcifar.data.errors import DataError, quote, refuse

_OUR_NAMES = {NAME} | {name for kind in FILE_SUFFIXES for part in PARTS for name in file_names(kind, part)}


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
        raise refuse(lock, f"cannot be written ({error.strerror or error})", "a place for an artefact") from None
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


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into; it takes its place at the end, and is gone where anything goes wrong.

    To be used under `claimed`. What an interrupted process left is cleared away first. The new folder's files must have
    been flushed to the disk. `DataError` where `folder` holds what no artefact does, and so is not ours to replace.
    """
    new, old = (folder.with_name(f".{folder.name}.{what}") for what in ("partial", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)  # it was about to be replaced when its process died
    for stale in (new, old):
        if stale.exists():
            shutil.rmtree(stale)
    check_replaceable(folder)
    new.mkdir()
    try:
        yield new
        _flush(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """`DataError` unless the folder is not there, is empty, or holds nothing but files of an artefact."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise refuse(folder, "is a file", "a folder, or a new name")
    strangers = sorted(set(os.listdir(folder)) - _OUR_NAMES)
    if strangers:
        raise refuse(folder, f"holds {quote(strangers[0])}", "an artefact to replace, an empty folder or a new name")


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
