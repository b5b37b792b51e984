"""The whole set on the device as uint8, one fused kernel a batch."""

from collections.abc import Generator
from itertools import repeat

import numpy as np
import torch

from fastcifar.pipelines.base import Batch, Contents, Fuser, Pipeline, Settings, mixed_with


class ResidentPipeline(Pipeline):
    """Batches gathered by the fused kernel from a set that lies on the device.

    In main memory the images are used where they are, without a copy. The rows of every batch are among those that
    `open` has checked, so that on a GPU there are none for `kernels.raise_for_bad_rows` to find.
    """

    name = "resident"

    def __init__(self, settings: Settings, contents: Contents, images_nhwc: np.ndarray, labels_n: np.ndarray) -> None:
        super().__init__(settings, contents)
        self._on_cpu = settings.device.type == "cpu"
        self._images = images_nhwc if self._on_cpu else torch.tensor(images_nhwc, device=settings.device)
        self._labels = torch.tensor(labels_n, dtype=torch.int64, device=settings.device)
        self._fuser = Fuser(settings, contents)

    def _batches(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        # Order and labels are laid out once an epoch; a batch's are views.
        order = self.order(epoch)[first_step * self.batch_size :].copy()
        indices = torch.from_numpy(order)
        if self._on_cpu:
            # By NumPy: torch would wait for a second thread.
            labels = torch.from_numpy(self._labels.numpy()[order])
        else:
            # From memory that the system may not move the copy is queued; any other would wait for all that is.
            indices = indices.pin_memory().to(self.device, non_blocking=True)
            labels = self._labels[indices]
        images, fuser, size = self._images, self._fuser, self.batch_size
        mixed = mixed_with(labels, size).split(size) if self.settings.augmentation.mixes else repeat(None)
        parts = zip(range(0, len(order), size), labels.split(size), indices.split(size), mixed, strict=False)
        for start, labels_n, indices_n, mix_labels_n in parts:
            rows_n = order[start : start + size] if self._on_cpu else indices_n
            yield fuser.fuse(images, rows_n, labels_n, indices_n, epoch, mix_labels_n)

    def _release(self) -> None:
        del self._images, self._fuser
