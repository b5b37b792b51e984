"""The compiled form for the CPU: drawing and augmenting by Numba, in parallel over the images of a batch.

Arithmetic is that of the reference form, operation by operation, so that both agree on every bit: no fast-math, and
rounding to 16 bits by integers, or by units that give the same bits. Each function is compiled for one set of types,
when this module is first imported, and cached on disk: by the side of the source, or in the user's cache directory
where that cannot be written, or in NUMBA_CACHE_DIR.
"""

import ctypes
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastcifar.kernels import checks, numba_draw, numba_pixels
from fastcifar.kernels.numba_cast import quickest_way
from fastcifar.kernels.numba_draw import is_possible, rows_inside
from fastcifar.kernels.numba_jit import config
from fastcifar.kernels.numba_task import scratch_bytes
from fastcifar.kernels.numba_vector import CACHE_LINE
from fastcifar.kernels.plan import NUM_SETTING_INTS, Plan, PlanKey, Settings, beta_tables, is_reflect, scale_shift
from fastcifar.kernels.settings import Normalisation
from fastcifar.kernels.threads import num_tasks_for, share_out

if TYPE_CHECKING:
    import torch

_DRAWN_PER_TASK = 1024


def draw(key: PlanKey, plan: Plan, num_threads: int | None = None) -> None:
    """Fill a plan's arrays, as reference.draw does.

    num_threads: at most this many; None takes torch.get_num_threads(). Raises ValueError where it is less than 1.
    """
    # Held by its name until the call ends.
    kept = _settings_in_memory(key.settings)
    drawing = _drawing(key, kept, address(key.indices_n), address(plan.ints_nk), address(plan.floats_nk))
    # To wake a thread takes as long as to draw for some hundreds of images.
    num_tasks = num_tasks_for(len(plan) // _DRAWN_PER_TASK, num_threads)
    share_out(numba_draw.draw, len(plan), drawing, num_tasks)


def _drawing(key: PlanKey, kept: "_InMemory", indices: int, ints: int, floats: int) -> numba_draw.Drawing:
    """What a plan is drawn by. kept: its settings; indices, ints, floats: addresses."""
    numbers, amounts, cutmix_table, mixup_table = kept.addresses
    seed = int(key.seed)  # an unsigned one of NumPy has no negative
    return numba_draw.Drawing(
        # The bits of the seed, which may be 64.
        seed=seed if seed < 1 << 63 else seed - (1 << 64),
        epoch=key.epoch,
        indices=indices,
        settings=numbers,
        amounts=amounts,
        cutmix_table=cutmix_table,
        mixup_table=mixup_table,
        ints=ints,
        floats=floats,
    )


class _InMemory(NamedTuple):
    """Arrays, and where they are; whoever uses the addresses keeps this meanwhile."""

    arrays: tuple[np.ndarray, ...]
    addresses: tuple[int, ...]

    @classmethod
    def of(cls, *arrays: np.ndarray) -> "_InMemory":
        return cls(arrays, tuple(address(array) for array in arrays))


@lru_cache(maxsize=64)
def _settings_in_memory(settings: Settings) -> _InMemory:
    """Its integers, int64, its amounts, float32, and the tables of quantiles."""
    numbers, amounts = settings[:NUM_SETTING_INTS], settings[NUM_SETTING_INTS:]
    return _InMemory.of(np.array(numbers, np.int64), np.array(amounts, np.float32), *beta_tables(settings))


class _Normalisation(NamedTuple):
    """Scale and shift, and the quickest way of normalising to bfloat16 that is right for every byte."""

    memory: _InMemory
    way: int


@lru_cache(maxsize=16)
def _normalisation_in_memory(normalisation: Normalisation) -> _Normalisation:
    pair = scale_shift(normalisation)
    return _Normalisation(_InMemory.of(*pair), quickest_way(*pair))


def check(plan: Plan, rows_n: np.ndarray, num_images: int, height: int, width: int) -> None:
    """Raise ValueError where a row or the plan is wrong."""
    check_rows(rows_n, num_images)
    checks.check_plan_shape(plan, len(rows_n), height, width)
    if not is_possible(plan.ints_nk, plan.floats_nk, height, width):
        checks.check_plan_numbers(plan)


def check_rows(rows_n: np.ndarray, num_images: int) -> None:
    """Raise ValueError where a row is not one of the images'."""
    if not rows_inside(rows_n, num_images):
        raise checks.row_error(rows_n, num_images)


def augment(
    images_nhwc: Any,
    rows_n: np.ndarray,
    plan: Plan,
    normalisation: Normalisation,
    out: "torch.Tensor",
    num_threads: int | None = None,
) -> None:
    """Write the batch to out; everything has been checked.

    images_nhwc: uint8 [N, h, w, 3], array or tensor on the host; rows_n: int64 [n], contiguous; plan: for n images of
    h x w pixels; out: [n, 3, h, w] of a dtype of plan.DTYPES, channels-last. num_threads: as for draw().
    """
    places = address(rows_n), address(plan.ints_nk), address(plan.floats_nk)
    _augment(images_nhwc, len(rows_n), places, (), plan.padding_mode, normalisation, out, num_threads)


def draw_and_augment(
    images_nhwc: Any,
    rows_n: np.ndarray,
    key: PlanKey,
    plan: Plan,
    normalisation: Normalisation,
    out: "torch.Tensor",
    num_threads: int | None = None,
) -> None:
    """Fill the plan's arrays as draw() does, and write the batch to out as augment() does, in one parallel loop."""
    # Held by its name until the call ends.
    kept = _settings_in_memory(key.settings)
    places = rows, ints, floats = address(rows_n), address(plan.ints_nk), address(plan.floats_nk)
    indices = rows if key.indices_n is rows_n else address(key.indices_n)
    drawing = _drawing(key, kept, indices, ints, floats)
    _augment(images_nhwc, len(rows_n), places, drawing, plan.padding_mode, normalisation, out, num_threads)


def _augment(
    images_nhwc: Any,
    num_images: int,
    places: tuple[int, int, int],
    drawing: tuple[int, ...],
    padding_mode: str,
    normalisation: Normalisation,
    out: "torch.Tensor",
    num_threads: int | None,
) -> None:
    """Write the batch to out.

    places: addresses of the rows and of the plan's arrays; drawing: the numbers of a Drawing by which the plan is to be
    filled first, none where it is filled.
    """
    _, height, width, _ = images_nhwc.shape
    num_tasks = num_tasks_for(num_images, num_threads)
    # Held by their names until the call ends, as is what lies at the other addresses.
    memory = _scratch(num_tasks * _scratch_bytes(height, width))
    kept = _normalisation_in_memory(normalisation)
    images = address(images_nhwc)
    batch = _batch(images, places, padding_mode, kept, memory, out, draws=bool(drawing))
    share_out(numba_pixels.augment, num_images, (*batch, *drawing), num_tasks)


def _batch(
    images: int,
    places: tuple[int, int, int],
    padding_mode: str,
    normalisation: "_Normalisation",
    memory: "_Scratch",
    out: "torch.Tensor",
    *,
    draws: bool,
) -> numba_pixels.Batch:
    """The numbers that the kernel takes; all that lies at their addresses is the caller's to keep.

    images: an address; places: those of the rows and of the plan's arrays.
    """
    num_images, _, height, width = out.shape
    rows, ints, floats = places
    scale, shift = normalisation.memory.addresses
    return numba_pixels.Batch(
        num_images=num_images,
        height=height,
        width=width,
        reflect=is_reflect(padding_mode),
        kind=checks.kind_of(out.dtype),
        images=images,
        rows=rows,
        ints=ints,
        floats=floats,
        scale=scale,
        shift=shift,
        way=normalisation.way,
        scratch=memory.first,
        scratch_bytes=_scratch_bytes(height, width),
        out=out.data_ptr(),
        draw=numba_draw.draw.address if draws else 0,
    )


_IMAGES, _ROWS = (numba_pixels.Batch._fields.index(name) for name in ("images", "rows"))
_EPOCH, _INDICES = (
    len(numba_pixels.Batch._fields) + numba_draw.Drawing._fields.index(name) for name in ("epoch", "indices")
)


class PreparedBatch:
    """`draw_and_augment` for batches of one size: its numbers lie in memory, where a batch changes four of them."""

    def __init__(
        self, settings: Settings, plan: Plan, normalisation: Normalisation, seed: int, out: "torch.Tensor"
    ) -> None:
        """The plan, of the settings, and out, [n, 3, h, w] channels-last, are filled by every call of `fill`."""
        self._num_images, _, height, width = out.shape
        in_memory, normalised = _settings_in_memory(settings), _normalisation_in_memory(normalisation)
        memory = _Scratch.of(num_tasks_for(self._num_images, config.NUMBA_NUM_THREADS) * _scratch_bytes(height, width))
        # What lies at the addresses is kept.
        self._kept = plan, in_memory, normalised, memory, out
        nothing = np.empty(0, np.int64)
        places = 0, address(plan.ints_nk), address(plan.floats_nk)
        batch = _batch(0, places, plan.padding_mode, normalised, memory, out, draws=True)
        drawing = _drawing(PlanKey(settings, seed, 0, nothing), in_memory, 0, *places[1:])
        self._numbers = np.array((*batch, *drawing), np.int64)

    def fill(
        self, images: int, rows_n: np.ndarray, indices_n: np.ndarray, epoch: int, num_threads: int | None = None
    ) -> None:
        """Draw the plan and write the batch.

        images: the address of uint8 [N, h, w, 3]; rows_n and indices_n: int64 [n], contiguous; num_threads: as for
        draw().
        """
        numbers = self._numbers
        numbers[_IMAGES], numbers[_EPOCH] = images, epoch
        numbers[_ROWS] = rows = address(rows_n)
        numbers[_INDICES] = rows if indices_n is rows_n else address(indices_n)
        share_out(numba_pixels.augment, self._num_images, numbers, num_tasks_for(self._num_images, num_threads))


_address_of, _char_at = ctypes.addressof, ctypes.c_char.from_buffer


def address(values: Any) -> int:
    """Where the memory of an array or of a tensor on the host begins."""
    if not isinstance(values, np.ndarray):
        return values.data_ptr()
    if values.flags.writeable:
        # The other way takes a microsecond, and a batch needs several: hundredths of its time.
        try:
            return _address_of(_char_at(values))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            pass  # a view of what is read-only, or of no memory at all
    return values.__array_interface__["data"][0]


class _Scratch(NamedTuple):
    """Scratch memory, and where it begins: at a line of the cache, as what does not takes up to a quarter longer."""

    memory: np.ndarray
    first: int

    @classmethod
    def of(cls, num_bytes: int) -> "_Scratch":
        memory = np.empty(num_bytes + CACHE_LINE, dtype=np.uint8)
        return cls(memory, -(-address(memory) // CACHE_LINE) * CACHE_LINE)


_LOCAL = threading.local()


def _scratch(num_bytes: int) -> _Scratch:
    """Scratch memory of the calling thread, which is kept from call to call."""
    kept: _Scratch | None = getattr(_LOCAL, "scratch", None)
    if kept is None or len(kept.memory) < num_bytes + CACHE_LINE:
        kept = _LOCAL.scratch = _Scratch.of(num_bytes)
    return kept


@lru_cache(maxsize=64)
def _scratch_bytes(height: int, width: int) -> int:
    return scratch_bytes(height, width)
