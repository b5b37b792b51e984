"""A plain pair of `.npy` files a part: images uint8 [n, h, w, 3] and labels int64 [n].

`np.load(name, mmap_mode="r")` reads them. The form: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
(version 1.0). The header is written here so that its bytes do not depend on NumPy's version.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastcifar.artefacts.content import MAX_CHUNK_IMAGES, Block, Content
from fastcifar.artefacts.index import Part, file_names
from fastcifar.data.errors import quote, refuse
from fastcifar.data.files import CHUNK_BYTES, check_size, open_plain, read_at


def blocks(content: Content, part: str) -> Iterator[Block]:
    """The bytes of a part's two files, in order."""
    images, labels = file_names("npy", part)
    shape = (content.count, content.height, content.width, 3)
    yield Block(images, [_header("|u1", shape)])
    for first, last in content.ranges(images_each(content.image_bytes)):
        yield Block(images, [content.pixels(first, last)], first, last)
    yield Block(labels, [_header("<i8", shape[:1])])
    for first, last in content.ranges(MAX_CHUNK_IMAGES):
        yield Block(labels, [content.labels(first, last).astype("<i8")])


def chunks(folder: Path, part: Part) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images, uint8 [m, bytes an image], and labels, int64 [m], of a part, chunk by chunk."""
    check(folder, part)
    labels_n = read_labels(folder, part)
    path, header_bytes = folder / part.files[0].name, len(_header("|u1", (part.count, *part.shape)))
    image_bytes = part.shape[0] * part.shape[1] * 3
    with open_plain(path) as file:
        step = images_each(image_bytes)
        for first in range(0, part.count, step):
            num = min(step, part.count - first)
            data = read_at(file, path, header_bytes + first * image_bytes, num * image_bytes)
            yield np.frombuffer(data, np.uint8).reshape(num, -1), labels_n[first : first + num]


def check(folder: Path, part: Part) -> None:
    """`DataError` unless both headers and both sizes are right; reads no pixel."""
    shape = (part.count, *part.shape)
    for file, kind, lengths, item_bytes in zip(part.files, ("|u1", "<i8"), (shape, shape[:1]), (1, 8), strict=True):
        path, header = folder / file.name, _header(kind, lengths)
        with open_plain(path) as opened:
            check_size(opened, path, len(header) + int(np.prod(lengths, dtype=object)) * item_bytes)
            found = bytes(read_at(opened, path, 0, len(header)))
        if found != header:
            raise refuse(path, f"the header is {quote(found[10:].strip())}", quote(header[10:].strip(), 90))


def read_labels(folder: Path, part: Part) -> np.ndarray:
    """int64 [n]."""
    path, header_bytes = folder / part.files[1].name, len(_header("<i8", (part.count,)))
    with open_plain(path) as file:
        return np.frombuffer(read_at(file, path, header_bytes, 8 * part.count), "<i8").astype(np.int64)


def map_images(folder: Path, part: Part) -> np.ndarray:
    """uint8 [n, h, w, 3], mapped to memory, read-only."""
    check(folder, part)
    shape = (part.count, *part.shape)
    return np.memmap(folder / part.files[0].name, np.uint8, "r", len(_header("|u1", shape)), shape)


def images_each(image_bytes: int) -> int:
    """How many images make a chunk."""
    return min(MAX_CHUNK_IMAGES, max(1, CHUNK_BYTES // image_bytes))


def _header(kind: str, shape: tuple[int, ...]) -> bytes:
    lengths = ", ".join(map(str, shape)) + "," * (len(shape) == 1)
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({lengths}), }}".encode()
    # Ends in a line feed and at a multiple of 64 bytes, as the form says.
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
