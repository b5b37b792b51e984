"""Float32 to the output's dtype, and normalising on the way to it, compiled for the CPU.

Loops run over chunks of fixed length, so that all of them become vector instructions without a remainder.
"""

import numpy as np

from fastcifar.kernels.numba_jit import compiled
from fastcifar.kernels.numba_vector import (
    CACHE_LINE,
    CHUNK,
    HAS_BFLOAT16_UNITS,
    LANES,
    lit_to_bfloat16,
    moved,
    plain_to_bfloat16,
    prefetch,
    quickly_to_bfloat16,
)
from fastcifar.kernels.plan import BFLOAT16, FLOAT16

_U = np.uint32
_ZERO, _ONE = np.float32(0), np.float32(1)
# Round to nearest even to bfloat16: add 0x7fff and the lowest bit that stays, keep the upper half.
_BELOW_HALF, _BIT, _HALF_WORD = _U(0x7FFF), _U(1), _U(16)
# Half-way between two bfloat16 of which the lower is even: what rounding half away from zero would get wrong.
_TO_HALF, _HALF_OF_EVEN = _U(0x1FFFF), _U(0x8000)
_EXPONENT, _MANTISSA = _U(0x7F800000), _U(0x007FFFFF)
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
def is_tie(bits):
    """Whether rounding half away from zero would take a float32, given by its bits, to another bfloat16."""
    return _U(bits & _TO_HALF) == _HALF_OF_EVEN


@compiled
def is_subnormal(bits):
    """Whether units for bfloat16 would take a float32, given by its bits, for a zero, which it is not."""
    return _U(bits & _EXPONENT) == _U(0) and _U(bits & _MANTISSA) != _U(0)


_is_rounded_wrong = is_subnormal if HAS_BFLOAT16_UNITS else is_tie


@compiled
def rounds_quickly(scale3, shift3):
    """Whether the quick way of rounding to bfloat16 is right for every byte, normalised."""
    wrong = False
    for channel in range(3):
        for byte in range(256):
            wrong |= _is_rounded_wrong(np.float32(_normal(byte, scale3[channel], shift3[channel])).view(np.uint32))
    return not wrong


@compiled
def to_bfloat16(pixels, count, scale, shift, scale_pairs, shift_pairs, quick, brightness, contrast, ahead, out):
    """Normalise count values; scale and shift are repeated to [CHUNK], and paired up; all are pointers.

    quick: rounds_quickly() of scale and shift.

    Meanwhile, as many bytes at ahead are asked for. That is done chunk by chunk: all at once they would be more than a
    core can wait for, and it would stand still.
    """
    # Without light two operations would change nothing: what they are applied to is never minus zero.
    plain = brightness == _ZERO and contrast == _ONE
    full = count // CHUNK
    if plain and quick:
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
        prefetch(moved(ahead, CACHE_LINE))
        ahead = moved(ahead, CHUNK)
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
        prefetch(moved(ahead, CACHE_LINE))
        ahead = moved(ahead, CHUNK)
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
    pixels, count, scale, shift, scale_pairs, shift_pairs, quick, brightness, contrast, kind, ahead, out16, out32
):
    """Normalise count bytes to out16 or out32, by kind."""
    if kind == BFLOAT16:
        to_bfloat16(pixels, count, scale, shift, scale_pairs, shift_pairs, quick, brightness, contrast, ahead, out16)
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
