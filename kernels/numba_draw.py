"""Drawing, compiled for the CPU: Philox-4x32-10 and plans, by the arithmetic of philox.py and reference.py."""

from collections import namedtuple

import numpy as np
from numba import types

from fastcifar.kernels.numba_jit import compiled, compiled_for
from fastcifar.kernels.numba_share import reader, shared
from fastcifar.kernels.numba_vector import floats_at, ints_at, longs_at, moved
from fastcifar.kernels.philox import (
    ALTERNATING,
    BOX,
    COLOUR,
    ERASE_LIGHT,
    GEOMETRY,
    LOW_WORD,
    MIX,
    ORDER,
    TOP_BIT,
    UNIT,
    UNIT_BITS,
    WORD_BITS,
    rounds,
)
from fastcifar.kernels.plan import (
    ALTERNATING_FLIP,
    BIN,
    BIN_BITS,
    BIN_MASK,
    BRIGHTNESS,
    CONTRAST,
    CUTMIX,
    CUTOUT,
    FLIP,
    HUE,
    MAX_HUE,
    MAX_ROTATION_DEGREES,
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
from fastcifar.kernels.settings import MAX_SIDE_PX

# Numba widens what it computes to 64 bits, so words travel in uint64 and are masked where they could exceed 32.
_U = np.uint64
_FIRST_EPOCH = _U(0)
_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)

_MAX_ROTATION, _MAX_HUE = np.float32(MAX_ROTATION_DEGREES), np.float32(MAX_HUE)


_rounds, _below = compiled(rounds), compiled(below)


@compiled
def philox(index, epoch, stream, seed):
    """Four words (as uint64) of the counter (index, epoch, stream) under the seed; all uint64."""
    return _rounds(index & LOW_WORD, index >> WORD_BITS, epoch, stream, seed & LOW_WORD, seed >> WORD_BITS)


@compiled
def _unit(word):
    return np.float32(np.int64(word >> UNIT_BITS)) * UNIT


@compiled
def _symmetric(word):
    return _unit(word) * _TWO - _ONE


@compiled
def _quantile(table, word):
    position = np.int64(word >> BIN_BITS)
    fraction = np.float32(np.int64(word & BIN_MASK)) * BIN
    low, high = table[position], table[position + 1]
    return low + (high - low) * fraction


@compiled
def _draw_span(word, half, side):
    """First and last place along one axis of a box that reaches half of the side both ways, cut off at the edges."""
    centre = _below(word, side)
    reach = np.int64(half * np.float32(side))
    return max(centre - reach, 0), min(centre + reach, side)


@compiled
def _draw_mix(index, epoch, seed, probability, switch, height, width, cutmix_table, mixup_table):
    """Weight of the own label and the CutMix box: y0, x0, y1, x1."""
    nothing = np.int64(0)
    w0, w1, w2, _ = philox(index, epoch, _U(MIX), seed)
    if _unit(w0) >= probability:
        return _ONE, nothing, nothing, nothing, nothing
    if _unit(w1) >= switch:
        return _quantile(mixup_table, w2), nothing, nothing, nothing, nothing
    half = _HALF * np.sqrt(_ONE - _quantile(cutmix_table, w2))
    w0, w1, w2, _ = philox(index, epoch, _U(BOX), seed)
    y0, y1 = _draw_span(w0, half, height)
    x0, x1 = _draw_span(w1, half, width)
    own, pixels = height * width - (y1 - y0) * (x1 - x0), height * width
    return np.float32(own) / np.float32(pixels), y0, x0, y1, x1


@compiled
def _draw_geometry(index, epoch, seed, padding, flip, rotation, ints, floats):
    w0, w1, w2, w3 = philox(index, epoch, _U(GEOMETRY), seed)
    ints[SHIFT_Y] = _below(w0, 2 * padding + 1) - padding
    ints[SHIFT_X] = _below(w1, 2 * padding + 1) - padding
    if flip == RANDOM_FLIP:
        ints[FLIP] = np.int32(w2 >> TOP_BIT)
    if rotation > _ZERO:
        floats[ROTATION] = _symmetric(w3) * rotation


