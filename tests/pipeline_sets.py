"""Small data sets, and pipelines over them, for the tests of pipelines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcifar import artefacts, pipelines
from fastcifar.data import Dataset, Split
from fastcifar.kernels import Augmentation, Normalisation

HEIGHT, WIDTH, NUM_CLASSES = 12, 16, 7
RAW = Normalisation.identity()
FUSED = ("resident", "ffcv", "dali")
EVERYTHING = Augmentation(
    crop_padding=3,
    flip="alternating",
    cutout=4,
    cutmix=1.0,
    mixup=0.5,
    mix_probability=0.8,
    brightness=0.2,
    contrast=0.3,
)
"""For torchvision as well: each part is one that it knows."""


def random_split(num_images: int, seed: int, part: str = "train", size: tuple[int, int] = (HEIGHT, WIDTH)) -> Split:
    """Noise, of random classes."""
    generator = np.random.default_rng(seed)
    images_nhwc = generator.integers(0, 256, (num_images, *size, 3), dtype=np.uint8)
    names = tuple(f"class {i}" for i in range(NUM_CLASSES))
    return Split(images_nhwc, generator.integers(0, NUM_CLASSES, num_images), names, "noise", part, "a test")


def flat_split(num_images: int, part: str = "train") -> Split:
    """Images of one colour each, by which they can be told: image i has value 2 * i in every pixel."""
    images_nhwc = np.empty((num_images, HEIGHT, WIDTH, 3), dtype=np.uint8)
    images_nhwc[:] = 2 * np.arange(num_images)[:, None, None, None]
    names = tuple(f"class {i}" for i in range(num_images))
    return Split(images_nhwc, np.arange(num_images), names, "flat", part, "a test")


class Sets:
    """A data set in every format, converted when first asked for."""

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self._folder = folder
        self.dataset = dataset

    def artefact(self, name: str) -> Path:
        """Folder of the artefact that pipeline `name` reads."""
        wanted = pipelines.needs(name)
        path = self._folder / wanted
        return path if path.exists() else artefacts.convert(self.dataset, wanted, path)

    def open(self, name: str, **told: Any) -> pipelines.Pipeline:
        """The pipeline over its artefact, or a skip that says why there is none."""
        reason = pipelines.available(name)
        if reason is not None:
            pytest.skip(reason)
        return pipelines.open(self.artefact(name), name, **{"batch_size": 20, "normalisation": RAW, **told})


def pixels(images: torch.Tensor) -> np.ndarray:
    """uint8 [n, h, w, 3] of images on the scale 0..1; fails where a value is no pixel's."""
    scaled = images.float().permute(0, 2, 3, 1).numpy() * 255
    whole = np.rint(scaled)
    np.testing.assert_allclose(scaled, whole, atol=1e-3)
    return whole.astype(np.uint8)


def values(batch: pipelines.Batch) -> tuple[np.ndarray | None, ...]:
    """All that a batch holds, as copies that outlive it, images by their bits."""
    images = batch.images.permute(0, 2, 3, 1).contiguous()
    rest = (batch.labels, batch.mix_labels, batch.mix_weights, batch.indices)
    copied = [None if tensor is None else tensor.numpy().copy() for tensor in rest]
    return (images.view(torch.uint8).numpy().copy(), *copied)


def assert_same(got: list[tuple[np.ndarray | None, ...]], expected: list[tuple[np.ndarray | None, ...]]) -> None:
    """Both hold the same batches, bit for bit."""
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
