"""Pixels, compiled for NVIDIA GPUs: the kernel, of which a block of threads looks after an image.

Everything that asks which thread it is, waits for others or shares memory with them is in this module: Numba's
simulator runs a kernel by putting its own `cuda` in the place of the one in the kernel's module.
"""

from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from fastcifar.kernels.numba_cuda.draw import config, draw, mul
from fastcifar.kernels.numba_jit import digest_of, stamped
from fastcifar.kernels.plan import (
    BFLOAT16,
    BRIGHTNESS,
    CONTRAST,
    CUTMIX,
    CUTOUT,
    FLIP,
    FLOAT32,
    HUE,
    NUM_FLOATS,
    NUM_INTS,
    NUM_SETTING_FLOATS,
    NUM_SETTING_INTS,
    ROTATION,
    SATURATION,
    SETTING_HEIGHT,
    SETTING_WIDTH,
    SHIFT_X,
    SHIFT_Y,
    WEIGHT,
)
from fastcifar.kernels.reference import GREY, POSITION_BITS, TURN_BITS
from fastcifar.kernels.scalars import ramp, reflected, turn
from fastcifar.kernels.signals import signals_wait

NUM_THREADS = 16 if config.ENABLE_CUDASIM else 128
TILE_PIXELS = 1024

_F, _U = np.float32, np.uint64
_ZERO, _HALF, _ONE, _TWO, _FOUR, _SIX, _TOP = _F(0), _F(0.5), _F(1), _F(2), _F(4), _F(6), _F(255)
_THREE, _FIVE = _F(3), _F(5)
_RED, _GREEN, _BLUE = GREY
_POSITION_MASK, _POSITION = (1 << POSITION_BITS) - 1, _F(2.0**-POSITION_BITS)
_TILE_VALUES = 3 * TILE_PIXELS
# Cosine and sine of a plan's rotation, the same for all pixels.
_NUM_TURNS = 2
_BOTH_INTS, _BOTH_FLOATS, _BOTH_TURNS = 2 * NUM_INTS, 2 * NUM_FLOATS, 2 * _NUM_TURNS

# Columns of the settings on the device: those of plan.Settings, and then these; three columns of _SCALE and of _SHIFT.
_REFLECT, _KIND, _NUM_IMAGES = NUM_SETTING_INTS, NUM_SETTING_INTS + 1, NUM_SETTING_INTS + 2
_SCALE, _SHIFT = NUM_SETTING_FLOATS, NUM_SETTING_FLOATS + 3

_reflected, _turn, _ramp = (cuda.jit(device=True)(function) for function in (reflected, turn, ramp))


@cuda.jit(device=True)
def _fetch(images, base, y, x, setting_ints):
    """Place in images of the pixel that the extended image at base shows at (y, x); -1 where it shows nothing."""
    height, width = setting_ints[SETTING_HEIGHT], setting_ints[SETTING_WIDTH]
    if not (0 <= y < height and 0 <= x < width):
        if setting_ints[_REFLECT] == 0:
            return -1
        y, x = _reflected(y, height), _reflected(x, width)
    return base + 3 * (y * width + x)


@cuda.jit(device=True)
def _between(low, high, part):
    return low + mul(high - low, part)


@cuda.jit(device=True)
def _rotated(images, base, y, x, cosine, sine, setting_ints):
    height, width = setting_ints[SETTING_HEIGHT], setting_ints[SETTING_WIDTH]
    y_doubled, x_doubled = 2 * y - (height - 1), 2 * x - (width - 1)
    y_position = sine * x_doubled + cosine * y_doubled + ((height - 1) << TURN_BITS)
    x_position = cosine * x_doubled - sine * y_doubled + ((width - 1) << TURN_BITS)
    y_low, x_low = y_position >> POSITION_BITS, x_position >> POSITION_BITS
    y_part = mul(_F(y_position & _POSITION_MASK), _POSITION)
    x_part = mul(_F(x_position & _POSITION_MASK), _POSITION)
    a = _fetch(images, base, y_low, x_low, setting_ints)
    b = _fetch(images, base, y_low, x_low + 1, setting_ints)
    c = _fetch(images, base, y_low + 1, x_low, setting_ints)
    d = _fetch(images, base, y_low + 1, x_low + 1, setting_ints)
    red = green = blue = _ZERO
    for channel in range(3):
        top = _between(
            _F(images[a + channel]) if a >= 0 else _ZERO, _F(images[b + channel]) if b >= 0 else _ZERO, x_part
        )
        low = _between(
            _F(images[c + channel]) if c >= 0 else _ZERO, _F(images[d + channel]) if d >= 0 else _ZERO, x_part
        )
        mean = _between(top, low, y_part)
        if channel == 0:
            red = mean
        elif channel == 1:
            green = mean
        else:
            blue = mean
    return red, green, blue


