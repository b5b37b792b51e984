"""What stands between two convolutions of a network, in few passes over memory: compiled code.

Maps are channels-last, [pixels, channels], of float32 or bfloat16 values; all arithmetic is in float32. The inner loops
run over a pixel's channels, each of which has its own numbers, so that they become vector instructions. What it is all
for stands in maps.py.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from fastcifar.kernels.numba_jit import compiled_fused
from fastcifar.kernels.numba_share import shared
from fastcifar.kernels.numba_values import add, get, like, put, values_at
from fastcifar.kernels.numba_vector import bytes_at, doubles_at, floats_at, moved

ADD_UP, MAX_POOL, GELU, GELU_GRADIENT, COMBINE, MAX_UNPOOL = range(6)
"""What can be done to maps."""
_RUN = 32
"""Pixels that are added up in float32 before their sums are added in float64."""

_F, _I = np.float32, np.int32
_ZERO, _ONE = _F(0), _F(1)
# exp(-x^2 / 2) is 2^t. Adding 1.5 * 2^23 leaves t's nearest whole number in the lowest bits, which become an exponent.
_SQUARE_TO_T, _LEAST_T = _F(-0.5 / np.log(2)), _F(-126)
_ROUND, _MANTISSA_BITS, _EXPONENT_OF_1 = _F(1.5 * 2**23), _I(23), _I(127 << 23)
# 2^f for f from -0.5 to 0.5, exact where f is 0; fitted for the least relative error, which is 9e-8 at most.
_P1, _P2, _P3, _P4, _P5 = _F(0.69314698), _F(0.24022242), _F(0.05550734), _F(0.00967151), _F(0.00132647)
# The normal distribution's tail: Abramowitz and Stegun 7.1.26, for x / sqrt(2). Its error is 8e-8 at most.
_T = _F(0.3275911 / np.sqrt(2))
_A1, _A2, _A3, _A4, _A5 = _F(0.127414796), _F(-0.142248368), _F(0.7107068705), _F(-0.7265760135), _F(0.5307027145)
_DENSITY_AT_0 = _F(1 / np.sqrt(2 * np.pi))


@compiled_fused
def _bell(x):
    """exp(-x^2 / 2)."""
    t = max(x * x * _SQUARE_TO_T, _LEAST_T)
    shifted = t + _ROUND
    f = t - (shifted - _ROUND)
    # Numba widens sums to 64 bits; the casts tell the compiler that 32 are meant.
    power = _I(_I(_F(shifted).view(_I) << _MANTISSA_BITS) + _EXPONENT_OF_1).view(_F)
    return power * (_ONE + f * (_P1 + f * (_P2 + f * (_P3 + f * (_P4 + f * _P5)))))


@compiled_fused
def _share_below(x, bell):
    """The normal distribution up to x."""
    t = _ONE / (_ONE + _T * abs(x))
    tail = bell * (t * (_A1 + t * (_A2 + t * (_A3 + t * (_A4 + t * _A5)))))
    return tail if x < _ZERO else _ONE - tail


@compiled_fused
def flush(partial, sums, num):
    """Add the partial sums to the sums and begin them anew."""
    for j in range(num):
        sums[j] += partial[j]
        partial[j] = _ZERO


@compiled_fused
def _add_up(x, numbers, task, first, last):
    """Each channel's values and their squares, of pixels first to last.

    numbers: x, channels, sums float64 [tasks, 2 * channels], partial sums float32 [tasks, 2 * channels].
    """
    channels = numbers[1]
    sums = moved(doubles_at(numbers[2]), task * 2 * channels)
    partial = moved(floats_at(numbers[3]), task * 2 * channels)
    for start in range(first, last, _RUN):
        for pixel in range(start, min(start + _RUN, last)):
            at = pixel * channels
            for j in range(channels):
                value = get(x, at + j)
                add(partial, j, value)
                add(partial, channels + j, value * value)
        flush(partial, sums, 2 * channels)


@compiled_fused
def _larger(best, place, value, its_place):
    """The larger value and its place; of equal ones the first, and what is no number is larger than any."""
    larger = (value > best) | np.isnan(value)
    return (value if larger else best), (its_place if larger else place)


@compiled_fused
def pool_row(upper, lower, pitch, columns, channels, result, places, partial):
    """The largest of each 2x2 values of two rows, whose pixels are `pitch` values apart, and which it is, to one row.

    Adds the results and their squares to partial sums.
    """
    for column in range(columns):
        left, at = 2 * column * pitch, column * channels
        right = left + pitch
        for j in range(channels):
            best, place = _larger(get(upper, left + j), _ZERO, get(upper, right + j), _F(1))
            best, place = _larger(best, place, get(lower, left + j), _F(2))
            best, place = _larger(best, place, get(lower, right + j), _F(3))
            put(result, at + j, best)
            put(places, at + j, place)
            add(partial, j, best)
            add(partial, channels + j, best * best)


@compiled_fused
def unpool_row(g, x, places, a, b, c, columns, channels, upper, lower, pitch):
    """g * a + x * b + c of a row, each value written to its place of 2x2 in two rows of pixels, the others zeros."""
    for column in range(columns):
        left, at = 2 * column * pitch, column * channels
        right = left + pitch
        for j in range(channels):
            value = get(g, at + j) * get(a, j) + get(x, at + j) * get(b, j) + get(c, j)
            place = get(places, at + j)
            put(upper, left + j, value if place == _F(0) else _ZERO)
            put(upper, right + j, value if place == _F(1) else _ZERO)
            put(lower, left + j, value if place == _F(2) else _ZERO)
            put(lower, right + j, value if place == _F(3) else _ZERO)


@compiled_fused
def _max_pool(x, numbers, task, first, last):
    """`pool_row` for rows first to last of the result.

    numbers: x, channels, sums, partial sums, height and width of x, result, uint8 places 0 to 3.
    """
    channels, height, width = numbers[1], numbers[4], numbers[5]
    sums = moved(doubles_at(numbers[2]), task * 2 * channels)
    partial = moved(floats_at(numbers[3]), task * 2 * channels)
    result, places = like(x, numbers[6]), bytes_at(numbers[7])
    rows, columns = height // 2, width // 2
    for row in range(first, last):
        upper = moved(x, (row // rows * height + row % rows * 2) * width * channels)
        lower, at = moved(upper, width * channels), row * columns * channels
        pool_row(upper, lower, channels, columns, channels, moved(result, at), moved(places, at), partial)
        flush(partial, sums, 2 * channels)


@compiled_fused
def _gelu(x, numbers, task, first, last):
    """GELU of x * scale + shift + shortcut, of pixels first to last.

    numbers: x, channels, scale and shift float32 [channels], shortcut and how many of its values a pixel has (0: all
    pixels have the same), result.
    """
    channels, scale, shift = numbers[1], floats_at(numbers[2]), floats_at(numbers[3])
    shortcut, pitch, result = like(x, numbers[4]), numbers[5], like(x, numbers[6])
    for pixel in range(first, last):
        at, beside = pixel * channels, pixel * pitch
        for j in range(channels):
            value = get(x, at + j) * get(scale, j) + get(shift, j) + get(shortcut, beside + j)
            put(result, at + j, value * _share_below(value, _bell(value)))


@compiled_fused
def _gelu_gradient(x, numbers, task, first, last):
    """The gradient of what `_gelu` takes GELU of, the sums of it, and of it times x.

    numbers: those of `_gelu`, the gradient of its result, and sums and partial sums as `_add_up`'s.
    """
    channels, scale, shift = numbers[1], floats_at(numbers[2]), floats_at(numbers[3])
    shortcut, pitch, result = like(x, numbers[4]), numbers[5], like(x, numbers[6])
    gradient = like(x, numbers[7])
    sums = moved(doubles_at(numbers[8]), task * 2 * channels)
    partial = moved(floats_at(numbers[9]), task * 2 * channels)
    for start in range(first, last, _RUN):
        for pixel in range(start, min(start + _RUN, last)):
            at, beside = pixel * channels, pixel * pitch
            for j in range(channels):
                plain = get(x, at + j)
                value = plain * get(scale, j) + get(shift, j) + get(shortcut, beside + j)
                bell = _bell(value)
                slope = _share_below(value, bell) + value * bell * _DENSITY_AT_0
                ours = get(gradient, at + j) * slope
                put(result, at + j, ours)
                add(partial, j, ours)
                add(partial, channels + j, ours * plain)
        flush(partial, sums, 2 * channels)


@compiled_fused
def combine_pixels(g, x, a, b, c, channels, first, last, result):
    """g * a + x * b + c, of pixels first to last; a, b and c are float32 [channels]."""
    for pixel in range(first, last):
        at = pixel * channels
        for j in range(channels):
            put(result, at + j, get(g, at + j) * get(a, j) + get(x, at + j) * get(b, j) + get(c, j))


@compiled_fused
def _combine(x, numbers, task, first, last):
    """g * a + x * b + c, of pixels first to last.

    numbers: x, channels, a, b and c float32 [channels], g, result.
    """
    channels, a, b, c = numbers[1], floats_at(numbers[2]), floats_at(numbers[3]), floats_at(numbers[4])
    combine_pixels(like(x, numbers[5]), x, a, b, c, channels, first, last, like(x, numbers[6]))


@compiled_fused
def _max_unpool(x, numbers, task, first, last):
    """What `_combine` gives, each value at its place of 2x2, and zeros elsewhere; of images first to last.

    numbers: those of `_combine`, places, height and width of the result.
    """
    channels, a, b, c = numbers[1], floats_at(numbers[2]), floats_at(numbers[3]), floats_at(numbers[4])
    g, result = like(x, numbers[5]), like(x, numbers[6])
    places, height, width = bytes_at(numbers[7]), numbers[8], numbers[9]
    rows, columns = height // 2, width // 2
    for image in range(first, last):
        for row in range(rows):
            at = (image * rows + row) * columns * channels
            upper = moved(result, (image * height + 2 * row) * width * channels)
            lower = moved(upper, width * channels)
            unpool_row(
                moved(g, at), moved(x, at), moved(places, at), a, b, c, columns, channels, upper, lower, channels
            )
            # Pooling drops the last row and column of an odd map.
            for j in range(2 * columns * channels, width * channels):
                put(upper, j, _ZERO)
                put(lower, j, _ZERO)
        for j in range(2 * rows * width * channels, height * width * channels):
            put(result, image * height * width * channels + j, _ZERO)


@lru_cache(maxsize=16)
def kernel(use: int, in_words: bool) -> Any:
    """For one use and one kind of values: what threads.share_out takes."""

    def of_share(numbers, task, first, last):
        x = values_at(numbers[0], in_words)
        if use == ADD_UP:
            _add_up(x, numbers, task, first, last)
        elif use == MAX_POOL:
            _max_pool(x, numbers, task, first, last)
        elif use == GELU:
            _gelu(x, numbers, task, first, last)
        elif use == GELU_GRADIENT:
            _gelu_gradient(x, numbers, task, first, last)
        elif use == COMBINE:
            _combine(x, numbers, task, first, last)
        else:
            _max_unpool(x, numbers, task, first, last)

    return shared(of_share)
