"""Reading files that may be damaged: plain files only, whole or not at all, one clear error otherwise."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from fastcifar.data.errors import refuse

CHUNK_BYTES = 1 << 21
"""What is read, hashed or written at once: large enough for the disk, small enough for the cache."""


def open_plain(path: Path, expected: str = "a file of an artefact") -> BinaryIO:
    """The file, for reading. `DataError` where it is missing, unreadable, or a pipe or a device, which could block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise refuse(path, f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refuse(path, "is no plain file", expected)
    return os.fdopen(descriptor, "rb", buffering=0)


def size_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def check_size(file: BinaryIO, path: Path, num_bytes: int) -> None:
    """`DataError` unless the open file has this many bytes."""
    found = size_of(file)
    if found != num_bytes:
        raise refuse(path, f"has {found:,} bytes", f"{num_bytes:,}")


def read_at(file: BinaryIO, path: Path, offset: int, num_bytes: int) -> bytearray:
    """Exactly these bytes of a file; `DataError` where it ends early."""
    data = bytearray(num_bytes)
    view = memoryview(data)
    file.seek(offset)
    done = 0
    while done < num_bytes:
        try:
            count = file.readinto(view[done:])  # type: ignore[attr-defined]
        except OSError as error:
            raise refuse(path, f"cannot be read ({error.strerror})") from None
        if not count:
            raise refuse(path, f"ends at byte {offset + done:,}", f"{offset + num_bytes:,} bytes at least")
        done += count
    return data


def sha256(path: Path, expected: str = "a file of an artefact") -> str:
    """Hex digest of a file's bytes; `expected` as for `open_plain`."""
    digest = hashlib.sha256()
    with open_plain(path, expected) as file:
        left = size_of(file)
        while left:
            chunk = read_at(file, path, file.tell(), min(left, CHUNK_BYTES))
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()
