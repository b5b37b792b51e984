"""Drawing, compiled for NVIDIA GPUs: Philox-4x32-10 and plans, by the arithmetic of philox.py and reference.py.

Products that feed a sum go through `mul`, since the GPU's compiler would otherwise fuse the two and leave one rounding
out.
"""

import math
from typing import Any

import numpy as np
from numba import config as numba_config
from numba import cuda

from fastcifar.kernels.philox import (
    ALTERNATING,
    BOX,
    COLOUR,
    ERASE_LIGHT,
    GEOMETRY,
    LOW_WORD,
    MIX,
    NUM_ROUNDS,
    TOP_BIT,
    UNIT,
    UNIT_BITS,
    WORD_BITS,
    one_round,
)
from fastcifar.kernels.plan import (
    ALTERNATING_FLIP,
    BETA_TABLE_BINS,
    BIN,
    BIN_BITS,
    BIN_MASK,
    BRIGHTNESS,
    CONTRAST,
    CUTMIX,
    CUTOUT,
    FLIP,
    HUE,
    NUM_FLOATS,
    NUM_INTS,
    RANDOM_FLIP,
    ROTATION,
    SATURATION,
    SETTING_BRIGHTNESS,
    SETTING_CONTRAST,
    SETTING_CUTOUT,
    SETTING_FLIP,
    SETTING_HEIGHT,
    SETTING_HUE,
    SETTING_MIX_PER_IMAGE,
    SETTING_MIX_PROBABILITY,
    SETTING_MIX_SWITCH,
    SETTING_PADDING,
    SETTING_ROTATION,
    SETTING_SATURATION_HIGH,
    SETTING_SATURATION_LOW,
    SETTING_WIDTH,
    SHIFT_X,
    SHIFT_Y,
    WEIGHT,
)
from fastcifar.kernels.scalars import below

# Numba makes its settings when it is imported, which a type checker cannot follow.
config: Any = numba_config
# A batch that is too small to fill the GPU is none of the user's mistakes.
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

_F, _U = np.float32, np.uint64
_ZERO, _HALF, _ONE, _TWO = _F(0), _F(0.5), _F(1), _F(2)

if config.ENABLE_CUDASIM:

    @cuda.jit(device=True)
    def mul(a, b):
        """Product of float32, rounded by itself."""
        return a * b

else:
    from numba.cuda import libdevice

    mul = libdevice.fmul_rn


_one_round, _below = cuda.jit(device=True)(one_round), cuda.jit(device=True)(below)


@cuda.jit(device=True)
def _philox(index, epoch, stream, seed):
    c0, c1, c2, c3 = index & LOW_WORD, index >> WORD_BITS, epoch, _U(stream)
    k0, k1 = seed & LOW_WORD, seed >> WORD_BITS
    for _ in range(NUM_ROUNDS):
        c0, c1, c2, c3, k0, k1 = _one_round(c0, c1, c2, c3, k0, k1)
    return c0, c1, c2, c3


@cuda.jit(device=True)
def _unit(word):
    return mul(_F(np.int64(word >> UNIT_BITS)), UNIT)


@cuda.jit(device=True)
def _symmetric(word):
    return mul(_unit(word), _TWO) - _ONE


@cuda.jit(device=True)
def _quantile(tables, at, word):
    position = at + np.int64(word >> BIN_BITS)
    low, high = tables[position], tables[position + 1]
    return low + mul(high - low, mul(_F(np.int64(word & BIN_MASK)), BIN))


@cuda.jit(device=True)
def _draw_mix(index, seed, epoch, setting_ints, setting_floats, tables, ints, at_i, floats, at_f):
    w0, w1, w2, _w3 = _philox(index, epoch, MIX, seed)
    if _unit(w0) >= setting_floats[SETTING_MIX_PROBABILITY]:
        return
    if _unit(w1) >= setting_floats[SETTING_MIX_SWITCH]:
        floats[at_f + WEIGHT] = _quantile(tables, BETA_TABLE_BINS + 1, w2)
        return
    half = mul(_HALF, _F(math.sqrt(_ONE - _quantile(tables, 0, w2))))
    w0, w1, w2, _w3 = _philox(index, epoch, BOX, seed)
    height, width = setting_ints[SETTING_HEIGHT], setting_ints[SETTING_WIDTH]
    pixels = height * width
    for axis in range(2):
        side = height if axis == 0 else width
        centre = _below(w0 if axis == 0 else w1, side)
        reach = np.int64(mul(half, _F(side)))
        ints[at_i + CUTMIX + axis] = max(centre - reach, 0)
        ints[at_i + CUTMIX + 2 + axis] = min(centre + reach, side)
    y0, x0 = ints[at_i + CUTMIX], ints[at_i + CUTMIX + 1]
    y1, x1 = ints[at_i + CUTMIX + 2], ints[at_i + CUTMIX + 3]
    floats[at_f + WEIGHT] = _F(pixels - (y1 - y0) * (x1 - x0)) / _F(pixels)


