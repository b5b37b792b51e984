"""The gradient of the weight of numba_direct's convolution, by products of bytes: compiled code for VNNI.

It sums over pixels, four at once: images lie channel by channel, and the output's gradient, of which one value in four
at most is not zero, is laid out straight from the pooled one's bytes, with a scale for each channel.
"""

from collections import namedtuple
from functools import lru_cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastcifar.kernels.numba_bytes import (
    BYTES_AT,
    FLOATS,
    FLOATS_AT,
    FOUR,
    INTS,
    INTS_AT,
    LANES,
    PANEL,
    WHOLE_BITS,
    WORDS,
    WORDS_AT,
    at_bytes,
    nearest,
    scale_columns,
    splat,
)
from fastcifar.kernels.numba_direct import ROWS_AT_ONCE, add_fours, begin, finish
from fastcifar.kernels.numba_frame import NUM_FRAME, frame_of, round_image
from fastcifar.kernels.numba_jit import compiled
from fastcifar.kernels.numba_maps import combine_pixels
from fastcifar.kernels.numba_share import reader, shared
from fastcifar.kernels.numba_values import values_at
from fastcifar.kernels.numba_vector import bytes_at, floats_at, ints_at, moved
from fastcifar.kernels.shapes import TAPS

_BYTE, _INT, _LONG = ir.IntType(8), ir.IntType(32), ir.IntType(64)