@cuda.jit(device=True)
def _turn_hue(red, green, blue, hue):
    value = max(red, green, blue)
    chroma = value - min(red, green, blue)
    inverse = _ONE / (chroma if chroma > _ZERO else _ONE)
    if value == red:
        angle = mul(green - blue, inverse)
    elif value == green:
        angle = _TWO + mul(blue - red, inverse)
    else:
        angle = _FOUR + mul(red - green, inverse)
    angle = angle + mul(hue, _SIX)
    angle = angle + _SIX if angle < _ZERO else angle
    angle = angle - _SIX if angle >= _SIX else angle
    return (
        value - mul(chroma, _ramp(angle + _FIVE)),
        value - mul(chroma, _ramp(angle + _THREE)),
        value - mul(chroma, _ramp(angle + _ONE)),
    )


@cuda.jit(device=True)
def _blended_with(colour, grey, factor):
    return min(max(mul(colour, factor) + grey, _ZERO), _TOP)


@cuda.jit(device=True)
def _pixel(images, base, y, x, setting_ints, setting_floats, ints, at_i, floats, at_f, turns, at_t):
    """The three values at (y, x) of an image, all but mixed."""
    if (
        ints[at_i + CUTOUT] <= y < ints[at_i + CUTOUT + 2] and ints[at_i + CUTOUT + 1] <= x < ints[at_i + CUTOUT + 3]
    ) or base < 0:
        return _ZERO, _ZERO, _ZERO
    source_y = y + ints[at_i + SHIFT_Y]
    source_x = (setting_ints[SETTING_WIDTH] - 1 - x if ints[at_i + FLIP] != 0 else x) + ints[at_i + SHIFT_X]
    if floats[at_f + ROTATION] != _ZERO:
        red, green, blue = _rotated(images, base, source_y, source_x, turns[at_t], turns[at_t + 1], setting_ints)
    else:
        place = _fetch(images, base, source_y, source_x, setting_ints)
        red = green = blue = _ZERO
        if place >= 0:
            red, green, blue = _F(images[place]), _F(images[place + 1]), _F(images[place + 2])
    factor = floats[at_f + SATURATION]
    if factor != _ONE:
        grey = mul((mul(red, _RED) + mul(green, _GREEN)) + mul(blue, _BLUE), _ONE - factor)
        red, green, blue = (
            _blended_with(red, grey, factor),
            _blended_with(green, grey, factor),
            _blended_with(blue, grey, factor),
        )
    if floats[at_f + HUE] != _ZERO:
        red, green, blue = _turn_hue(red, green, blue, floats[at_f + HUE])
    brightness, contrast = floats[at_f + BRIGHTNESS], floats[at_f + CONTRAST]
    return (
        mul((mul(red, setting_floats[_SCALE]) + setting_floats[_SHIFT]) + brightness, contrast),
        mul((mul(green, setting_floats[_SCALE + 1]) + setting_floats[_SHIFT + 1]) + brightness, contrast),
        mul((mul(blue, setting_floats[_SCALE + 2]) + setting_floats[_SHIFT + 2]) + brightness, contrast),
    )


