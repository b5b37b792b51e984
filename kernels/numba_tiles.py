"""Images cut into tiles, each transformed by a matrix on both sides, and tiles put together again: compiled code.

What Winograd's convolution does with memory; what it is for stands in winograd.py. Tiles are worked on LANES channels
at a time, as straight-line code made of the matrix, whose zeros and ones cost nothing. Images and transformed tiles are
float32 or bfloat16; an image in its frame of zeros and all arithmetic are float32.
"""

from collections import namedtuple
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastcifar.kernels.numba_jit import compiled, compiled_callback
from fastcifar.kernels.numba_maps import flush, pool_row, unpool_row
from fastcifar.kernels.numba_share import call, reader, shared
from fastcifar.kernels.numba_values import copy_values, like, rounded, target_has, values_at
from fastcifar.kernels.numba_vector import bytes_at, doubles_at, floats_at, moved
from fastcifar.kernels.shapes import TAPS

LANES = 16 if target_has("avx512f") else 8
"""Channels that are worked on at once: one register of AVX-512 or AVX2."""
SIZES = (2, 3, 4, 5, 6, 7)
"""Sides of the squares of outputs that a tile may give; the error grows with them (bench/LOG.md)."""


def _both(numerator: int, denominator: int) -> tuple[Fraction, Fraction]:
    return Fraction(numerator, denominator), Fraction(-numerator, denominator)


_SMALL = (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2), Fraction(-3, 4))
_POINTS: dict[int, tuple[Fraction | int, ...]] = {
    2: _SMALL[:3],
    # Of least error, found by descent (bench/LOG.md): for bfloat16's sake, whose error they take down by a half.
    3: (*_both(2, 5), *_both(5, 4)),
    4: (0, *_both(2, 3), *_both(3, 2)),
    5: (*_both(2, 7), *_both(6, 7), *_both(7, 4)),
    **{size: _SMALL[: size + 1] for size in (6, 7)},
}
TO_PATCH, FROM_PRODUCT, TO_GRADIENT, FROM_PATCH, TO_PLACES, FROM_PLACES = range(6)
"""The uses of a size's matrices: B^T, A^T, A, B, G and G^T."""
TO_TILES, FROM_TILES, POOL_TILES, UNPOOL_TILES = range(4)
"""What is done with images: see `kernel`."""

Matrix = tuple[tuple[Fraction, ...], ...]

_FLOAT, _LONG = ir.FloatType(), ir.IntType(64)


@lru_cache(maxsize=8)
def matrices(size: int) -> tuple[Matrix, Matrix, Matrix]:
    """A^T [size, size + 2], G [size + 2, 3] and B^T [size + 2, size + 2]: F(size, 3) is A^T ((G g) * (B^T d)).

    Toom and Cook's way: a product of polynomials is known by its values at as many points as it has coefficients, the
    last of them at infinity; what is transposed of it is a convolution.
    """
    points = [Fraction(point) for point in _POINTS[size]]
    data, kernel = [], []
    for point in points:
        others = [other for other in points if other != point]
        scale = _product(point - other for other in others)
        data.append((*_polynomial(others), Fraction(0)))
        kernel.append(tuple(point**power / scale for power in range(TAPS)))
    data.append(_polynomial(points))
    kernel.append(tuple(Fraction(int(power == TAPS - 1)) for power in range(TAPS)))
    output = tuple((*(point**power for point in points), Fraction(int(power == size - 1))) for power in range(size))
    return output, tuple(kernel), tuple(data)


def _product(factors: Any) -> Fraction:
    product = Fraction(1)
    for factor in factors:
        product *= factor
    return product


