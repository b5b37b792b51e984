"""Images cut into tiles, each transformed by a matrix on both sides, and tiles put together again: compiled code.

What Winograd's convolution does with memory; what it is for stands in winograd.py. Tiles are worked on LANES channels
at a time, as straight-line code made of the matrix, whose zeros and ones cost nothing.
"""

from collections import namedtuple
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastcifar.kernels.numba_jit import compiled, compiled_callback
from fastcifar.kernels.numba_maps import flush, pool_row, unpool_row
from fastcifar.kernels.numba_share import reader, shared
from fastcifar.kernels.numba_vector import bytes_at, doubles_at, floats_at, moved

LANES = 8
"""Channels that are worked on at once: one register of AVX2."""
TAPS = 3
"""Side of the convolutions' kernels."""
SIZES = (2, 3, 4, 5, 6, 7)
"""Sides of the squares of outputs that a tile may give; the error grows with them (bench/LOG.md)."""
_POINTS = (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2), Fraction(-3, 4))
TO_PATCH, FROM_PRODUCT, TO_GRADIENT, FROM_PATCH = range(4)
"""The uses of a size's matrices: B^T, A^T, A and B."""

Matrix = tuple[tuple[Fraction, ...], ...]

_FLOAT, _LONG, _BYTES = ir.FloatType(), ir.IntType(64), ir.IntType(8).as_pointer()
_FLOATS = types.CPointer(types.float32)


@lru_cache(maxsize=8)
def matrices(size: int) -> tuple[Matrix, Matrix, Matrix]:
    """A^T [size, size + 2], G [size + 2, 3] and B^T [size + 2, size + 2]: F(size, 3) is A^T ((G g) * (B^T d)).

    Toom and Cook's way: a product of polynomials is known by its values at as many points as it has coefficients, the
    last of them at infinity; what is transposed of it is a convolution.
    """
    points = [Fraction(point) for point in _POINTS[: size + TAPS - 2]]
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
    output, _, data = matrices(size)
    matrix = output if use in (FROM_PRODUCT, TO_GRADIENT) else data
    return matrix if use in (TO_PATCH, FROM_PRODUCT) else tuple(zip(*matrix, strict=True))


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
    """Write M D M^T, of LANES channels, for the matrix M of a size and a use; FROM_PATCH adds to what is there.

    Rows and columns of D and of the target are as many floats apart as is said.
    """
    matrix = _matrix(size.literal_value, use.literal_value)
    adds = use.literal_value == FROM_PATCH

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, target, *target_pitch, source, source_row, source_column = arguments
        vector = ir.VectorType(_FLOAT, LANES)
        name = f"llvm.fmuladd.v{LANES}f32"
        fmuladd = builder.module.globals.get(name)
        if fmuladd is None:
            fmuladd = ir.Function(builder.module, ir.FunctionType(vector, [vector] * 3), name=name)

        def place(pointer: Any, pitch: Any, row: int, column: int) -> Any:
            steps = [builder.mul(by, _LONG(times)) for by, times in zip(pitch, (row, column), strict=True)]
            return builder.bitcast(builder.gep(pointer, [builder.add(*steps)]), vector.as_pointer())

        def times_matrix(values: Sequence[Any]) -> list[Any]:
            return [weighted_sum(row, values) for row in matrix]

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
            columns.append(times_matrix([builder.load(there, align=4) for there in places]))
        for row in range(len(matrix)):
            for column, value in enumerate(times_matrix([values[row] for values in columns])):
                there = place(target, target_pitch, row, column)
                result = builder.fadd(builder.load(there, align=4), value) if adds else value
                builder.store(result, there, align=4)
        return context.get_dummy_value()

    arguments = (size, use, _FLOATS, types.intp, types.intp, _FLOATS, types.intp, types.intp)
    return types.void(*arguments), generate


_TRANSFORM = types.void(_FLOATS, types.intp, types.intp, _FLOATS, types.intp, types.intp, types.intp)


