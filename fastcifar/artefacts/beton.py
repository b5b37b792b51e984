"""FFCV's `.beton`, written in one pass and without FFCV.

A file holds, in order, little-endian (as `types.py`, `writer.py` and `memory_allocator.py` of FFCV 1.0.2 have it):

    header          24 bytes: version 2, fields, bytes a page, samples, where the allocation table is
    field table     1041 bytes a field: type, name, arguments (none here)
    metadata        32 bytes a sample: of the image its mode (1: raw), width, height and where it is; label; index
    zeros           up to a multiple of the page size
    pages           whole images one after the other, none across the end of a page, zeros after the last of a page
    allocations     24 bytes a sample: sample, where, bytes

FFCV's own writer fills pages by several processes, so that its bytes differ from run to run; with one process it
writes what is written here, to the byte. Everything but pixels and labels follows from the number and size of the
images, and is held against that when a file is read: nothing in it is trusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastcifar.artefacts.content import MAX_CHUNK_IMAGES, Block, Content
from fastcifar.artefacts.index import Part, file_names
from fastcifar.data.errors import quote, refuse
from fastcifar.data.files import CHUNK_BYTES, check_size, open_plain, read_at

PAGE_BYTES = 1 << 21  # the smallest that FFCV takes
_VERSION = 2
_HEADER = np.dtype(
    {
        "names": ["version", "num_fields", "page_size", "num_samples", "alloc_table_ptr"],
        "formats": ["<u2", "<u2", "<u4", "<u8", "<u8"],
        "offsets": [0, 2, 4, 8, 16],
        "itemsize": 24,
    }
)
_FIELD = np.dtype([("type_id", "u1"), ("name", "S16"), ("arguments", "V1024")])
_FIELDS = ((2, b"image"), (1, b"label"), (1, b"index"))  # RGBImageField, IntField, IntField
_RAW = 1
_SAMPLE = np.dtype(
    {
        "names": ["mode", "width", "height", "data_ptr", "label", "index"],
        "formats": ["u1", "<u2", "<u2", "<u8", "<i8", "<i8"],
        "offsets": [0, 1, 3, 5, 16, 24],
        "itemsize": 32,
    }
)
_ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_TABLES_BYTES = _HEADER.itemsize + len(_FIELDS) * _FIELD.itemsize


class _Layout:
    """Where everything is in the file of so many images of this size."""

    def __init__(self, count: int, height: int, width: int) -> None:
        self.count, self.height, self.width = count, height, width
        self.image_bytes = height * width * 3
        self.images_a_page = PAGE_BYTES // self.image_bytes
        self.num_pages = -(-count // self.images_a_page)
        tables_bytes = _TABLES_BYTES + count * _SAMPLE.itemsize
        self.first_page = -(-tables_bytes // PAGE_BYTES) * PAGE_BYTES
        self.zeros = self.first_page - tables_bytes
        self.allocations = self.first_page + self.num_pages * PAGE_BYTES
        self.file_bytes = self.allocations + count * _ALLOCATION.itemsize

    def tables(self) -> bytes:
        """Header and field table."""
        header = np.zeros((), _HEADER)
        header["version"], header["num_fields"] = _VERSION, len(_FIELDS)
        header["page_size"], header["num_samples"] = PAGE_BYTES, self.count
        header["alloc_table_ptr"] = self.allocations
        fields = np.zeros(len(_FIELDS), _FIELD)
        fields["type_id"], fields["name"] = zip(*_FIELDS, strict=True)
        return header.tobytes() + fields.tobytes()

    def pointers(self, first: int, last: int) -> np.ndarray:
        """Where images first to last - 1 begin: uint64 [m]."""
        pages_n, places_n = np.divmod(np.arange(first, last, dtype=np.uint64), np.uint64(self.images_a_page))
        return np.uint64(self.first_page) + pages_n * np.uint64(PAGE_BYTES) + places_n * np.uint64(self.image_bytes)

    def samples(self, first: int, last: int, labels_n: np.ndarray) -> np.ndarray:
        """Their metadata."""
        table = np.zeros(last - first, _SAMPLE)
        table["mode"], table["width"], table["height"] = _RAW, self.width, self.height
        table["data_ptr"] = self.pointers(first, last)
        table["label"], table["index"] = labels_n, np.arange(first, last)
        return table

    def table_of_allocations(self, first: int, last: int) -> np.ndarray:
        """Their rows in the allocation table."""
        table = np.zeros(last - first, _ALLOCATION)
        table["sample_id"], table["ptr"] = np.arange(first, last), self.pointers(first, last)
        table["size"] = self.image_bytes
        return table


def check_size_px(height: int, width: int) -> None:
    """`ValueError` where an image of this size does not fit a page."""
    if height * width * 3 > PAGE_BYTES:
        raise ValueError(f"image size: got {height}x{width}, takes for ffcv at most {PAGE_BYTES:,} bytes an image")


def blocks(content: Content, part: str) -> Iterator[Block]:
    """The bytes of a part's file, in order."""
    (name,) = file_names("ffcv", part)
    layout = _Layout(content.count, content.height, content.width)
    yield Block(name, [layout.tables()])
    for first, last in content.ranges(MAX_CHUNK_IMAGES):
        yield Block(name, [layout.samples(first, last, content.labels(first, last))])
    yield Block(name, [bytes(layout.zeros)])
    for first, last in content.ranges(layout.images_a_page):
        zeros = bytes(PAGE_BYTES - (last - first) * content.image_bytes)
        yield Block(name, [content.pixels(first, last), zeros], first, last)
    for first, last in content.ranges(MAX_CHUNK_IMAGES):
        yield Block(name, [layout.table_of_allocations(first, last)])


