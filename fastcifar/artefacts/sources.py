"""What a user may name as the source of a conversion: a data set on disk or by its name, or another artefact."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from fastcifar import data
from fastcifar.artefacts.cache import Source, is_whole
from fastcifar.artefacts.index import NAME, PARTS, Index, read_index
from fastcifar.artefacts.reading import read
from fastcifar.data.download import Progress
from fastcifar.data.errors import refuse
from fastcifar.data.locate import DATASETS

_NAMES = tuple(name for name in DATASETS if name != "auto")


@dataclass(frozen=True)
class ArtefactSource:
    """An artefact as a source, with the interface of `fastcifar.data.Source`."""

    index: Index
    note = ""

    @property
    def dataset(self) -> str:
        """The set's name."""
        return self.index.dataset

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.index.path

    def fingerprint(self) -> str:
        """That of the data it was made from, or else one of its pixels and labels."""
        pixels = "".join(self.index.part(part).pixel_sha256 for part in PARTS)
        return self.index.fingerprint or hashlib.sha256(pixels.encode()).hexdigest()

    def load(self) -> data.Dataset:
        """Both parts; of npy, the images are mapped to memory. `DataError` where a file is not as it was written.

        What is made of it takes its fingerprint over, and new hashes would call right what is wrong.
        """
        if not is_whole(self.index):
            raise refuse(self.path, "is damaged", "files as they were written; `fastcifar verify` says which are")
        train, test = (read(self.index.path, part) for part in PARTS)
        return data.Dataset(self.index.dataset, train, test)


def find(
    place: Path | None, dataset: str = "auto", *, download: bool = False, on_progress: Progress | None = None
) -> Source:
    """The source at `place`: an artefact, or what `fastcifar.data.locate` finds there; `place` may be a set's name.

    `DataError` where there is none, or it is of another set than `dataset`; `ValueError` for an unknown `dataset`.
    """
    if place is not None and not os.path.exists(place):
        if str(place) not in _NAMES:
            raise refuse(place, "is not there", f"a CIFAR folder, its .tar.gz, an artefact, or {', '.join(_NAMES)}")
        if dataset not in ("auto", str(place)):
            raise ValueError(f"--dataset: got {dataset}, takes {place}, which is what is to be found")
        place, dataset = None, str(place)
    return locate(dataset, place, download=download, on_progress=on_progress)


def artefact_at(place: Path) -> ArtefactSource | None:
    """The artefact that a folder is; None where it is none."""
    return ArtefactSource(read_index(place)) if os.path.isfile(place / NAME) else None


def locate(dataset: str, place: Path | None, *, download: bool = True, on_progress: Progress | None = None) -> Source:
    """What `fastcifar.data.locate` finds, or the artefact at `place`. Errors as of `find`."""
    source = None if place is None else artefact_at(place)
    if place is None or source is None:
        return data.locate(dataset, place, download=download, on_progress=on_progress)
    # A cut-down set is asked for by the name of the whole one.
    if dataset not in ("auto", source.dataset.removesuffix("-small")):
        raise refuse(place, f"is an artefact of {source.dataset}", f"one of {dataset}")
    return source