@cuda.jit(device=True)
def _bits16(value, kind):
    """Bits of the bfloat16 or float16 nearest to a float32, in an int64; as numba_cast.py has them."""
    bits = np.int64(_F(value).view(np.uint32))
    if kind == BFLOAT16:
        return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    sign, bits = bits & 0x80000000, bits & 0x7FFFFFFF
    if bits >= 143 << 23:
        half = np.int64(0x7C00)
    elif bits < 113 << 23:
        half = np.int64(_F(abs(_F(value)) + _HALF).view(np.uint32)) - (126 << 23)
    else:
        half = (bits + ((15 - 127) << 23) + 0xFFF + ((bits >> 13) & 1)) >> 13
    return half | (sign >> 16)


@cuda.jit(device=True)
def _mixed(own, other, weight, rest):
    return mul(own, weight) + mul(other, rest)


@cuda.jit(device=True)
def _plan_of(
    who,
    indices,
    setting_ints,
    setting_floats,
    tables,
    plan_ints,
    plan_floats,
    seed,
    epoch,
    ints,
    at_i,
    floats,
    at_f,
    turns,
    at_t,
):
    """Draw the plan of the image at position who or, where there are no indices, read it; and work out its turn."""
    if indices.shape[0] > 0:
        draw(
            _U(indices[who]),
            _U(indices[0]),
            seed,
            epoch,
            setting_ints,
            setting_floats,
            tables,
            ints,
            at_i,
            floats,
            at_f,
        )
    else:
        for column in range(NUM_INTS):
            ints[at_i + column] = plan_ints[who * NUM_INTS + column]
        for column in range(NUM_FLOATS):
            floats[at_f + column] = plan_floats[who * NUM_FLOATS + column]
    if floats[at_f + ROTATION] != _ZERO:
        cosine, sine = _turn(floats[at_f + ROTATION])
        turns[at_t] = cosine
        turns[at_t + 1] = sine


@cuda.jit(device=True)
def _partner_pixel(images, base, y, x, setting_ints, setting_floats, ints, floats, turns):
    return _pixel(
        images, base, y, x, setting_ints, setting_floats, ints, NUM_INTS, floats, NUM_FLOATS, turns, _NUM_TURNS
    )


@cuda.jit(device=True)
def _shown(images, base, partner_base, y, x, setting_ints, setting_floats, ints, floats, turns):
    """The three values at (y, x), mixed."""
    y0, x0, y1, x1 = ints[CUTMIX], ints[CUTMIX + 1], ints[CUTMIX + 2], ints[CUTMIX + 3]
    has_box = y0 < y1 and x0 < x1
    if has_box and y0 <= y < y1 and x0 <= x < x1:
        return _partner_pixel(images, partner_base, y, x, setting_ints, setting_floats, ints, floats, turns)
    red, green, blue = _pixel(images, base, y, x, setting_ints, setting_floats, ints, 0, floats, 0, turns, 0)
    weight = floats[WEIGHT]
    if weight < _ONE and not has_box:
        r, g, b = _partner_pixel(images, partner_base, y, x, setting_ints, setting_floats, ints, floats, turns)
        rest = _ONE - weight
        return _mixed(red, r, weight, rest), _mixed(green, g, weight, rest), _mixed(blue, b, weight, rest)
    return red, green, blue


