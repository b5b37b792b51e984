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
# Reversing five pixels reads and writes 16 bytes, and blending texels reads and writes four values for three.
SLACK = 16


@intrinsic
def pointer_to(typing_context: Any, array: Any) -> Any:
    """Pointer to the first element of an array, which must outlive its use."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), generate


@intrinsic
def bytes_at(typing_context: Any, address: Any) -> Any:
    """Pointer to uint8 at an address, an integer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], _BYTE.as_pointer())

    return types.CPointer(types.uint8)(types.uint64), generate


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


floats_at, ints_at, words_at = (
    _cast_to(types.float32),
    _cast_to(types.int32),
    _cast_to(types.uint16),
)


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


@intrinsic
def blend_texels(
    typing_context: Any,
    target: Any,
    texture: Any,
    top_left: Any,
    top_right: Any,
    low_left: Any,
    low_right: Any,
    x_part: Any,
    y_part: Any,
) -> Any:
    """Write the bilinear mean of four pixels of texture, uint8, to target, float32, and a fourth value.

    Along x first, then along y, each as a + (b - a) * part, rounded after every operation.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, texels, *corners, right, down = arguments
        bytes_, floats = ir.VectorType(_BYTE, 4), ir.VectorType(_FLOAT, 4)

        def pixel(offset: Any) -> Any:
            there = builder.bitcast(builder.gep(texels, [offset]), bytes_.as_pointer())
            return builder.uitofp(builder.load(there, align=1), floats)

        def spread(scalar: Any) -> Any:
            empty = ir.Constant(floats, ir.Undefined)
            first = builder.insert_element(empty, scalar, ir.Constant(_INT, 0))
            return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_INT, 4), [0, 0, 0, 0]))

        def between(low: Any, high: Any, part: Any) -> Any:
            return builder.fadd(low, builder.fmul(builder.fsub(high, low), part))

        a, b, c, d = (pixel(corner) for corner in corners)
        across = spread(right)
        mean = between(between(a, b, across), between(c, d, across), spread(down))
        builder.store(mean, builder.bitcast(out, floats.as_pointer()), align=4)
        return context.get_dummy_value()

    offsets = (types.intp,) * 4
    return types.void(target, texture, *offsets, types.float32, types.float32), generate
