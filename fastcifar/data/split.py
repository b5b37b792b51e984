"""A data set in memory: pixels, labels, class names, and where they came from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from fastcifar.data.errors import DataError


@dataclass(frozen=True)
class Split:
    """One part of a data set. Checked when made: `DataError` on a wrong shape, dtype, layout or label."""

    images_nhwc: np.ndarray
    """uint8 [n, h, w, 3], C-contiguous, RGB."""
    labels_n: np.ndarray
    """int64 [n], each an index into `class_names`."""
    class_names: tuple[str, ...]
    dataset: str = "own"
    """"cifar10", "cifar100", "shapes10", or a user's own name."""
    part: str = "train"
    """"train" or "test"."""
    source: str = "memory"
    """Where it came from, for people: a path, or the name of a generator."""

    def __post_init__(self) -> None:
        images, labels = self.images_nhwc, self.labels_n
        where = f"{self.source} ({self.part})"
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3:] != (3,):
            found = f"images are {images.dtype} {list(images.shape)}"
            raise DataError(f"{where}: {found}; expected uint8 [n, height, width, 3]")
        if not images.flags.c_contiguous:
            raise DataError(f"{where}: images are not C-contiguous; expected uint8 [n, height, width, 3] in C order")
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            found = f"labels are {labels.dtype} {list(labels.shape)}"
            raise DataError(f"{where}: {found}; expected int64 [{len(images)}]")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.class_names):
            found = f"labels reach from {labels.min()} to {labels.max()}"
            raise DataError(f"{where}: {found}; expected 0 to {len(self.class_names) - 1}")

    def __len__(self) -> int:
        return len(self.images_nhwc)

    def sha256(self) -> str:
        """Hex digest of what a network can see of it: shape, class names, pixels and labels.

        SHA-256 over one line of ASCII JSON (shape and class names) and a line feed, then the pixels in C order,
        then the labels as little-endian int64. Name, part and source do not count.
        """
        head = json.dumps({"shape": list(self.images_nhwc.shape), "class_names": list(self.class_names)})
        digest = hashlib.sha256(head.encode() + b"\n")
        digest.update(self.images_nhwc.data)
        digest.update(np.ascontiguousarray(self.labels_n, "<i8").data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A training part and a test part of the same classes; `DataError` where they differ."""

    name: str
    train: Split
    test: Split

    def __post_init__(self) -> None:
        if self.train.class_names != self.test.class_names:
            raise DataError(f"{self.name}: the training and the test part have different class names")
        if self.train.images_nhwc.shape[1:] != self.test.images_nhwc.shape[1:]:
            found = f"training images are {list(self.train.images_nhwc.shape[1:])}"
            raise DataError(f"{self.name}: {found}, test images {list(self.test.images_nhwc.shape[1:])}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""
        return self.train.class_names

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.train.class_names)


def stratified_rows(labels_n: np.ndarray, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, int64, ascending, both with the classes' shares of the whole.

    `validation` is a share (under 1) or a count of the whole. A function of the labels and the seed alone.
    """
    num = round(validation * len(labels_n)) if validation < 1 else int(validation)
    if not 0 < num < len(labels_n):
        raise ValueError(f"data.validation: got {num} images, takes 1 to {len(labels_n) - 1}")
    # Each class's rows, shuffled, are spread evenly over 0..1: the first `num` of all hold every class's share.
    shuffled = np.random.default_rng(seed).permutation(len(labels_n))
    place = np.empty(len(labels_n))
    for label in np.unique(labels_n):
        rows = shuffled[labels_n[shuffled] == label]
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    order = np.argsort(place, kind="stable")
    return np.sort(order[num:]), np.sort(order[:num])
