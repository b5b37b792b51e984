"""What stands between two convolutions of a network - norm, GELU, max-pooling - in few passes over a CPU's memory.

The library makes a pass for each of them, forward and backward, and keeps what each made. Here a map is read once for
its statistics, pooled on the way, and once for the rest; what the way back needs of norm and GELU is computed again.
Maps are float32 or bfloat16 [n, channels, h, w] on a CPU, in channels-last memory; nothing is recorded for a gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastcifar.kernels import numba_maps
from fastcifar.kernels.numba_maps import ADD_UP, COMBINE, GELU, GELU_GRADIENT, MAX_POOL, MAX_UNPOOL
from fastcifar.kernels.threads import num_tasks_for, share_out

DTYPES = (torch.float32, torch.bfloat16)


class Affine(NamedTuple):
    """What each channel's values go through: x * scale + shift, both float32 [channels]."""

    scale: Tensor
    shift: Tensor


class Pooled(NamedTuple):
    """The largest of each 2x2 values [n, channels, h // 2, w // 2], and uint8 places, 0 to 3, that say which it is."""

    values: Tensor
    places: Tensor


def prepare(dtype: torch.dtype) -> None:
    """Have the compiled code for maps of this dtype ready, which otherwise happens when it is first used."""
    for use in (ADD_UP, MAX_POOL, GELU, GELU_GRADIENT, COMBINE, MAX_UNPOOL):
        numba_maps.kernel(use, dtype == torch.bfloat16)


def add_up(x: Tensor) -> Tensor:
    """Sums of each channel's values, and of their squares: float64 [2, channels]."""
    sums = Sums(x)
    _run(ADD_UP, x, _num_pixels(x), *sums.begun)
    return sums.total()


def max_pool(x: Tensor) -> tuple[Pooled, Tensor]:
    """The map pooled, and sums of what is left of it as `add_up`'s."""
    n, channels, height, width = x.shape
    sums, values = Sums(x), empty(n, channels, height // 2, width // 2, dtype=x.dtype)
    places = torch.empty_like(values, dtype=torch.uint8)
    _run(MAX_POOL, x, n * (height // 2), *sums.begun, height, width, values, places)
    return Pooled(values, places), sums.total()


def gelu(x: Tensor, affine: Affine, shortcut: Tensor | None = None) -> Tensor:
    """GELU of the affine x and the shortcut, of x's shape and dtype, together."""
    result = torch.empty_like(x)
    _run(GELU, x, _num_pixels(x), *affine, *_shortcut(x, shortcut), result)
    return result


def gelu_gradient(x: Tensor, affine: Affine, shortcut: Tensor | None, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of what `gelu` takes GELU of, from that of its result; all of x's shape and dtype.

    Beside it, sums by channel, float64 [2, channels]: of that gradient, and of it times x.
    """
    result, sums = torch.empty_like(x), Sums(x)
    _run(GELU_GRADIENT, x, _num_pixels(x), *affine, *_shortcut(x, shortcut), result, gradient, *sums.begun)
    return result, sums.total()


def combine(gradient: Tensor, x: Tensor, by_channel: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """gradient * a + x * b + c, for float32 a, b and c [channels]."""
    result = torch.empty_like(x)
    _run(COMBINE, x, _num_pixels(x), *by_channel, gradient, result)
    return result


def max_unpool(
    gradient: Tensor, pooled: Pooled, by_channel: tuple[Tensor, Tensor, Tensor], height: int, width: int
) -> Tensor:
    """What `combine` gives of gradient and pooled values, each where its value came from, in a map of h x w zeros."""
    x, places = pooled
    result = empty(*x.shape[:2], height, width, dtype=x.dtype)
    _run(MAX_UNPOOL, x, len(x), *by_channel, gradient, result, places, height, width)
    return result


class Sums:
    """Two sums for each channel of a map, begun as zeros by each task."""

    def __init__(self, x: Tensor) -> None:
        shape = (num_tasks_for(len(x)), 2, x.shape[1])
        self.begun = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape)

    def total(self) -> Tensor:
        """float64 [2, channels]."""
        return self.begun[0].sum(0)


def _num_pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A map [n, channels, h, w] with nothing in it yet, channels-last."""
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def _shortcut(x: Tensor, shortcut: Tensor | None) -> tuple[Tensor, int]:
    """What is added to each pixel, and how many values further the next pixel's are; where there is none, zeros."""
    return (x.new_zeros(x.shape[1]), 0) if shortcut is None else (shortcut, x.shape[1])


def _run(use: int, x: Tensor, num: int, *numbers: Tensor | int) -> None:
    """Run a kernel over num pixels, rows or images, with its numbers behind x and its channels."""
    kernel = numba_maps.kernel(use, x.dtype == torch.bfloat16)
    told = [number.data_ptr() if isinstance(number, Tensor) else number for number in (x, x.shape[1], *numbers)]
    share_out(kernel, num, told, num_tasks_for(len(x)))
