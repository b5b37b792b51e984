"""Arithmetic on single numbers that both compiled forms share: plain functions, which each compiles in its own way.

No product here feeds a sum of float32: the GPU's compiler would fuse the two. reference.py has the same for vectors.
"""

import math

import numpy as np

from fastcifar.kernels.philox import WORD_BITS
from fastcifar.kernels.reference import TURN_BITS

_RADIAN, _ONE_TURN = math.pi / 180.0, float(1 << TURN_BITS)
_ZERO, _ONE, _FOUR, _SIX = np.float32(0), np.float32(1), np.float32(4), np.float32(6)


def below(word, bound):  # type: ignore[no-untyped-def]
    """An integer 0..bound-1, int64, from a random word, uint64."""
    return np.int64((word * np.uint64(bound)) >> WORD_BITS)


def reflected(position, side):  # type: ignore[no-untyped-def]
    """Position inside 0..side-1 that a mirrored plane shows, the edge itself not repeated."""
    if 0 <= position < side:
        return position
    if side == 1:
        return 0
    position = abs(position) % (2 * side - 2)
    return min(position, 2 * side - 2 - position)


def turn(degrees):  # type: ignore[no-untyped-def]
    """Cosine and sine of a float32 angle in multiples of 2**-15, int64, as reference.turns."""
    angle = np.float64(degrees)
    quarter = math.floor(angle / 90.0 + 0.5)
    r = (angle - quarter * 90.0) * _RADIAN
    r2 = r * r
    sine, cosine = 1.0, 1.0
    for power in range(13, 0, -2):
        sine = 1.0 - sine * r2 / np.float64((power + 1) * (power + 2))
    sine = sine * r
    for power in range(12, -1, -2):
        cosine = 1.0 - cosine * r2 / np.float64((power + 1) * (power + 2))
    q = np.int64(quarter) & 3
    if q == 1:
        cosine, sine = -sine, cosine
    elif q == 2:
        cosine, sine = -cosine, -sine
    elif q == 3:
        cosine, sine = sine, -cosine
    return np.int64(math.floor(cosine * _ONE_TURN + 0.5)), np.int64(math.floor(sine * _ONE_TURN + 0.5))


def ramp(k):  # type: ignore[no-untyped-def]
    """How much of the chroma a colour lacks at a sixth k of the circle of hues, float32 from 0 to below 12."""
    k = k - _SIX if k >= _SIX else k
    return min(max(min(k, _FOUR - k), _ZERO), _ONE)
