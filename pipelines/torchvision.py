"""The baseline that users know: a DataLoader whose workers apply torchvision's v2 transforms, image by image.

Its draws are torch's own, so its pixels are not those of the other pipelines, though they follow the same settings;
the order of the images is the same. Each batch is drawn from (seed, epoch, step), so what it holds does not depend on
the number of workers.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from fastcifar.kernels import Augmentation, Normalisation
from fastcifar.pipelines.base import Batch, Contents, Pipeline, Settings


class TorchvisionPipeline(Pipeline):
    """Batches from a DataLoader whose workers live as long as the pipeline."""

    name = "torchvision"

    def __init__(self, settings: Settings, contents: Contents, images_nhwc: np.ndarray, labels_n: np.ndarray) -> None:
        super().__init__(settings, contents)
        self._requests = _Requests()
        num_workers = settings.num_threads or torch.get_num_threads()
        self._loader: DataLoader = DataLoader(
            _Images(images_nhwc, labels_n, settings),
            batch_sampler=self._requests,  # type: ignore[arg-type]
            collate_fn=_as_it_is,
            num_workers=num_workers,
            persistent_workers=True,
            pin_memory=settings.device.type == "cuda",
        )

    def _batches(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        order, n = self.order(epoch), self.batch_size
        steps = range(first_step, self.steps_per_epoch)
        self._requests.pending = [_Request(epoch, step, order[step * n : (step + 1) * n]) for step in steps]
        # Asked again after an epoch was left early, the loader first waits for the batches that its workers still make.
        for tensors in self._loader:
            moved: list[Any] = [None if x is None else x.to(self.device, non_blocking=True) for x in tensors]
            yield Batch(*moved)

    def _release(self) -> None:
        workers = self._loader._iterator
        if workers is not None:
            workers._shutdown_workers()  # type: ignore[attr-defined]
        del self._loader


@dataclass(frozen=True)
class _Request:
    """What a worker is asked for: one batch."""

    epoch: int
    step: int
    indices_n: np.ndarray


class _Requests:
    """The epoch's requests, in the place of a batch sampler."""

    def __init__(self) -> None:
        self.pending: list[_Request] = []

    def __iter__(self) -> Iterator[_Request]:
        return iter(self.pending)

    def __len__(self) -> int:
        return len(self.pending)


def _as_it_is(batch: Any) -> Any:
    return batch


class _Images(Dataset):
    """Makes whole batches, so that each can be drawn from its own seed."""

    def __init__(self, images_nhwc: np.ndarray, labels_n: np.ndarray, settings: Settings) -> None:
        self._images_nhwc = images_nhwc
        self._labels_n = labels_n
        self._seed = settings.seed
        self._dtype = settings.dtype
        self._transform = _Transform(settings, images_nhwc.shape[1:3])
        self._augmentation = settings.augmentation
        self._mixing = _Mixing(settings.augmentation)

    def __getitems__(self, request: _Request) -> list[Tensor | None]:
        """images, labels, mix_labels, mix_weights, indices of a batch, as `Batch` holds them."""
        entropy = np.random.SeedSequence([self._seed, request.epoch, request.step])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
            return self._batch(request)

    def _batch(self, request: _Request) -> list[Tensor | None]:
        indices = request.indices_n
        images = torch.stack([self._transform(self._images_nhwc[i], int(i), request.epoch) for i in indices])
        labels = torch.tensor(self._labels_n[indices], dtype=torch.int64)
        mix_labels = mix_weights = None
        if self._augmentation.at(request.epoch).mixes:
            images, mix_weights = self._mixing(images)
            mix_labels = labels.roll(1)
        images = images.to(self._dtype).contiguous(memory_format=torch.channels_last)
        return [images, labels, mix_labels, mix_weights, torch.tensor(indices, dtype=torch.int64)]


class _Transform:
    """What v2 does to one image, in the fused kernel's order: rotate, crop, flip, colour, normalise, light, erase."""

    def __init__(self, settings: Settings, size: tuple[int, int]) -> None:
        augmentation = settings.augmentation
        self._alternating = augmentation.flip == "alternating"
        self._seed = settings.seed
        self._brightness, self._contrast = augmentation.brightness, augmentation.contrast
        geometry: list[Any] = []
        if augmentation.rotation:
            geometry.append(v2.RandomRotation(augmentation.rotation, InterpolationMode.BILINEAR))
        if augmentation.crop_padding:
            padding, padding_mode = augmentation.crop_padding, augmentation.padding_mode
            geometry.append(v2.RandomCrop(size, padding=padding, padding_mode=padding_mode))
        if augmentation.flip == "random":
            geometry.append(v2.RandomHorizontalFlip())
        colour: list[Any] = []
        if augmentation.saturation or augmentation.hue:
            colour.append(v2.ColorJitter(saturation=augmentation.saturation, hue=augmentation.hue))
        colour.append(v2.ToDtype(torch.float32, scale=True))
        if settings.normalisation != Normalisation.identity():
            colour.append(v2.Normalize(settings.normalisation.mean, settings.normalisation.std))
        self._before = v2.Compose([*geometry, *colour])
        self._erase = None
        if augmentation.cutout:
            share = augmentation.cutout**2 / (size[0] * size[1])
            self._erase = v2.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0), value=0)

    def __call__(self, image_hwc: np.ndarray, index: int, epoch: int) -> Tensor:
        """uint8 [h, w, 3] -> float32 [3, h, w]."""
        image = torch.tensor(image_hwc).permute(2, 0, 1)
        if self._alternating and _flips_first(self._seed, index) != bool(epoch % 2):
            image = image.flip(2)
        image = self._before(image)
        if self._brightness or self._contrast:
            shift, scale = (torch.rand(2) * 2 - 1).tolist()
            image = (image + shift * self._brightness) * (1 + scale * self._contrast)
        return image if self._erase is None else self._erase(image)


def _flips_first(seed: int, index: int) -> bool:
    """Whether an image is mirrored in epoch 0 of an alternating flip."""
    return bool(np.random.SeedSequence([seed, index]).generate_state(1)[0] & 1)


class _Mixing:
    """CutMix and MixUp by v2, for a whole batch or image by image, each mixed with the one before it in the batch."""

    def __init__(self, augmentation: Augmentation) -> None:
        self._augmentation = augmentation

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [n, 3, h, w] -> the mixed images, and float32 [n], the weight of each image's own label."""
        if self._augmentation.mix_per == "batch":
            return self._mix(images)
        pairs = [
            self._mix(torch.stack([image, before])) for image, before in zip(images, images.roll(1, 0), strict=True)
        ]
        return torch.stack([mixed[0] for mixed, _ in pairs]), torch.stack([weights[0] for _, weights in pairs])

    def _mix(self, images: Tensor) -> tuple[Tensor, Tensor]:
        augmentation, n = self._augmentation, len(images)
        shares = torch.tensor([augmentation.mix_probability, augmentation.mix_switch])
        is_mixed, is_cutmix = (torch.rand(2) < shares).tolist()
        if not is_mixed or n == 1:
            return images, torch.ones(n)
        if augmentation.cutmix and (is_cutmix or not augmentation.mixup):
            transform: v2.Transform = v2.CutMix(alpha=augmentation.cutmix, num_classes=n)
        else:
            transform = v2.MixUp(alpha=augmentation.mixup, num_classes=n)
        # With every image a class of its own, what v2 leaves of its label is the weight that we want.
        mixed, weights = transform(images, torch.arange(n))
        return mixed, weights.diagonal().contiguous()
