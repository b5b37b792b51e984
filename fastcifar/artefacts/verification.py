"""Whether an artefact is what its index says: every byte, then every pixel and label."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastcifar.artefacts.content import Summary
from fastcifar.artefacts.index import NAME, PARTS, File, Index, read_index
from fastcifar.artefacts.reading import chunks
from fastcifar.data import DataError, Dataset, Split, files


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    """What was checked, such as "sha256 of train.beton"."""
    passed: bool
    detail: str
    """What was found; for a failed check, what was expected too."""


def verify(path: str | Path, against: Dataset | None = None) -> list[Finding]:
    """Checks an artefact (its folder, or any file in it): hashes, then pixels and labels, each with those of `against`.

    Goes on after a failed check where it can. Any change of any byte of any file fails a check. Memory is flat. Raises
    nothing for a bad artefact.
    """
    try:
        index = read_index(path)
    except DataError as error:
        return [Finding(NAME, False, str(error))]
    findings = [Finding(NAME, True, f"{index.dataset} as {index.format}, {len(index.class_names)} classes")]
    if against is not None:
        names = ", ".join(against.class_names)
        findings.append(_finding("class names against their source", ", ".join(index.class_names), names))
    with ThreadPoolExecutor(2) as pool:
        findings += pool.map(lambda file: _check_file(index, file), index.files)
        for of_part in pool.map(lambda part: _check_part(index, part, against), PARTS):
            findings += of_part
    return findings


def _finding(check: str, found: object, expected: object, passed_detail: str = "") -> Finding:
    passed = found == expected
    return Finding(check, passed, passed_detail or str(found) if passed else f"{found}; expected {expected}")


def _check_file(index: Index, file: File) -> Finding:
    path, name = index.path / file.name, f"sha256 of {file.name}"
    try:
        with files.open_plain(path) as opened:
            files.check_size(opened, path, file.bytes)
        return _finding(name, files.sha256(path), file.sha256)
    except DataError as error:
        return Finding(name, False, str(error))


def _check_part(index: Index, part: str, against: Dataset | None) -> list[Finding]:
    wanted = index.part(part)
    source = None if against is None else against.train if part == "train" else against.test
    comparable = source is not None and source.images_nhwc.shape == (wanted.count, *wanted.shape)
    comparison = _Comparison(source) if source is not None and comparable else None
    summary = Summary(wanted.count, *wanted.shape[:2], index.class_names)
    try:
        first = 0
        for pixels_nb, labels_n in chunks(index, part):
            summary.add(pixels_nb, labels_n, moments=part == "train")
            if comparison:
                comparison.add(first, pixels_nb, labels_n)
            first += len(labels_n)
    except DataError as error:
        return [Finding(f"pixels and labels of {part}", False, str(error))]
    label_counts = tuple(summary.label_counts_n.tolist())
    findings = [
        _finding(f"pixels and labels of {part}", summary.sha256(), wanted.pixel_sha256),
        _finding(f"label counts of {part}", label_counts, wanted.label_counts, f"{wanted.count:,} images"),
    ]
    if part == "train":
        mean, std = summary.mean_std()
        written = f"mean {index.mean}, std {index.std}"
        findings.append(_finding("mean and std of train", f"mean {mean}, std {std}", written))
    if source is not None:
        shapes = (wanted.count, *wanted.shape), source.images_nhwc.shape
        findings.append(comparison.finding(part) if comparison else _finding(f"{part} against its source", *shapes))
    return findings


class _Comparison:
    """Image by image with the source."""

    def __init__(self, source: Split) -> None:
        self._source = source
        self._num_different = 0
        self._first_different = 0

    def add(self, first: int, pixels_nb: np.ndarray, labels_n: np.ndarray) -> None:
        rows = slice(first, first + len(labels_n))
        source_nb = self._source.images_nhwc[rows].reshape(len(labels_n), -1)
        different_n = (pixels_nb != source_nb).any(axis=1) | (labels_n != self._source.labels_n[rows])
        if not self._num_different and different_n.any():
            self._first_different = first + int(different_n.argmax())
        self._num_different += int(different_n.sum())

    def finding(self, part: str) -> Finding:
        name, num = f"{part} against its source", len(self._source)
        if not self._num_different:
            return Finding(name, True, f"{num:,} images and labels are those of {self._source.source}")
        found = f"{self._num_different:,} of {num:,} images or labels differ, the first at {self._first_different}"
        return Finding(name, False, f"{found}; expected those of {self._source.source}")
