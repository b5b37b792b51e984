"""Artefacts of found data sets, made once and kept in the user's cache."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Protocol

from fastcifar.artefacts import conversion
from fastcifar.artefacts.formats import module_of
from fastcifar.artefacts.index import NAME, Index, read_index
from fastcifar.claims import claimed
from fastcifar.data import DataError, Dataset, cache_dir, files


class Source(Protocol):
    """A data set that was found and is not yet read: `fastcifar.data.Source`, or an artefact as one."""

    @property
    def dataset(self) -> str:
        """The set's name."""

    @property
    def path(self) -> Path | None:
        """Where it is; None where it is drawn."""

    @property
    def note(self) -> str:
        """Why it is the stand-in; empty where it is what was asked for."""

    def fingerprint(self) -> str:
        """Hex digest that changes with the data."""

    def load(self) -> Dataset:
        """All of it, in memory."""


def cached(source: Source, to: str, on_progress: conversion.Progress | None = None) -> Path:
    """The folder of `source`'s artefact of format `to`, in `cache_dir()`; converted first where need be.

    An artefact of other data, of another version, or damaged is made anew. Damage is looked for in sizes and times of
    change; the files are hashed only where a time is not as the conversion left it. (`verify` always hashes.) Where
    another process is converting to the same folder, waits and takes what that one made. Errors as of `convert`.
    """
    fingerprint = source.fingerprint()
    dest = conversion.real_path(cache_dir() / "artefacts" / f"{source.dataset}-{fingerprint[:16]}-{to}")
    if is_current(dest, to, fingerprint):
        return dest
    module_of(to)
    with claimed(dest, wait=True):
        if not is_current(dest, to, fingerprint):
            conversion.write(source.load(), to, dest, fingerprint=fingerprint, on_progress=on_progress)
    return dest


def is_current(path: Path, to: str, fingerprint: str) -> bool:
    """Whether the folder `path` holds an undamaged artefact of format `to` of the data with this fingerprint."""
    try:
        index = read_index(path)
        return (index.format, index.fingerprint) == (to, fingerprint) and is_whole(index)
    except DataError:
        return False


def is_whole(index: Index) -> bool:
    """Whether an artefact's files are those that its index was written with, by sizes and times, or else by hashes."""
    found = {}
    for file in index.files:
        try:
            found[file] = (index.path / file.name).stat()
        except OSError:
            return False
    if any(stat.st_size != file.bytes for file, stat in found.items()):
        return False
    written_ns = (index.path / NAME).stat().st_mtime_ns
    if all(stat.st_mtime_ns == written_ns for stat in found.values()):
        return True
    if any(files.sha256(index.path / file.name) != file.sha256 for file in index.files):
        return False
    with contextlib.suppress(OSError):  # another user's: hashed again next time
        conversion.settle_times(index)
    return True
