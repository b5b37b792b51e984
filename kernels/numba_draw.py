"""Drawing, compiled for the CPU: Philox-4x32-10 and plans, by the arithmetic of philox.py and reference.py."""

from collections import namedtuple

import numpy as np
from numba import types

from fastcifar.kernels.numba_jit import compiled, compiled_for
from fastcifar.kernels.numba_share import reader, shared
from fastcifar.kernels.numba_vector import floats_at, ints_at, longs_at, moved
from fastcifar.kernels.numba_words import BLOCK, below, fill_words, room_for_words, words_of
from fastcifar.kernels.philox import (
    ALTERNATING,
    BOX,
    COLOUR,
    ERASE_LIGHT,
    GEOMETRY,
    MIX,
    TOP_BIT,
    UNIT,
    UNIT_BITS,
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
from fastcifar.kernels.settings import MAX_SIDE_PX

_U = np.uint64
_FIRST_EPOCH = _U(0)
_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)

_MAX_ROTATION, _MAX_HUE = np.float32(MAX_ROTATION_DEGREES), np.float32(MAX_HUE)

_words, _box_words = room_for_words(), room_for_words()


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
    centre = below(word, side)
    reach = np.int64(half * np.float32(side))
    return max(centre - reach, 0), min(centre + reach, side)


Block = namedtuple("Block", "num indices epoch seed words box_words ints floats")
"""At most BLOCK images of a batch: their number, what their words are drawn by, and pointers.

To their indices, to room for their words, twice, and to their rows of the plan's arrays.
"""


@compiled
def _draw(block, stream):
    fill_words(block.indices, block.num, block.epoch, stream, block.seed, block.words)


@compiled
def _draw_nothing(block):
    """Fill the rows of the plan with what changes no pixel."""
    for j in range(block.num * NUM_INTS):
        block.ints[j] = 0
    for i in range(block.num):
        floats = moved(block.floats, i * NUM_FLOATS)
        for column in range(NUM_FLOATS):
            floats[column] = _ZERO
        floats[WEIGHT] = floats[CONTRAST] = floats[SATURATION] = _ONE


@compiled
def _draw_geometry(block, padding, flip, rotation):
    _draw(block, GEOMETRY)
    for i in range(block.num):
        w0, w1, w2, w3 = words_of(block.words, i)
        ints = moved(block.ints, i * NUM_INTS)
        ints[SHIFT_Y] = below(w0, 2 * padding + 1) - padding
        ints[SHIFT_X] = below(w1, 2 * padding + 1) - padding
        if flip == RANDOM_FLIP:
            ints[FLIP] = np.int32(w2 >> TOP_BIT)
        if rotation > _ZERO:
            block.floats[i * NUM_FLOATS + ROTATION] = _symmetric(w3) * rotation


@compiled
def _draw_alternating(block):
    fill_words(block.indices, block.num, _FIRST_EPOCH, ALTERNATING, block.seed, block.words)
    for i in range(block.num):
        block.ints[i * NUM_INTS + FLIP] = np.int32((words_of(block.words, i)[0] >> TOP_BIT) ^ (block.epoch & _U(1)))


@compiled
def _draw_light(block, height, width, cutout, brightness, contrast):
    _draw(block, ERASE_LIGHT)
    for i in range(block.num):
        w0, w1, w2, w3 = words_of(block.words, i)
        ints, floats = moved(block.ints, i * NUM_INTS), moved(block.floats, i * NUM_FLOATS)
        if cutout > 0:
            top, left = below(w0, height - cutout + 1), below(w1, width - cutout + 1)
            ints[CUTOUT], ints[CUTOUT + 1] = top, left
            ints[CUTOUT + 2], ints[CUTOUT + 3] = top + cutout, left + cutout
        if brightness > _ZERO:
            floats[BRIGHTNESS] = _symmetric(w2) * brightness
        floats[CONTRAST] = _ONE + _symmetric(w3) * contrast


@compiled
def _draw_colour(block, saturation_low, saturation_high, hue):
    _draw(block, COLOUR)
    for i in range(block.num):
        w0, w1, _, _ = words_of(block.words, i)
        floats = moved(block.floats, i * NUM_FLOATS)
        floats[SATURATION] = saturation_low + _unit(w0) * (saturation_high - saturation_low)
        if hue > _ZERO:
            floats[HUE] = _symmetric(w1) * hue


Mixing = namedtuple("Mixing", "height width per_image probability switch cutmix_table mixup_table")
"""How images are mixed: their size and the settings of these names, and pointers to tables of quantiles."""


