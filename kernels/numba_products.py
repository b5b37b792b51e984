"""Matrix products of bfloat16 whose factors are rounded to 8 bits on the way: compiled code for AVX-512's VNNI units.

The units multiply bytes at twice the rate at which others multiply bfloat16. Values that are summed over share a scale
(numba_bytes.py), so that one large value takes precision from its neighbours alone: a row of the left factor and a
column of the right one, or BLOCK values of such a column at a time. Sums are exact, and scaled back.

Of four signed bytes times four unsigned ones the units make one sum. The left factor is the signed one, and its fours
meet all columns of the right one, which is laid out in panels. Each byte of these is 128 more than it stands for, which
costs 128 times the sum of the left factor's row.
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
    SIGNS,
    WORDS,
    at_bytes,
    call_llvm,
    round_row,
    round_signed,
    round_unsigned,
    spread,
)
from fastcifar.kernels.numba_jit import compiled
from fastcifar.kernels.numba_share import reader, shared
from fastcifar.kernels.numba_values import copy_values, rounded, target_has, values_at
from fastcifar.kernels.numba_vector import bytes_at, floats_at, ints_at, moved

HAS_UNITS = target_has("avx512vnni") and target_has("avx512bf16")
BLOCK = 256
"""Rows of which a column's values share a scale where both factors are rounded by columns."""
ROWS = 64
"""Most rows that are rounded, and then multiplied while they are in the first cache."""
MIN_ROWS = 8
"""Fewest rows of a product, and so many are multiplied together: of each, a panel's columns are two registers of sums.
Of twelve rows LLVM keeps some in memory (bench/LOG.md)."""
TO_PANELS, BY_PANELS, BY_COLUMNS = range(3)
"""What is done: see `kernel`."""

_INT, _LONG = ir.IntType(32), ir.IntType(64)


