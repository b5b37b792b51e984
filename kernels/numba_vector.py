"""What Numba has no words for: pointers, and a few instructions on raw memory, written in LLVM's own language.

An array costs an atomic count of references wherever it is passed or sliced, for small images as much time as their
pixels. So the kernels take pointers from arrays that their callers keep. Nothing here checks bounds.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastcifar.kernels.numba_values import BFLOAT, target_has

_BYTE, _WORD, _INT, _LONG, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_CHANNELS = 3
PASTED_BYTES = 32  # bytes that paste_bytes looks at
LANES = 16  # values that one instruction of the widest kind takes; a narrower machine takes several
CHUNK = 6 * LANES  # a multiple of the three channels and of every vector's length
CACHE_LINE = 64  # bytes
BLOCK_BYTES = 64  # bytes that copy_block copies
# 64 where one instruction can put so many bytes in any order.
_REVERSED_BYTES = 64 if target_has("avx512vbmi") else 16
REVERSED_PIXELS = _REVERSED_BYTES // _CHANNELS
# The last pixels of a row are reversed together with what lies before it, and written with that behind them.
SLACK = _REVERSED_BYTES
HAS_BFLOAT16_UNITS = target_has("avx512bf16")
HAS_FMA = target_has("fma")


@intrinsic
def pointer_to(typing_context: Any, array: Any) -> Any:
    """Pointer to the first element of an array, which must outlive its use."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), generate


@intrinsic
def address_of(typing_context: Any, pointer: Any) -> Any:
    """What a pointer points at, as an integer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], _LONG)

    return types.int64(pointer), generate


def _at_address(element: Any) -> Any:
    """Make a function that takes an address, an integer, and gives a pointer to elements of a type."""

    @intrinsic
    def pointer_at(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(address), generate

    return pointer_at


def room_for(element: Any, length: int) -> Any:
    """Make a function that gives a pointer to so many elements on the stack, the same while its caller runs."""

    @intrinsic
    def room(typing_context: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return cgutils.alloca_once(builder, context.get_value_type(element), length)

        return types.CPointer(element)(), generate

    return room


bytes_at, ints_at, longs_at, floats_at, doubles_at = (
    _at_address(element) for element in (types.uint8, types.int32, types.int64, types.float32, types.float64)
)


@intrinsic
def prefetch(typing_context: Any, pointer: Any) -> Any:
    """Ask for the line of memory at a pointer, which will be read once; any address will do."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _prefetch(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(pointer), generate


def _prefetch(builder: Any, address: Any) -> None:
    pointer = _BYTE.as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [pointer, _INT, _INT, _INT])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], signature)
    # To read, to be kept close, data.
    builder.call(function, [address, _INT(0), _INT(3), _INT(1)])


@intrinsic
def moved(typing_context: Any, pointer: Any, offset: Any) -> Any:
    """The pointer, by so many elements further."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, types.intp), generate


def _cast_to(element: Any) -> Any:
    @intrinsic
    def cast(typing_context: Any, pointer: Any, offset: Any) -> Any:
        """Pointer to elements of another type, offset bytes behind a pointer to bytes."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            there = builder.gep(arguments[0], [arguments[1]])
            return builder.bitcast(there, context.get_value_type(signature.return_type))

        return types.CPointer(element)(pointer, types.intp), generate

    return cast


floats_in, ints_in, words_in = (_cast_to(element) for element in (types.float32, types.int32, types.uint16))


@intrinsic
def copy_bytes(typing_context: Any, target: Any, source: Any, num_bytes: Any) -> Any:
    """Copy bytes between places that do not overlap."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _BYTE.as_pointer()
        memcpy = builder.module.declare_intrinsic("llvm.memcpy", [pointer, pointer, ir.IntType(64)])
        builder.call(memcpy, [*arguments, ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(target, source, types.int64), generate


@intrinsic
def copy_block(typing_context: Any, target: Any, source: Any) -> Any:
    """Copy BLOCK_BYTES bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block = ir.VectorType(_BYTE, BLOCK_BYTES).as_pointer()
        to, origin = (builder.bitcast(pointer, block) for pointer in arguments)
        builder.store(builder.load(origin, align=1), to, align=1)
        return context.get_dummy_value()

    return types.void(target, source), generate


