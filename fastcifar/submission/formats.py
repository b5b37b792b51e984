"""The two submission formats: written whole or not at all, and checked line by line.

ID,Labels   integer ids, counted from 0 where the input has none; the class as an integer from 0
id,label    integer ids, counted from 1 where the input has none; the class by its name, of ten
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Format:
    """One way to write a submission."""

    first_id: int
    """The lowest id, and the first where ids are counted."""
    by_name: bool
    """Whether classes are written as names, else as integers."""


FORMATS = {"ID,Labels": Format(0, False), "id,label": Format(1, True)}
NUM_NAMED_CLASSES = 10
"""Classes that `id,label` has names for."""


def check_classes(format: str, class_names: Sequence[str]) -> None:
    """`ValueError` where a format cannot name the classes."""
    if FORMATS[format].by_name and len(class_names) != NUM_NAMED_CLASSES:
        raise ValueError(f"--format {format}: got a run of {len(class_names)} classes, takes {NUM_NAMED_CLASSES}")


def ids_for(format: str, ids_n: np.ndarray | None, num: int) -> np.ndarray:
    """The ids to write, int64 [num]: the input's own, or counted. `ValueError` for one below the format's first."""
    first = FORMATS[format].first_id
    if ids_n is None:
        return np.arange(first, first + num, dtype=np.int64)
    if len(ids_n) and int(ids_n.min()) < first:
        raise ValueError(f"ids: got {ids_n.min()}, --format {format} takes whole numbers from {first}")
    return ids_n


def write(path: Path, format: str, ids_n: np.ndarray, labels_n: np.ndarray, class_names: Sequence[str]) -> None:
    """Write one row an image, in order, and check what was written by `check_submission`."""
    from fastcifar.atomic import write_atomically

    if len(ids_n) != len(labels_n):
        raise ValueError(f"ids: got {len(ids_n):,} for {len(labels_n):,} predictions")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(format.split(","))
    for number, label in zip(ids_n.tolist(), labels_n.tolist(), strict=True):
        writer.writerow((number, class_names[label] if FORMATS[format].by_name else label))
    write_atomically(path, text.getvalue().encode("utf-8"))
    check_submission(path, class_names, format=format, ids_n=ids_n)


def check_submission(
    path: Path, class_names: Sequence[str], *, format: str | None = None, ids_n: np.ndarray | None = None
) -> str:
    """The format of a submission file that keeps all of its rules.

    The header; two cells a row; ids that are whole numbers, not below the format's first, none twice; classes that
    there are; and, where they are given, the `format` and the ids, all of them in their order. `ValueError` names the
    line, what was found and what was expected.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not text: {error}") from None
    lines = text.split("\n")
    if lines.pop() != "":
        raise ValueError(f"{path}: the last line does not end, expected a line feed")
    header = lines[0] if lines else ""
    expected = [format] if format is not None else list(FORMATS)
    if header not in expected:
        raise ValueError(f"{path}:1: got {header[:60]!r}, expected {' or '.join(expected)}")
    rules = FORMATS[header]
    check_classes(header, class_names)
    labels = set(class_names) if rules.by_name else {str(label) for label in range(len(class_names))}
    takes = ", ".join(class_names) if rules.by_name else f"0 to {len(class_names) - 1}"
    if len(lines) == 1:
        raise ValueError(f"{path}: holds no rows, expected one an image")
    if ids_n is not None and len(lines) - 1 != len(ids_n):
        raise ValueError(f"{path}: holds {len(lines) - 1:,} rows, expected {len(ids_n):,}")
    seen: dict[int, int] = {}
    for place, line in enumerate(lines[1:]):
        where = f"{path}:{place + 2}"
        cells = next(csv.reader([line]), [])
        if len(cells) != 2:
            raise ValueError(f"{where}: got {len(cells)} cells, expected {header}")
        number = _whole(cells[0])
        if number is None or number < rules.first_id:
            raise ValueError(f"{where}: id {cells[0][:60]!r}, expected a whole number from {rules.first_id}")
        if number in seen:
            raise ValueError(f"{where}: id {number} is on line {seen[number]} already, expected each once")
        if ids_n is not None and number != ids_n[place]:
            raise ValueError(f"{where}: id {number}, expected {ids_n[place]}")
        if cells[1] not in labels:
            raise ValueError(f"{where}: class {cells[1][:60]!r}, expected {takes}")
        seen[number] = place + 2
    return header


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and text == (text.lstrip("0") or "0") else None
