"""The whole set on the device as uint8, one fused kernel a batch."""

from collections.abc import Generator

import numpy as np
import torch

from fastcifar.pipelines.base import Batch, Contents, Fuser, Pipeline, Settings


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
        rows = order if self._on_cpu else indices
        images, fuser = self._images, self._fuser
        for start in range(0, len(order), self.batch_size):
            batch = slice(start, start + self.batch_size)
            yield fuser.fuse(images, rows[batch], labels[batch], indices[batch], epoch)

    def _release(self) -> None:
        del self._images, self._fuser
