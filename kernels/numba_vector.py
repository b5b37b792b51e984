"""What Numba has no words for: pointers, and a few instructions on raw memory, written in LLVM's own language.

An array costs an atomic count of references wherever it is passed or sliced, for small images as much time as their
pixels. So the kernels take pointers from arrays that their callers keep. Nothing here checks bounds.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_BYTE, _INT, _FLOAT = ir.IntType(8), ir.IntType(32), ir.FloatType()
_PIXELS, _CHANNELS, _BYTES = 5, 3, 16
PASTED_BYTES = 32  # bytes that paste_bytes looks at
LANES = 16  # values that one instruction of the widest kind takes; a narrower machine takes several
# Reversing five pixels reads and writes 16 bytes.
SLACK = 16


@intrinsic
def pointer_to(typing_context: Any, array: Any) -> Any:
    """Pointer to the first element of an array, which must outlive its use."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), generate


def _at_address(element: Any) -> Any:
    """Make a function that takes an address, an integer, and gives a pointer to elements of a type."""

    @intrinsic
    def pointer_at(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(address), generate

    return pointer_at


bytes_at, ints_at, longs_at, floats_at, doubles_at = (
    _at_address(element) for element in (types.uint8, types.int32, types.int64, types.float32, types.float64)
)


@intrinsic
def prefetch(typing_context: Any, pointer: Any) -> Any:
    """Ask for the line of memory at a pointer, which will be read once; any address will do."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _BYTE.as_pointer()
        signature = ir.FunctionType(ir.VoidType(), [pointer, _INT, _INT, _INT])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], signature)
        # To read, to be kept close, data.
        builder.call(function, [arguments[0], _INT(0), _INT(3), _INT(1)])
        return context.get_dummy_value()

    return types.void(pointer), generate


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
def paste_bytes(typing_context: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy the first count of PASTED_BYTES bytes; those of the target behind them are written as they were."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(_BYTE, PASTED_BYTES)
        to, origin = (builder.bitcast(pointer, vector.as_pointer()) for pointer in arguments[:2])
        limit = builder.insert_element(
            ir.Constant(vector, ir.Undefined), builder.trunc(arguments[2], _BYTE), ir.Constant(_INT, 0)
        )
        limits = builder.shuffle_vector(limit, limit, ir.Constant(ir.VectorType(_INT, PASTED_BYTES), None))
        pasted = builder.icmp_unsigned("<", ir.Constant(vector, list(range(PASTED_BYTES))), limits)
        both = builder.select(pasted, builder.load(origin, align=1), builder.load(to, align=1))
        builder.store(both, to, align=1)
        return context.get_dummy_value()

    return types.void(target, source, types.int64), generate


@intrinsic
def reverse_five(typing_context: Any, target: Any, source: Any) -> Any:
    """Copy five pixels of uint8 in reverse order, and a sixteenth byte behind them, which the next five overwrite."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(_BYTE, _BYTES)
        order = [
            _CHANNELS * (_PIXELS - 1 - byte // _CHANNELS) + byte % _CHANNELS for byte in range(_CHANNELS * _PIXELS)
        ]
        mask = ir.Constant(ir.VectorType(_INT, _BYTES), [*order, _BYTES - 1])
        to, origin = (builder.bitcast(pointer, vector.as_pointer()) for pointer in arguments)
        five = builder.load(origin, align=1)
        builder.store(
            builder.shuffle_vector(five, ir.Constant(vector, ir.Undefined), mask),
            to,
            align=1,
        )
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


def _splat(element: Any, value: int) -> Any:
    return ir.Constant(ir.VectorType(element, LANES), [value] * LANES)


def _rounded(builder: Any, values: Any, to_even: bool) -> Any:
    """Bits of float32 lanes, whose upper halves are those of the nearest bfloat16; of two as near the even one, or else
    the one farther from zero, which takes a quarter of the instructions."""
    bits = builder.bitcast(values, ir.VectorType(_INT, LANES))
    if not to_even:
        return builder.add(bits, _splat(_INT, 0x8000))
    lowest = builder.and_(builder.lshr(bits, _splat(_INT, 16)), _splat(_INT, 1))
    return builder.add(builder.add(bits, _splat(_INT, 0x7FFF)), lowest)


def _to_bfloat16(lit: bool, to_even: bool) -> Any:
    @intrinsic
    def convert(
        typing_context: Any, target: Any, pixels: Any, scale: Any, shift: Any, brightness: Any, contrast: Any
    ) -> Any:
        """Normalise 2 LANES bytes to bfloat16.

        scale and shift: float32 for the bytes at even places, then for those at odd ones. Even and odd bytes are worked
        on apart, so that their results need no packing: one takes the lower half of 32 bits, the other the upper half.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            out, origin, scales, shifts, *light = arguments
            ints, floats = ir.VectorType(_INT, LANES), ir.VectorType(_FLOAT, LANES)
            words = ir.VectorType(ir.IntType(16), LANES)

            def spread(scalar: Any) -> Any:
                empty = ir.Constant(floats, ir.Undefined)
                first = builder.insert_element(empty, scalar, ir.Constant(_INT, 0))
                return builder.shuffle_vector(first, empty, ir.Constant(ints, [0] * LANES))

            def normal(integers: Any, odd: int) -> Any:
                by, plus = (
                    builder.load(builder.bitcast(builder.gep(table, [_INT(odd * LANES)]), floats.as_pointer()), align=4)
                    for table in (scales, shifts)
                )
                values = builder.fadd(builder.fmul(builder.sitofp(integers, floats), by), plus)
                if lit:
                    brightness, contrast = (spread(scalar) for scalar in light)
                    values = builder.fmul(builder.fadd(values, brightness), contrast)
                return _rounded(builder, values, to_even)

            pairs = builder.zext(builder.load(builder.bitcast(origin, words.as_pointer()), align=1), ints)
            even = normal(builder.and_(pairs, _splat(_INT, 0xFF)), 0)
            odd = normal(builder.lshr(pairs, _splat(_INT, 8)), 1)
            both = builder.or_(builder.lshr(even, _splat(_INT, 16)), builder.and_(odd, _splat(_INT, 0xFFFF0000)))
            builder.store(both, builder.bitcast(out, ints.as_pointer()), align=2)
            return context.get_dummy_value()

        return types.void(target, pixels, scale, shift, types.float32, types.float32), generate

    return convert


untied_to_bfloat16 = _to_bfloat16(lit=False, to_even=False)
plain_to_bfloat16, lit_to_bfloat16 = _to_bfloat16(lit=False, to_even=True), _to_bfloat16(lit=True, to_even=True)
