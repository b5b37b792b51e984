"""The one set of types for which each compiled function for the CPU is compiled."""

from typing import Any

from numba import types

from fastcifar.kernels.plan import NUM_SETTING_FLOATS, NUM_SETTING_INTS


def _array(dtype: Any, ndim: int, readonly: bool = False) -> Any:
    return types.Array(dtype, ndim, "C", readonly=readonly)


# Inputs are declared read-only, which a writable array may be passed for, too.
_DRAW = (
    types.uint64,  # seed
    types.uint64,  # epoch
    _array(types.int64, 1, True),  # indices
    types.UniTuple(types.int64, NUM_SETTING_INTS),
    types.UniTuple(types.float32, NUM_SETTING_FLOATS),
    _array(types.float32, 1, True),  # quantiles of CutMix's weight
    _array(types.float32, 1, True),  # quantiles of MixUp's weight
    _array(types.int32, 2),  # plan.ints_nk
    _array(types.float32, 2),  # plan.floats_nk
)


def _augment(scratch_ndim: int) -> tuple[Any, ...]:
    return (
        types.uint64,  # address of the images
        _array(types.int64, 1, True),  # rows
        _array(types.int32, 2, True),  # plan.ints_nk
        _array(types.float32, 2, True),  # plan.floats_nk
        types.int64,  # height
        types.int64,  # width
        types.boolean,  # reflect
        _array(types.float32, 1, True),  # scale
        _array(types.float32, 1, True),  # shift
        types.int64,  # kind of output
        _array(types.uint8, scratch_ndim),  # scratch memory, a row for each task
        types.uint64,  # address of the output
    )


# A serial function takes the first and the last image, a parallel one the number of tasks.
SERIAL_DRAW = types.void(types.int64, types.int64, *_DRAW)
SERIAL_AUGMENT = types.void(types.int64, types.int64, *_augment(1))
PARALLEL_DRAW = types.void(types.int64, *_DRAW)
PARALLEL_AUGMENT = types.void(types.int64, *_augment(2))
ORDER = types.void(_array(types.int64, 1), types.uint64, types.uint64)
INSIDE = types.boolean(_array(types.int64, 1, True), types.int64)
POSSIBLE = types.boolean(_array(types.int32, 2, True), _array(types.float32, 2, True), types.int64, types.int64)
