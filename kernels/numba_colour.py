"""Saturation and hue, compiled for the CPU: pointers to planes of float32, by the arithmetic of reference.py."""

import numpy as np

from fastcifar.kernels.numba_jit import compiled
from fastcifar.kernels.reference import GREY
from fastcifar.kernels.scalars import ramp

_F = np.float32
_ZERO, _ONE, _TWO, _FOUR, _SIX, _TOP = _F(0), _F(1), _F(2), _F(4), _F(6), _F(255)
_RED, _GREEN, _BLUE = GREY
_ramp = compiled(ramp)


@compiled
def saturate(reds, greens, blues, count, factor):
    """Blend with grey, in place."""
    rest = _ONE - factor
    for x in range(count):
        grey = ((reds[x] * _RED + greens[x] * _GREEN) + blues[x] * _BLUE) * rest
        reds[x] = min(max(reds[x] * factor + grey, _ZERO), _TOP)
        greens[x] = min(max(greens[x] * factor + grey, _ZERO), _TOP)
        blues[x] = min(max(blues[x] * factor + grey, _ZERO), _TOP)


@compiled
def turn_hue(reds, greens, blues, count, hue):
    """Turn the hue by a share of the circle, in place."""
    turned = hue * _SIX
    for x in range(count):
        red, green, blue = reds[x], greens[x], blues[x]
        value = max(red, green, blue)
        chroma = value - min(red, green, blue)
        inverse = _ONE / (chroma if chroma > _ZERO else _ONE)
        by_red = (green - blue) * inverse
        by_green = _TWO + (blue - red) * inverse
        by_blue = _FOUR + (red - green) * inverse
        angle = (by_red if value == red else by_green if value == green else by_blue) + turned
        angle = angle + _SIX if angle < _ZERO else angle
        angle = angle - _SIX if angle >= _SIX else angle
        reds[x] = value - chroma * _ramp(angle + _F(5))
        greens[x] = value - chroma * _ramp(angle + _F(3))
        blues[x] = value - chroma * _ramp(angle + _F(1))
