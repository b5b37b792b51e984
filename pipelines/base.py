"""The interface of all pipelines, and what they share: settings, order, steps, and how an epoch ends."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from inspect import GEN_CLOSED, getgeneratorstate
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fastcifar.kernels import Augmentation, Augmenter, Normalisation, prepare
from fastcifar.pipelines import order as orders


@dataclass(frozen=True)
class Batch:
    """One step's images and labels, on the device. Valid until the next batch is asked for: buffers are reused."""

    images: Tensor
    """[n, 3, h, w] in channels-last memory and the compute dtype, augmented and normalised."""
    labels: Tensor
    """int64 [n]."""
    mix_labels: Tensor | None
    """int64 [n]: label of the image that each is mixed with; None where no mixing is configured."""
    mix_weights: Tensor | None
    """float32 [n]: weight of `labels`, the rest being that of `mix_labels`; None where no mixing is configured."""
    indices: Tensor
    """int64 [n]: index of each image in the data set."""

    def part(self, rows: "slice | Tensor") -> "Batch":
        """Some of the images, by their places in the batch: a slice, without a copy, or int64 [m]."""
        return Batch(
            self.images[rows].contiguous(memory_format=torch.channels_last),
            self.labels[rows],
            None if self.mix_labels is None else self.mix_labels[rows],
            None if self.mix_weights is None else self.mix_weights[rows],
            self.indices[rows],
        )


@dataclass(frozen=True)
class Settings:
    """What all pipelines are told; checked by `fastcifar.pipelines.open`."""

    batch_size: int
    augmentation: Augmentation
    normalisation: Normalisation
    dtype: torch.dtype
    device: torch.device
    seed: int
    shuffle: bool
    drop_last: bool
    num_threads: int | None
    """At most this many threads or workers; None: as many as torch computes with."""


@dataclass(frozen=True)
class Contents:
    """What a pipeline hands out of."""

    height: int
    width: int
    num_classes: int
    rows_n: np.ndarray
    """int64 [n]: indices in the data set, in its order; a subset where the user named one."""


