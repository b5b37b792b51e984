"""Rows of bfloat16 rounded to bytes, which share scales by row or by column: compiled code for AVX-512.

What products.py and direct.py multiply. By its scale the largest of some values becomes 127, and all others the
nearest whole numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastcifar.kernels.numba_jit import compiled
from fastcifar.kernels.numba_values import get
from fastcifar.kernels.numba_vector import moved

FOUR = 4
"""Bytes that are multiplied and added up at once."""
PANEL = 32
"""Columns whose bytes lie together, four rows of them and then the next four."""
LANES = 16
SIGNS = np.int32(-0x7F7F7F80)
"""The highest bit of each of four bytes: switched, signed bytes are unsigned ones of 128 more."""
_MOST = np.float32(127)
_LEAST = np.float32(2.0**-100)
"""What the largest of zeros is taken for, so that there is a scale."""
WHOLE = np.float32(1.5 * 2**23)
"""A small float32 added to it, its lowest bits are the nearest whole number."""
WHOLE_BITS = int(WHOLE.view(np.int32))

_BYTE, _WORD, _INT, _LONG, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
INTS, FLOATS, WORDS = (ir.VectorType(kind, LANES) for kind in (_INT, _FLOAT, _WORD))
"""What a register holds: LANES of each; of words half a register."""

BYTES_AT, WORDS_AT, INTS_AT, FLOATS_AT = (
    types.CPointer(kind) for kind in (types.uint8, types.uint16, types.int32, types.float32)
)


def at_bytes(builder: Any, pointer: Any, kind: Any, num_bytes: Any = None) -> Any:
    """Pointer to a kind of values, so many bytes behind another pointer."""
    there = builder.bitcast(pointer, _BYTE.as_pointer())
    return builder.bitcast(there if num_bytes is None else builder.gep(there, [num_bytes]), kind.as_pointer())


def splat(kind: Any, value: Any) -> Any:
    """A vector of one number in all places."""
    return ir.Constant(kind, [value] * kind.count)


def spread(builder: Any, scalar: Any, kind: Any) -> Any:
    """A vector of one value in all places."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, _INT(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), splat(INTS, 0))