@cuda.jit(device=True)
def _write(tile, count, first, kind, out16, pairs, out32):
    """Cast count values of the tile to the output from place first on, neighbouring threads to neighbouring words."""
    thread, num_threads = cuda.threadIdx.x, cuda.blockDim.x
    if kind == FLOAT32:
        for value in range(thread, count, num_threads):
            out32[first + value] = tile[value]
    elif pairs.shape[0] > 0:
        for pair in range(thread, count // 2, num_threads):
            word = _bits16(tile[2 * pair], kind) | (_bits16(tile[2 * pair + 1], kind) << 16)
            # Torch's arrays of words are signed.
            pairs[first // 2 + pair] = np.int32(word - ((word >> 31) << 32))
    else:
        for value in range(thread, count, num_threads):
            half = _bits16(tile[value], kind)
            out16[first + value] = np.int16(half - ((half >> 15) << 16))


# Types of the kernel's arguments, in order.
SIGNATURE = (
    "void(uint8[::1], int64[::1], int64[::1], int64[::1], float32[::1], float32[::1], int32[::1], float32[::1], "
    "uint64, uint64, float32[::1], int16[::1], int32[::1], float32[::1], int32[::1])"
)


@cache
def compiled_kernel() -> Any:
    """The kernel, compiled when it is first asked for, on the current GPU, for one set of types; kept on disk.

    A launch then does not look at its arguments' types, which takes longer than a small batch.
    """
    if config.ENABLE_CUDASIM:
        return cuda.jit(SIGNATURE)(kernel)
    marked = stamped(kernel, digest_of("numba_cuda/*.py"))
    with signals_wait():
        try:
            return cuda.jit(SIGNATURE, cache=True)(marked)
        except Exception:
            # Whatever a damaged file raises, or a folder that nothing can be written to. An empty index takes its
            # place, and what is wrong with the kernel itself is said again.
            with suppress(Exception):
                cuda.jit(cache=True)(marked)._cache.flush()
            return cuda.jit(SIGNATURE)(kernel)


def kernel(
    images,
    rows,
    indices,
    setting_ints,
    setting_floats,
    tables,
    plan_ints,
    plan_floats,
    seed,
    epoch,
    weights,
    out16,
    pairs,
    out32,
    bad_rows,
):
    """Augment a batch; __init__.py launches it, and says what the arguments are."""
    i, thread = cuda.blockIdx.x, cuda.threadIdx.x
    j = i + 1 if i + 1 < rows.shape[0] else 0
    # One a line: Numba's simulator tells shared arrays apart by their lines.
    ints = cuda.shared.array(_BOTH_INTS, np.int32)
    floats = cuda.shared.array(_BOTH_FLOATS, np.float32)
    turns = cuda.shared.array(_BOTH_TURNS, np.int64)
    tile = cuda.shared.array(_TILE_VALUES, np.float32)
    # Two threads, of different warps where there are any, look after the image's plan and its partner's.
    if thread == 0:
        _plan_of(
            i,
            indices,
            setting_ints,
            setting_floats,
            tables,
            plan_ints,
            plan_floats,
            seed,
            epoch,
            ints,
            0,
            floats,
            0,
            turns,
            0,
        )
    if thread == (32 if cuda.blockDim.x > 32 else 1):
        _plan_of(
            j,
            indices,
            setting_ints,
            setting_floats,
            tables,
            plan_ints,
            plan_floats,
            seed,
            epoch,
            ints,
            NUM_INTS,
            floats,
            NUM_FLOATS,
            turns,
            _NUM_TURNS,
        )
    cuda.syncthreads()

    height, width, num_images = setting_ints[SETTING_HEIGHT], setting_ints[SETTING_WIDTH], setting_ints[_NUM_IMAGES]
    num_pixels = height * width
    base = rows[i] * 3 * num_pixels if 0 <= rows[i] < num_images else -1
    partner_base = rows[j] * 3 * num_pixels if 0 <= rows[j] < num_images else -1
    if thread == 0:
        weights[i] = floats[WEIGHT]
        if base < 0:
            bad_rows[0] = 1
    # Steps from pixel to pixel, without a division at each.
    y_step, x_step = cuda.blockDim.x // width, cuda.blockDim.x % width
    for start in range(0, num_pixels, TILE_PIXELS):
        count = min(TILE_PIXELS, num_pixels - start)
        y, x = (start + thread) // width, (start + thread) % width
        for pixel in range(thread, count, cuda.blockDim.x):
            red, green, blue = _shown(
                images, base, partner_base, y, x, setting_ints, setting_floats, ints, floats, turns
            )
            tile[3 * pixel], tile[3 * pixel + 1], tile[3 * pixel + 2] = red, green, blue
            y, x = y + y_step, x + x_step
            if x >= width:
                y, x = y + 1, x - width
        cuda.syncthreads()
        _write(tile, 3 * count, 3 * (i * num_pixels + start), setting_ints[_KIND], out16, pairs, out32)
        cuda.syncthreads()
