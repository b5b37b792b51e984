"""Small data sets for the tests of artefacts, and the bytes of what is written for them."""

import hashlib
from pathlib import Path

import numpy as np

from fastcifar.data import Dataset, Split

FORMATS = ("npy", "ffcv", "dali")


def made_split(part: str, count: int, size: tuple[int, int] = (32, 32), num_classes: int = 10, seed: int = 0) -> Split:
    """Noise with random labels; the same on every machine, as it does not depend on NumPy's generators."""
    height, width = size
    total = count * height * width * 3 + count * 8
    stream = hashlib.shake_256(f"{part} {seed}".encode()).digest(total)
    labels_n = np.frombuffer(stream[: count * 8], "<u8") % np.uint64(num_classes)
    images_nhwc = np.frombuffer(stream[count * 8 :], np.uint8).reshape(count, height, width, 3)
    names = tuple(f"class {label}" for label in range(num_classes))
    return Split(images_nhwc, labels_n.astype(np.int64), names, "noise", part, "made for a test")


def made_dataset(
    num_train: int = 200, num_test: int = 40, size: tuple[int, int] = (32, 32), num_classes: int = 10, seed: int = 0
) -> Dataset:
    """Two parts of noise."""
    parts = (made_split(part, n, size, num_classes, seed) for part, n in (("train", num_train), ("test", num_test)))
    return Dataset("noise", *parts)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of an artefact."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