@lru_cache(maxsize=32)
def transform(size: int, use: int) -> Any:
    """Compiled: transform all channels of one tile. Its `address` is what to_tiles and from_tiles take."""

    def of_tile(target, target_row, target_column, source, source_row, source_column, channels):
        for first in range(0, channels, LANES):
            _transform(
                size,
                use,
                moved(target, first),
                target_row,
                target_column,
                moved(source, first),
                source_row,
                source_column,
            )

    return compiled_callback(of_tile, _TRANSFORM)


@intrinsic
def _call(
    typing_context: Any,
    function: Any,
    target: Any,
    target_row: Any,
    target_column: Any,
    source: Any,
    source_row: Any,
    source_column: Any,
    channels: Any,
) -> Any:
    """Call a transform by its address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, *rest = arguments
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in rest])
        builder.call(builder.inttoptr(address, kind.as_pointer()), rest)
        return context.get_dummy_value()

    return types.void(types.int64, *_TRANSFORM.args), generate


@intrinsic
def _copy(typing_context: Any, target: Any, source: Any, num_floats: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        copy = builder.module.declare_intrinsic("llvm.memcpy", [_BYTES, _BYTES, _LONG])
        pointers = [builder.bitcast(pointer, _BYTES) for pointer in arguments[:2]]
        builder.call(copy, [*pointers, builder.mul(arguments[2], _LONG(4)), ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(_FLOATS, _FLOATS, types.intp), generate


@compiled
def _copy_row(target, target_pitch, source, source_pitch, width, channels):
    """Copy a row of pixels, which are so many floats apart in the one and in the other."""
    if target_pitch == source_pitch:
        _copy(target, source, width * channels)
    else:
        for x in range(width):
            _copy(moved(target, x * target_pitch), moved(source, x * source_pitch), channels)


@intrinsic
def _clear(typing_context: Any, target: Any, num_floats: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        fill = builder.module.declare_intrinsic("llvm.memset", [_BYTES, _LONG])
        start, num_bytes = builder.bitcast(arguments[0], _BYTES), builder.mul(arguments[1], _LONG(4))
        builder.call(fill, [start, ir.Constant(ir.IntType(8), 0), num_bytes, ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(_FLOATS, types.intp), generate


Layout = namedtuple(
    "Layout",
    "transform height width channels top left rows columns side step places pitch scratch scratch_floats tiles",
)
"""What comes first of the numbers that the functions below take.

