"""Shapes of 3x3 convolutions, and the order of memory that ours take."""

import torch
from torch import Tensor

Sides = tuple[int, int, int, int]
"""Columns and rows of zeros, 0 or 1 of each: left, right, top, bottom, as F.pad takes them."""

TAPS = 3
"""Side of the convolutions' kernels."""


def out_size(height: int, width: int, sides: Sides) -> tuple[int, int]:
    """Height and width of what a convolution makes of maps of this height and width."""
    left, right, top, bottom = sides
    return height + top + bottom + 1 - TAPS, width + left + right + 1 - TAPS


def channels_last(images: Tensor) -> Tensor:
    """[n, channels, h, w], a pixel's channels one behind the other in memory."""
    return images.contiguous(memory_format=torch.channels_last)