class Pipeline(ABC):
    """Epochs of batches from one part of a data set.

    Use it as a context manager, or call `close`. One epoch runs at a time: starting another ends the one before, and
    who goes on with that one gets a RuntimeError.
    """

    name: ClassVar[str]
    streams = False
    """Whether images are read as an epoch goes, in an order that suits a disk."""

    def __init__(self, settings: Settings, contents: Contents) -> None:
        self.settings = settings
        self.contents = contents
        self._running: weakref.ref[_Epoch] | None = None
        self._closed = False
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"batch_size: got {settings.batch_size}, takes at most the {self.num_images} images that there are, "
                "or drop_last=False"
            )

    @property
    def num_images(self) -> int:
        """Images that there are, those of an incomplete last batch included."""
        return len(self.contents.rows_n)

    @property
    def num_classes(self) -> int:
        """How many classes labels are of."""
        return self.contents.num_classes

    @property
    def batch_size(self) -> int:
        """Images a batch, but for the last where `drop_last` is off."""
        return self.settings.batch_size

    @property
    def device(self) -> torch.device:
        """Where batches lie."""
        return self.settings.device

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        num_full, rest = divmod(self.num_images, self.batch_size)
        return num_full + (rest > 0 and not self.settings.drop_last)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, counted from 0, from step `first_step` on.

        What a batch holds is a function of the pipeline's settings, `epoch` and its step alone, but for pipelines
        opened with native=True: FFCV's own draws differ every time, and DALI's depend on `first_step` as well. Leaving
        early is fine. Raises ValueError where there is no such epoch or step, or the pipeline is closed.
        """
        if self._closed:
            raise ValueError(f"pipeline: the {self.name} pipeline is closed, open it again")
        if not (isinstance(epoch, int | np.integer) and 0 <= epoch < 1 << 32):
            raise ValueError(f"epoch: got {epoch!r}, takes 0 to 2**32 - 1")
        if not (isinstance(first_step, int | np.integer) and 0 <= first_step <= self.steps_per_epoch):
            raise ValueError(f"first_step: got {first_step!r}, takes 0 to {self.steps_per_epoch}")
        self._end_epoch()
        running = _Epoch(epoch, self._batches(epoch, first_step))
        self._running = weakref.ref(running)
        return running

    def close(self) -> None:
        """End what still runs and let go of files, threads and memory. May be called more than once."""
        if not self._closed:
            self._end_epoch()
            self._closed = True
            self._release()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def order(self, epoch: int) -> np.ndarray:
        """Indices in the data set, in the order of `epoch`: int64 [n], without a batch to be dropped."""
        rows_n = self._ordered_rows(epoch) if self.settings.shuffle else self.contents.rows_n
        return rows_n[: self.steps_per_epoch * self.batch_size]

    def _ordered_rows(self, epoch: int) -> np.ndarray:
        if not self.streams:
            return orders.shuffled(self.contents.rows_n, self.settings.seed, epoch)
        image_bytes = self.contents.height * self.contents.width * 3
        return orders.streamed(self.contents.rows_n, image_bytes, self.settings.seed, epoch)

    def _end_epoch(self) -> None:
        running = self._running() if self._running is not None else None
        if running is not None:
            running.end()
        self._running = None

    @abstractmethod
    def _batches(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        """The batches of an epoch from a step on. Where it is closed early, its `finally` lets go of all it holds."""

    @abstractmethod
    def _release(self) -> None:
        """Let go of everything that outlives an epoch."""


class _Epoch(Iterator[Batch]):
    """The batches of an epoch, which may be ended from outside while somebody is still asking for them."""

    def __init__(self, epoch: int, batches: Generator[Batch, None, None]) -> None:
        self._epoch, self._batches = epoch, batches
        self._was_cut = False

    def __next__(self) -> Batch:
        if self._was_cut:
            raise RuntimeError(
                f"epoch {self._epoch} was ended by the start of another, or with its pipeline: one at a time"
            )
        return next(self._batches)

    def end(self) -> None:
        """Let go of all that the epoch holds."""
        self._was_cut = getgeneratorstate(self._batches) != GEN_CLOSED
        self._batches.close()


class Fuser:
    """Turns uint8 images into finished batches by the fused kernel, into one buffer that it reuses."""

    def __init__(self, settings: Settings) -> None:
        if settings.device.type == "cpu":
            prepare(settings.device)
        self._augmenter = Augmenter(
            settings.augmentation,
            settings.normalisation,
            seed=settings.seed,
            dtype=settings.dtype,
            num_threads=settings.num_threads,
        )
        in_order = torch.arange(settings.batch_size, device=settings.device)
        self._in_order: np.ndarray | Tensor = in_order.numpy() if settings.device.type == "cpu" else in_order

    def fuse(
        self,
        images_nhwc: np.ndarray | Tensor,
        rows_n: np.ndarray | Tensor | None,
        labels: Tensor,
        indices: Tensor,
        epoch: int,
        mix_labels: Tensor | None = None,
    ) -> Batch:
        """Batch of the images at `rows_n` of the whole set or, where that is None, of images that are the batch's own.

        `labels` and `indices` are those of the batch, int64 [n], on the device, as are `mix_labels`, of `mixed_with`,
        where the caller has them. Rows in a tensor on a GPU are not looked at here (`kernels.augment_batch` says why):
        `open` has checked those that pipelines draw from.
        """
        n = len(labels)
        images, mix_weights, _partners = self._augmenter(
            images_nhwc,
            self._in_order[:n] if rows_n is None else rows_n,
            epoch=epoch,
            indices_n=indices if rows_n is None else None,
        )
        if mix_weights is None:
            mix_labels = None
        elif mix_labels is None:
            mix_labels = mixed_with(labels, n)
        return Batch(images, labels, mix_labels, mix_weights, indices)


def mixed_with(labels: Tensor, batch_size: int) -> Tensor:
    """Labels of the images that those of an epoch, int64 [n], are mixed with: each with the next one of its batch, the
    last with the first."""
    num_whole = len(labels) // batch_size
    whole, rest = labels[: num_whole * batch_size], labels[num_whole * batch_size :]
    mixed = whole.view(num_whole, batch_size).roll(-1, dims=1).view(-1)
    return torch.cat((mixed, rest.roll(-1))) if len(rest) else mixed
