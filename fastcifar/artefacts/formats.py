"""The formats by name: each module writes a part (`blocks`), reads it (`chunks`) and looks at its tables (`check`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastcifar.artefacts.content import Block, Content
from fastcifar.artefacts.index import FILE_SUFFIXES, Part

FORMATS = tuple(FILE_SUFFIXES)


class Format(Protocol):
    """What a format's module has."""

    def blocks(self, content: Content, part: str) -> Iterator[Block]:
        """The bytes of a part's files, in order; a file is begun when the one before it is whole."""

    def chunks(self, folder: Path, part: Part) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images, uint8 [m, bytes an image], and labels, int64 [m], of a part in order; `DataError` where damaged."""

    def check(self, folder: Path, part: Part) -> Any:
        """`DataError` unless sizes, headers and tables are right; reads no pixel."""


def module_of(name: str) -> Format:
    """The module of a format; `ValueError` where there is no such format."""
    if name == "npy":
        from fastcifar.artefacts import npy

        return npy
    if name == "ffcv":
        from fastcifar.artefacts import beton

        return beton
    if name == "dali":
        from fastcifar.artefacts import tfrecord

        return tfrecord
    raise ValueError(f"format: got {name!r}, takes one of {', '.join(FORMATS)}")
