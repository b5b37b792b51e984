"""A 3x3 convolution of few channels, pooled, by products of bytes without transforming tiles: compiled code for VNNI.

The bytes of three pixels side by side lie one behind the other, and so do the weights that meet them: no patches are
made. An image is rounded to unsigned bytes with one scale and one zero point, weights to signed ones with a scale for
each output. The weight's gradient sums over pixels, four at once: there images lie channel by channel, and the
gradient, which has one value in four at most, is laid out straight from the pooled one's bytes.
"""

from collections import namedtuple
from functools import lru_cache
from typing import Any

import numpy as np
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
    WHOLE,
    WHOLE_BITS,
    WORDS,
    WORDS_AT,
    at_bytes,
    call_llvm,
    largest_of,
    nearest,
    overlapping,
    scale_columns,
    scale_for,
    splat,
    spread,
    widened,
)
from fastcifar.kernels.numba_jit import compiled
from fastcifar.kernels.numba_maps import combine_pixels, flush, pool_row
from fastcifar.kernels.numba_share import reader, shared
from fastcifar.kernels.numba_values import values_at
from fastcifar.kernels.numba_vector import bytes_at, doubles_at, floats_at, ints_at, moved
from fastcifar.kernels.shapes import TAPS

ROWS_AT_ONCE = 8
"""Pixels, or channels, that are multiplied together."""
POOLED_OUTPUT, WEIGHT_GRADIENT = range(2)

