"""Folders that come into being whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastcifar.artefacts.index import FILE_SUFFIXES, NAME, PARTS, file_names
from fastcifar.data.errors import quote, refuse

_OUR_NAMES = {NAME} | {name for kind in FILE_SUFFIXES for part in PARTS for name in file_names(kind, part)}


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into; it takes its place at the end, and is gone where anything goes wrong.

    To be used under `claims.claimed`. What an interrupted process left is cleared away first. The new folder's files
    must have been flushed to the disk. `DataError` where `folder` holds what no artefact does, and so is not ours to
    replace.
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
