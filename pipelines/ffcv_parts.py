"""FFCV's Loader with the parts replaced that leak, hang, cannot be cached or do not scale. Imports FFCV.

What FFCV 1.0.2 does, and what is done about it here:

- Importing it compiles a typed dictionary, 4 s in every process, to hold two constants: `_import_ffcv` lends it a
  plain one.
- It sets torch's number of threads: to 1 at import, to its own count at every epoch, from another thread. Here it
  sets Numba's alone, and in its own thread alone.
- Its decoder calls C through an address and keeps compiled functions in closures, neither of which Numba can cache,
  and it compiles without a cache. The decoder here is in `ffcv_gather`; FFCV's own transforms are cacheable and are
  compiled with a cache.
- To describe a mapped file it sets a flag on Numba's one and only type of uint8 vectors, after which whatever was
  compiled for such a vector is not found any more, anywhere in the process. `MappedFile` needs no such type.
- Its epoch is a thread that keeps itself alive: left early, it waits for ever (issues 345 and 393). An error in it
  leaves the reader waiting. `Epoch` ends when told to, and hands errors on.
- It holds Python sets of pages for every sample, about 500 bytes each. Here pages follow from the images' pointers.
- Its quasi-random order buffers twice as many pages as a batch has images (2 GB at batch 500). `order.streamed` takes
  two windows.
"""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import Empty
from typing import Any

import numba
import numba.typed
import numpy as np

from fastcifar.data.errors import DataError
from fastcifar.kernels.numba_jit import jit, torch_threads_kept  # before FFCV, which has Numba choose its threads


def _import_ffcv() -> None:
    """Import FFCV without its compiling at import."""
    typed_dict = numba.typed.Dict
    try:
        if "ffcv" not in sys.modules:
            numba.typed.Dict = dict
        with torch_threads_kept():
            import ffcv.loader  # noqa: F401
    finally:
        numba.typed.Dict = typed_dict


_import_ffcv()

from ffcv.fields.basics import IntDecoder  # noqa: E402
from ffcv.fields.rgb_image import SimpleRGBImageDecoder  # noqa: E402
from ffcv.loader import Loader  # noqa: E402
from ffcv.loader.epoch_iterator import EpochIterator  # noqa: E402
from ffcv.memory_managers import OSCacheManager, ProcessCacheManager  # noqa: E402
from ffcv.memory_managers.process_cache.context import ProcessCacheContext  # noqa: E402
from ffcv.memory_managers.process_cache.schedule import compute_schedule  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402
from ffcv.reader import Reader  # noqa: E402
from ffcv.traversal_order.base import TraversalOrder  # noqa: E402

from fastcifar.pipelines.ffcv_gather import gather_mapped, gather_streamed  # noqa: E402

NUM_PAGE_READERS = 4
BATCHES_AHEAD = 2


def _set_num_threads(cls: type, n: int) -> None:
    cls.num_threads = n  # type: ignore[attr-defined]
    if isinstance(threading.current_thread(), EpochIterator):
        numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]


Compiler.set_num_threads = classmethod(_set_num_threads)


def _compile_cached(cls: type, code: Any, signature: Any = None) -> Any:
    if getattr(code, "is_plain", False):  # our decoders
        return code
    parallel = bool(getattr(code, "is_parallel", False)) and cls.num_threads > 1  # type: ignore[attr-defined]
    return jit(code, signature, fastmath=True, nogil=True, parallel=parallel)


@contextmanager
def _cached_compiler() -> Iterator[None]:
    """While open, what FFCV compiles is cached on disk, and what is not to be compiled stays as it is."""
    own = Compiler.__dict__["compile"]
    Compiler.compile = classmethod(_compile_cached)
    try:
        yield
    finally:
        Compiler.compile = own


class ImageDecoder(SimpleRGBImageDecoder):
    """Raw images of one size into a batch: uint8 [n, h, w, 3]. The file must have been checked: nothing is here."""

    def generate_code(self) -> Any:
        """What FFCV calls for each batch."""
        pointers_n = np.ascontiguousarray(self.metadata["data_ptr"])

        def decode(samples_n: np.ndarray, out_nhwc: np.ndarray, _metadata: np.ndarray, storage: tuple) -> np.ndarray:
            out_nb = out_nhwc.reshape(len(samples_n), -1)
            memory = storage[0]
            if memory.ndim == 1:
                gather_mapped(pointers_n, samples_n, memory, out_nb)
            else:
                page_bits = memory.shape[1].bit_length() - 1
                gather_streamed(pointers_n, samples_n, memory, storage[3], page_bits, out_nb)
            return out_nhwc

        decode.is_plain = True  # type: ignore[attr-defined]
        return decode


class NumberDecoder(IntDecoder):
    """Integers into a batch: int64 [n, 1]."""

    def generate_code(self) -> Any:
        """What FFCV calls for each batch."""

        def decode(samples_n: np.ndarray, out_n1: np.ndarray, metadata: np.ndarray, _storage: tuple) -> np.ndarray:
            out_n1[:, 0] = metadata[samples_n]
            return out_n1

        decode.is_plain = True  # type: ignore[attr-defined]
        return decode


