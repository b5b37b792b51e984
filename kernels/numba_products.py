"""Matrix products of bfloat16 whose factors are rounded to 8 bits on the way: compiled code for AVX-512's VNNI units.

The units multiply bytes at twice the rate at which others multiply bfloat16. A factor's values share a scale, by which
the largest becomes 127, with those of their row or, where that is the side that is summed over, with those of their
column within BLOCK rows: one large value takes precision from its neighbours alone. Sums are exact, and scaled back.

Of four signed bytes times four unsigned ones the units make one sum. The left factor is the signed one, and its fours
meet all columns of the right one, which is laid out in panels: of PANEL columns, step by step, the four bytes of each.
Each of these is 128 more than it stands for, which costs 128 times the sum of the left factor's row.
"""

from collections import namedtuple
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastcifar.kernels.numba_jit import compiled
from fastcifar.kernels.numba_share import reader, shared
from fastcifar.kernels.numba_values import get, put, rounded, target_has, values_at
from fastcifar.kernels.numba_vector import bytes_at, floats_at, ints_at, moved

HAS_UNITS = target_has("avx512vnni") and target_has("avx512bf16")
PANEL = 32
"""Columns that are multiplied together: of each row, four registers of sums."""
BLOCK = 256
"""Rows of which a column's values share a scale."""
ROWS = 64
"""Most rows that are rounded, and then multiplied while they are in the first cache."""
MIN_ROWS = 8
"""Rows whose sums are held in registers together, where any number may be left over; where 64 are shared out, 4 are."""
TO_PANELS, BY_PANELS, BY_COLUMNS = range(3)
"""What is done: see `kernel`."""

_FOUR = 4
_LANES = 16
_LARGEST = np.float32(127)
_LEAST = np.float32(2.0**-100)
"""What the largest of zeros is taken for, so that there is a scale."""
_WHOLE = np.float32(1.5 * 2**23)
"""A small float32 added to it, its lowest bits are the nearest whole number."""
_WHOLE_BITS = int(_WHOLE.view(np.int32))
_SIGNS = np.int32(-0x7F7F7F80)
"""The highest bit of each of four bytes: switched, signed bytes are unsigned ones of 128 more."""

_BYTE, _WORD, _INT, _LONG, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_INT, _LANES), ir.VectorType(_FLOAT, _LANES)
_WORDS = ir.VectorType(_WORD, _LANES)

_bytes, _words, _ints, _floats = (
    types.CPointer(kind) for kind in (types.uint8, types.uint16, types.int32, types.float32)
)


def _at(builder: Any, pointer: Any, kind: Any, num_bytes: Any = None) -> Any:
    """Pointer to a kind of values, so many bytes behind another pointer."""
    there = builder.bitcast(pointer, _BYTE.as_pointer())
    return builder.bitcast(there if num_bytes is None else builder.gep(there, [num_bytes]), kind.as_pointer())


def _splat(kind: Any, value: Any) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _spread(builder: Any, scalar: Any, kind: Any) -> Any:
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, _INT(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), _splat(_INTS, 0))


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _larger(builder: Any, largest: Any, words: Any) -> Any:
    """Of two vectors' values the larger sizes: without their signs, bits of bfloat16 are in their order."""
    sizes = builder.and_(words, _splat(words.type, 0x7FFF))
    return _call(builder, f"llvm.umax.v{sizes.type.count}i16", sizes.type, largest, sizes)


def _nearest(builder: Any, words: Any, factors: Any) -> Any:
    """The whole numbers that are nearest to bfloat16 times factors, in the lowest bytes; above them what _WHOLE has."""
    values = builder.bitcast(builder.shl(builder.zext(words, _INTS), _splat(_INTS, 16)), _FLOATS)
    return builder.bitcast(
        _call(builder, "llvm.fma.v16f32", _FLOATS, values, factors, _splat(_FLOATS, float(_WHOLE))), _INTS
    )