def _polynomial(roots: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients of the product of all (x - root), that of x^0 first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*(root * value for value in coefficients), Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return tuple(coefficients)


def _matrix(size: int, use: int) -> Matrix:
    output, kernel, data = matrices(size)
    transposed_output, transposed_kernel, transposed_data = (
        tuple(zip(*matrix, strict=True)) for matrix in (output, kernel, data)
    )
    return {
        TO_PATCH: data,
        FROM_PRODUCT: output,
        TO_GRADIENT: transposed_output,
        FROM_PATCH: transposed_data,
        TO_PLACES: kernel,
        FROM_PLACES: transposed_kernel,
    }[use]


def _factored(matrix: Matrix) -> tuple[Matrix, list[tuple[int, int]], list[tuple[int, int]]]:
    """The matrix with fewer products, and pairs of its rows and of its columns that differ by signs alone.

    In their places it has half their sum and half their difference. It is to be applied to sums and differences of the
    columns' values, and of what it makes of them, sums and differences are the rows' results.
    """
    columns, column_pairs = _halved(tuple(zip(*matrix, strict=True)))
    rows, row_pairs = _halved(tuple(zip(*columns, strict=True)))
    return rows, row_pairs, column_pairs


def _halved(rows: Matrix) -> tuple[Matrix, list[tuple[int, int]]]:
    halved, pairs = list(rows), []
    for one, other in combinations(range(len(rows)), 2):
        both = list(zip(rows[one], rows[other], strict=True))
        # Of rows that are all the same, or all the other way round, half the sum or the difference is nothing at all.
        if all(abs(x) == abs(y) for x, y in both) and {x / y for x, y in both if y} == {1, -1}:
            pairs.append((one, other))
            halved[one] = tuple((x + y) / 2 for x, y in both)
            halved[other] = tuple((x - y) / 2 for x, y in both)
    return tuple(halved), pairs


@intrinsic(prefer_literal=True)
def _transform(
    typing_context: Any,
    size: Any,
    use: Any,
    target: Any,
    target_row: Any,
    target_column: Any,
    source: Any,
    source_row: Any,
    source_column: Any,
) -> Any:
    """Write M D M^T, of LANES channels, for a size's and a use's matrix M; FROM_PATCH and FROM_PLACES add it.

    Rows and columns of D and of the target are as many values apart as is said.
    """
    matrix = _matrix(size.literal_value, use.literal_value)
    adds = use.literal_value in (FROM_PATCH, FROM_PLACES)
    rows, row_pairs, column_pairs = _factored(matrix)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, target, *target_pitch, source, source_row, source_column = arguments
        vector, ints, words = (ir.VectorType(kind, LANES) for kind in (_FLOAT, ir.IntType(32), ir.IntType(16)))
        name = f"llvm.fmuladd.v{LANES}f32"
        fmuladd = builder.module.globals.get(name)
        if fmuladd is None:
            fmuladd = ir.Function(builder.module, ir.FunctionType(vector, [vector] * 3), name=name)

        def place(pointer: Any, pitch: Any, row: int, column: int) -> Any:
            steps = [builder.mul(by, _LONG(times)) for by, times in zip(pitch, (row, column), strict=True)]
            there = builder.gep(pointer, [builder.add(*steps)])
            return builder.bitcast(there, (vector if pointer.type.pointee == _FLOAT else words).as_pointer())

        def load(there: Any) -> Any:
            if there.type.pointee == vector:
                return builder.load(there, align=4)
            wide = builder.zext(builder.load(there, align=2), ints)
            return builder.bitcast(builder.shl(wide, _splat(16)), vector)

        def store(value: Any, there: Any) -> None:
            if there.type.pointee == vector:
                builder.store(value, there, align=4)
                return
            builder.store(rounded(builder, value, target_has("avx512bf16")), there, align=2)

        def times_matrix(values: Sequence[Any]) -> list[Any]:
            # Of points a and -a: sums and differences are had once for all that takes them.
            values = list(values)
            for one, other in column_pairs:
                a, b = values[one], values[other]
                values[one], values[other] = builder.fadd(a, b), builder.fsub(a, b)
            results = [weighted_sum(row, values) for row in rows]
            for one, other in row_pairs:
                a, b = results[one], results[other]
                results[one], results[other] = builder.fadd(a, b), builder.fsub(a, b)
            return results

        def weighted_sum(row: Sequence[Fraction], values: Sequence[Any]) -> Any:
            terms = [(weight, value) for weight, value in zip(row, values, strict=True) if weight]
            total = None
            # One that needs no product goes first.
            for weight, value in sorted(terms, key=lambda term: term[0] != 1):
                factor = ir.Constant(vector, [ir.Constant(_FLOAT, float(weight))] * LANES)
                if total is None:
                    total = value if weight == 1 else builder.fmul(value, factor)
                elif weight == 1:
                    total = builder.fadd(total, value)
                elif weight == -1:
                    total = builder.fsub(total, value)
                else:
                    total = builder.call(fmuladd, [value, factor, total])
            return total

        side = len(matrix[0])
        columns = []
        for column in range(side):
            places = [place(source, (source_row, source_column), row, column) for row in range(side)]
            columns.append(times_matrix([load(there) for there in places]))
        for row in range(len(matrix)):
            for column, value in enumerate(times_matrix([values[row] for values in columns])):
                there = place(target, target_pitch, row, column)
                store(builder.fadd(load(there), value) if adds else value, there)
        return context.get_dummy_value()

    arguments = (size, use, target, types.intp, types.intp, source, types.intp, types.intp)
    return types.void(*arguments), generate


@intrinsic
def _align_stack(typing_context: Any) -> Any:
    """Have registers that this function must put aside lie in a line of the cache each.

    LLVM would put them where the stack happens to be, in three processes of four across two lines.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.function.attributes.alignstack = 64
        builder.function.attributes.add("noinline")  # or it would be lost in the caller
        return context.get_dummy_value()

    return types.void(), generate


def _splat(value: int) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), LANES), [value] * LANES)


_TRANSFORM = types.void(*[types.int64] * 7)


@lru_cache(maxsize=64)
def transform(size: int, use: int, in_words: bool) -> Any:
    """Compiled: transform all channels of one tile, which is in bfloat16 once it is transformed where `in_words`.

    Its `address` is what a layout has.
    """
    into = use in (TO_PATCH, TO_GRADIENT, TO_PLACES)
    target_in_words, source_in_words = in_words and into, in_words and not into

    def of_tile(target, target_row, target_column, source, source_row, source_column, channels):
        _align_stack()
        to, of = values_at(target, target_in_words), values_at(source, source_in_words)
        for first in range(0, channels, LANES):
            _transform(
                size, use, moved(to, first), target_row, target_column, moved(of, first), source_row, source_column
            )

    return compiled_callback(of_tile, _TRANSFORM)


@compiled
def _copy_row(target, target_pitch, source, source_pitch, width, channels):
    """Copy a row of pixels, which are so many values apart in the one and in the other."""
    if target_pitch == source_pitch:
        copy_values(target, source, width * channels)
    else:
        for x in range(width):
            copy_values(moved(target, x * target_pitch), moved(source, x * source_pitch), channels)


@compiled
def _clear(target, num):
    for j in range(num):
        target[j] = np.float32(0)


Layout = namedtuple(
    "Layout",
    "transform height width channels top left rows columns side step places pitch scratch scratch_floats tiles "
    "value_bytes",
)
"""What comes first of the numbers that a kernel takes.

A transform's address; height, width and channels of the images, and the rows and columns of zeros before each of them;
rows and columns of tiles, a tile's side and the pixels from one to the next; a transformed tile's side and the values
between its places; the address of the tasks' memory, each task's so many floats, an image with its zeros; the address
of the transformed tiles, whose channels are padded to a multiple of LANES, and the bytes of one of their values.
"""
_NUM_LAYOUT = len(Layout._fields)
_layout = reader(Layout)


@compiled
def _transform_tiles(layout, image, frame, row_floats, padded, into):
    """Transform all tiles of an image: `into` tiles, from its frame, or the other way round."""
    places = layout.places * layout.pitch
    for row in range(layout.rows):
        for column in range(layout.columns):
            at = ((image * layout.rows + row) * layout.columns + column) * padded
            tile = layout.tiles + at * layout.value_bytes
            corner = frame + 4 * layout.step * (row * row_floats + column * padded)
            if into:
                call(layout.transform, (tile, places, layout.pitch, corner, row_floats, padded, padded))
            else:
                call(layout.transform, (corner, row_floats, padded, tile, places, layout.pitch, padded))


@compiled
def _frame(layout, task):
    """Address of a task's frame for an image and its zeros, floats of its rows and of all, channels with padding."""
    padded = -(-layout.channels // LANES) * LANES
    row_floats = ((layout.columns - 1) * layout.step + layout.side) * padded
    frame = layout.scratch + 4 * task * layout.scratch_floats
    return frame, row_floats, ((layout.rows - 1) * layout.step + layout.side) * row_floats, padded


@compiled
def _to_tiles(images, numbers, task, first, last):
    """Transform each tile of images [n, h, w, channels], which overlap, to places [side * side, n * tiles, channels].

    numbers: the layout and the images' address.
    """
    layout = _layout(numbers)
    width, channels = layout.width, layout.channels
    frame, row_floats, num_floats, padded = _frame(layout, task)
    framed = floats_at(frame)
    _clear(framed, num_floats)
    for image in range(first, last):
        for y in range(layout.height):
            source = moved(images, (image * layout.height + y) * width * channels)
            target = moved(framed, (y + layout.top) * row_floats + layout.left * padded)
            _copy_row(target, padded, source, channels, width, channels)
        _transform_tiles(layout, image, frame, row_floats, padded, True)


@compiled
def _from_tiles(images, numbers, task, first, last):
    """Write images from their transformed tiles, the other way round; where tiles overlap their sum is written."""
    layout = _layout(numbers)
    width, channels = layout.width, layout.channels
    frame, row_floats, num_floats, padded = _frame(layout, task)
    framed = floats_at(frame)
    for image in range(first, last):
        if layout.side > layout.step:
            _clear(framed, num_floats)
        _transform_tiles(layout, image, frame, row_floats, padded, False)
        for y in range(layout.height):
            target = moved(images, (image * layout.height + y) * width * channels)
            source = moved(framed, (y + layout.top) * row_floats + layout.left * padded)
            _copy_row(target, channels, source, padded, width, channels)


@compiled
def _pool_tiles(results, numbers, task, first, last):
    """What `_from_tiles` and max-pooling of its images give, which are never written: results, places and sums.

    numbers: the layout and the addresses of results, places, sums and partial sums, all as maps.py has them.
    """
    layout, places = _layout(numbers), bytes_at(numbers[_NUM_LAYOUT + 1])
    rows, columns, channels = layout.height // 2, layout.width // 2, layout.channels
    sums = moved(doubles_at(numbers[_NUM_LAYOUT + 2]), task * 2 * channels)
    partial = moved(floats_at(numbers[_NUM_LAYOUT + 3]), task * 2 * channels)
    frame, row_floats, _, padded = _frame(layout, task)
    for image in range(first, last):
        _transform_tiles(layout, image, frame, row_floats, padded, False)
        for row in range(rows):
            upper, at = moved(floats_at(frame), 2 * row * row_floats), (image * rows + row) * columns * channels
            lower = moved(upper, row_floats)
            pool_row(upper, lower, padded, columns, channels, moved(results, at), moved(places, at), partial)
            flush(partial, sums, 2 * channels)


@compiled
def _unpool_tiles(gradient, numbers, task, first, last):
    """What `_to_tiles` gives of a pooled map's gradient, which is never written.

    numbers: the layout and the addresses of the gradient, of the pooled values, of their places, and of what
    `maps.combine` takes by channel, float32 [3, channels].
    """
    layout = _layout(numbers)
    values, places = like(gradient, numbers[_NUM_LAYOUT + 1]), bytes_at(numbers[_NUM_LAYOUT + 2])
    a = floats_at(numbers[_NUM_LAYOUT + 3])
    rows, columns, channels = layout.height // 2, layout.width // 2, layout.channels
    b, c = moved(a, channels), moved(a, 2 * channels)
    frame, row_floats, num_floats, padded = _frame(layout, task)
    framed = floats_at(frame)
    _clear(framed, num_floats)
    for image in range(first, last):
        for row in range(rows):
            upper, at = moved(framed, 2 * row * row_floats), (image * rows + row) * columns * channels
            g, x, place, lower = moved(gradient, at), moved(values, at), moved(places, at), moved(upper, row_floats)
            unpool_row(g, x, place, a, b, c, columns, channels, upper, lower, padded)
        _transform_tiles(layout, image, frame, row_floats, padded, True)


@lru_cache(maxsize=8)
def kernel(step: int, in_words: bool) -> Any:
    """One of the steps above for one kind of values: what threads.share_out takes."""

    def of_share(numbers, task, first, last):
        values = values_at(numbers[_NUM_LAYOUT], in_words)
        if step == TO_TILES:
            _to_tiles(values, numbers, task, first, last)
        elif step == FROM_TILES:
            _from_tiles(values, numbers, task, first, last)
        elif step == POOL_TILES:
            _pool_tiles(values, numbers, task, first, last)
        else:
            _unpool_tiles(values, numbers, task, first, last)

    return shared(of_share)


WeightLayout = namedtuple(
    "WeightLayout",
    "transform tiles tiles_bytes tiles_row tiles_column taps taps_bytes taps_row taps_column channels into",
)
"""What is to be done with a weight: a transform's address; of its tiles once it is transformed, and of its taps, an
address, the bytes from one output's to the next, the values from a row and from a column to the next; channels of the
images, a multiple of LANES; and whether tiles are made of taps or the other way round.
"""
_weight_layout = reader(WeightLayout)


@lru_cache(maxsize=1)
def weight_kernel() -> Any:
    """What transforms a weight, or adds to one what is transformed back: takes a WeightLayout, by threads.share_out."""

    def of_outputs(numbers, task, first, last):
        told = _weight_layout(numbers)
        for output in range(first, last):
            tiles = (told.tiles + output * told.tiles_bytes, told.tiles_row, told.tiles_column)
            taps = (told.taps + output * told.taps_bytes, told.taps_row, told.taps_column)
            if told.into:
                call(told.transform, (*tiles, *taps, told.channels))
            else:
                call(told.transform, (*taps, *tiles, told.channels))

    return shared(of_outputs)
