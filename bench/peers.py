"""Loaders of other kinds for the same work: kornia's augmentations, and plain PyTorch tensor loaders as records use."""

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fastcifar.bench.settings import DTYPES
from fastcifar.kernels import Augmentation
from fastcifar.kernels.checks import torch_dtype

Batches = Iterator[tuple[Tensor, Tensor]]


class Peer:
    """Batches (images [n, 3, h, w], labels [n]) of a set that lies on the device, in a new random order each epoch."""

    def __init__(
        self,
        images_nhwc: np.ndarray,
        labels_n: np.ndarray,
        augmentation: Augmentation,
        mean_std: tuple[tuple[float, ...], tuple[float, ...]],
        *,
        batch_size: int,
        dtype: str,
        device: str,
    ) -> None:
        self.told, self.batch_size, self.device = augmentation, batch_size, device
        self.dtype = torch_dtype(DTYPES[dtype])
        self.labels = torch.tensor(labels_n, device=device)
        self.height, self.width = images_nhwc.shape[1:3]
        self.mean, self.std = (torch.tensor(values, device=device) for values in mean_std)
        self._random = random.Random(0)
        self.keep(torch.tensor(images_nhwc, device=device))

    def keep(self, images_nhwc: Tensor) -> None:
        """Prepare the uint8 set once."""
        raise NotImplementedError

    def epoch(self) -> Batches:
        """One epoch; an incomplete last batch is left out."""
        raise NotImplementedError

    def rows(self) -> Iterator[Tensor]:
        """The batches' rows of one epoch."""
        order = torch.randperm(len(self.labels), device=self.device)
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            yield order[start : start + self.batch_size]

    def normalised(self, images_nhwc: Tensor) -> Tensor:
        """Of uint8, in the dtype handed out."""
        return ((images_nhwc / 255 - self.mean) / self.std).to(self.dtype)

    def padded(self, images_nhwc: Tensor) -> Tensor:
        """With black pixels around, for the crop."""
        pad = self.told.crop_padding
        return torch.nn.functional.pad(images_nhwc, (0, 0, pad, pad, pad, pad))

    def cutmix(self, images: Tensor) -> Tensor:
        """Mix a batch [n, 3, h, w] with itself, shifted by one, by one box (Yun et al. 2019); in place."""
        half = 0.5 * (1 - self._random.betavariate(self.told.cutmix, self.told.cutmix)) ** 0.5
        (y0, y1), (x0, x1) = (self._span(side, half) for side in (self.height, self.width))
        images[..., y0:y1, x0:x1] = images[..., y0:y1, x0:x1].roll(1, 0)
        return images

    def _span(self, side: int, half: float) -> tuple[int, int]:
        centre, reach = self._random.randrange(side), int(half * side)
        return max(0, centre - reach), min(side, centre + reach)


class TensorLoader(Peer):
    """The records' way: pad and normalise once; each epoch crop and flip the whole set, then index batches from it."""

    def keep(self, images_nhwc: Tensor) -> None:
        """Padded, normalised, in channels-last memory."""
        self._padded = self.normalised(self.padded(images_nhwc)).permute(0, 3, 1, 2)

    def epoch(self) -> Batches:
        """The whole set is augmented before the first batch."""
        images = self._flipped(self._cropped())
        for rows in self.rows():
            batch = images[rows]
            yield self.cutmix(batch) if self.told.cutmix else batch, self.labels[rows]

    def _cropped(self) -> Tensor:
        """First along the height, then the width, images of one shift at a time: 2 (2 p + 1) copies, not the square."""
        n, choices = len(self._padded), 2 * self.told.crop_padding + 1
        shifts_y, shifts_x = torch.randint(choices, (2, n), device=self.device)
        rows = torch.empty_like(self._padded[:, :, : self.height])
        for shift in range(choices):
            chosen = shifts_y == shift
            rows[chosen] = self._padded[chosen, :, shift : shift + self.height]
        cropped = torch.empty_like(rows[..., : self.width], memory_format=torch.channels_last)
        for shift in range(choices):
            chosen = shifts_x == shift
            cropped[chosen] = rows[chosen][..., shift : shift + self.width]
        return cropped

    def _flipped(self, images: Tensor) -> Tensor:
        if self.told.flip == "none":
            return images
        chosen = torch.rand(len(images), 1, 1, 1, device=self.device) < 0.5
        return torch.where(chosen, images.flip(3), images)


class BatchTensorLoader(Peer):
    """The fastest plain PyTorch form that was found: pad and normalise once; a batch is one gather of its pixels."""

    def keep(self, images_nhwc: Tensor) -> None:
        """Padded and normalised pixels, [pixels of all images, 3]."""
        padded = self.normalised(self.padded(images_nhwc))
        self._padded_height, self._padded_width = padded.shape[1:3]
        self._pixels = padded.reshape(-1, 3)
        self._y = torch.arange(self.height, device=self.device)
        self._x = torch.arange(self.width, device=self.device)

    def epoch(self) -> Batches:
        """Batch by batch."""
        for rows in self.rows():
            images = self._gathered(rows)
            yield self.cutmix(images) if self.told.cutmix else images, self.labels[rows]

    def _gathered(self, rows: Tensor) -> Tensor:
        n = len(rows)
        shifts = torch.randint(2 * self.told.crop_padding + 1, (2, n, 1), device=self.device)
        y, x = self._y + shifts[0], self._x + shifts[1]
        if self.told.flip != "none":
            x = torch.where(torch.rand(n, 1, device=self.device) < 0.5, x.flip(1), x)
        lines = rows[:, None] * self._padded_height + y
        places = lines[:, :, None] * self._padded_width + x[:, None, :]
        pixels = self._pixels.index_select(0, places.view(-1))
        return pixels.view(n, self.height, self.width, 3).permute(0, 3, 1, 2)


class KorniaLoader(Peer):
    """Kornia's augmentations on batches gathered from a uint8 set."""

    def keep(self, images_nhwc: Tensor) -> None:
        """As uint8 [n, 3, h, w], with the modules that augment."""
        try:
            from kornia import augmentation as kornia
        except ImportError:
            raise ImportError("kornia is not installed: pip install kornia") from None
        self._images = images_nhwc.permute(0, 3, 1, 2).contiguous()
        told = self.told
        modules: list[torch.nn.Module] = []
        if told.crop_padding:
            modules.append(kornia.RandomCrop((self.height, self.width), padding=told.crop_padding))
        if told.flip == "random":
            modules.append(kornia.RandomHorizontalFlip(p=0.5))
        modules.append(kornia.Normalize(self.mean, self.std))
        self._augment = torch.nn.Sequential(*modules)
        self._mix = kornia.RandomCutMixV2(data_keys=["input", "class"]) if told.cutmix else None

    @torch.no_grad()
    def epoch(self) -> Batches:
        """Batch by batch, in float32 until the last cast."""
        for rows in self.rows():
            images, labels = self._augment(self._images[rows] / 255), self.labels[rows]
            if self._mix is not None:
                images, labels = self._mix(images, labels)
            yield images.to(self.dtype, memory_format=torch.channels_last), labels