@intrinsic
def _largest(typing_context: Any, words: Any, num: Any) -> Any:
    """The largest size of num bfloat16, a multiple of 2 _LANES, as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, num = arguments
        kind = ir.VectorType(_WORD, 2 * _LANES)
        largest = cgutils.alloca_once_value(builder, _splat(kind, 0))
        with cgutils.for_range(builder, builder.udiv(num, _LONG(kind.count))) as loop:
            there = _at(builder, words, kind, builder.mul(loop.index, _LONG(2 * kind.count)))
            builder.store(_larger(builder, builder.load(largest), builder.load(there, align=2)), largest)
        bits = _call(builder, "llvm.vector.reduce.umax.v32i16", _WORD, builder.load(largest))
        return builder.bitcast(builder.shl(builder.zext(bits, _INT), _INT(16)), _FLOAT)

    return types.float32(_words, types.int64), generate


@intrinsic
def _to_bytes(typing_context: Any, target: Any, words: Any, num: Any, factor: Any) -> Any:
    """Write num bfloat16, a multiple of _LANES, times a factor as signed bytes; their sum."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, words, num, factor = arguments
        factors, total = _spread(builder, factor, _FLOATS), cgutils.alloca_once_value(builder, _splat(_INTS, 0))
        with cgutils.for_range(builder, builder.udiv(num, _LONG(_LANES))) as loop:
            first = builder.mul(loop.index, _LONG(_LANES))
            found = builder.load(_at(builder, words, _WORDS, builder.mul(first, _LONG(2))), align=2)
            bits = _nearest(builder, found, factors)
            builder.store(builder.add(builder.load(total), builder.sub(bits, _splat(_INTS, _WHOLE_BITS))), total)
            small = builder.trunc(bits, ir.VectorType(_BYTE, _LANES))
            builder.store(small, _at(builder, target, small.type, first), align=1)
        return _call(builder, "llvm.vector.reduce.add.v16i32", _INT, builder.load(total))

    return types.int32(_bytes, _words, types.int64, types.float32), generate


@intrinsic
def _largest_of_columns(typing_context: Any, largest: Any, words: Any, pitch: Any, num_rows: Any) -> Any:
    """Write the largest size in each of 2 _LANES columns of bfloat16, whose rows are pitch values apart, as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, words, pitch, num_rows = arguments
        kind, wide = (ir.VectorType(element, 2 * _LANES) for element in (_WORD, _INT))
        largest = cgutils.alloca_once_value(builder, _splat(kind, 0))
        with cgutils.for_range(builder, num_rows) as loop:
            there = _at(builder, builder.gep(words, [builder.mul(loop.index, pitch)]), kind)
            builder.store(_larger(builder, builder.load(largest), builder.load(there, align=2)), largest)
        bits = builder.shl(builder.zext(builder.load(largest), wide), _splat(wide, 16))
        builder.store(bits, _at(builder, target, wide), align=4)
        return context.get_dummy_value()

    return types.void(_floats, _words, types.int64, types.int64), generate


def _columns_to_bytes(signed: bool) -> Any:
    @intrinsic
    def to_bytes(
        typing_context: Any, target: Any, one: Any, two: Any, three: Any, four: Any, factors: Any, sums: Any
    ) -> Any:
        """Write _LANES columns of four rows of bfloat16 times the columns' factors, a column's four bytes together.

        Where they are signed their sums are added to the columns' int32 sums.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            target, *rows, factors, sums = arguments
            factors = builder.load(_at(builder, factors, _FLOATS), align=4)
            fours, total = _splat(_INTS, 0 if signed else int(_SIGNS)), builder.load(_at(builder, sums, _INTS), align=4)
            for place, row in enumerate(rows):
                bits = _nearest(builder, builder.load(_at(builder, row, _WORDS), align=2), factors)
                total = builder.add(total, builder.sub(bits, _splat(_INTS, _WHOLE_BITS)))
                byte = builder.shl(builder.and_(bits, _splat(_INTS, 0xFF)), _splat(_INTS, 8 * place))
                fours = builder.xor(fours, byte)
            builder.store(fours, _at(builder, target, _INTS), align=4)
            if signed:
                builder.store(total, _at(builder, sums, _INTS), align=4)
            return context.get_dummy_value()

        return types.void(_bytes, _words, _words, _words, _words, _floats, _ints), generate

    return to_bytes


