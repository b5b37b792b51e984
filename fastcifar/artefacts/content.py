"""What a conversion writes: one part of a data set, chunk by chunk, and what is counted on the way."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from fastcifar.data import Split

MAX_CHUNK_IMAGES = 1 << 16
# 256 rows: their squares stay in the second-level cache, and sums of 256 squares of bytes fit 32 bits.
_ROWS_AT_ONCE = 256


def mean_and_std(num: int, total: int, squares: int) -> tuple[float, float]:
    """Mean and population standard deviation, on the scale 0 to 1, of bytes by their exact sum and sum of squares."""
    variance = Fraction(num * squares - total * total, (255 * num) ** 2)
    return float(Fraction(total, 255 * num)), math.sqrt(float(variance))


class Block(NamedTuple):
    """Bytes to append to a file of the artefact."""

    file: str
    data: Sequence[bytes | np.ndarray]
    """C-contiguous buffers, in order."""
    first: int = 0
    last: int = 0
    """The images first to last - 1 are in it; none where both are 0."""


class Content:
    """One part of a data set, to be written `copies` times over, as one larger part."""

    def __init__(self, split: Split, copies: int = 1) -> None:
        self._split = split
        self._pixels_nb = split.images_nhwc.reshape(len(split), -1)
        self.count = len(split) * copies
        self.height, self.width = split.images_nhwc.shape[1:3]
        self.image_bytes = self.height * self.width * 3
        self.class_names = split.class_names

    def pixels(self, first: int, last: int) -> np.ndarray:
        """Images first to last - 1: uint8 [m, bytes an image], C-contiguous; a view where no copy ends among them."""
        return self._rows(self._pixels_nb, first, last)

    def labels(self, first: int, last: int) -> np.ndarray:
        """Their labels: int64 [m]."""
        return self._rows(self._split.labels_n, first, last)

    def ranges(self, images_each: int) -> Iterator[tuple[int, int]]:
        """(first, last) of chunks of so many images that cover the part in order."""
        for first in range(0, self.count, images_each):
            yield first, min(first + images_each, self.count)

    def forget(self) -> None:
        """Let go of what a memory-mapped source holds in memory; it is read again where it is needed again."""
        images = self._split.images_nhwc
        # Read-only maps alone: another kind could hold changes that are nowhere else.
        if not isinstance(images, np.memmap) or images.mode != "r":
            return
        base = images.base
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)

    def _rows(self, rows: np.ndarray, first: int, last: int) -> np.ndarray:
        each = len(rows)
        pieces = []
        while first < last:
            start = first % each
            stop = min(start + last - first, each)
            pieces.append(rows[start:stop])
            first += stop - start
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class Summary:
    """Digest and label counts of a part, and the mean and deviation of its pixels, fed chunk by chunk in order."""

    def __init__(self, count: int, height: int, width: int, class_names: tuple[str, ...]) -> None:
        self._count = count
        self._sums_c = [0, 0, 0]
        self._squares_c = [0, 0, 0]
        self._num_pixels = 0
        self._labels: list[bytes] = []
        self.label_counts_n = np.zeros(len(class_names), np.int64)
        # As `Split.sha256` has it, so that the two can be compared.
        head = json.dumps({"shape": [count, height, width, 3], "class_names": list(class_names)})
        self._digest = hashlib.sha256(head.encode() + b"\n")

    def add(self, pixels_nb: np.ndarray, labels_n: np.ndarray, *, moments: bool) -> None:
        """Count these images, uint8 [m, bytes an image], and labels, int64 [m]; `moments`: mean and deviation too."""
        self._digest.update(pixels_nb.data)
        self._labels.append(labels_n.astype("<i8").tobytes())
        self.label_counts_n += np.bincount(labels_n, minlength=len(self.label_counts_n))
        if moments:
            self._add_moments(pixels_nb)

    def sha256(self) -> str:
        """`Split.sha256()` of the whole part. All images and labels must have been added."""
        digest = self._digest.copy()
        for labels in self._labels:
            digest.update(labels)
        return digest.hexdigest()

    def mean_std(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and population standard deviation by channel on the scale 0 to 1, from exact sums of integers."""
        sums = zip(self._sums_c, self._squares_c, strict=True)
        red, green, blue = (mean_and_std(self._num_pixels, total, squares) for total, squares in sums)
        return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])

    def _add_moments(self, pixels_nb: np.ndarray) -> None:
        for start in range(0, len(pixels_nb), _ROWS_AT_ONCE):
            rows = pixels_nb[start : start + _ROWS_AT_ONCE]
            sums_b = np.add.reduce(rows, axis=0, dtype=np.uint32)
            squares_b = np.add.reduce(np.multiply(rows, rows, dtype=np.uint16), axis=0, dtype=np.uint32)
            for channel in range(3):
                self._sums_c[channel] += int(sums_b[channel::3].sum(dtype=np.int64))
                self._squares_c[channel] += int(squares_b[channel::3].sum(dtype=np.int64))
        self._num_pixels += pixels_nb.size // 3