def _multiply(adds: bool) -> Any:
    @intrinsic
    def multiply(
        typing_context: Any,
        target: Any,
        pitch: Any,
        left: Any,
        row_bytes: Any,
        step_bytes: Any,
        panel: Any,
        num_steps: Any,
        sums: Any,
        row_scales: Any,
        column_scales: Any,
    ) -> Any:
        """Write MIN_ROWS rows of PANEL columns of a product as bfloat16, or add them to float32.

        Rows of the target are pitch values apart, those of the left factor row_bytes, and its fours step_bytes.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            target, pitch, left, row_bytes, step_bytes, panel, num_steps, sums, *scales = arguments
            row_scales, column_scales = scales
            registers = range(PANEL // LANES)
            totals = []
            for row in range(MIN_ROWS):
                too_much = builder.mul(builder.load(builder.gep(sums, [_LONG(row)])), _INT(128))
                start = spread(builder, builder.neg(too_much), INTS)
                totals.append([cgutils.alloca_once_value(builder, start) for _ in registers])
            with cgutils.for_range(builder, num_steps) as loop:
                step = builder.mul(loop.index, _LONG(FOUR * PANEL))
                places = [builder.add(step, _LONG(FOUR * LANES * at)) for at in registers]
                columns = [builder.load(at_bytes(builder, panel, INTS, place), align=64) for place in places]
                for row in range(MIN_ROWS):
                    place = builder.add(builder.mul(row_bytes, _LONG(row)), builder.mul(step_bytes, loop.index))
                    four = spread(builder, builder.load(at_bytes(builder, left, _INT, place), align=4), INTS)
                    for total, column in zip(totals[row], columns, strict=True):
                        found = call_llvm(
                            builder, "llvm.x86.avx512.vpdpbusd.512", INTS, builder.load(total), column, four
                        )
                        builder.store(found, total)
            for row in range(MIN_ROWS):
                row_scale = spread(builder, builder.load(builder.gep(row_scales, [_LONG(row)])), FLOATS)
                line = builder.gep(target, [builder.mul(pitch, _LONG(row))])
                for at in registers:
                    first = _LONG(LANES * at)
                    scale = builder.load(at_bytes(builder, builder.gep(column_scales, [first]), FLOATS), align=4)
                    values = builder.sitofp(builder.load(totals[row][at]), FLOATS)
                    values = builder.fmul(builder.fmul(values, row_scale), scale)
                    there = at_bytes(builder, builder.gep(line, [first]), FLOATS if adds else WORDS)
                    if adds:
                        builder.store(builder.fadd(builder.load(there, align=4), values), there, align=4)
                    else:
                        builder.store(rounded(builder, values, True), there, align=2)
            return context.get_dummy_value()

        num, scales = types.int64, FLOATS_AT
        return types.void(target, num, BYTES_AT, num, num, BYTES_AT, num, INTS_AT, scales, scales), generate

    return multiply


_write_rows, _add_rows = _multiply(adds=False), _multiply(adds=True)


@compiled
def _words_at(address):
    return values_at(address, True)


PanelsLayout = namedtuple(
    "PanelsLayout", "address place_bytes pitch inner columns transposed panels scales scratch scratch_bytes"
)
"""A right factor [places, inner, columns], where `transposed` laid out [places, columns, inner]: its address, the bytes
from place to place, the values from row to row; the addresses of its panels, inner * columns bytes a place, and of
their scales, float32 [places, columns]; that of the tasks' memory, and each task's bytes of it: `panels_scratch`.
"""
_panels = reader(PanelsLayout)


def panels_scratch(inner: int, columns: int) -> int:
    """Bytes of memory that a task takes."""
    return inner + 10 * columns


@compiled
def _to_panels(numbers, task, first, last):
    """Lay out the right factors of places first to last - 1 in panels."""
    told = _panels(numbers)
    inner, columns, num_steps = told.inner, told.columns, told.inner // FOUR
    room = told.scratch + task * told.scratch_bytes
    row, fours = bytes_at(room), ints_at(room)
    sums, factors, largest = ints_at(room + inner), floats_at(room + inner + 4 * columns), room + inner + 8 * columns
    for place in range(first, last):
        matrix = _words_at(told.address + place * told.place_bytes)
        panels = told.panels + place * inner * columns
        scales = floats_at(told.scales + 4 * place * columns)
        if told.transposed:
            for column in range(columns):
                round_row(row, moved(matrix, column * told.pitch), inner, scales, sums, column)
                target = ints_at(panels + FOUR * (column // PANEL * num_steps * PANEL + column % PANEL))
                for step in range(num_steps):
                    target[step * PANEL] = fours[step] ^ SIGNS
        else:
            # There are no rows left over, so none of zeros is needed.
            round_unsigned(
                bytes_at(panels),
                matrix,
                told.pitch,
                inner,
                columns,
                matrix,
                _words_at(largest),
                factors,
                scales,
                sums,
            )


RowsLayout = namedtuple(
    "RowsLayout",
    "address place_bytes pitch rows inner columns panels scales target target_place_bytes target_pitch blocks scratch "
    "scratch_bytes",
)
"""A left factor [places, rows, inner]; the right one's panels and scales; the product [places, rows, columns]; into how
many blocks of rows a place is cut; the tasks' memory: `rows_scratch`. All told as in PanelsLayout.
"""
_rows = reader(RowsLayout)


def rows_scratch(inner: int) -> int:
    """Bytes of memory that a task takes."""
    return ROWS * (inner + 8)


@compiled
def _by_panels(numbers, task, first, last):
    """Multiply blocks of rows, which count on from place to place, by panels."""
    told = _rows(numbers)
    inner, num_steps = told.inner, told.inner // FOUR
    room = told.scratch + task * told.scratch_bytes
    left, sums, scales = bytes_at(room), ints_at(room + ROWS * inner), floats_at(room + ROWS * (inner + 4))
    for piece in range(first, last):
        place, block = piece // told.blocks, piece % told.blocks
        start = told.rows * block // told.blocks
        num = told.rows * (block + 1) // told.blocks - start
        matrix = moved(_words_at(told.address + place * told.place_bytes), start * told.pitch)
        target = moved(_words_at(told.target + place * told.target_place_bytes), start * told.target_pitch)
        for row in range(num):
            round_row(moved(left, row * inner), moved(matrix, row * told.pitch), inner, scales, sums, row)
        for column in range(0, told.columns, PANEL):
            panel = bytes_at(told.panels + (place * told.columns + column) * inner)
            panel_scales = floats_at(told.scales + 4 * (place * told.columns + column))
            for row in range(0, num, MIN_ROWS):
                # Where fewer are left, the last ones once more with some of those before.
                at = min(row, num - MIN_ROWS)
                to, of = moved(target, at * told.target_pitch + column), moved(left, at * inner)
                _write_rows(
                    to,
                    told.target_pitch,
                    of,
                    inner,
                    FOUR,
                    panel,
                    num_steps,
                    moved(sums, at),
                    moved(scales, at),
                    panel_scales,
                )


ColumnsLayout = namedtuple(
    "ColumnsLayout",
    "left left_place_bytes left_pitch right right_place_bytes right_pitch inner rows columns target "
    "target_place_bytes target_pitch scratch scratch_bytes",
)
"""Factors [places, inner, rows] and [places, inner, columns]; the product [places, rows, columns], summed over inner;
the tasks' memory: `columns_scratch`. All told as in PanelsLayout.
"""
_column_factors = reader(ColumnsLayout)


def columns_scratch(rows: int, columns: int) -> int:
    """Bytes of memory that a task takes."""
    return 4 * rows * columns + (BLOCK + 16) * (rows + columns)


@compiled
def _by_columns(numbers, task, first, last):
    """Make the products of places first to last - 1, block by block of the side that is summed over."""
    told = _column_factors(numbers)
    rows, columns = told.rows, told.columns
    both = rows + columns
    room = told.scratch + task * told.scratch_bytes
    left, panels, total = room, room + BLOCK * rows, room + BLOCK * both
    beside = total + 4 * rows * columns
    column_scales, row_scales = floats_at(beside), floats_at(beside + 4 * columns)
    sums, factors = ints_at(beside + 4 * both), floats_at(beside + 8 * both)
    zeros, largest = _words_at(beside + 12 * both), _words_at(beside + 14 * both)
    for at in range(both):
        zeros[at] = 0
    for place in range(first, last):
        product = floats_at(total)
        for at in range(rows * columns):
            product[at] = np.float32(0)
        for start in range(0, told.inner, BLOCK):
            num = min(BLOCK, told.inner - start)
            num_steps = (num + FOUR - 1) // FOUR
            matrix = moved(_words_at(told.right + place * told.right_place_bytes), start * told.right_pitch)
            round_unsigned(
                bytes_at(panels), matrix, told.right_pitch, num, columns, zeros, largest, factors, column_scales, sums
            )
            matrix = moved(_words_at(told.left + place * told.left_place_bytes), start * told.left_pitch)
            round_signed(bytes_at(left), matrix, told.left_pitch, num, rows, zeros, largest, factors, row_scales, sums)
            for column in range(0, columns, PANEL):
                panel = bytes_at(panels + column * num_steps * FOUR)
                for row in range(0, rows, MIN_ROWS):
                    of = bytes_at(left + FOUR * (row // PANEL * num_steps * PANEL + row % PANEL))
                    _add_rows(
                        moved(product, row * columns + column),
                        columns,
                        of,
                        FOUR,
                        FOUR * PANEL,
                        panel,
                        num_steps,
                        moved(sums, row),
                        moved(row_scales, row),
                        moved(column_scales, column),
                    )
        target = _words_at(told.target + place * told.target_place_bytes)
        for row in range(rows):
            copy_values(moved(target, row * told.target_pitch), moved(product, row * columns), columns)


@lru_cache(maxsize=3)
def kernel(use: int) -> Any:
    """One of the uses above: what threads.share_out takes."""

    def of_share(numbers, task, first, last):
        if use == TO_PANELS:
            _to_panels(numbers, task, first, last)
        elif use == BY_PANELS:
            _by_panels(numbers, task, first, last)
        else:
            _by_columns(numbers, task, first, last)

    return shared(of_share)