def _multiply(num_rows: int, adds: bool) -> Any:
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
        """Write a few rows of PANEL columns of a product as bfloat16, or add them to float32.

        Rows of the target are pitch values apart, those of the left factor row_bytes, and its fours step_bytes.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            target, pitch, left, row_bytes, step_bytes, panel, num_steps, sums, *scales = arguments
            row_scales, column_scales = scales
            registers = range(PANEL // _LANES)
            totals = []
            for row in range(num_rows):
                too_much = builder.mul(builder.load(builder.gep(sums, [_LONG(row)])), _INT(128))
                start = _spread(builder, builder.neg(too_much), _INTS)
                totals.append([cgutils.alloca_once_value(builder, start) for _ in registers])
            with cgutils.for_range(builder, num_steps) as loop:
                step = builder.mul(loop.index, _LONG(_FOUR * PANEL))
                places = [builder.add(step, _LONG(_FOUR * _LANES * at)) for at in registers]
                columns = [builder.load(_at(builder, panel, _INTS, place), align=64) for place in places]
                for row in range(num_rows):
                    place = builder.add(builder.mul(row_bytes, _LONG(row)), builder.mul(step_bytes, loop.index))
                    four = _spread(builder, builder.load(_at(builder, left, _INT, place), align=4), _INTS)
                    for total, column in zip(totals[row], columns, strict=True):
                        found = _call(builder, "llvm.x86.avx512.vpdpbusd.512", _INTS, builder.load(total), column, four)
                        builder.store(found, total)
            for row in range(num_rows):
                row_scale = _spread(builder, builder.load(builder.gep(row_scales, [_LONG(row)])), _FLOATS)
                line = builder.gep(target, [builder.mul(pitch, _LONG(row))])
                for at in registers:
                    first = _LONG(_LANES * at)
                    scale = builder.load(_at(builder, builder.gep(column_scales, [first]), _FLOATS), align=4)
                    values = builder.sitofp(builder.load(totals[row][at]), _FLOATS)
                    values = builder.fmul(builder.fmul(values, row_scale), scale)
                    there = _at(builder, builder.gep(line, [first]), _FLOATS if adds else _WORDS)
                    if adds:
                        builder.store(builder.fadd(builder.load(there, align=4), values), there, align=4)
                    else:
                        builder.store(rounded(builder, values, True), there, align=2)
            return context.get_dummy_value()

        pointers, num = (target, _bytes, _ints, _floats), types.int64
        target_at, bytes_, ints, floats = pointers
        return types.void(target_at, num, bytes_, num, num, bytes_, num, ints, floats, floats), generate

    return multiply


@compiled
def _scale(largest):
    """A scale for values of which the largest is this, and what they are multiplied by."""
    largest = max(largest, _LEAST)
    return largest / _LARGEST, _LARGEST / largest


@compiled
def _round_row(target, row, num, scales, sums, at):
    """Write a row of bfloat16 as signed bytes, and put its scale and its sum at a place."""
    scales[at], factor = _scale(_largest(row, num))
    sums[at] = _to_bytes(target, row, num, factor)


def _rounding_columns(signed: bool) -> Any:
    to_bytes = _columns_to_bytes(signed)

    @compiled
    def round_columns(target, rows, pitch, num_rows, num_columns, zeros, factors, scales, sums):
        """Write rows of bfloat16 as panels with a scale and a sum for each column; to a multiple of four, of zeros."""
        for first in range(0, num_columns, 2 * _LANES):
            _largest_of_columns(moved(scales, first), moved(rows, first), pitch, num_rows)
        for column in range(num_columns):
            scales[column], factors[column] = _scale(scales[column])
            sums[column] = 0
        num_steps = (num_rows + _FOUR - 1) // _FOUR
        for step in range(num_steps):
            row = _FOUR * step
            one = moved(rows, row * pitch)
            two = moved(one, pitch) if row + 1 < num_rows else zeros
            three = moved(one, 2 * pitch) if row + 2 < num_rows else zeros
            four = moved(one, 3 * pitch) if row + 3 < num_rows else zeros
            for first in range(0, num_columns, _LANES):
                to_bytes(
                    moved(target, _FOUR * (first // PANEL * num_steps * PANEL + step * PANEL + first % PANEL)),
                    moved(one, first),
                    moved(two, first),
                    moved(three, first),
                    moved(four, first),
                    moved(factors, first),
                    moved(sums, first),
                )

    return round_columns


_round_signed, _round_unsigned = _rounding_columns(signed=True), _rounding_columns(signed=False)
_write_rows, _add_rows = _multiply(MIN_ROWS, adds=False), _multiply(8, adds=True)


@compiled
def _words_at(address):
    return values_at(address, True)


Factor = namedtuple("Factor", "address place_bytes pitch")
"""Matrices of bfloat16, one for each place: the first one's address, bytes to the next, values from row to row."""

PanelsLayout = namedtuple(
    "PanelsLayout", "address place_bytes pitch inner columns transposed panels scales scratch scratch_bytes"
)
"""A right factor [places, inner, columns], as a Factor of `columns` rows if it is transposed; addresses of its panels,
inner * columns bytes a place, and of their scales, float32 [places, columns]; that of the tasks' memory, and each
task's bytes of it: `panels_scratch`.
"""
_panels = reader(PanelsLayout)


def panels_scratch(inner: int, columns: int) -> int:
    """Bytes of memory that a task takes."""
    return inner + 8 * columns


