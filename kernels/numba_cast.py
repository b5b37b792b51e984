"""Float32 to the output's dtype, and normalising on the way to it, compiled for the CPU.

Loops run over chunks of fixed length, so that all of them become vector instructions without a remainder.
"""

import numpy as np
from numba import types

from fastcifar.kernels.numba_jit import compiled, compiled_for
from fastcifar.kernels.numba_vector import (
    CACHE_LINE,
    CHUNK,
    HAS_BFLOAT16_UNITS,
    LANES,
    fused_to_bfloat16,
    lit_to_bfloat16,
    moved,
    multiplied_and_added,
    plain_to_bfloat16,
    prefetch,
    quickly_to_bfloat16,
)
from fastcifar.kernels.plan import BFLOAT16, FLOAT16

_U = np.uint32
_ZERO, _ONE = np.float32(0), np.float32(1)
# Round to nearest even to bfloat16: add 0x7fff and the lowest bit that stays, keep the upper half.
_BELOW_HALF, _BIT, _HALF_WORD = _U(0x7FFF), _U(1), _U(16)
_THREE = types.Array(types.float32, 1, "C", readonly=True)
PLAIN, QUICK, FUSED = range(3)
_HALF, _EXPONENT = _U(0x8000), _U(0x7F800000)
# To float16, after F. Giesen, "float->half variants" (public domain), float_to_half_fast3_rtne.
_SIGN, _INFINITE, _TOO_LARGE, _SMALLEST = (
    _U(0x80000000),
    _U(0x7C00),
    _U(143 << 23),
    _U(113 << 23),
)
_MAGIC, _MAGIC_BITS = np.float32(0.5), _U(126 << 23)
_REBIAS, _SHIFT = _U((((15 - 127) << 23) + 0xFFF) & 0xFFFFFFFF), _U(13)


@compiled
def bfloat16_bits(value):
    """Bits, uint16, of the bfloat16 nearest to a finite float32."""
    bits = np.float32(value).view(np.uint32)
    # Numba widens every sum to 64 bits; the casts tell the compiler that 32 are meant.
    return np.uint16(_U(_U(bits + _BELOW_HALF) + _U(_U(bits >> _HALF_WORD) & _BIT)) >> _HALF_WORD)


@compiled
def float16_bits(value):
    """Bits, uint16, of the float16 nearest to a finite float32; infinite where that is beyond the largest."""
    bits = np.float32(value).view(np.uint32)
    sign = _U(bits & _SIGN)
    bits = _U(bits ^ sign)
    # Adding one half makes the processor round the bits of a subnormal result.
    small = _U(np.float32(_U(bits).view(np.float32) + _MAGIC).view(np.uint32) - _MAGIC_BITS)
    normal = _U(_U(_U(bits + _REBIAS) + _U(_U(bits >> _SHIFT) & _BIT)) >> _SHIFT)
    half = small if bits < _SMALLEST else normal
    half = _INFINITE if bits >= _TOO_LARGE else half
    return np.uint16(_U(half | _U(sign >> _HALF_WORD)))


@compiled
def _normal(value, scale, shift):
    return np.float32(value) * scale + shift


@compiled
def _lit(value, scale, shift, brightness, contrast):
    return ((np.float32(value) * scale + shift) + brightness) * contrast


@compiled
def pair_up(values, pairs):
    """Copy CHUNK values as to_bfloat16 wants them: of every 2 LANES those at even places, then those at odd ones.

    Where there are units for bfloat16 it wants them as they are.
    """
    for first in range(0, CHUNK, 2 * LANES):
        for j in range(LANES):
            one, other = (j, j + LANES) if HAS_BFLOAT16_UNITS else (2 * j, 2 * j + 1)
            pairs[first + j], pairs[first + LANES + j] = values[first + one], values[first + other]


@compiled
def _quick_bits(value):
    """Bits, uint16, that quickly_to_bfloat16 makes of a float32."""
    bits = np.float32(value).view(np.uint32)
    if not HAS_BFLOAT16_UNITS:
        return np.uint16(_U(bits + _HALF) >> _HALF_WORD)
    # What is smaller than 2**-126 the units take for zero.
    return bfloat16_bits(value) if _U(bits & _EXPONENT) != _U(0) else np.uint16(_U(bits & _SIGN) >> _HALF_WORD)


@compiled_for(types.int64(_THREE, _THREE))
def quickest_way(scale3, shift3):
    """PLAIN, QUICK or FUSED: the quickest way of normalising to bfloat16 that is right for every byte.

    scale3 and shift3: float32 [3]. Right are the bits of a product and a sum that are rounded one after the other.
    """
    quick = fused = True
    for channel in range(3):
        scale, shift = scale3[channel], shift3[channel]
        for byte in range(256):
            value = _normal(byte, scale, shift)
            right = bfloat16_bits(value)
            quick &= _quick_bits(value) == right
            fused &= _quick_bits(multiplied_and_added(np.float32(byte), scale, shift)) == right
    return FUSED if fused else QUICK if quick else PLAIN


