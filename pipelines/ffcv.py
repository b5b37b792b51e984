"""A .beton file through FFCV's Loader.

FFCV turns bytes into batches and fixes nothing but their order by its seed; here it gets the order that all pipelines
share, and its batches go to the fused kernel. `ffcv_parts` says what of FFCV is replaced, and why.
"""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcifar.pipelines import libraries
from fastcifar.pipelines.base import Batch, Contents, Fuser, Pipeline, Settings

_FIELDS = ("image", "label", "index")


class FfcvPipeline(Pipeline):
    """Batches that FFCV reads: uint8 for the fused kernel or, natively, augmented by FFCV's own transforms.

    The native form draws from generators that cannot be seeded, so no two epochs are alike; it knows the random crop
    with constant padding, the random flip, and cutout. `streaming` holds a few dozen pages of the file in memory, and
    goes through it once an epoch; without it the file is mapped to memory.
    """

    name = "ffcv"

    def __init__(self, settings: Settings, contents: Contents, beton: Path, *, native: bool, streaming: bool) -> None:
        super().__init__(settings, contents)
        with libraries.importing("ffcv"):
            from fastcifar.pipelines import ffcv_parts
        self.streams = streaming
        self._native = native
        decoders: dict[str, list[Any]] = {
            "image": [ffcv_parts.ImageDecoder(), *(self._transforms() if native else ())],
            "label": [ffcv_parts.NumberDecoder()],
            "index": [ffcv_parts.NumberDecoder()],
        }
        self._loader = ffcv_parts.CachedLoader(
            str(beton),
            batch_size=settings.batch_size,
            num_workers=settings.num_threads or torch.get_num_threads(),
            pipelines=decoders,
            streaming=streaming,
        )
        self._places = [list(self._loader.pipeline_specs).index(field) for field in _FIELDS]
        self._fuser = None if native else Fuser(settings, contents)

    def _batches(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        order = self.order(epoch)[first_step * self.batch_size :]
        if not len(order):
            return
        reading = self._loader.epoch(order)
        copied = torch.cuda.Event() if self.device.type == "cuda" else None
        try:
            for outputs in reading:
                images, labels, indices = (torch.from_numpy(outputs[place]) for place in self._places)
                yield self._finish(images, labels.reshape(-1), indices.reshape(-1), epoch, copied)
                if copied is not None:
                    # Asked for the next batch, FFCV may overwrite what is still being copied to the GPU.
                    copied.synchronize()
        finally:
            reading.stop()

    def _finish(
        self, images_nhwc: Tensor, labels: Tensor, indices: Tensor, epoch: int, copied: "torch.cuda.Event | None"
    ) -> Batch:
        if copied is not None:
            images_nhwc, labels, indices = (
                tensor.to(self.device, non_blocking=True) for tensor in (images_nhwc, labels, indices)
            )
            copied.record()
        if self._fuser is None:
            if images_nhwc.dtype == torch.int16:  # as which FFCV holds float16
                images_nhwc = images_nhwc.view(torch.float16)
            return Batch(images_nhwc.to(self.settings.dtype).permute(0, 3, 1, 2), labels, None, None, indices)
        return self._fuser.fuse(images_nhwc, None, labels, indices, epoch)

    def _transforms(self) -> list[Any]:
        """FFCV's own, in its own order."""
        from ffcv.transforms import Cutout, NormalizeImage, RandomHorizontalFlip, RandomTranslate

        augmentation, normalisation = self.settings.augmentation, self.settings.normalisation
        mean, std = 255 * np.array(normalisation.mean), 255 * np.array(normalisation.std)
        chosen: list[Any] = []
        if augmentation.crop_padding:
            chosen.append(RandomTranslate(augmentation.crop_padding))
        if augmentation.flip == "random":
            chosen.append(RandomHorizontalFlip())
        if augmentation.cutout:
            chosen.append(Cutout(augmentation.cutout, tuple(np.rint(mean).astype(int).tolist())))
        is_half = self.settings.dtype == torch.float16
        return [*chosen, NormalizeImage(mean, std, np.float16 if is_half else np.float32)]

    def _release(self) -> None:
        if not self.streams:
            self._loader.memory_manager.unmap()
        del self._loader
        self._fuser = None