@compiled
def _draw_light(index, epoch, seed, height, width, cutout, brightness, contrast, ints, floats):
    w0, w1, w2, w3 = philox(index, epoch, _U(ERASE_LIGHT), seed)
    if cutout > 0:
        top, left = _below(w0, height - cutout + 1), _below(w1, width - cutout + 1)
        ints[CUTOUT], ints[CUTOUT + 1] = top, left
        ints[CUTOUT + 2], ints[CUTOUT + 3] = top + cutout, left + cutout
    if brightness > _ZERO:
        floats[BRIGHTNESS] = _symmetric(w2) * brightness
    floats[CONTRAST] = _ONE + _symmetric(w3) * contrast


@compiled
def _draw_colour(index, epoch, seed, saturation_low, saturation_high, hue, floats):
    w0, w1, _, _ = philox(index, epoch, _U(COLOUR), seed)
    floats[SATURATION] = saturation_low + _unit(w0) * (saturation_high - saturation_low)
    if hue > _ZERO:
        floats[HUE] = _symmetric(w1) * hue


Drawing = namedtuple("Drawing", "seed epoch indices settings amounts cutmix_table mixup_table ints floats")
"""What `draw` takes: the seed's bits, the epoch, and addresses.

Of the indices, int64 [n]; of the settings, int64, and their amounts, float32, as `plan.Settings` orders them; of the
quantiles of CutMix's and MixUp's weights, float32; of the plan's arrays.
"""
_drawing = reader(Drawing)


@shared
def draw(numbers, task, first, last):
    """Fill rows first..last-1 of a plan. numbers: a Drawing."""
    drawing = _drawing(numbers)
    seed, epoch, indices = _U(drawing.seed), _U(drawing.epoch), longs_at(drawing.indices)
    cutmix_table, mixup_table = floats_at(drawing.cutmix_table), floats_at(drawing.mixup_table)
    settings, amounts = longs_at(drawing.settings), floats_at(drawing.amounts)
    height, width, padding = settings[SETTING_HEIGHT], settings[SETTING_WIDTH], settings[SETTING_PADDING]
    flip, cutout, mix_per_image = settings[SETTING_FLIP], settings[SETTING_CUTOUT], settings[SETTING_MIX_PER_IMAGE]
    probability, switch = amounts[SETTING_MIX_PROBABILITY], amounts[SETTING_MIX_SWITCH]
    brightness, contrast = amounts[SETTING_BRIGHTNESS], amounts[SETTING_CONTRAST]
    rotation, hue = amounts[SETTING_ROTATION], amounts[SETTING_HUE]
    saturation_low, saturation_high = amounts[SETTING_SATURATION_LOW], amounts[SETTING_SATURATION_HIGH]
    if first == last:
        return
    # What is drawn per batch is drawn by the index of its first image.
    mix = _draw_mix(_U(indices[0]), epoch, seed, probability, switch, height, width, cutmix_table, mixup_table)
    for i in range(first, last):
        index = _U(indices[i])
        ints, floats = moved(ints_at(drawing.ints), i * NUM_INTS), moved(floats_at(drawing.floats), i * NUM_FLOATS)
        for column in range(NUM_INTS):
            ints[column] = 0
        for column in range(NUM_FLOATS):
            floats[column] = _ZERO
        floats[WEIGHT] = floats[CONTRAST] = floats[SATURATION] = _ONE
        # Four words cost as much as some hundred pixels: none are drawn that nothing needs.
        if padding > 0 or flip == RANDOM_FLIP or rotation > _ZERO:
            _draw_geometry(index, epoch, seed, padding, flip, rotation, ints, floats)
        if flip == ALTERNATING_FLIP:
            word = philox(index, _FIRST_EPOCH, _U(ALTERNATING), seed)[0]
            ints[FLIP] = np.int32((word >> TOP_BIT) ^ (epoch & _U(1)))
        if cutout > 0 or brightness > _ZERO or contrast > _ZERO:
            _draw_light(index, epoch, seed, height, width, cutout, brightness, contrast, ints, floats)
        # Float32 is finer below 1 than above: of the least saturations only the low end differs from 1.
        if saturation_low < _ONE or hue > _ZERO:
            _draw_colour(index, epoch, seed, saturation_low, saturation_high, hue, floats)
        if probability > _ZERO:
            if mix_per_image:
                mix = _draw_mix(index, epoch, seed, probability, switch, height, width, cutmix_table, mixup_table)
            floats[WEIGHT] = mix[0]
            ints[CUTMIX], ints[CUTMIX + 1], ints[CUTMIX + 2], ints[CUTMIX + 3] = mix[1:]