_BYTE, _INT, _LONG = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_REGISTERS = range(PANEL // LANES)


def _begin(builder: Any, starts: Any) -> list[list[Any]]:
    """Registers of sums, ROWS_AT_ONCE by PANEL, that begin as the columns' numbers."""
    totals = []
    for _ in range(ROWS_AT_ONCE):
        loaded = [builder.load(at_bytes(builder, starts, INTS, _LONG(4 * LANES * at)), align=4) for at in _REGISTERS]
        totals.append([cgutils.alloca_once_value(builder, value) for value in loaded])
    return totals


def _add_fours(builder: Any, totals: Any, lefts: list[Any], panel: Any, place: Any) -> None:
    """Add the product of each row's four unsigned bytes and PANEL columns' signed ones."""
    columns = [
        builder.load(at_bytes(builder, panel, INTS, builder.add(place, _LONG(FOUR * LANES * at))), align=4)
        for at in _REGISTERS
    ]
    for row, there in zip(totals, lefts, strict=True):
        four = spread(builder, builder.load(there, align=1), INTS)
        for total, column in zip(row, columns, strict=True):
            found = call_llvm(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, builder.load(total), four, column)
            builder.store(found, total)


def _finish(builder: Any, totals: Any, target: Any, pitch: Any, factors: Any, *, adds: bool) -> None:
    """Write the sums times the columns' factors to float32, or add them."""
    for row in range(ROWS_AT_ONCE):
        line = builder.gep(target, [builder.mul(pitch, _LONG(row))])
        for at in _REGISTERS:
            behind = _LONG(4 * LANES * at)
            factor = builder.load(at_bytes(builder, factors, FLOATS, behind), align=4)
            value = builder.fmul(builder.sitofp(builder.load(totals[row][at]), FLOATS), factor)
            there = at_bytes(builder, line, FLOATS, behind)
            builder.store(builder.fadd(builder.load(there, align=4), value) if adds else value, there, align=4)


@intrinsic
def _write_pixels(
    typing_context: Any,
    target: Any,
    pitch: Any,
    patch: Any,
    channels: Any,
    row_bytes: Any,
    panel: Any,
    starts: Any,
    factors: Any,
) -> Any:
    """Write ROWS_AT_ONCE pixels, pitch values apart, of PANEL columns; the first one's patch begins at `patch`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, pitch, patch, channels, row_bytes, panel, starts, factors = arguments
        totals = _begin(builder, starts)
        steps = builder.udiv(builder.mul(channels, _LONG(TAPS)), _LONG(FOUR))
        for tap in range(TAPS):
            line = builder.gep(patch, [builder.mul(row_bytes, _LONG(tap))])
            columns = builder.gep(panel, [builder.mul(steps, _LONG(tap * FOUR * PANEL))])
            with cgutils.for_range(builder, steps) as loop:
                step = builder.mul(loop.index, _LONG(FOUR))
                lefts = [
                    at_bytes(builder, line, _INT, builder.add(step, builder.mul(channels, _LONG(row))))
                    for row in range(ROWS_AT_ONCE)
                ]
                _add_fours(builder, totals, lefts, columns, builder.mul(step, _LONG(PANEL)))
        _finish(builder, totals, target, pitch, factors, adds=False)
        return context.get_dummy_value()

    num = types.int64
    return types.void(FLOATS_AT, num, BYTES_AT, num, num, BYTES_AT, INTS_AT, FLOATS_AT), generate


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
        totals = _begin(builder, starts)
        with cgutils.for_range(builder, num_rows) as row:
            line = builder.gep(planes, [builder.mul(row_bytes, row.index)])
            columns = builder.gep(panel, [builder.mul(builder.mul(row.index, num_fours), _LONG(FOUR * PANEL))])
            with cgutils.for_range(builder, num_fours) as loop:
                step = builder.mul(loop.index, _LONG(FOUR))
                lefts = [
                    at_bytes(builder, line, _INT, builder.add(step, builder.mul(plane_bytes, _LONG(channel))))
                    for channel in range(ROWS_AT_ONCE)
                ]
                _add_fours(builder, totals, lefts, columns, builder.mul(step, _LONG(PANEL)))
        _finish(builder, totals, target, pitch, factors, adds=True)
        return context.get_dummy_value()

    num = types.int64
    return types.void(FLOATS_AT, num, BYTES_AT, num, num, num, num, BYTES_AT, INTS_AT, FLOATS_AT), generate


@intrinsic
def _least(typing_context: Any, words: Any, num: Any) -> Any:
    """The least of zero and num bfloat16; num is at least LANES."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, num = arguments
        least = cgutils.alloca_once_value(builder, splat(FLOATS, 0.0))
        with overlapping(builder, num, LANES) as first:
            found = builder.load(at_bytes(builder, words, WORDS, builder.mul(first, _LONG(2))), align=2)
            values, kept = widened(builder, found), builder.load(least)
            builder.store(builder.select(builder.fcmp_ordered("<", values, kept), values, kept), least)
        return call_llvm(builder, "llvm.vector.reduce.fmin.v16f32", ir.FloatType(), builder.load(least))

    return types.float32(WORDS_AT, types.int64), generate


@intrinsic
def _nearest_to_product(typing_context: Any, value: Any, factor: Any) -> Any:
    """The whole number that `nearest` would give: a product and a sum rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FloatType()
        found = call_llvm(builder, "llvm.fma.f32", kind, *arguments, kind(float(WHOLE)))
        return builder.sub(builder.bitcast(found, _INT), _INT(WHOLE_BITS))

    return types.int32(types.float32, types.float32), generate


@intrinsic
def _to_unsigned(typing_context: Any, target: Any, words: Any, num: Any, factor: Any, zero: Any) -> Any:
    """Write num bfloat16, times a factor and moved by a zero point, as unsigned bytes; num is at least LANES."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, words, num, factor, zero = arguments
        factors, zeros = spread(builder, factor, FLOATS), spread(builder, zero, INTS)
        with overlapping(builder, num, LANES) as first:
            found = builder.load(at_bytes(builder, words, WORDS, builder.mul(first, _LONG(2))), align=2)
            small = builder.trunc(builder.add(nearest(builder, found, factors), zeros), ir.VectorType(_BYTE, LANES))
            builder.store(small, at_bytes(builder, target, small.type, first), align=1)
        return context.get_dummy_value()

    return types.void(BYTES_AT, WORDS_AT, types.int64, types.float32, types.int32), generate


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


Frame = namedtuple("Frame", "images height width channels top left frame_height frame_width")
"""Images [n, height, width, channels]; where each begins in its frame of zeros, and the frame's height and width."""
_NUM_FRAME = len(Frame._fields)
_frame = reader(Frame)


@compiled
def _round_image(layout, image, frame):
    """Write an image, rounded, into its frame; its scale and its zero point."""
    row_values, row_bytes = layout.width * layout.channels, layout.frame_width * layout.channels
    num = layout.height * row_values
    words = moved(values_at(layout.images, True), image * num)
    # The largest absolute value is no less than the largest, and keeps what is no number. 254 and not 255, as a value
    # and the zero point are each rounded, by a half at most.
    largest, least = largest_of(words, num), _least(words, num)
    scale, factor = scale_for(largest - least, np.float32(254))
    # As the least value itself is rounded: it becomes 0, and none becomes less.
    zero = -_nearest_to_product(least, factor)
    for at in range(layout.frame_height * row_bytes):
        frame[at] = np.uint8(zero)
    for y in range(layout.height):
        to = moved(frame, (y + layout.top) * row_bytes + layout.left * layout.channels)
        _to_unsigned(to, moved(words, y * row_values), row_values, factor, zero)
    return scale, zero


Output = namedtuple("Output", "results places sums partial columns panels scales totals scratch scratch_bytes")
"""Addresses of pooled values, of their places, of sums and partial sums, as maps.py has them; columns of the product;
addresses of the weight's panels, of their columns' scales and of the sums of their bytes; the tasks' memory."""
_output = reader(Output)


def output_scratch(frame_bytes: int, width: int, columns: int) -> tuple[int, ...]:
    """Where in a task's memory is what: two rows of outputs, factors, starts and the frame; and the bytes of it all."""
    factors = 2 * 4 * width * columns
    starts = factors + 4 * columns
    frame = starts + 4 * columns
    return 0, factors, starts, frame, frame + frame_bytes


_output_scratch = compiled(output_scratch)


@compiled
def _pooled_output(numbers, task, first, last):
    """Convolve images first to last - 1, two rows of outputs at a time, which are pooled."""
    layout, out = _frame(numbers), _output(moved(numbers, _NUM_FRAME))
    channels, columns, row_bytes = layout.channels, out.columns, layout.frame_width * layout.channels
    width = layout.frame_width + 1 - TAPS
    rows, pooled_columns = (layout.frame_height + 1 - TAPS) // 2, width // 2
    results, places = values_at(out.results, True), bytes_at(out.places)
    sums, partial = moved(doubles_at(out.sums), task * 2 * columns), moved(floats_at(out.partial), task * 2 * columns)
    scales, totals = floats_at(out.scales), ints_at(out.totals)
    scratch = out.scratch + task * out.scratch_bytes
    parts = _output_scratch(layout.frame_height * row_bytes, width, columns)
    upper, lower = floats_at(scratch + parts[0]), floats_at(scratch + parts[0] + 4 * width * columns)
    factors, starts, frame = floats_at(scratch + parts[1]), ints_at(scratch + parts[2]), bytes_at(scratch + parts[3])
    panel_bytes = TAPS * TAPS * channels * PANEL
    for image in range(first, last):
        scale, zero = _round_image(layout, image, frame)
        for column in range(columns):
            factors[column] = scale * scales[column]
            starts[column] = -zero * totals[column]
        for row in range(rows):
            for panel in range(columns // PANEL):
                for below in range(2):
                    line = moved(frame, (2 * row + below) * row_bytes)
                    for x in range(0, width, ROWS_AT_ONCE):
                        # Where fewer are left, the last ones once more with some of those before.
                        at = min(x, width - ROWS_AT_ONCE)
                        _write_pixels(
                            moved(upper, (below * width + at) * columns + panel * PANEL),
                            columns,
                            moved(line, at * channels),
                            channels,
                            row_bytes,
                            bytes_at(out.panels + panel * panel_bytes),
                            moved(starts, panel * PANEL),
                            moved(factors, panel * PANEL),
                        )
            pooled = (image * rows + row) * pooled_columns * columns
            pool_row(
                upper, lower, columns, pooled_columns, columns, moved(results, pooled), moved(places, pooled), partial
            )
            flush(partial, sums, 2 * columns)


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
    layout, given = _frame(numbers), _gradient(moved(numbers, _NUM_FRAME))
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
            scale, zero = _round_image(layout, image, frame)
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


@lru_cache(maxsize=2)
def kernel(use: int) -> Any:
    """One of the uses above: what threads.share_out takes."""

    def of_share(numbers, task, first, last):
        if use == POOLED_OUTPUT:
            _pooled_output(numbers, task, first, last)
        else:
            _weight_gradient(numbers, task, first, last)

    return shared(of_share)
