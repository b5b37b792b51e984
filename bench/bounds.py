"""What the machine allows, as contestants: a copy, a gather that only widens, a matrix product."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from fastcifar.bench import settings
from fastcifar.bench.measure import Sample
from fastcifar.bench.workers import Entry, Place

COPY_BYTES_CPU = 128 << 20
COPY_BYTES_GPU = 1 << 30


def copy_entry(num_bytes: int = 0) -> Entry:
    """The copy bandwidth as a contestant: bytes read and written a second. `num_bytes` 0: well beyond the caches."""
    return Entry("copy", Copy, {"num_bytes": num_bytes}, role="bound")


def gather_entry(images_file: str, batch_size: int, num_images: int = 0) -> Entry:
    """The widening gather as a contestant, over the images of an .npy file (the first `num_images`; 0: all)."""
    arguments = {"images_file": images_file, "batch_size": batch_size, "num_images": num_images}
    return Entry("gather", Gather, arguments, role="bound")


def synchronise(device: str) -> None:
    """Wait for a GPU to have done all that it was told."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def repeat(work: Callable[[], float], seconds: float, device: str) -> Sample:
    """Do `work`, which returns its units, again and again for about `seconds`.

    A GPU is given a few calls ahead, never so many that the clock runs on long after `seconds`.
    """
    wait_for = _AheadOnGpu() if device.startswith("cuda") else None
    synchronise(device)
    units = 0.0
    start_s = time.perf_counter()
    while time.perf_counter() - start_s < seconds or not units:
        units += work()
        if wait_for is not None:
            wait_for.all_but_few()
    synchronise(device)
    return Sample(units, time.perf_counter() - start_s)


class _AheadOnGpu:
    """Marks in the GPU's stream, by which the host stays a few calls ahead of it."""

    def __init__(self, num_ahead: int = 16) -> None:
        self._marks: deque[Any] = deque()
        self._num_ahead = num_ahead

    def all_but_few(self) -> None:
        """Mark what was told so far, and wait for what was told `num_ahead` calls ago."""
        import torch

        mark = torch.cuda.Event()
        mark.record()
        self._marks.append(mark)
        if len(self._marks) > self._num_ahead:
            self._marks.popleft().synchronize()


def use_numba_threads() -> None:
    """As many Numba threads as torch takes."""
    import numba
    import torch

    from fastcifar.kernels.numba_jit import torch_threads_kept

    num_threads = torch.get_num_threads()
    with torch_threads_kept():
        numba.set_num_threads(min(num_threads, numba.get_num_threads()))


class Copy:
    """Bytes read and written a second by copying a block that no cache holds."""

    def __init__(self, *, place: Place, num_bytes: int) -> None:
        import torch

        self._place = place
        on_gpu = place.device != "cpu"
        num_bytes = num_bytes or (COPY_BYTES_GPU if on_gpu else COPY_BYTES_CPU)
        # Zeros would be all one page, and copied out of the cache.
        self._source = torch.full((num_bytes,), 7, dtype=torch.uint8, device=place.device)
        self._target = torch.full_like(self._source, 1)
        self._copy: Callable[[], Any] = lambda: self._target.copy_(self._source)
        if not on_gpu:
            from fastcifar.bench import gather

            use_numba_threads()
            source, target = self._source.numpy(), self._target.numpy()
            # Faster than torch's own copy, which does not keep its stores out of the cache.
            self._copy = lambda: gather.copy(source, target)

    def prepare(self, task: str) -> None:
        """Once, unmeasured."""
        self._copy()

    def run(self, task: str, seconds: float) -> Sample:
        """Units are bytes."""
        return repeat(self._once, seconds, self._place.device)

    def release(self, task: str) -> None:
        """Nothing is kept by task."""

    def _once(self) -> float:
        self._copy()
        return 2.0 * self._source.numel()


class Gather:
    """Images a second gathered by rows of a random order and widened to the bytes of the task's dtype, batch by batch.

    A task's name ends in the dtype (`crop_flip.bf16`). On a GPU, torch.compile makes one kernel of it.
    """

    def __init__(self, *, place: Place, images_file: str, batch_size: int, num_images: int) -> None:
        import torch

        self._place = place
        images_nhwc = np.load(images_file, mmap_mode="r")
        images_nb = np.array(images_nhwc[: num_images or None]).reshape(-1, images_nhwc[0].size)
        self._images = torch.from_numpy(images_nb).to(place.device)
        order = np.random.default_rng(0).permutation(len(images_nb))
        self._rows = torch.from_numpy(order).to(place.device)
        self._batch_size = min(batch_size, len(images_nb))
        self._at = 0
        self._widen: Callable[[Any, Any], Any]

    def prepare(self, task: str) -> None:
        """Compile, and make the buffer."""
        import torch

        item_bytes = settings.ITEM_BYTES[task.rpartition(".")[2]]
        num_bytes = self._images.shape[1]
        if self._place.device == "cpu":
            from fastcifar.bench import gather

            use_numba_threads()
            images_nb = self._images.numpy()
            out = np.empty((self._batch_size, num_bytes), dtype=np.uint16 if item_bytes == 2 else np.uint32)
            self._widen = lambda _images, rows: gather.widen(images_nb, rows.numpy(), out)
        else:
            wide = torch.int16 if item_bytes == 2 else torch.int32
            self._widen = torch.compile(lambda images, rows: images[rows].to(wide), dynamic=False)
        self._once()
        self._once()

    def run(self, task: str, seconds: float) -> Sample:
        """Units are images."""
        return repeat(self._once, seconds, self._place.device)

    def release(self, task: str) -> None:
        """The next task makes its own."""
        del self._widen

    def _once(self) -> float:
        if self._at + self._batch_size > len(self._rows):
            self._at = 0
        rows = self._rows[self._at : self._at + self._batch_size]
        self._at += self._batch_size
        self._widen(self._images, rows)
        return float(self._batch_size)


class MatrixProduct:
    """Floating-point operations a second of a square matrix product, in the dtype at the end of the task's name."""

    def __init__(self, *, place: Place, side: int = 0) -> None:
        self._place = place
        self._side = side or (8192 if place.device != "cpu" else 2048)

    def prepare(self, task: str) -> None:
        """Random matrices: zeros run faster on some devices."""
        import torch

        from fastcifar.training.device import use_tensor_cores

        use_tensor_cores(torch.device(self._place.device))
        dtype = getattr(torch, settings.ARITHMETICS[task.rpartition(".")[2]])
        generator = torch.Generator(self._place.device).manual_seed(0)
        shape = (self._side, self._side)
        self._a, self._b = (
            torch.randn(shape, generator=generator, device=self._place.device).to(dtype) for _ in range(2)
        )
        self._out = torch.empty(shape, dtype=dtype, device=self._place.device)
        self._once()

    def run(self, task: str, seconds: float) -> Sample:
        """Units are operations: a multiplication and an addition count as two."""
        return repeat(self._once, seconds, self._place.device)

    def release(self, task: str) -> None:
        """Let go of the matrices."""
        del self._a, self._b, self._out

    def _once(self) -> float:
        import torch

        torch.mm(self._a, self._b, out=self._out)
        return 2.0 * self._side**3
