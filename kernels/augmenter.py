"""The kernel for one batch after the other, with everything that batches share looked at and laid out once."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastcifar.kernels import checks, dispatch
from fastcifar.kernels.plan import Settings, partners_of, settings_for
from fastcifar.kernels.settings import Augmentation, Normalisation

if TYPE_CHECKING:
    import torch

    from fastcifar.kernels.numba_cpu import PreparedBatch

_MOST_PREPARED = 8  # sizes of batches; a training has one or two
_Augmented = tuple["torch.Tensor", "torch.Tensor | None", "torch.Tensor | None"]


class _Seen(NamedTuple):
    """Images and an epoch that were found right, and what follows from them."""

    images_nhwc: Any
    num_images: int
    numba_cpu: Any
    """The module of that form, and the address of the images, where `form` is "numba"; else None and 0."""
    address: int
    epoch: int
    form: str
    augmentation: Augmentation
    settings: Settings


class Augmenter:
    """`augment_batch` for a training loop: the same pixels, with a fraction of what a call costs on a CPU.

    What it returns is its own and is filled anew by its next call. It is for one thread at a time.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        normalisation: Normalisation,
        *,
        seed: int,
        dtype: Any = "bfloat16",
        form: str = "auto",
        num_threads: int | None = None,
    ) -> None:
        """Arguments and errors are those of `augment_batch`."""
        checks.check_form(form)
        checks.check_num_threads(num_threads)
        checks.check_seed_epoch(seed, 0)
        self._augmentation, self._normalisation, self._seed = augmentation, normalisation, seed
        self._dtype = checks.torch_dtype(dtype)
        self._form, self._num_threads = form, num_threads
        self._seen: _Seen | None = None
        self._buffer: torch.Tensor | None = None
        self._prepared: dict[int, tuple[PreparedBatch, _Augmented]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What it was made with: a copy, or another process, lays out and looks at its own."""
        return {**self.__dict__, "_seen": None, "_buffer": None, "_prepared": {}}

    def __call__(self, images_nhwc: Any, rows_n: Any, *, epoch: int, indices_n: Any = None) -> _Augmented:
        """Draw and augment a batch; arguments, result and errors are those of `augment_batch`.

        But the result, the weights too, is valid until the next call, and the weights need not be contiguous. Images
        that are the very array or tensor of the call before are taken to be of its size still.
        """
        seen = self._seen
        if seen is None or images_nhwc is not seen.images_nhwc or epoch != seen.epoch:
            seen = self._look_at(images_nhwc, epoch)
        if seen.form != "numba":
            return self._by_augment_batch(seen, rows_n, indices_n)
        rows = checks.int64_vector("rows_n", rows_n)
        indices = rows if indices_n is None else checks.int64_vector("indices_n", indices_n)
        checks.check_num_indices(len(indices), len(rows))
        seen.numba_cpu.check_rows(rows, seen.num_images)
        prepared, result = self._prepared.get(len(rows)) or self._prepare(seen, len(rows))
        prepared.fill(seen.address, rows, indices, epoch, self._num_threads)
        return result

    def _look_at(self, images_nhwc: Any, epoch: int) -> _Seen:
        """Check the images and the epoch, and forget what was laid out for images of another kind."""
        before, self._seen = self._seen, None  # until all has been found right
        checks.check_images(images_nhwc)
        checks.check_seed_epoch(self._seed, epoch)
        form = dispatch.pick_form(self._form, images_nhwc)
        num_images, height, width, _ = images_nhwc.shape
        augmentation = self._augmentation.at(epoch)
        settings = settings_for(augmentation, height, width)
        if before is None or settings != before.settings:
            self._prepared.clear()
        if form == "numba":
            from fastcifar.kernels import numba_cpu

            host: tuple[Any, int] = numba_cpu, numba_cpu.address(images_nhwc)
        else:
            host = None, 0
        self._seen = _Seen(images_nhwc, num_images, *host, epoch, form, augmentation, settings)
        return self._seen

    def _prepare(self, seen: _Seen, num_images: int) -> "tuple[PreparedBatch, _Augmented]":
        import torch

        settings, mixes = seen.settings, seen.augmentation.mixes
        plan = dispatch.new_plan(seen.augmentation, settings, num_images)
        out = self._room(num_images, settings.height, settings.width, torch.device("cpu"))
        prepared = seen.numba_cpu.PreparedBatch(settings, plan, self._normalisation, self._seed, out)
        mixing = (torch.from_numpy(plan.mix_weights_n), partners_of(num_images)) if mixes else (None, None)
        if len(self._prepared) == _MOST_PREPARED:
            self._prepared.clear()
        self._prepared[num_images] = prepared, (out, *mixing)
        return self._prepared[num_images]

    def _by_augment_batch(self, seen: _Seen, rows_n: Any, indices_n: Any) -> _Augmented:
        import torch

        images_nhwc = seen.images_nhwc
        _, height, width, _ = images_nhwc.shape
        device = torch.device("cpu") if isinstance(images_nhwc, np.ndarray) else images_nhwc.device
        shape = rows_n.shape if hasattr(rows_n, "shape") else np.shape(rows_n)
        return dispatch.augment_batch(
            images_nhwc,
            rows_n,
            self._augmentation,
            self._normalisation,
            seed=self._seed,
            epoch=seen.epoch,
            indices_n=indices_n,
            dtype=self._dtype,
            form=seen.form,
            # Of what is no vector the call itself says so.
            out=self._room(shape[0], height, width, device) if len(shape) == 1 else None,
        )

    def _room(self, num_images: int, height: int, width: int, device: Any) -> "torch.Tensor":
        """Channels-last memory for a batch: the first part of that for the largest batch so far."""
        shape = (num_images, 3, height, width)
        kept = self._buffer
        if kept is None or len(kept) < num_images or kept.shape[1:] != shape[1:] or kept.device != device:
            kept = self._buffer = checks.output(None, shape, self._dtype, device)
        return kept if len(kept) == num_images else kept[:num_images]
