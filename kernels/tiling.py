"""How a 3x3 convolution's output is cut into squares for Winograd's filtering (winograd.py), and whether that pays.

By shape and dtype alone, never by a timing: the squares are those that waste least at the edges.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from fastcifar.kernels import products
from fastcifar.kernels.numba_tiles import LANES, SIZES
from fastcifar.kernels.shapes import TAPS

_WORTH = 0.6
"""Most multiplications, as a share of the direct way's, for which transforming is worth while."""
_MIN_CHANNELS = {torch.float32: 16, torch.bfloat16: 64}
"""Fewest channels on either side for which it is: the faster the library's products, the more."""
_MIN_CHANNELS_INT8 = 24
"""The same where products are of 8 bits, which are ours."""
SIZES_FOR = {torch.float32: dict.fromkeys(SIZES, 1.0), torch.bfloat16: {2: 1.0, 3: 1.0, 4: 1.0, 5: 1.4}}
"""Sides of the squares, and what a multiplication counts in each: in bfloat16 those of 5 have twice the error of those
of 4 and larger transforms, so they must be much fewer, and those beyond have too much (bench/LOG.md)."""


def pays(
    channels_in: int,
    channels_out: int,
    height: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    *,
    int8: bool = False,
) -> bool:
    """Whether a convolution that gives maps of this height and width is faster this way than the library's."""
    if dtype not in SIZES_FOR or min(height, width) < 1:
        return False
    enough = min(channels_in, channels_out) >= _MIN_CHANNELS[dtype]
    if not enough and not (int8 and takes_int8(dtype, channels_in, channels_out)):
        return False
    tiling = tiling_for(height, width, dtype)
    return tiling.multiplications <= _WORTH * TAPS**2 * height * width


def takes_int8(dtype: torch.dtype, channels_in: int, channels_out: int) -> bool:
    """Whether a convolution's products can be made of 8 bits on this CPU, and it has enough channels for them."""
    enough = min(channels_in, channels_out) >= _MIN_CHANNELS_INT8
    return enough and products.takes(dtype, padded(channels_in), channels_out)


@dataclass(frozen=True)
class Tiling:
    """How an output is cut: into rows x columns squares of size x size pixels."""

    size: int
    rows: int
    columns: int

    @property
    def places(self) -> int:
        """Side of a transformed tile."""
        return self.size + TAPS - 1

    @property
    def multiplications(self) -> int:
        """For each image and each pair of channels; the direct way takes 9 a pixel."""
        return self.rows * self.columns * self.places**2


@lru_cache(maxsize=256)
def tiling_for(height: int, width: int, dtype: torch.dtype = torch.float32) -> Tiling:
    """The tiling of an output that takes fewest multiplications; of several the smallest, which is the most exact."""
    tilings = [Tiling(size, -(-height // size), -(-width // size)) for size in SIZES_FOR[dtype]]
    return min(tilings, key=lambda tiling: tiling.multiplications * SIZES_FOR[dtype][tiling.size])


def padded(channels: int) -> int:
    """Channels with room for whole registers."""
    return -(-channels // LANES) * LANES
