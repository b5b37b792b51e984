"""An image rounded to unsigned bytes, by one scale and one zero point, in a frame of zeros: compiled for AVX-512."""

from collections import namedtuple
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastcifar.kernels.numba_bytes import (
    BYTES_AT,
    FLOATS,
    INTS,
    LANES,
    WHOLE,
    WHOLE_BITS,
    WORDS,
    WORDS_AT,
    at_bytes,
    call_llvm,
    largest_of,
    nearest,
    overlapping,
    scale_for,
    splat,
    spread,
    widened,
)
from fastcifar.kernels.numba_jit import compiled
from fastcifar.kernels.numba_share import reader
from fastcifar.kernels.numba_values import values_at
from fastcifar.kernels.numba_vector import moved

_BYTE, _INT, _LONG = ir.IntType(8), ir.IntType(32), ir.IntType(64)


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


Frame = namedtuple("Frame", "images height width channels top left frame_height frame_width")
"""Images [n, height, width, channels]; where each begins in its frame of zeros, and the frame's height and width."""
NUM_FRAME = len(Frame._fields)
frame_of = reader(Frame)


@compiled
def round_image(layout, image, frame):
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
