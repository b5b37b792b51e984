"""The compiled form for the CPU: drawing and augmenting by Numba, in parallel over the images of a batch.

Arithmetic is that of the reference form, operation by operation, so that both agree on every bit: no fast-math, and
rounding to 16 bits by integers. Each function is compiled for one set of types, when this module is first imported,
and cached on disk: by the side of the source, or in the user's cache directory where that cannot be written, or in
NUMBA_CACHE_DIR.
"""

import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fastcifar.kernels import checks, numba_draw, numba_pixels
from fastcifar.kernels.numba_draw import fisher_yates, is_possible, rows_inside
from fastcifar.kernels.numba_task import scratch_bytes
from fastcifar.kernels.plan import NUM_SETTING_INTS, Plan, Settings, is_reflect
from fastcifar.kernels.threads import num_tasks_for, share_out

if TYPE_CHECKING:
    import torch


def draw(
    settings: Settings,
    tables: tuple[np.ndarray, np.ndarray],
    seed: int,
    epoch: int,
    indices_n: np.ndarray,
    ints: np.ndarray,
    floats: np.ndarray,
    num_threads: int | None = None,
) -> None:
    """Fill a plan's arrays, as reference.draw does.

    settings: of settings_for(); tables: of beta_tables(), float32 [BETA_TABLE_BINS + 1] each; seed: below 2**64; epoch:
    below 2**32; indices_n: int64 [n], contiguous; ints, floats: int32 [n, 11] and float32 [n, 6], contiguous, written.
    num_threads: at most this many; None takes torch.get_num_threads(). Raises ValueError where it is less than 1.
    """
    numbers, amounts = _setting_arrays(settings)
    seed = int(seed)  # an unsigned one of NumPy has no negative
    drawing = numba_draw.Drawing(
        # The bits of the seed, which may be 64.
        seed=seed if seed < 1 << 63 else seed - (1 << 64),
        epoch=epoch,
        indices=address(indices_n),
        settings=address(numbers),
        amounts=address(amounts),
        cutmix_table=address(tables[0]),
        mixup_table=address(tables[1]),
        ints=address(ints),
        floats=address(floats),
    )
    share_out(numba_draw.draw, len(indices_n), drawing, num_tasks_for(len(indices_n), num_threads))


@lru_cache(maxsize=64)
def _setting_arrays(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Its integers, int64, and its amounts, float32."""
    return np.array(settings[:NUM_SETTING_INTS], np.int64), np.array(settings[NUM_SETTING_INTS:], np.float32)


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
    scale: np.ndarray,
    shift: np.ndarray,
    out: "torch.Tensor",
    num_threads: int | None = None,
) -> None:
    """Write the batch to out; everything has been checked.

    images_nhwc: uint8 [N, h, w, 3], array or tensor on the host; rows_n: int64 [n], contiguous; plan: for n images of
    h x w pixels; scale, shift: float32 [3]; out: [n, 3, h, w] of a dtype of plan.DTYPES, channels-last. num_threads:
    as for draw().
    """
    _, height, width, _ = images_nhwc.shape
    num_tasks = num_tasks_for(len(rows_n), num_threads)
    scratch = _scratch(num_tasks, _scratch_bytes(height, width))
    batch = numba_pixels.Batch(
        num_images=len(rows_n),
        height=height,
        width=width,
        reflect=is_reflect(plan.padding_mode),
        kind=checks.kind_of(out.dtype),
        images=address(images_nhwc),
        rows=address(rows_n),
        ints=address(plan.ints_nk),
        floats=address(plan.floats_nk),
        scale=address(scale),
        shift=address(shift),
        scratch=address(scratch),
        scratch_bytes=scratch.shape[1],
        out=out.data_ptr(),
    )
    share_out(numba_pixels.augment, len(rows_n), batch, num_tasks)


def address(values: Any) -> int:
    """Where the memory of an array or of a tensor on the host begins."""
    if isinstance(values, np.ndarray):
        return values.__array_interface__["data"][0]
    return values.data_ptr()


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation, int64 [num_images], as philox.epoch_order gives it."""
    order = np.empty(num_images, dtype=np.int64)
    fisher_yates(order, np.uint64(seed), np.uint64(epoch))
    return order


_LOCAL = threading.local()


def _scratch(num_tasks: int, num_bytes: int) -> np.ndarray:
    """Scratch memory of the calling thread, kept from call to call: uint8 [num_tasks, num_bytes]."""
    scratch = getattr(_LOCAL, "scratch", None)
    if scratch is None or scratch.shape != (num_tasks, num_bytes):
        scratch = _LOCAL.scratch = np.empty((num_tasks, num_bytes), dtype=np.uint8)
    return scratch


@lru_cache(maxsize=64)
def _scratch_bytes(height: int, width: int) -> int:
    return scratch_bytes(height, width)