@intrinsic
def paste_bytes(typing_context: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy the first count of PASTED_BYTES bytes; those of the target behind them are written as they were."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        origin = _vector_at(builder, arguments[1], _BYTE, PASTED_BYTES)
        _paste(builder, arguments[0], builder.load(origin, align=1), arguments[2])
        return context.get_dummy_value()

    return types.void(target, source, types.int64), generate


@intrinsic
def blank_bytes(typing_context: Any, target: Any, count: Any) -> Any:
    """Zero the first count of PASTED_BYTES bytes; those behind them are written as they were."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zeros = ir.Constant(ir.VectorType(_BYTE, PASTED_BYTES), [0] * PASTED_BYTES)
        _paste(builder, arguments[0], zeros, arguments[1])
        return context.get_dummy_value()

    return types.void(target, types.int64), generate


def _paste(builder: Any, target: Any, values: Any, count: Any) -> None:
    vector = values.type
    to = _vector_at(builder, target, _BYTE, PASTED_BYTES)
    limit = builder.insert_element(ir.Constant(vector, ir.Undefined), builder.trunc(count, _BYTE), _INT(0))
    limits = builder.shuffle_vector(limit, limit, ir.Constant(ir.VectorType(_INT, PASTED_BYTES), None))
    pasted = builder.icmp_unsigned("<", ir.Constant(vector, list(range(PASTED_BYTES))), limits)
    builder.store(builder.select(pasted, values, builder.load(to, align=1)), to, align=1)


@intrinsic
def reverse_pixels(typing_context: Any, target: Any, source: Any) -> Any:
    """Copy REVERSED_PIXELS pixels of uint8 in reverse order, and one byte behind them, which the next overwrite."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(_BYTE, _REVERSED_BYTES)
        order = [
            _CHANNELS * (REVERSED_PIXELS - 1 - byte // _CHANNELS) + byte % _CHANNELS
            for byte in range(_CHANNELS * REVERSED_PIXELS)
        ]
        mask = ir.Constant(ir.VectorType(_INT, _REVERSED_BYTES), [*order, _REVERSED_BYTES - 1])
        to, origin = (builder.bitcast(pointer, vector.as_pointer()) for pointer in arguments)
        pixels = builder.load(origin, align=1)
        builder.store(builder.shuffle_vector(pixels, ir.Constant(vector, ir.Undefined), mask), to, align=1)
        return context.get_dummy_value()

    return types.void(target, source), generate


def _vector_at(builder: Any, pointer: Any, element: Any, length: int) -> Any:
    return builder.bitcast(pointer, ir.VectorType(element, length).as_pointer())


def _shuffled(builder: Any, a: Any, b: Any, places: list[int]) -> Any:
    """Elements of a and b, which count as one behind the other."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(places)), places))


@intrinsic
def split_pixels(typing_context: Any, source: Any, reds: Any, greens: Any, blues: Any) -> Any:
    """Copy LANES pixels of uint8 to planes of float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pixels = builder.load(_vector_at(builder, arguments[0], _BYTE, _CHANNELS * LANES), align=1)
        for channel, plane in enumerate(arguments[1:]):
            places = list(range(channel, _CHANNELS * LANES, _CHANNELS))
            values = builder.uitofp(_shuffled(builder, pixels, pixels, places), ir.VectorType(_FLOAT, LANES))
            builder.store(values, _vector_at(builder, plane, _FLOAT, LANES), align=4)
        return context.get_dummy_value()

    return types.void(source, reds, greens, blues), generate


@intrinsic
def join_pixels(typing_context: Any, target: Any, reds: Any, greens: Any, blues: Any) -> Any:
    """Write LANES pixels from planes, whose elements are those of target."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = arguments[0].type.pointee
        bytes_each = element.width // 8 if isinstance(element, ir.IntType) else 4
        planes = [builder.load(_vector_at(builder, plane, element, LANES), align=bytes_each) for plane in arguments[1:]]
        two = _shuffled(builder, planes[0], planes[1], list(range(2 * LANES)))
        three = _shuffled(builder, planes[2], planes[2], [place % LANES for place in range(2 * LANES)])
        places = [(at % _CHANNELS) * LANES + at // _CHANNELS for at in range(_CHANNELS * LANES)]
        pixels = _shuffled(builder, two, three, places)
        builder.store(pixels, _vector_at(builder, arguments[0], element, _CHANNELS * LANES), align=bytes_each)
        return context.get_dummy_value()

    return types.void(target, reds, greens, blues), generate


@intrinsic
def pack_texels(typing_context: Any, target: Any, source: Any) -> Any:
    """Copy LANES pixels of uint8 to one 32-bit word each: red in the lowest byte, then green, blue and zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, origin = arguments
        pixels = builder.load(_vector_at(builder, origin, _BYTE, _CHANNELS * LANES), align=1)
        none = ir.Constant(ir.VectorType(_BYTE, _CHANNELS * LANES), [0] * (_CHANNELS * LANES))
        places = [
            _CHANNELS * (at // 4) + at % 4 if at % 4 < _CHANNELS else _CHANNELS * LANES for at in range(4 * LANES)
        ]
        builder.store(_shuffled(builder, pixels, none, places), _vector_at(builder, out, _BYTE, 4 * LANES), align=4)
        return context.get_dummy_value()

    return types.void(target, source), generate


@intrinsic
def mean_texels(
    typing_context: Any,
    top_left: Any,
    top_right: Any,
    low_left: Any,
    low_right: Any,
    x_part: Any,
    y_part: Any,
    reds: Any,
    greens: Any,
    blues: Any,
) -> Any:
    """Bilinear means of LANES times four texels, as pack_texels makes them, to planes of float32.

    Along x first, then along y, each as a + (b - a) * part, rounded after every operation.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *corners, x_part, y_part, reds, greens, blues = arguments
        floats = ir.VectorType(_FLOAT, LANES)
        texels = [builder.load(_vector_at(builder, corner, _INT, LANES), align=4) for corner in corners]
        right, down = (builder.load(_vector_at(builder, part, _FLOAT, LANES), align=4) for part in (x_part, y_part))

        def between(low: Any, high: Any, part: Any) -> Any:
            return builder.fadd(low, builder.fmul(builder.fsub(high, low), part))

        for channel, plane in enumerate((reds, greens, blues)):
            a, b, c, d = (
                builder.sitofp(builder.and_(builder.lshr(texel, _splat(_INT, 8 * channel)), _splat(_INT, 0xFF)), floats)
                for texel in texels
            )
            mean = between(between(a, b, right), between(c, d, right), down)
            builder.store(mean, _vector_at(builder, plane, _FLOAT, LANES), align=4)
        return context.get_dummy_value()

    return types.void(top_left, top_right, low_left, low_right, x_part, y_part, reds, greens, blues), generate


def _splat(element: Any, value: int, times: int = 1) -> Any:
    return ir.Constant(ir.VectorType(element, times * LANES), [value] * times * LANES)


def _to_bfloat16(*, lit: bool = False, quick: bool = False, fused: bool = False) -> Any:
    in_order, by_units = HAS_BFLOAT16_UNITS, HAS_BFLOAT16_UNITS and quick

    @intrinsic
    def convert(
        typing_context: Any,
        target: Any,
        pixels: Any,
        num_chunks: Any,
        scale: Any,
        shift: Any,
        brightness: Any,
        contrast: Any,
        ahead: Any,
    ) -> Any:
        """Normalise chunks of CHUNK bytes to bfloat16, and for each ask for a line of memory at ahead.

        scale and shift: float32 [CHUNK], of every 2 LANES bytes in the order in which they are worked on: as they are
        where there are units for bfloat16; elsewhere those at even places, then those at odd ones, whose results need
        no packing: one takes the lower half of 32 bits, the other the upper half.

        quick: rounded to bfloat16 in the fewest instructions; fused: product and sum are rounded once, where one
        instruction does both. quickest_way() says with which of them the result is the same.

        A loop of its own, so that scale and shift stay in registers where there are enough, as with AVX-512.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            target, pixels, num_chunks, scale, shift, *light, ahead = arguments
            both = list(range(2 * LANES))
            halves = both[:LANES], both[LANES:]
            ints, floats = (ir.VectorType(element, 2 * LANES) for element in (_INT, _FLOAT))

            def at(pointer: Any, place: Any, element: Any, length: int) -> Any:
                return _vector_at(builder, builder.gep(pointer, [place]), element, length)

            def spread(scalar: Any) -> Any:
                empty = ir.Constant(floats, ir.Undefined)
                first = builder.insert_element(empty, scalar, ir.Constant(_INT, 0))
                return builder.shuffle_vector(first, empty, ir.Constant(ints, [0] * 2 * LANES))

            def integers(place: Any) -> Any:
                if in_order:
                    return builder.zext(builder.load(at(pixels, place, _BYTE, 2 * LANES), align=1), ints)
                pairs = builder.load(at(pixels, place, _WORD, LANES), align=1)
                pairs = builder.zext(pairs, ir.VectorType(_INT, LANES))
                low, high = builder.and_(pairs, _splat(_INT, 0xFF)), builder.lshr(pairs, _splat(_INT, 8))
                return _shuffled(builder, low, high, both)

            def store(values: Any, place: Any) -> None:
                if by_units:
                    words = _joined_by_units(builder, *(_shuffled(builder, values, values, half) for half in halves))
                else:
                    bits = _nearest_bits(builder, values, to_even=not quick)
                    if in_order:
                        words = builder.trunc(builder.lshr(bits, _splat(_INT, 16, 2)), ir.VectorType(_WORD, 2 * LANES))
                    else:
                        even, odd = (_shuffled(builder, bits, bits, half) for half in halves)
                        even, odd = builder.lshr(even, _splat(_INT, 16)), builder.and_(odd, _splat(_INT, 0xFFFF0000))
                        words = builder.bitcast(builder.or_(even, odd), ir.VectorType(_WORD, 2 * LANES))
                builder.store(words, at(target, place, _WORD, 2 * LANES), align=2)

            firsts = [_LONG(first) for first in range(0, CHUNK, 2 * LANES)]
            factors, summands = (
                [builder.load(at(table, first, _FLOAT, 2 * LANES), align=4) for first in firsts]
                for table in (scale, shift)
            )
            brightness, contrast = (spread(scalar) for scalar in light)
            with cgutils.for_range(builder, num_chunks) as loop:
                start = builder.mul(loop.index, _LONG(CHUNK))
                _prefetch(builder, builder.gep(ahead, [builder.mul(loop.index, _LONG(CACHE_LINE))]))
                for first, factor, summand in zip(firsts, factors, summands, strict=True):
                    place = builder.add(start, first)
                    values = builder.sitofp(integers(place), floats)
                    if fused:
                        values = _multiplied_and_added(builder, values, factor, summand)
                    else:
                        values = builder.fadd(builder.fmul(values, factor), summand)
                    if lit:
                        values = builder.fmul(builder.fadd(values, brightness), contrast)
                    store(values, place)
            return context.get_dummy_value()

        return types.void(target, pixels, types.int64, scale, shift, types.float32, types.float32, ahead), generate

    return convert


def _multiplied_and_added(builder: Any, values: Any, factor: Any, summand: Any) -> Any:
    """values * factor + summand of float32 or vectors of them, rounded once where one instruction does both."""
    if not HAS_FMA:
        return builder.fadd(builder.fmul(values, factor), summand)
    lanes = f"v{values.type.count}" if isinstance(values.type, ir.VectorType) else ""
    kind = ir.FunctionType(values.type, [values.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.{lanes}f32")
    return builder.call(function, [values, factor, summand])


@intrinsic
def multiplied_and_added(typing_context: Any, value: Any, factor: Any, summand: Any) -> Any:
    """value * factor + summand, float32, rounded as often as `fused_to_bfloat16` does."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _multiplied_and_added(builder, *arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


def _joined_by_units(builder: Any, low: Any, high: Any) -> Any:
    """Bits of the bfloat16 nearest to 2 LANES of float32, by the one instruction that takes so many."""
    result = ir.VectorType(BFLOAT, 2 * LANES)
    name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [low.type, high.type]), name)
    return builder.bitcast(builder.call(function, [high, low]), ir.VectorType(_WORD, 2 * LANES))


def _nearest_bits(builder: Any, values: Any, to_even: bool) -> Any:
    """Bits of 2 LANES of float32, whose upper halves are those of the nearest bfloat16; of two as near the even one, or
    else the one farther from zero, which takes a quarter of the instructions."""
    bits = builder.bitcast(values, ir.VectorType(_INT, 2 * LANES))
    if not to_even:
        return builder.add(bits, _splat(_INT, 0x8000, 2))
    lowest = builder.and_(builder.lshr(bits, _splat(_INT, 16, 2)), _splat(_INT, 1, 2))
    return builder.add(builder.add(bits, _splat(_INT, 0x7FFF, 2)), lowest)


plain_to_bfloat16, lit_to_bfloat16 = _to_bfloat16(), _to_bfloat16(lit=True)
quickly_to_bfloat16, fused_to_bfloat16 = _to_bfloat16(quick=True), _to_bfloat16(quick=True, fused=True)