def call_llvm(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """What one of LLVM's own functions makes of the arguments."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _larger(builder: Any, largest: Any, words: Any) -> Any:
    """Of two vectors' values the larger absolute ones: without their signs, bits of bfloat16 are in their order."""
    sizes = builder.and_(words, splat(words.type, 0x7FFF))
    return call_llvm(builder, f"llvm.umax.v{sizes.type.count}i16", sizes.type, largest, sizes)


def widened(builder: Any, words: Any) -> Any:
    """A vector of bfloat16 as float32."""
    return builder.bitcast(builder.shl(builder.zext(words, INTS), splat(INTS, 16)), FLOATS)


def nearest(builder: Any, words: Any, factors: Any) -> Any:
    """The whole numbers that are nearest to bfloat16 times factors, in the lowest bytes; above them what WHOLE has."""
    values = widened(builder, words)
    return builder.bitcast(
        call_llvm(builder, "llvm.fma.v16f32", FLOATS, values, factors, splat(FLOATS, float(WHOLE))), INTS
    )


@contextmanager
def overlapping(builder: Any, num: Any, lanes: int) -> Iterator[Any]:
    """A loop over num values, `lanes` at a time: the last ones, where fewer are left, with some of those before.

    num is at least `lanes`.
    """
    last = builder.sub(num, _LONG(lanes))
    with cgutils.for_range(builder, builder.udiv(builder.add(num, _LONG(lanes - 1)), _LONG(lanes))) as loop:
        first = builder.mul(loop.index, _LONG(lanes))
        yield builder.select(builder.icmp_unsigned("<", first, last), first, last)


@intrinsic
def largest_of(typing_context: Any, words: Any, num: Any) -> Any:
    """The largest absolute value of num bfloat16, as float32; num is at least 2 LANES."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, num = arguments
        kind = ir.VectorType(_WORD, 2 * LANES)
        largest = cgutils.alloca_once_value(builder, splat(kind, 0))
        with overlapping(builder, num, kind.count) as first:
            there = at_bytes(builder, words, kind, builder.mul(first, _LONG(2)))
            builder.store(_larger(builder, builder.load(largest), builder.load(there, align=2)), largest)
        bits = call_llvm(builder, "llvm.vector.reduce.umax.v32i16", _WORD, builder.load(largest))
        return builder.bitcast(builder.shl(builder.zext(bits, _INT), _INT(16)), _FLOAT)

    return types.float32(WORDS_AT, types.int64), generate


@intrinsic
def _to_bytes(typing_context: Any, target: Any, words: Any, num: Any, factor: Any) -> Any:
    """Write num bfloat16, a multiple of LANES, times a factor as signed bytes; their sum."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, words, num, factor = arguments
        factors, total = spread(builder, factor, FLOATS), cgutils.alloca_once_value(builder, splat(INTS, 0))
        with cgutils.for_range(builder, builder.udiv(num, _LONG(LANES))) as loop:
            first = builder.mul(loop.index, _LONG(LANES))
            found = builder.load(at_bytes(builder, words, WORDS, builder.mul(first, _LONG(2))), align=2)
            bits = nearest(builder, found, factors)
            builder.store(builder.add(builder.load(total), builder.sub(bits, splat(INTS, WHOLE_BITS))), total)
            small = builder.trunc(bits, ir.VectorType(_BYTE, LANES))
            builder.store(small, at_bytes(builder, target, small.type, first), align=1)
        return call_llvm(builder, "llvm.vector.reduce.add.v16i32", _INT, builder.load(total))

    return types.int32(BYTES_AT, WORDS_AT, types.int64, types.float32), generate


@intrinsic
def _keep_larger(typing_context: Any, largest: Any, words: Any, num: Any) -> Any:
    """Write the larger absolute values of num bfloat16, a multiple of 2 LANES, and of those that are there already."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        largest, words, num = arguments
        kind = ir.VectorType(_WORD, 2 * LANES)
        with cgutils.for_range(builder, builder.udiv(num, _LONG(kind.count))) as loop:
            place = builder.mul(loop.index, _LONG(2 * kind.count))
            kept = at_bytes(builder, largest, kind, place)
            found = builder.load(at_bytes(builder, words, kind, place), align=2)
            builder.store(_larger(builder, builder.load(kept, align=2), found), kept, align=2)
        return context.get_dummy_value()

    return types.void(WORDS_AT, WORDS_AT, types.int64), generate


def _columns_to_bytes(signed: bool) -> Any:
    @intrinsic
    def to_bytes(
        typing_context: Any, target: Any, one: Any, two: Any, three: Any, four: Any, factors: Any, sums: Any
    ) -> Any:
        """Write LANES columns of four rows of bfloat16 times the columns' factors, a column's four bytes together.

        Where they are signed their sums are added to the columns' int32 sums.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            target, *rows, factors, sums = arguments
            factors = builder.load(at_bytes(builder, factors, FLOATS), align=4)
            fours = splat(INTS, 0 if signed else int(SIGNS))
            total = builder.load(at_bytes(builder, sums, INTS), align=4) if signed else None
            for place, row in enumerate(rows):
                bits = nearest(builder, builder.load(at_bytes(builder, row, WORDS), align=2), factors)
                if signed:
                    total = builder.add(total, builder.sub(bits, splat(INTS, WHOLE_BITS)))
                byte = builder.shl(builder.and_(bits, splat(INTS, 0xFF)), splat(INTS, 8 * place))
                fours = builder.xor(fours, byte)
            builder.store(fours, at_bytes(builder, target, INTS), align=4)
            if signed:
                builder.store(total, at_bytes(builder, sums, INTS), align=4)
            return context.get_dummy_value()

        return types.void(BYTES_AT, WORDS_AT, WORDS_AT, WORDS_AT, WORDS_AT, FLOATS_AT, INTS_AT), generate

    return to_bytes


@compiled
def scale_for(largest, most):
    """A scale by which the largest of some values becomes the most, and what they are multiplied by."""
    # In this order what is no number stays one.
    largest = max(largest, _LEAST)
    return largest / most, most / largest


@compiled
def round_row(target, row, num, scales, sums, at):
    """Write a row of num bfloat16, a multiple of 2 LANES, as signed bytes, and put its scale and its sum at a place."""
    scales[at], factor = scale_for(largest_of(row, num), _MOST)
    sums[at] = _to_bytes(target, row, num, factor)


@compiled
def scale_columns(rows, pitch, num_rows, num_columns, largest, factors, scales):
    """Find a scale for each column of rows of bfloat16, and what its values are multiplied by.

    num_columns: a multiple of 2 LANES. largest: memory for as many bfloat16 as there are columns.
    """
    for column in range(num_columns):
        largest[column] = 0
    for row in range(num_rows):
        _keep_larger(largest, moved(rows, row * pitch), num_columns)
    for column in range(num_columns):
        scales[column], factors[column] = scale_for(get(largest, column), _MOST)


def _rounding_columns(signed: bool) -> Any:
    to_bytes = _columns_to_bytes(signed)

    @compiled
    def round_columns(target, rows, pitch, num_rows, num_columns, zeros, largest, factors, scales, sums):
        """Write rows of bfloat16 as panels with a scale for each column; to a multiple of four, of zeros.

        Where they are signed, a column's sum too, else a zero. num_columns: a multiple of 2 LANES. largest, bfloat16,
        and factors: memory for as many as there are columns.
        """
        for column in range(num_columns):
            sums[column] = 0
        scale_columns(rows, pitch, num_rows, num_columns, largest, factors, scales)
        num_steps = (num_rows + FOUR - 1) // FOUR
        for step in range(num_steps):
            row = FOUR * step
            one = moved(rows, row * pitch)
            two = moved(one, pitch) if row + 1 < num_rows else zeros
            three = moved(one, 2 * pitch) if row + 2 < num_rows else zeros
            four = moved(one, 3 * pitch) if row + 3 < num_rows else zeros
            for first in range(0, num_columns, LANES):
                to_bytes(
                    moved(target, FOUR * (first // PANEL * num_steps * PANEL + step * PANEL + first % PANEL)),
                    moved(one, first),
                    moved(two, first),
                    moved(three, first),
                    moved(four, first),
                    moved(factors, first),
                    moved(sums, first),
                )

    return round_columns


round_signed, round_unsigned = _rounding_columns(signed=True), _rounding_columns(signed=False)