class GivenOrder(TraversalOrder):
    """The order of the next epoch, whatever it was last set to. FFCV takes an instance and calls it with the loader."""

    def __init__(self) -> None:
        self.samples_n = np.empty(0, dtype=np.int64)

    def __call__(self, _loader: Loader) -> "GivenOrder":
        """Itself: what FFCV expects of a class."""
        return self

    def sample_order(self, epoch: int) -> np.ndarray:
        """int64 [n]."""
        return self.samples_n


class StreamedEpoch(ProcessCacheContext):
    """An epoch's pages, each read by a few threads shortly before the first batch that needs it.

    FFCV's own readers take no notice of a read that fails, and end in a wait that has no end where there is no file.
    """

    def __enter__(self) -> None:
        pages_of_batches = [set(np.unique(self.manager.page_of_sample[batch]).tolist()) for batch in self.batches]
        self.schedule = compute_schedule(pages_of_batches)
        self.memory = np.empty((self.schedule.num_slots, self.page_size), dtype=np.uint8)
        self.page_to_slot = np.zeros(max(self.schedule.page_to_slot, default=-1) + 1, dtype=np.uint32)
        for page, slot in self.schedule.page_to_slot.items():
            self.page_to_slot[page] = slot
        self._file = open(self.fname, "rb", buffering=0)
        self._readers = ThreadPoolExecutor(NUM_PAGE_READERS)
        self._reads: dict[int, Future[None]] = {}

    def start_batch(self, batch: int) -> None:
        """Ask for the pages that may be read by now, and wait for those that this batch needs."""
        for page in self.schedule.can_prefetch_at[batch]:
            self._reads[page] = self._readers.submit(self._read, page, self.schedule.page_to_slot[page])
        for page in self.schedule.entering_at[batch]:
            self._reads.pop(page).result()

    def __exit__(self, *error: object) -> None:
        self._readers.shutdown(cancel_futures=True)
        self._file.close()

    def _read(self, page: int, slot: int) -> None:
        left, offset = memoryview(self.memory[slot]), page * int(self.page_size)
        while left:
            count = os.preadv(self._file.fileno(), [left], offset)
            if not count:
                raise OSError(f"the file ends at byte {offset:,}, in the middle of a page")
            left, offset = left[count:], offset + count


class MappedFile(OSCacheManager):
    """A file mapped to memory."""

    def compile_reader(self) -> None:
        """Nothing: our decoder reads by itself, and FFCV here would change Numba's type of all uint8 vectors."""

    def unmap(self) -> None:
        """Let go of the file, as far as no epoch still runs."""
        self.context.mmap = None


class StreamedFile(ProcessCacheManager):
    """A file larger than memory."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader)
        images = reader.metadata[f"f{reader.field_names.index('image')}"]
        self.page_of_sample = (images["data_ptr"] // np.uint64(reader.page_size)).astype(np.int64)

    def compile_reader(self) -> None:
        """Nothing: our decoder reads by itself."""

    def schedule_epoch(self, batches: Sequence[np.ndarray]) -> StreamedEpoch:
        """What reads the pages of these batches."""
        return StreamedEpoch(self, batches)


class Epoch(EpochIterator):
    """An epoch that can be ended at any time, and that hands on what goes wrong in its thread."""

    error: Exception | None = None

    def run(self) -> None:
        """The thread's work."""
        try:
            super().run()
        except Exception as error:
            self.error = error
            self.output_queue.put(None)

    def __next__(self) -> tuple[np.ndarray, ...]:
        try:
            return super().__next__()
        except StopIteration:
            if self.error is not None:
                raise DataError(f"FFCV could not read {self.loader.fname}: {self.error}") from self.error
            raise

    def __del__(self) -> None:
        """Nothing, where FFCV closes what may never have been opened: `stop` is what ends an epoch."""

    def stop(self) -> None:
        """End the thread, wait for it, and let go of pages and readers."""
        self.terminate_event.set()
        self.iter_ixes = iter(())
        while self.is_alive():
            # The thread may be waiting for room in the queue.
            try:
                self.output_queue.get(timeout=0.01)
            except Empty:
                continue
        self.close()


class CachedLoader(Loader):
    """FFCV's Loader with the parts of this module."""

    def __init__(self, path: str, *, streaming: bool, **told: Any) -> None:
        self._given_order = GivenOrder()
        with _cached_compiler():
            super().__init__(
                path, order=self._given_order, os_cache=not streaming, batches_ahead=BATCHES_AHEAD, seed=0, **told
            )

    @property
    def reader(self) -> Reader:
        """The file's header and metadata."""
        return self._reader

    @reader.setter
    def reader(self, reader: Reader) -> None:
        # What a memory manager makes of this table, our decoder does not need.
        reader.alloc_table = reader.alloc_table[:0].copy()
        self._reader = reader

    @property
    def memory_manager(self) -> Any:
        """What holds the file's bytes."""
        return self._memory_manager

    @memory_manager.setter
    def memory_manager(self, manager: Any) -> None:
        kind = StreamedFile if isinstance(manager, ProcessCacheManager) else MappedFile
        self._memory_manager = kind(self._reader)

    def epoch(self, samples_n: np.ndarray) -> Epoch:
        """The batches of these samples, in this order."""
        self._given_order.samples_n = samples_n
        return Epoch(self, self.next_traversal_order())
