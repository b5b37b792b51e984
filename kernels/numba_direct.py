"""A 3x3 convolution of few channels, pooled, by products of bytes without transforming tiles: compiled code for VNNI.

The bytes of three pixels side by side lie one behind the other, and so do the weights that meet them: no patches are
made. An image is rounded to unsigned bytes (numba_frame.py), weights to signed ones with a scale for each output.
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
    at_bytes,
    call_llvm,
    spread,
)
from fastcifar.kernels.numba_frame import NUM_FRAME, frame_of, round_image
from fastcifar.kernels.numba_jit import compiled
from fastcifar.kernels.numba_maps import flush, pool_row
from fastcifar.kernels.numba_share import reader, shared
from fastcifar.kernels.numba_values import values_at
from fastcifar.kernels.numba_vector import bytes_at, doubles_at, floats_at, ints_at, moved
from fastcifar.kernels.shapes import TAPS

ROWS_AT_ONCE = 8
"""Pixels, or channels, that are multiplied together."""

_INT, _LONG = ir.IntType(32), ir.IntType(64)
_REGISTERS = range(PANEL // LANES)


def begin(builder: Any, starts: Any) -> list[list[Any]]:
    """Registers of sums, ROWS_AT_ONCE by PANEL, that begin as the columns' numbers."""
    totals = []
    for _ in range(ROWS_AT_ONCE):
        loaded = [builder.load(at_bytes(builder, starts, INTS, _LONG(4 * LANES * at)), align=4) for at in _REGISTERS]
        totals.append([cgutils.alloca_once_value(builder, value) for value in loaded])
    return totals


def add_fours(builder: Any, totals: Any, lefts: list[Any], panel: Any, place: Any) -> None:
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


def finish(builder: Any, totals: Any, target: Any, pitch: Any, factors: Any, *, adds: bool) -> None:
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
        totals = begin(builder, starts)
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
                add_fours(builder, totals, lefts, columns, builder.mul(step, _LONG(PANEL)))
        finish(builder, totals, target, pitch, factors, adds=False)
        return context.get_dummy_value()

    num = types.int64
    return types.void(FLOATS_AT, num, BYTES_AT, num, num, BYTES_AT, INTS_AT, FLOATS_AT), generate


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
    layout, out = frame_of(numbers), _output(moved(numbers, NUM_FRAME))
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
        scale, zero = round_image(layout, image, frame)
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


@lru_cache(maxsize=1)
def kernel() -> Any:
    """What convolves and pools images, by threads.share_out: takes a Frame and an Output."""

    def of_share(numbers, task, first, last):
        _pooled_output(numbers, task, first, last)

    return shared(of_share)