@compiled
def _mix(mixing, words, box_words):
    """Weight of the own label and the CutMix box: y0, x0, y1, x1."""
    nothing, height, width = np.int64(0), mixing.height, mixing.width
    w0, w1, w2, _ = words
    if _unit(w0) >= mixing.probability:
        return _ONE, nothing, nothing, nothing, nothing
    if _unit(w1) >= mixing.switch:
        return _quantile(mixing.mixup_table, w2), nothing, nothing, nothing, nothing
    half = _HALF * np.sqrt(_ONE - _quantile(mixing.cutmix_table, w2))
    w0, w1, _, _ = box_words
    y0, y1 = _draw_span(w0, half, height)
    x0, x1 = _draw_span(w1, half, width)
    own, pixels = height * width - (y1 - y0) * (x1 - x0), height * width
    return np.float32(own) / np.float32(pixels), y0, x0, y1, x1


@compiled
def _draw_mixing(block, mixing, first_index):
    """Mix the images. What is drawn per batch is drawn by the index of its first image, to which a pointer is given."""
    num, indices = (block.num, block.indices) if mixing.per_image else (1, first_index)
    fill_words(indices, num, block.epoch, MIX, block.seed, block.words)
    if mixing.switch > _ZERO:
        fill_words(indices, num, block.epoch, BOX, block.seed, block.box_words)
    mix = _mix(mixing, words_of(block.words, 0), words_of(block.box_words, 0))
    for i in range(block.num):
        if mixing.per_image:
            mix = _mix(mixing, words_of(block.words, i), words_of(block.box_words, i))
        box = moved(block.ints, i * NUM_INTS + CUTMIX)
        block.floats[i * NUM_FLOATS + WEIGHT], box[0], box[1], box[2], box[3] = mix


Drawing = namedtuple("Drawing", "seed epoch indices settings amounts cutmix_table mixup_table ints floats")
"""What drawing takes: the seed's bits, the epoch, and addresses.

Of the indices, int64 [n]; of the settings, int64, and their amounts, float32, as `plan.Settings` orders them; of the
quantiles of CutMix's and MixUp's weights, float32; of the plan's arrays.
"""
_drawing = reader(Drawing)


@shared
def draw(numbers, task, first, last):
    """Fill rows first..last-1 of a plan. numbers: a Drawing."""
    drawing = _drawing(numbers)
    indices, ints, floats = longs_at(drawing.indices), ints_at(drawing.ints), floats_at(drawing.floats)
    settings, amounts = longs_at(drawing.settings), floats_at(drawing.amounts)
    height, width, padding = settings[SETTING_HEIGHT], settings[SETTING_WIDTH], settings[SETTING_PADDING]
    flip, cutout = settings[SETTING_FLIP], settings[SETTING_CUTOUT]
    brightness, contrast = amounts[SETTING_BRIGHTNESS], amounts[SETTING_CONTRAST]
    rotation, hue = amounts[SETTING_ROTATION], amounts[SETTING_HUE]
    saturation_low, saturation_high = amounts[SETTING_SATURATION_LOW], amounts[SETTING_SATURATION_HIGH]
    mixing = Mixing(
        height,
        width,
        settings[SETTING_MIX_PER_IMAGE] != 0,
        amounts[SETTING_MIX_PROBABILITY],
        amounts[SETTING_MIX_SWITCH],
        floats_at(drawing.cutmix_table),
        floats_at(drawing.mixup_table),
    )
    for start in range(first, last, BLOCK):
        block = Block(
            min(last - start, BLOCK),
            moved(indices, start),
            _U(drawing.epoch),
            _U(drawing.seed),
            _words(),
            _box_words(),
            moved(ints, start * NUM_INTS),
            moved(floats, start * NUM_FLOATS),
        )
        _draw_nothing(block)
        # Words cost more than all else: none are drawn that nothing needs.
        if padding > 0 or flip == RANDOM_FLIP or rotation > _ZERO:
            _draw_geometry(block, padding, flip, rotation)
        if flip == ALTERNATING_FLIP:
            _draw_alternating(block)
        if cutout > 0 or brightness > _ZERO or contrast > _ZERO:
            _draw_light(block, height, width, cutout, brightness, contrast)
        # Float32 is finer below 1 than above: of the least saturations only the low end differs from 1.
        if saturation_low < _ONE or hue > _ZERO:
            _draw_colour(block, saturation_low, saturation_high, hue)
        if mixing.probability > _ZERO:
            _draw_mixing(block, mixing, indices)


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
