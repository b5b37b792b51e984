"""The whole set on the device as uint8, one fused kernel a batch."""

from collections.abc import Generator, Iterable
from itertools import islice, repeat

import numpy as np
import torch
from torch import Tensor

from fastcifar.pipelines.base import Batch, Contents, Fuser, Pipeline, Settings, mixed_with

_Part = tuple[np.ndarray | Tensor, Tensor, Tensor, Tensor | None]
"""A batch's rows and, as tensors on the device, its indices, labels and labels of partners, int64 [n] each."""


class ResidentPipeline(Pipeline):
    """Batches gathered by the fused kernel from a set that lies on the device.

    In main memory the images are used where they are, without a copy. The rows of every batch are among those that
    `open` has checked, so that on a GPU there are none for `kernels.raise_for_bad_rows` to find.
    """

    name = "resident"

    def __init__(self, settings: Settings, contents: Contents, images_nhwc: np.ndarray, labels_n: np.ndarray) -> None:
        super().__init__(settings, contents)
        self._fuser = Fuser(settings)
        self._parts: _PartsInMemory | _PartsOnGpu
        if settings.device.type == "cpu":
            self._images: np.ndarray | Tensor = images_nhwc
            num_shown = min(self.num_images, self.steps_per_epoch * self.batch_size)
            self._parts = _PartsInMemory(labels_n, num_shown, settings)
        else:
            self._images = torch.tensor(images_nhwc, device=settings.device)
            self._parts = _PartsOnGpu(labels_n, settings)

    def _batches(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        images, fuser = self._images, self._fuser
        for rows_n, indices_n, labels_n, mix_labels_n in islice(self._parts.of(self.order(epoch)), first_step, None):
            yield fuser.fuse(images, rows_n, labels_n, indices_n, epoch, mix_labels_n)

    def _release(self) -> None:
        del self._images, self._fuser, self._parts


class _PartsInMemory:
    """Rows and labels of an epoch's batches, laid out once an epoch in memory that all epochs share.

    By NumPy: torch would wait for a second thread. New memory would take longer to be had than to be filled.
    """

    def __init__(self, labels_n: np.ndarray, num_images: int, settings: Settings) -> None:
        size = settings.batch_size
        self._all_labels = labels_n.astype(np.int64)
        self._order, self._labels = np.empty(num_images, np.int64), np.empty(num_images, np.int64)
        self._mix_labels: np.ndarray | None = None
        mix_parts: Iterable[Tensor | None] = repeat(None)
        if settings.augmentation.mixes:
            self._mix_labels = np.empty(num_images, np.int64)
            # Where in the epoch each image's partner is.
            self._partners = mixed_with(torch.from_numpy(np.arange(num_images)), size).numpy()
            mix_parts = torch.from_numpy(self._mix_labels).split(size)
        rows = [self._order[start : start + size] for start in range(0, num_images, size)]
        indices, labels = torch.from_numpy(self._order).split(size), torch.from_numpy(self._labels).split(size)
        self._batches = list(zip(rows, indices, labels, mix_parts, strict=False))

    def of(self, order: np.ndarray) -> Iterable[_Part]:
        """The batches of an epoch in this order, int64 [num_images]; valid until the next one's are asked for."""
        self._order[:] = order
        # All are rows. By "raise" NumPy would fill memory of its own first, so that an error left this as it was.
        np.take(self._all_labels, order, out=self._labels, mode="clip")
        if self._mix_labels is not None:
            np.take(self._labels, self._partners, out=self._mix_labels, mode="clip")
        return self._batches


class _PartsOnGpu:
    """Rows and labels of an epoch's batches, on the GPU."""

    def __init__(self, labels_n: np.ndarray, settings: Settings) -> None:
        self._settings = settings
        self._all_labels = torch.tensor(labels_n, dtype=torch.int64, device=settings.device)

    def of(self, order: np.ndarray) -> Iterable[_Part]:
        """The batches of an epoch in this order, int64 [n]."""
        size = self._settings.batch_size
        # From memory that the system may not move the copy is queued; any other would wait for all that is.
        indices = torch.from_numpy(order.copy()).pin_memory().to(self._settings.device, non_blocking=True)
        labels = self._all_labels[indices]
        mixes = self._settings.augmentation.mixes
        mix_labels = mixed_with(labels, size).split(size) if mixes else repeat(None)
        parts = indices.split(size)
        return zip(parts, parts, labels.split(size), mix_labels, strict=False)