def chunks(folder: Path, part: Part) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images, uint8 [m, bytes an image], and labels, int64 [m], of a part, chunk by chunk."""
    labels_n = check(folder, part)
    path, layout = folder / part.files[0].name, _layout_of(folder, part)
    pages_each = max(1, CHUNK_BYTES // PAGE_BYTES)
    with open_plain(path) as file:
        for page in range(0, layout.num_pages, pages_each):
            num_pages = min(pages_each, layout.num_pages - page)
            data = read_at(file, path, layout.first_page + page * PAGE_BYTES, num_pages * PAGE_BYTES)
            first = page * layout.images_a_page
            last = min(first + num_pages * layout.images_a_page, part.count)
            used_bytes = layout.images_a_page * layout.image_bytes
            pages_pb = np.frombuffer(data, np.uint8).reshape(num_pages, PAGE_BYTES)[:, :used_bytes]
            yield pages_pb.reshape(-1, layout.image_bytes)[: last - first], labels_n[first:last]


def check(folder: Path, part: Part) -> np.ndarray:
    """The labels, int64 [n], of a file whose size, header and tables are right; reads no pixel.

    `DataError` names the first number that is wrong, with what was expected in its place.
    """
    path, layout = folder / part.files[0].name, _layout_of(folder, part)
    with open_plain(path) as file:
        _check_tables(path, bytes(read_at(file, path, 0, _TABLES_BYTES)), layout)
        check_size(file, path, layout.file_bytes)
        labels = []
        for first in range(0, part.count, MAX_CHUNK_IMAGES):
            last = min(first + MAX_CHUNK_IMAGES, part.count)
            offset = _TABLES_BYTES + first * _SAMPLE.itemsize
            samples = np.frombuffer(read_at(file, path, offset, (last - first) * _SAMPLE.itemsize), _SAMPLE)
            _check_rows(path, "image", samples, layout.samples(first, last, samples["label"]), first)
            labels.append(samples["label"].astype(np.int64))
            offset = layout.allocations + first * _ALLOCATION.itemsize
            rows = np.frombuffer(read_at(file, path, offset, (last - first) * _ALLOCATION.itemsize), _ALLOCATION)
            _check_rows(path, "allocation", rows, layout.table_of_allocations(first, last), first)
    return np.concatenate(labels)


def _layout_of(folder: Path, part: Part) -> _Layout:
    height, width = part.shape[:2]
    if height * width * 3 > PAGE_BYTES:
        found = f"its index says that images are {height}x{width}"
        raise refuse(folder / part.files[0].name, found, f"at most {PAGE_BYTES:,} bytes each")
    return _Layout(part.count, height, width)


def _check_tables(path: Path, found: bytes, layout: _Layout) -> None:
    expected = layout.tables()
    header, right = (np.frombuffer(data, _HEADER, 1)[0] for data in (found, expected))
    for name in _HEADER.names or ():
        if header[name] != right[name]:
            raise refuse(path, f"{name} is {header[name]}", str(right[name]))
    fields, right_fields = (
        np.frombuffer(data, _FIELD, len(_FIELDS), _HEADER.itemsize).tolist() for data in (found, expected)
    )
    for number, (field, wanted) in enumerate(zip(fields, right_fields, strict=True)):
        if field != wanted:
            shown = f"field {number} is {quote(field[1])} of type {field[0]}"
            raise refuse(path, shown, f"{quote(wanted[1])} of type {wanted[0]}, without arguments")


def _check_rows(path: Path, what: str, found: np.ndarray, expected: np.ndarray, first: int) -> None:
    for name in found.dtype.names or ():
        wrong_n = found[name] != expected[name]
        if wrong_n.any():
            row = int(wrong_n.argmax())
            raise refuse(path, f"{name} of {what} {first + row} is {found[name][row]}", str(expected[name][row]))