@intrinsic
def _add_tap(
    typing_context: Any,
    target: Any,
    pitch: Any,
    planes: Any,
    plane_bytes: Any,
    row_bytes: Any,
    num_rows: Any,
    num_fours: Any,
    panel: Any,
    starts: Any,
    factors: Any,
) -> Any:
    """Add what one tap gives to the sums of ROWS_AT_ONCE channels, pitch values apart, and PANEL columns.

    Over num_rows rows of pixels, num_fours times four of them each.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, pitch, planes, plane_bytes, row_bytes, num_rows, num_fours, panel, starts, factors = arguments
        totals = begin(builder, starts)
        with cgutils.for_range(builder, num_rows) as row:
            line = builder.gep(planes, [builder.mul(row_bytes, row.index)])
            columns = builder.gep(panel, [builder.mul(builder.mul(row.index, num_fours), _LONG(FOUR * PANEL))])
            with cgutils.for_range(builder, num_fours) as loop:
                step = builder.mul(loop.index, _LONG(FOUR))
                lefts = [
                    at_bytes(builder, line, _INT, builder.add(step, builder.mul(plane_bytes, _LONG(channel))))
                    for channel in range(ROWS_AT_ONCE)
                ]
                add_fours(builder, totals, lefts, columns, builder.mul(step, _LONG(PANEL)))
        finish(builder, totals, target, pitch, factors, adds=True)
        return context.get_dummy_value()

    num = types.int64
    return types.void(FLOATS_AT, num, BYTES_AT, num, num, num, num, BYTES_AT, INTS_AT, FLOATS_AT), generate


@intrinsic
def _lay_out(
    typing_context: Any,
    upper: Any,
    lower: Any,
    left: Any,
    right: Any,
    left_places: Any,
    right_places: Any,
    factors: Any,
    sums: Any,
) -> Any:
    """Write the bytes of two rows of four pixels, of LANES columns, from two pooled pixels side by side.

    Each value goes to its place of 2x2 pixels and is added to its column's sum; the others are zeros.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        upper, lower, left, right, left_places, right_places, factors, sums = arguments
        factors = builder.load(at_bytes(builder, factors, FLOATS), align=4)
        total = builder.load(at_bytes(builder, sums, INTS), align=4)
        rows = [splat(INTS, 0), splat(INTS, 0)]
        for at, (words, places) in enumerate(((left, left_places), (right, right_places))):
            bits = nearest(builder, builder.load(at_bytes(builder, words, WORDS), align=2), factors)
            total = builder.add(total, builder.sub(bits, splat(INTS, WHOLE_BITS)))
            byte = builder.and_(bits, splat(INTS, 0xFF))
            place = builder.load(at_bytes(builder, places, ir.VectorType(_BYTE, LANES)), align=1)
            place = builder.zext(place, INTS)
            for which in range(4):
                shift = 8 * (2 * at + which % 2)
                here = builder.icmp_unsigned("==", place, splat(INTS, which))
                there = builder.select(here, builder.shl(byte, splat(INTS, shift)), splat(INTS, 0))
                rows[which // 2] = builder.or_(rows[which // 2], there)
        for row, target in zip(rows, (upper, lower), strict=True):
            builder.store(row, at_bytes(builder, target, INTS), align=4)
        builder.store(total, at_bytes(builder, sums, INTS), align=4)
        return context.get_dummy_value()

    return types.void(BYTES_AT, BYTES_AT, WORDS_AT, WORDS_AT, BYTES_AT, BYTES_AT, FLOATS_AT, INTS_AT), generate


Gradient = namedtuple("Gradient", "gradient values places by_channel columns n groups products scratch scratch_bytes")
"""Addresses of the pooled gradient, of pooled values and places, and of what `maps.combine` takes by channel; columns,
images and groups of them; the address of each group's float32 [9 * channels, columns]; the tasks' memory."""
_gradient = reader(Gradient)


def gradient_scratch(frame_bytes: int, rows: int, pooled_columns: int, columns: int) -> tuple[int, ...]:
    """Where in a task's memory is what, for a pooled gradient of rows and columns of pixels; bytes of it all.

    The gradient's panels; each column's scale, factor and start; the gradient as bfloat16, a pixel of zeros behind
    it, and of one more the largest values; the image's planes, and behind them, where two bytes more are read and meet
    zeros, its frame.
    """
    scales = FOUR * 2 * rows * ((pooled_columns + 1) // 2) * columns
    factors = scales + 4 * columns
    starts = factors + 4 * columns
    gradient = starts + 4 * columns
    zeros = gradient + 2 * rows * pooled_columns * columns
    largest = zeros + 2 * columns
    planes = largest + 2 * columns
    frame = planes + frame_bytes
    return 0, scales, factors, starts, gradient, zeros, largest, planes, frame, frame + frame_bytes


_gradient_scratch = compiled(gradient_scratch)


@compiled
def _to_planes(frame, num_pixels, channels, planes):
    """Lay an image's frame out channel by channel."""
    for pixel in range(num_pixels):
        for channel in range(channels):
            planes[channel * num_pixels + pixel] = frame[pixel * channels + channel]


@compiled
def _to_panels(words, places, rows, pooled_columns, columns, zeros, factors, panels, totals):
    """Lay a pooled gradient out as bytes of twice as many rows and columns, in panels, with the sum of each column."""
    fours = (pooled_columns + 1) // 2
    for column in range(columns):
        totals[column] = 0
    for row in range(rows):
        for four in range(fours):
            # Behind the last pixel of an odd number of them there is none: zeros, wherever they go.
            last = 2 * four + 1 == pooled_columns
            at = (row * pooled_columns + 2 * four) * columns
            beside = at if last else at + columns
            right = zeros if last else moved(words, beside)
            for column in range(0, columns, LANES):
                panel, within = column // PANEL * PANEL, column % PANEL
                upper = moved(panels, FOUR * ((panel * 2 * rows + 2 * row * PANEL) * fours + four * PANEL + within))
                _lay_out(
                    upper,
                    moved(upper, FOUR * fours * PANEL),
                    moved(words, at + column),
                    moved(right, column),
                    moved(places, at + column),
                    moved(places, beside + column),
                    moved(factors, column),
                    moved(totals, column),
                )


@compiled
def _add_image(product, channels, columns, planes, plane_bytes, row_bytes, panels, num_rows, fours, starts, factors):
    """Add what an image gives to the sums of all taps, channels and columns."""
    for column in range(0, columns, PANEL):
        panel = moved(panels, FOUR * column * num_rows * fours)
        for tap in range(TAPS * TAPS):
            patch = moved(planes, tap // TAPS * row_bytes + tap % TAPS)
            for channel in range(0, channels, ROWS_AT_ONCE):
                _add_tap(
                    moved(product, (tap * channels + channel) * columns + column),
                    columns,
                    moved(patch, channel * plane_bytes),
                    plane_bytes,
                    row_bytes,
                    num_rows,
                    fours,
                    panel,
                    moved(starts, column),
                    moved(factors, column),
                )


@compiled
def _weight_gradient(numbers, task, first, last):
    """Sum the weight's gradient over the images of groups first to last - 1."""
    layout, given = frame_of(numbers), _gradient(moved(numbers, NUM_FRAME))
    channels, columns, num_pixels = layout.channels, given.columns, layout.frame_height * layout.frame_width
    rows, pooled_columns = (layout.frame_height + 1 - TAPS) // 2, (layout.frame_width + 1 - TAPS) // 2
    num = rows * pooled_columns
    g, x, places = values_at(given.gradient, True), values_at(given.values, True), bytes_at(given.places)
    a = floats_at(given.by_channel)
    b, c = moved(a, columns), moved(a, 2 * columns)
    scratch = given.scratch + task * given.scratch_bytes
    parts = _gradient_scratch(num_pixels * channels, rows, pooled_columns, columns)
    panels = bytes_at(scratch + parts[0])
    scales = floats_at(scratch + parts[1])
    factors = floats_at(scratch + parts[2])
    starts = ints_at(scratch + parts[3])
    gradient = values_at(scratch + parts[4], True)
    zeros = values_at(scratch + parts[5], True)
    largest = values_at(scratch + parts[6], True)
    planes = bytes_at(scratch + parts[7])
    frame = bytes_at(scratch + parts[8])
    for column in range(columns):
        zeros[column] = 0
    for group in range(first, last):
        product = moved(floats_at(given.products), group * TAPS * TAPS * channels * columns)
        for image in range(given.n * group // given.groups, given.n * (group + 1) // given.groups):
            scale, zero = round_image(layout, image, frame)
            _to_planes(frame, num_pixels, channels, planes)
            at = image * num * columns
            combine_pixels(moved(g, at), moved(x, at), a, b, c, columns, 0, num, gradient)
            scale_columns(gradient, columns, num, columns, largest, factors, scales)
            _to_panels(gradient, moved(places, at), rows, pooled_columns, columns, zeros, factors, panels, starts)
            for column in range(columns):
                starts[column] = -zero * starts[column]
                factors[column] = scale * scales[column]
            _add_image(
                product,
                channels,
                columns,
                planes,
                num_pixels,
                layout.frame_width,
                panels,
                2 * rows,
                (pooled_columns + 1) // 2,
                starts,
                factors,
            )


@lru_cache(maxsize=1)
def kernel() -> Any:
    """What sums the weight's gradient over groups of images, by threads.share_out: takes a Frame and a Gradient."""

    def of_share(numbers, task, first, last):
        _weight_gradient(numbers, task, first, last)

    return shared(of_share)
