"""`index.json`: what an artefact says of itself, and the reading of it.

The file is JSON in one fixed form that ends in its own SHA-256, so that any change of it is noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.data.errors import quote, refuse
from fastcifar.data.files import open_plain

VERSION = 1
"""Of the files' layout and of `index.json`; raised with every change of either."""
NAME = "index.json"
PARTS = ("train", "test")
FILE_SUFFIXES = {
    "ffcv": (".beton",),
    "dali": (".tfrecord", ".idx"),
    "npy": (".images.npy", ".labels.npy"),
}
"""By format, what each part's files are called after "train" and "test"."""
MAX_SIDE_PX = 0xFFFF  # FFCV keeps sides in 16 bits
_MAX_INDEX_BYTES = 1 << 24
_MAX_COUNT = 1 << 48


@dataclass(frozen=True)
class File:
    """A file of an artefact."""

    name: str
    bytes: int
    sha256: str
    """Hex digest of the file's bytes."""


@dataclass(frozen=True)
class Part:
    """The training part or the test part."""

    count: int
    """Images."""
    shape: tuple[int, int, int]
    """Height and width in pixels, and 3."""
    pixel_sha256: str
    """`Split.sha256()`: of shape, class names, pixels and labels, whatever the format."""
    label_counts: tuple[int, ...]
    """Images of each class."""
    files: tuple[File, ...]


@dataclass(frozen=True)
class Index:
    """What an artefact says of itself."""

    path: Path
    """The artefact's folder."""
    format: str
    """"ffcv", "dali" or "npy"."""
    dataset: str
    class_names: tuple[str, ...]
    source: str
    """What the data came from, for people: the name of a folder or an archive, without where it lay."""
    fingerprint: str
    """Of the source (`Source.fingerprint()`); empty where it is not known."""
    tool: str
    """What wrote it, with its version."""
    mean: tuple[float, float, float]
    """Of the training part's pixels, by channel, on the scale 0 to 1."""
    std: tuple[float, float, float]
    """Standard deviation (of the population), as `mean`."""
    train: Part
    test: Part

    def part(self, name: str) -> Part:
        """The part called "train" or "test"; `ValueError` for another name."""
        if name not in PARTS:
            raise ValueError(f"part: got {name!r}, takes one of {', '.join(PARTS)}")
        return self.train if name == "train" else self.test

    @property
    def pixels_sha256(self) -> str:
        """Of both parts' pixels and labels: the same in every format."""
        return hashlib.sha256((self.train.pixel_sha256 + self.test.pixel_sha256).encode()).hexdigest()

    @property
    def files(self) -> tuple[File, ...]:
        """The files of both parts."""
        return self.train.files + self.test.files

    def to_json(self) -> dict[str, Any]:
        """What `index.json` holds, but for its own digest."""
        return {
            "format": self.format,
            "version": VERSION,
            "tool": self.tool,
            "dataset": self.dataset,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "class_names": list(self.class_names),
            "mean": list(self.mean),
            "std": list(self.std),
            **{name: _part_to_json(self.part(name)) for name in PARTS},
        }


def file_names(format_name: str, part: str) -> tuple[str, ...]:
    """Names of a part's files in an artefact of this format."""
    return tuple(part + suffix for suffix in FILE_SUFFIXES[format_name])


def dumps(index: Index) -> bytes:
    """The bytes of `index.json`."""
    content = index.to_json()
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1).encode() + b"\n"


def has_index(path: str | Path) -> bool:
    """Whether there is an `index.json` in the folder, or beside the file, `path`."""
    return os.path.exists(_folder_of(path) / NAME)


def read_index(path: str | Path) -> Index:
    """Reads and checks the `index.json` of an artefact: its folder, or any file in it.

    `DataError` where there is none, where it was changed or cut off, or where another version wrote it.
    """
    if not os.path.exists(path):
        raise refuse(path, "is not there", "the folder of an artefact")
    folder = _folder_of(path)
    where = folder / NAME
    if not os.path.exists(where):
        raise refuse(folder, f"holds no {NAME}", "an artefact that `fastcifar convert` wrote")
    with open_plain(where) as file:
        data = file.read(_MAX_INDEX_BYTES + 1)
    if len(data) > _MAX_INDEX_BYTES:
        raise refuse(where, f"has more than {_MAX_INDEX_BYTES:,} bytes", "less")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise refuse(where, "is no JSON", "what `fastcifar convert` wrote") from None
    index = _Parser(where).index(content, folder)
    if dumps(index) != data:
        raise refuse(where, "was changed after it was written", "it as it was, or a new conversion")
    return index


def _folder_of(path: str | Path) -> Path:
    return Path(path) if os.path.isdir(path) else Path(path).parent


def _part_to_json(part: Part) -> dict[str, Any]:
    return {
        "count": part.count,
        "shape": list(part.shape),
        "pixel_sha256": part.pixel_sha256,
        "label_counts": list(part.label_counts),
        "files": [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in part.files],
    }