@cuda.jit(device=True)
def draw(index, first_index, seed, epoch, setting_ints, setting_floats, tables, ints, at_i, floats, at_f):
    """Draw one image's plan to ints[at_i:] and floats[at_f:].

    setting_ints, setting_floats: those of plan.Settings; tables: CutMix's quantiles and then MixUp's.
    """
    height, width, padding = setting_ints[SETTING_HEIGHT], setting_ints[SETTING_WIDTH], setting_ints[SETTING_PADDING]
    flip, cutout = setting_ints[SETTING_FLIP], setting_ints[SETTING_CUTOUT]
    brightness, contrast = setting_floats[SETTING_BRIGHTNESS], setting_floats[SETTING_CONTRAST]
    rotation, hue = setting_floats[SETTING_ROTATION], setting_floats[SETTING_HUE]
    for column in range(NUM_INTS):
        ints[at_i + column] = 0
    for column in range(NUM_FLOATS):
        floats[at_f + column] = _ZERO
    floats[at_f + WEIGHT] = _ONE
    floats[at_f + CONTRAST] = _ONE
    floats[at_f + SATURATION] = _ONE
    if padding > 0 or flip == RANDOM_FLIP or rotation > _ZERO:
        w0, w1, w2, w3 = _philox(index, epoch, GEOMETRY, seed)
        ints[at_i + SHIFT_Y] = _below(w0, 2 * padding + 1) - padding
        ints[at_i + SHIFT_X] = _below(w1, 2 * padding + 1) - padding
        if flip == RANDOM_FLIP:
            ints[at_i + FLIP] = np.int32(w2 >> TOP_BIT)
        if rotation > _ZERO:
            floats[at_f + ROTATION] = mul(_symmetric(w3), rotation)
    if flip == ALTERNATING_FLIP:
        w0, w1, w2, w3 = _philox(index, _U(0), ALTERNATING, seed)
        ints[at_i + FLIP] = np.int32((w0 >> TOP_BIT) ^ (epoch & _U(1)))
    if cutout > 0 or brightness > _ZERO or contrast > _ZERO:
        w0, w1, w2, w3 = _philox(index, epoch, ERASE_LIGHT, seed)
        if cutout > 0:
            top, left = _below(w0, height - cutout + 1), _below(w1, width - cutout + 1)
            ints[at_i + CUTOUT], ints[at_i + CUTOUT + 1] = top, left
            ints[at_i + CUTOUT + 2], ints[at_i + CUTOUT + 3] = top + cutout, left + cutout
        if brightness > _ZERO:
            floats[at_f + BRIGHTNESS] = mul(_symmetric(w2), brightness)
        floats[at_f + CONTRAST] = _ONE + mul(_symmetric(w3), contrast)
    # Float32 is finer below 1 than above: of the least saturations only the low end differs from 1.
    if setting_floats[SETTING_SATURATION_LOW] < _ONE or hue > _ZERO:
        w0, w1, w2, w3 = _philox(index, epoch, COLOUR, seed)
        low = setting_floats[SETTING_SATURATION_LOW]
        floats[at_f + SATURATION] = low + mul(_unit(w0), setting_floats[SETTING_SATURATION_HIGH] - low)
        if hue > _ZERO:
            floats[at_f + HUE] = mul(_symmetric(w1), hue)
    if setting_floats[SETTING_MIX_PROBABILITY] > _ZERO:
        drawn_for = index if setting_ints[SETTING_MIX_PER_IMAGE] != 0 else first_index
        _draw_mix(drawn_for, seed, epoch, setting_ints, setting_floats, tables, ints, at_i, floats, at_f)