@compiled_for(types.void(types.int64[::1], types.uint64, types.uint64))
def fisher_yates(order, seed, epoch):
    """Fill order, int64 [n], with a permutation; seed and epoch uint64."""
    num_images = len(order)
    for place in range(num_images):
        order[place] = place
    block = -1
    w0 = w1 = w2 = w3 = _FIRST_EPOCH
    for place in range(num_images - 1, 0, -1):
        if place >> 2 != block:
            block = place >> 2
            w0, w1, w2, w3 = philox(_U(block), epoch, _U(ORDER), seed)
        lane = place & 3
        word = w0 if lane == 0 else w1 if lane == 1 else w2 if lane == 2 else w3
        other = _below(word, place + 1)
        order[place], order[other] = order[other], order[place]


@compiled_for(types.boolean(types.Array(types.int64, 1, "C", readonly=True), types.int64))
def rows_inside(rows, num_images):
    """Whether all rows, int64 [n], are those of images."""
    outside = False
    for i in range(len(rows)):
        outside |= rows[i] < 0 or rows[i] >= num_images
    return not outside


@compiled
def _is_within(value, most):
    # Not by its absolute value: that of the least integer is negative.
    return -most <= value <= most


@compiled
def _is_box(ints, i, column, height, width):
    y0, x0, y1, x1 = ints[i, column], ints[i, column + 1], ints[i, column + 2], ints[i, column + 3]
    return 0 <= y0 <= y1 <= height and 0 <= x0 <= x1 <= width


@compiled_for(
    types.boolean(
        types.Array(types.int32, 2, "C", readonly=True),
        types.Array(types.float32, 2, "C", readonly=True),
        types.int64,
        types.int64,
    )
)
def is_possible(ints, floats, height, width):
    """Whether all that a plan's arrays say can be done to images of this size.

    checks.check_plan_numbers refuses the same plans, and says why.
    """
    possible = True
    for i in range(len(ints)):
        for column in range(NUM_FLOATS):
            possible &= np.isfinite(floats[i, column])
        possible &= _is_within(floats[i, ROTATION], _MAX_ROTATION) and _is_within(floats[i, HUE], _MAX_HUE)
        possible &= _is_within(ints[i, SHIFT_Y], MAX_SIDE_PX) and _is_within(ints[i, SHIFT_X], MAX_SIDE_PX)
        if not (_is_box(ints, i, CUTOUT, height, width) and _is_box(ints, i, CUTMIX, height, width)):
            # The area of a box that lies anywhere could overflow.
            return False
        weight = floats[i, WEIGHT]
        possible &= _ZERO <= weight <= _ONE
        area = (ints[i, CUTMIX + 2] - ints[i, CUTMIX]) * (ints[i, CUTMIX + 3] - ints[i, CUTMIX + 1])
        if area > 0:
            possible &= weight == np.float32(height * width - area) / np.float32(height * width)
    return possible
