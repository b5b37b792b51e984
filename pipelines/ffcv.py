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
        self._fuser = None if native else Fuser(settings)

    def _batches(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        order = self.order(epoch)[first_step * self.batch_size :]
        if not len(order):
            return
        staging = None if self.device.type == "cpu" else _Staging(self.device)
        reading = self._loader.epoch(order)
        try:
            for outputs in reading:
                tensors = [torch.from_numpy(outputs[place]) for place in self._places]
                images, labels, indices = tensors if staging is None else staging.send(tensors)
                yield self._finish(images, labels.reshape(-1), indices.reshape(-1), epoch)
        finally:
            reading.stop()

    def _finish(self, images_nhwc: Tensor, labels: Tensor, indices: Tensor, epoch: int) -> Batch:
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


class _Staging:
    """The way of batches to a GPU, through two buffers in pinned memory: one is filled while the other is copied.

    A copy from memory that is not pinned, such as FFCV's, would wait for the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[list[Tensor]] = [[], []]
        self._copied = [torch.cuda.Event(), torch.cuda.Event()]
        self._turn = 0

    def send(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors on the GPU, behind what its current stream has to do; their own memory is free on return."""
        turn, self._turn = self._turn, 1 - self._turn
        self._copied[turn].synchronize()
        num = len(tensors[0])
        if not self._buffers[turn] or len(self._buffers[turn][0]) < num:
            self._buffers[turn] = [torch.empty_like(tensor, pin_memory=True) for tensor in tensors]
        staged = [buffer[:num].copy_(tensor) for buffer, tensor in zip(self._buffers[turn], tensors, strict=True)]
        sent = [tensor.to(self._device, non_blocking=True) for tensor in staged]
        self._copied[turn].record(torch.cuda.current_stream(self._device))
        return sent
