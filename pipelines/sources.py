"""What a pipeline reads: an artefact on disk, or arrays in memory."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fastcifar import artefacts
from fastcifar.artefacts.content import mean_and_std
from fastcifar.data import DataError, Split
from fastcifar.kernels import Normalisation
from fastcifar.pipelines import needs

IN_MEMORY = ("resident", "torchvision")
"""Pipelines that take arrays."""
_ROWS_AT_ONCE = 1 << 12


class PartReader(Protocol):
    """One part of a data set, to be read."""

    num_images: int
    size: tuple[int, int]
    """Height and width in pixels."""
    num_classes: int

    def normalisation(self) -> Normalisation:
        """The one to use where the user gives none."""

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [n, h, w, 3] in memory and int64 [n]."""

    def file(self, suffix: str) -> Path:
        """The part's file of this suffix."""


class ArtefactPart:
    """One part of an artefact. What is read into memory may be of any format."""

    def __init__(self, path: Path, name: str, part: str) -> None:
        index = artefacts.read_index(path)
        if name not in IN_MEMORY and index.format != needs(name):
            expected = f"what `fastcifar convert --to {needs(name)}` wrote, for the {name} pipeline"
            raise DataError(f"{path}: is an artefact of format {index.format}; expected {expected}")
        self._index = artefacts.check(path, part)
        self._part_name = part
        self._part = self._index.part(part)
        self.num_images = self._part.count
        self.size = (self._part.shape[0], self._part.shape[1])
        self.num_classes = len(self._index.class_names)

    def normalisation(self) -> Normalisation:
        """Mean and standard deviation of the training part, whichever part this is."""
        return _normalisation(self._index.mean, self._index.std)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Read into memory: a mapped file would be read page by page, in random order."""
        split = artefacts.read(self._index.path, self._part_name)
        images_nhwc = split.images_nhwc
        return np.array(images_nhwc) if isinstance(images_nhwc, np.memmap) else images_nhwc, split.labels_n

    def file(self, suffix: str) -> Path:
        """The part's file of this suffix."""
        return self._index.path / next(file.name for file in self._part.files if file.name.endswith(suffix))


class ArrayPart:
    """A `Split`, or a user's own images and labels. Images that are in memory are used where they are.

    num_classes: how many classes a user's own labels are of; None: one more than the largest label.
    """

    def __init__(self, given: Split | tuple[Any, Any], name: str, num_classes: int | None = None) -> None:
        if name not in IN_MEMORY:
            expected = f"the folder that `fastcifar convert --to {needs(name)}` wrote"
            raise ValueError(f"artefact: got arrays, takes for {name} {expected}")
        if isinstance(given, Split):
            self._images_nhwc, self._labels_n = given.images_nhwc, given.labels_n
            self.num_classes = len(given.class_names)
        else:
            images, labels = given
            self._images_nhwc = _checked_images(images)
            self._labels_n = _checked_labels(labels, len(self._images_nhwc), num_classes)
            self.num_classes = int(self._labels_n.max(initial=-1)) + 1 if num_classes is None else num_classes
        self.num_images, height, width = self._images_nhwc.shape[:3]
        if not self.num_images:
            raise ValueError("images: got none, takes one at least")
        self.size = (height, width)

    def normalisation(self) -> Normalisation:
        """Mean and standard deviation of these images."""
        histograms = np.zeros((3, 256), dtype=np.int64)
        for start in range(0, self.num_images, _ROWS_AT_ONCE):
            rows_nhwc = self._images_nhwc[start : start + _ROWS_AT_ONCE]
            for channel in range(3):
                histograms[channel] += np.bincount(rows_nhwc[..., channel].reshape(-1), minlength=256)
        moments = [_moments(histogram) for histogram in histograms]
        (red, red_std), (green, green_std), (blue, blue_std) = moments
        return _normalisation((red, green, blue), (red_std, green_std, blue_std))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """As given."""
        return self._images_nhwc, self._labels_n

    def file(self, suffix: str) -> Path:
        """Never asked for: arrays go to pipelines that read none."""
        raise AssertionError(suffix)


def _moments(histogram: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation, on the scale 0 to 1, of pixels counted by value."""
    values = np.arange(256)
    return mean_and_std(*(int(histogram @ values**power) for power in range(3)))


def _normalisation(mean: tuple[float, float, float], std: tuple[float, float, float]) -> Normalisation:
    # A channel that is the same in all pixels has nothing to be divided by.
    red, green, blue = (deviation if deviation > 0 else 1.0 for deviation in std)
    return Normalisation(mean, (red, green, blue))


def _checked_images(images: Any) -> np.ndarray:
    array = _as_array(images)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
        raise ValueError(f"images: got {array.dtype} {list(array.shape)}, takes uint8 [n, height, width, 3]")
    return np.ascontiguousarray(array)


def _checked_labels(labels: Any, num_images: int, num_classes: int | None) -> np.ndarray:
    array = _as_array(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu" or len(array) != num_images:
        raise ValueError(f"labels: got {array.dtype} {list(array.shape)}, takes integers [{num_images}]")
    labels_n = array.astype(np.int64)
    # Checked as they are handed out: what does not fit 64 bits with a sign has become negative.
    if len(array) and labels_n.min() < 0:
        raise ValueError(f"labels: got {array[labels_n.argmin()]}, takes classes, counted from 0")
    if len(array) and num_classes is not None and labels_n.max() >= num_classes:
        raise ValueError(f"labels: got {labels_n.max()}, takes classes, 0 to {num_classes - 1}")
    return labels_n


def _as_array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values)