class _Parser:
    """From JSON that may hold anything to an `Index`; `DataError` names the first key that is wrong."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def index(self, content: Any, folder: Path) -> Index:
        keys = ("format", "version", "tool", "dataset", "source", "fingerprint", "class_names", "mean", "std")
        if isinstance(content, dict) and content.get("version") != VERSION:
            raise refuse(self.where, f"version is {quote(content.get('version'))}", f"{VERSION}; convert again")
        self._keys("it", content, (*keys, *PARTS, "sha256"))
        format_name = self._text("format", content["format"])
        if format_name not in FILE_SUFFIXES:
            raise refuse(self.where, f"format is {quote(format_name)}", " or ".join(FILE_SUFFIXES))
        class_names = tuple(self._text("class_names", name) for name in self._list("class_names", content))
        parts = {name: self._part(name, content[name], format_name, len(class_names)) for name in PARTS}
        if parts["train"].shape != parts["test"].shape:
            found = f"shape is {list(parts['train'].shape)} in train and {list(parts['test'].shape)} in test"
            raise refuse(self.where, found, "the same in both")
        return Index(
            folder,
            format_name,
            self._text("dataset", content["dataset"]),
            class_names,
            self._text("source", content["source"]),
            self._text("fingerprint", content["fingerprint"]),
            self._text("tool", content["tool"]),
            self._three("mean", content),
            self._three("std", content),
            parts["train"],
            parts["test"],
        )

    def _part(self, name: str, content: Any, format_name: str, num_classes: int) -> Part:
        self._keys(name, content, ("count", "shape", "pixel_sha256", "label_counts", "files"))
        count = self._count(f"{name}.count", content["count"], 1, _MAX_COUNT)
        shape = self._list("shape", content, 3)
        height, width = (self._count(f"{name}.shape", side, 1, MAX_SIDE_PX) for side in shape[:2])
        self._count(f"{name}.shape", shape[2], 3, 3)
        counts = self._list("label_counts", content, num_classes)
        label_counts = tuple(self._count(f"{name}.label_counts", value, 0, count) for value in counts)
        if sum(label_counts) != count:
            raise refuse(self.where, f"{name}.label_counts add up to {sum(label_counts):,}", f"{count:,}")
        expected = file_names(format_name, name)
        files = tuple(self._file(name, file) for file in self._list("files", content, len(expected)))
        if tuple(file.name for file in files) != expected:
            found = quote(", ".join(file.name for file in files))
            raise refuse(self.where, f"{name}.files are {found}", ", ".join(expected))
        pixel_sha256 = self._digest(f"{name}.pixel_sha256", content["pixel_sha256"])
        return Part(count, (height, width, 3), pixel_sha256, label_counts, files)

    def _file(self, part: str, content: Any) -> File:
        self._keys(f"{part}.files", content, ("name", "bytes", "sha256"))
        num_bytes = self._count(f"{part}.files.bytes", content["bytes"], 0, _MAX_COUNT)
        name = self._text(f"{part}.files.name", content["name"])
        return File(name, num_bytes, self._digest(f"{part}.files.sha256", content["sha256"]))

    def _keys(self, what: str, content: Any, keys: tuple[str, ...]) -> None:
        if not isinstance(content, dict):
            raise refuse(self.where, f"{what} is {quote(content)}", "an object")
        if set(content) != set(keys):
            odd = sorted(set(keys) ^ set(content))
            verb = "lacks" if odd[0] in keys else "holds"
            raise refuse(self.where, f"{what} {verb} {quote(odd[0])}", ", ".join(keys))

    def _list(self, key: str, content: dict[str, Any], length: int | None = None) -> list[Any]:
        value = content[key]
        if not isinstance(value, list) or (length is not None and len(value) != length) or not value:
            found = f"{len(value)} values" if isinstance(value, list) else quote(value)
            raise refuse(self.where, f"{key} is {found}", f"a list of {length}" if length else "a list")
        return value

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            raise refuse(self.where, f"{key} is {quote(value)}", "text")
        return value

    def _count(self, key: str, value: Any, least: int, most: int) -> int:
        if type(value) is not int or not least <= value <= most:
            raise refuse(self.where, f"{key} is {quote(value)}", f"a whole number from {least} to {most:,}")
        return value

    def _digest(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
            raise refuse(self.where, f"{key} is {quote(value)}", "64 hexadecimal digits")
        return value

    def _three(self, key: str, content: dict[str, Any]) -> tuple[float, float, float]:
        values = self._list(key, content, 3)
        if not all(type(value) is float and math.isfinite(value) and 0 <= value <= 1 for value in values):
            raise refuse(self.where, f"{key} is not three numbers", "numbers from 0 to 1, such as 0.5")
        red, green, blue = values
        return red, green, blue