@compiled
def _to_panels(numbers, task, first, last):
    """Lay out the right factors of places first to last - 1 in panels."""
    told = _panels(numbers)
    inner, columns, num_steps = told.inner, told.columns, told.inner // _FOUR
    room = told.scratch + task * told.scratch_bytes
    row, fours, sums, factors = (
        bytes_at(room),
        ints_at(room),
        ints_at(room + inner),
        floats_at(room + inner + 4 * columns),
    )
    for place in range(first, last):
        matrix = _words_at(told.address + place * told.place_bytes)
        panels = told.panels + place * inner * columns
        scales = floats_at(told.scales + 4 * place * columns)
        if told.transposed:
            for column in range(columns):
                _round_row(row, moved(matrix, column * told.pitch), inner, scales, sums, column)
                target = ints_at(panels + _FOUR * (column // PANEL * num_steps * PANEL + column % PANEL))
                for step in range(num_steps):
                    target[step * PANEL] = fours[step] ^ _SIGNS
        else:
            # There are no rows left over, so none of zeros is needed.
            _round_unsigned(bytes_at(panels), matrix, told.pitch, inner, columns, matrix, factors, scales, sums)


RowsLayout = namedtuple(
    "RowsLayout",
    "address place_bytes pitch rows inner columns panels scales target target_place_bytes target_pitch blocks scratch "
    "scratch_bytes",
)
"""A left factor [places, rows, inner], as a Factor; the right one's panels; the product [places, rows, columns], as a
Factor; into how many blocks of rows a place is cut; the tasks' memory: `rows_scratch`.
"""
_rows = reader(RowsLayout)


def rows_scratch(inner: int) -> int:
    """Bytes of memory that a task takes."""
    return ROWS * (inner + 8)


@compiled
def _by_panels(numbers, task, first, last):
    """Multiply blocks of rows, which count on from place to place, by panels."""
    told = _rows(numbers)
    inner, num_steps = told.inner, told.inner // _FOUR
    room = told.scratch + task * told.scratch_bytes
    left, sums, scales = bytes_at(room), ints_at(room + ROWS * inner), floats_at(room + ROWS * (inner + 4))
    for piece in range(first, last):
        place, block = piece // told.blocks, piece % told.blocks
        start = told.rows * block // told.blocks
        num = told.rows * (block + 1) // told.blocks - start
        matrix = moved(_words_at(told.address + place * told.place_bytes), start * told.pitch)
        target = moved(_words_at(told.target + place * told.target_place_bytes), start * told.target_pitch)
        for row in range(num):
            _round_row(moved(left, row * inner), moved(matrix, row * told.pitch), inner, scales, sums, row)
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
                    _FOUR,
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
"""Factors [places, inner, rows] and [places, inner, columns], as Factors, of whose inner side a product [places, rows,
columns] is made; the tasks' memory: `columns_scratch`.
"""
_column_factors = reader(ColumnsLayout)


def columns_scratch(rows: int, columns: int) -> int:
    """Bytes of memory that a task takes."""
    return 4 * rows * columns + (BLOCK + 14) * (rows + columns)


@compiled
def _by_columns(numbers, task, first, last):
    """Make the products of places first to last - 1, block by block of the side that is summed over."""
    told = _column_factors(numbers)
    rows, columns = told.rows, told.columns
    both = rows + columns
    room = told.scratch + task * told.scratch_bytes
    left, panels, total, beside = (
        room,
        room + BLOCK * rows,
        room + BLOCK * both,
        room + BLOCK * both + 4 * rows * columns,
    )
    column_scales, row_scales = floats_at(beside), floats_at(beside + 4 * columns)
    sums, factors, zeros = ints_at(beside + 4 * both), floats_at(beside + 8 * both), _words_at(beside + 12 * both)
    for at in range(both):
        zeros[at] = 0
    for place in range(first, last):
        product = floats_at(total)
        for at in range(rows * columns):
            product[at] = np.float32(0)
        for start in range(0, told.inner, BLOCK):
            num = min(BLOCK, told.inner - start)
            num_steps = (num + _FOUR - 1) // _FOUR
            matrix = moved(_words_at(told.right + place * told.right_place_bytes), start * told.right_pitch)
            _round_unsigned(
                bytes_at(panels), matrix, told.right_pitch, num, columns, zeros, factors, column_scales, sums
            )
            matrix = moved(_words_at(told.left + place * told.left_place_bytes), start * told.left_pitch)
            _round_signed(bytes_at(left), matrix, told.left_pitch, num, rows, zeros, factors, row_scales, sums)
            for column in range(0, columns, PANEL):
                panel = bytes_at(panels + column * num_steps * _FOUR)
                for row in range(0, rows, 8):
                    of = bytes_at(left + _FOUR * (row // PANEL * num_steps * PANEL + row % PANEL))
                    _add_rows(
                        moved(product, row * columns + column),
                        columns,
                        of,
                        _FOUR,
                        _FOUR * PANEL,
                        panel,
                        num_steps,
                        moved(sums, row),
                        moved(row_scales, row),
                        moved(column_scales, column),
                    )
        target = _words_at(told.target + place * told.target_place_bytes)
        for row in range(rows):
            _to_words(moved(target, row * told.target_pitch), moved(product, row * columns), columns)


@compiled
def _to_words(target, source, num):
    for j in range(num):
        put(target, j, get(source, j))


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