A transform's address; height, width and channels of the images, and the rows and columns of zeros before each of them;
rows and columns of tiles, a tile's side and the pixels from one to the next; a transformed tile's side and the floats
between its places; the address of the tasks' memory, each task's so many floats, an image with its zeros; the address
of the transformed tiles, whose channels are padded to a multiple of LANES.
"""
_NUM = len(Layout._fields)
_layout = reader(Layout)


@compiled
def _transform_tiles(layout, image, framed, row_floats, padded, into):
    """Transform all tiles of an image: `into` tiles, from its frame, or the other way round."""
    places = layout.places * layout.pitch
    for row in range(layout.rows):
        for column in range(layout.columns):
            at = ((image * layout.rows + row) * layout.columns + column) * padded
            tile = moved(floats_at(layout.tiles), at)
            corner = moved(framed, row * layout.step * row_floats + column * layout.step * padded)
            if into:
                _call(layout.transform, tile, places, layout.pitch, corner, row_floats, padded, padded)
            else:
                _call(layout.transform, corner, row_floats, padded, tile, places, layout.pitch, padded)


@compiled
def _frame(layout, task):
    """A task's frame for an image and its zeros, the floats of its rows and of all, and the channels with padding."""
    padded = -(-layout.channels // LANES) * LANES
    row_floats = ((layout.columns - 1) * layout.step + layout.side) * padded
    framed = moved(floats_at(layout.scratch), task * layout.scratch_floats)
    return framed, row_floats, ((layout.rows - 1) * layout.step + layout.side) * row_floats, padded


@shared
def to_tiles(numbers, task, first, last):
    """Transform each tile of images [n, h, w, channels], which overlap, to places [side * side, n * tiles, channels].

    numbers: the layout and the images' address.
    """
    layout, images = _layout(numbers), floats_at(numbers[_NUM])
    width, channels = layout.width, layout.channels
    framed, row_floats, num_floats, padded = _frame(layout, task)
    _clear(framed, num_floats)
    for image in range(first, last):
        for y in range(layout.height):
            source = moved(images, (image * layout.height + y) * width * channels)
            target = moved(framed, (y + layout.top) * row_floats + layout.left * padded)
            _copy_row(target, padded, source, channels, width, channels)
        _transform_tiles(layout, image, framed, row_floats, padded, True)


@shared
def from_tiles(numbers, task, first, last):
    """Write images from their transformed tiles, the other way round; where tiles overlap their sum is written."""
    layout, images = _layout(numbers), floats_at(numbers[_NUM])
    width, channels = layout.width, layout.channels
    framed, row_floats, num_floats, padded = _frame(layout, task)
    for image in range(first, last):
        if layout.side > layout.step:
            _clear(framed, num_floats)
        _transform_tiles(layout, image, framed, row_floats, padded, False)
        for y in range(layout.height):
            target = moved(images, (image * layout.height + y) * width * channels)
            source = moved(framed, (y + layout.top) * row_floats + layout.left * padded)
            _copy_row(target, channels, source, padded, width, channels)


@shared
def pool_tiles(numbers, task, first, last):
    """What `from_tiles` and max-pooling of its images give, which are never written: results, places and sums.

    numbers: the layout and the addresses of results, places, sums and partial sums, all as maps.py has them.
    """
    layout = _layout(numbers)
    results, places = floats_at(numbers[_NUM]), bytes_at(numbers[_NUM + 1])
    rows, columns, channels = layout.height // 2, layout.width // 2, layout.channels
    sums = moved(doubles_at(numbers[_NUM + 2]), task * 2 * channels)
    partial = moved(floats_at(numbers[_NUM + 3]), task * 2 * channels)
    framed, row_floats, _, padded = _frame(layout, task)
    for image in range(first, last):
        _transform_tiles(layout, image, framed, row_floats, padded, False)
        for row in range(rows):
            upper, at = moved(framed, 2 * row * row_floats), (image * rows + row) * columns * channels
            lower = moved(upper, row_floats)
            pool_row(upper, lower, padded, columns, channels, moved(results, at), moved(places, at), partial)
            flush(partial, sums, 2 * channels)


@shared
def unpool_tiles(numbers, task, first, last):
    """What `to_tiles` gives of a pooled map's gradient, which is never written.

    numbers: the layout and the addresses of the gradient, of the pooled values, of their places, and of what
    `maps.combine` takes by channel, float32 [3, channels].
    """
    layout = _layout(numbers)
    gradient, values, places = floats_at(numbers[_NUM]), floats_at(numbers[_NUM + 1]), bytes_at(numbers[_NUM + 2])
    rows, columns, channels = layout.height // 2, layout.width // 2, layout.channels
    a = floats_at(numbers[_NUM + 3])
    b, c = moved(a, channels), moved(a, 2 * channels)
    framed, row_floats, num_floats, padded = _frame(layout, task)
    _clear(framed, num_floats)
    for image in range(first, last):
        for row in range(rows):
            upper, at = moved(framed, 2 * row * row_floats), (image * rows + row) * columns * channels
            g, x, place, lower = moved(gradient, at), moved(values, at), moved(places, at), moved(upper, row_floats)
            unpool_row(g, x, place, a, b, c, columns, channels, upper, lower, padded)
        _transform_tiles(layout, image, framed, row_floats, padded, True)