@compiled
def to_bfloat16(pixels, count, scale, shift, scale_pairs, shift_pairs, way, brightness, contrast, ahead, out):
    """Normalise count values; scale and shift are repeated to [CHUNK], and paired up; all are pointers.

    way: quickest_way() of scale and shift.

    Meanwhile memory at ahead is asked for, a line for each chunk, which is two thirds of as many bytes: all at once
    they would be more than a core can wait for, and it would stand still.
    """
    # Without light two operations would change nothing: what they are applied to is never minus zero.
    plain = brightness == _ZERO and contrast == _ONE
    full = count // CHUNK
    if plain and way == FUSED:
        fused_to_bfloat16(out, pixels, full, scale_pairs, shift_pairs, brightness, contrast, ahead)
    elif plain and way == QUICK:
        quickly_to_bfloat16(out, pixels, full, scale_pairs, shift_pairs, brightness, contrast, ahead)
    elif plain:
        plain_to_bfloat16(out, pixels, full, scale_pairs, shift_pairs, brightness, contrast, ahead)
    else:
        lit_to_bfloat16(out, pixels, full, scale_pairs, shift_pairs, brightness, contrast, ahead)
    pixels, out = moved(pixels, full * CHUNK), moved(out, full * CHUNK)
    for j in range(count - full * CHUNK):
        out[j] = bfloat16_bits(_lit(pixels[j], scale[j], shift[j], brightness, contrast))


@compiled
def to_float16(pixels, count, scale, shift, brightness, contrast, ahead, out):
    """As to_bfloat16."""
    # Without light two operations would change nothing: what they are applied to is never minus zero.
    plain = brightness == _ZERO and contrast == _ONE
    full = count // CHUNK
    for _ in range(full):
        prefetch(ahead)
        ahead = moved(ahead, CACHE_LINE)
        if plain:
            for j in range(CHUNK):
                out[j] = float16_bits(_normal(pixels[j], scale[j], shift[j]))
        else:
            for j in range(CHUNK):
                out[j] = float16_bits(_lit(pixels[j], scale[j], shift[j], brightness, contrast))
        pixels, out = moved(pixels, CHUNK), moved(out, CHUNK)
    for j in range(count - full * CHUNK):
        out[j] = float16_bits(_lit(pixels[j], scale[j], shift[j], brightness, contrast))


@compiled
def to_float32(pixels, count, scale, shift, brightness, contrast, ahead, out):
    """As to_bfloat16."""
    # Without light two operations would change nothing: what they are applied to is never minus zero.
    plain = brightness == _ZERO and contrast == _ONE
    full = count // CHUNK
    for _ in range(full):
        prefetch(ahead)
        ahead = moved(ahead, CACHE_LINE)
        if plain:
            for j in range(CHUNK):
                out[j] = _normal(pixels[j], scale[j], shift[j])
        else:
            for j in range(CHUNK):
                out[j] = _lit(pixels[j], scale[j], shift[j], brightness, contrast)
        pixels, out = moved(pixels, CHUNK), moved(out, CHUNK)
    for j in range(count - full * CHUNK):
        out[j] = _lit(pixels[j], scale[j], shift[j], brightness, contrast)


@compiled
def normalise_plane(values, count, scale, shift, brightness, contrast):
    """Normalise count values of one channel, in place."""
    if brightness == _ZERO and contrast == _ONE:
        for j in range(count):
            values[j] = _normal(values[j], scale, shift)
    else:
        for j in range(count):
            values[j] = _lit(values[j], scale, shift, brightness, contrast)


@compiled
def normalise(
    pixels, count, scale, shift, scale_pairs, shift_pairs, way, brightness, contrast, kind, ahead, out16, out32
):
    """Normalise count bytes to out16 or out32, by kind."""
    if kind == BFLOAT16:
        to_bfloat16(pixels, count, scale, shift, scale_pairs, shift_pairs, way, brightness, contrast, ahead, out16)
    elif kind == FLOAT16:
        to_float16(pixels, count, scale, shift, brightness, contrast, ahead, out16)
    else:
        to_float32(pixels, count, scale, shift, brightness, contrast, ahead, out32)


@compiled
def to_words(values, count, kind, words):
    """Cast count float32 values to 16 bits, by kind."""
    if kind == BFLOAT16:
        for j in range(count):
            words[j] = bfloat16_bits(values[j])
    else:
        for j in range(count):
            words[j] = float16_bits(values[j])


@compiled
def blend(values, others, count, weight, kind, out16, out32):
    """Write the mean of count float32 values, whose weight is given, and others to out16 or out32, by kind."""
    rest = _ONE - weight
    if kind == BFLOAT16:
        for j in range(count):
            out16[j] = bfloat16_bits(values[j] * weight + others[j] * rest)
    elif kind == FLOAT16:
        for j in range(count):
            out16[j] = float16_bits(values[j] * weight + others[j] * rest)
    else:
        for j in range(count):
            out32[j] = values[j] * weight + others[j] * rest
