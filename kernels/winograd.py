"""3x3 convolutions in float32 on a CPU with about a quarter of the multiplications, forward and backward.

Winograd's minimal filtering (Lavin and Gray, arXiv:1509.09308): an output of m x m pixels comes from a patch of
(m + 2) x (m + 2) by (m + 2)^2 multiplications a pair of channels in place of 9 m^2. Patches are transformed
(numba_tiles.py), one matrix product for each of their places does the rest, and the result is transformed back. Its
gradients are the same three steps the other way round. m is chosen by the shape alone: what wastes least at the edges.
"""

import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fastcifar.kernels import numba_tiles
from fastcifar.kernels.numba_tiles import FROM_PATCH, FROM_PRODUCT, LANES, SIZES, TAPS, TO_GRADIENT, TO_PATCH
from fastcifar.kernels.threads import num_tasks_for, run_parallel

Sides = tuple[int, int, int, int]
"""Columns and rows of zeros, 0 or 1 of each: left, right, top, bottom, as F.pad takes them."""

_WORTH = 0.6
"""Most multiplications, as a share of the direct way's, for which transforming is worth while."""
_MIN_CHANNELS = 16
"""Fewest channels on either side for which it is."""
_PIECE = 2**26
"""Most transformed values made at a time, 256 MiB: a batch of any size must not take more."""


def pays(channels_in: int, channels_out: int, height: int, width: int) -> bool:
    """Whether a convolution that gives maps of this height and width is faster this way than the library's."""
    if min(channels_in, channels_out) < _MIN_CHANNELS or min(height, width) < 1:
        return False
    tiling = tiling_for(height, width)
    return tiling.multiplications <= _WORTH * TAPS**2 * height * width


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
def tiling_for(height: int, width: int) -> Tiling:
    """The tiling of an output that takes fewest multiplications; of several the smallest, which is the most exact."""
    tilings = [Tiling(size, -(-height // size), -(-width // size)) for size in SIZES]
    return min(tilings, key=lambda tiling: tiling.multiplications)


def prepare() -> None:
    """Have the compiled code of all sizes ready, which otherwise happens when a size is first used."""
    for size in SIZES:
        for use in (TO_PATCH, FROM_PRODUCT, TO_GRADIENT, FROM_PATCH):
            numba_tiles.transform(size, use)


def convolve(images: Tensor, weight: Tensor, sides: Sides) -> Tensor:
    """Images [n, channels_in, h, w] convolved by weight [channels_out, channels_in, 3, 3], zeros put on `sides`.

    Both float32 on a CPU, h and w with their zeros at least 3. Returns [n, channels_out, h + top + bottom - 2, w + left
    + right - 2], channels-last. Nothing is recorded for a gradient: see `gradients`.
    """
    work = _Work.of(images, weight, sides)
    by_place = _transformed_weight(weight, work.tiling.size)
    images_nhwc = images.permute(0, 2, 3, 1).contiguous()
    output_nhwc = images.new_empty((work.n, work.out_height, work.out_width, work.channels_out))
    for start, stop in work.pieces():
        patches, products = work.tiles(stop - start)
        work.to_patches(images_nhwc[start:stop], patches)
        torch.bmm(patches, by_place, out=products)
        work.from_products(products, output_nhwc[start:stop])
    return output_nhwc.permute(0, 3, 1, 2)


def gradients(
    images: Tensor, weight: Tensor, gradient: Tensor, sides: Sides, *, of_images: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a convolution's images and of its weight, those that are asked for, from that of its output.

    images, weight, sides: as `convolve` had them; gradient: float32 [n, channels_out, h', w'].
    """
    work = _Work.of(images, weight, sides)
    images_nhwc, gradient_nhwc = (tensor.permute(0, 2, 3, 1).contiguous() for tensor in (images, gradient))
    to_images = _transformed_weight(weight, work.tiling.size).transpose(1, 2) if of_images else None
    result_nhwc = torch.empty_like(images_nhwc) if of_images else None
    by_place = weight.new_zeros((work.tiling.places**2, work.channels_in, work.channels_out)) if of_weight else None
    for start, stop in work.pieces():
        patches, products = work.tiles(stop - start)
        work.to_gradients(gradient_nhwc[start:stop], products)
        if by_place is not None:
            work.to_patches(images_nhwc[start:stop], patches)
            by_place.baddbmm_(patches.transpose(1, 2), products)
        if to_images is not None and result_nhwc is not None:
            torch.bmm(products, to_images, out=patches)
            work.from_patches(patches, result_nhwc[start:stop])
    return (
        None if result_nhwc is None else result_nhwc.permute(0, 3, 1, 2),
        None if by_place is None else _weight_gradient(by_place, work.tiling.size),
    )


@lru_cache(maxsize=len(SIZES))
def _kernel_transform(size: int) -> Tensor:
    """G on both sides of a kernel, as one matrix: float32 [(size + 2)^2, 9]."""
    _, kernel, _ = numba_tiles.matrices(size)
    matrix = np.array([[float(value) for value in row] for row in kernel])
    return torch.from_numpy(np.kron(matrix, matrix)).float()


def _transformed_weight(weight: Tensor, size: int) -> Tensor:
    """[(size + 2)^2, channels_in, channels_out]."""
    channels_out, channels_in = weight.shape[:2]
    rows = weight.permute(2, 3, 1, 0).reshape(TAPS**2, channels_in * channels_out)
    return (_kernel_transform(size) @ rows).view(-1, channels_in, channels_out)


def _weight_gradient(by_place: Tensor, size: int) -> Tensor:
    """[channels_out, channels_in, 3, 3] from the gradient of the transformed weight."""
    _, channels_in, channels_out = by_place.shape
    rows = _kernel_transform(size).T @ by_place.view(-1, channels_in * channels_out)
    return rows.view(TAPS, TAPS, channels_in, channels_out).permute(3, 2, 0, 1)


def _padded(channels: int) -> int:
    """Channels with room for whole registers."""
    return -(-channels // LANES) * LANES


class _Memory(threading.local):
    """The calling thread's memory for transformed tiles, kept from call to call.

    It is the largest that a step takes: freed and taken anew, it falls apart among what a step keeps.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, num: int) -> Tensor:
        """float32 [num], whatever is in it."""
        kept = self._kept.get(name)
        if kept is None or kept.numel() < num:
            self._kept.pop(name, None)
            with torch.inference_mode(False):  # or it would be of no use outside of it
                kept = self._kept[name] = torch.empty(num, dtype=torch.float32)
        return kept[:num]


_MEMORY = _Memory()


@dataclass(frozen=True)
class _Work:
    """One convolution's shapes, and what is done to a piece of the batch."""

    n: int
    height: int
    width: int
    channels_in: int
    channels_out: int
    sides: Sides
    tiling: Tiling

    @classmethod
    def of(cls, images: Tensor, weight: Tensor, sides: Sides) -> "_Work":
        n, channels_in, height, width = images.shape
        left, right, top, bottom = sides
        tiling = tiling_for(height + top + bottom + 1 - TAPS, width + left + right + 1 - TAPS)
        return cls(n, height, width, channels_in, weight.shape[0], sides, tiling)

    @property
    def out_height(self) -> int:
        return self.height + self.sides[2] + self.sides[3] + 1 - TAPS

    @property
    def out_width(self) -> int:
        return self.width + self.sides[0] + self.sides[1] + 1 - TAPS

    def pieces(self) -> list[tuple[int, int]]:
        """First image and the one after the last, of each piece."""
        values = self.tiling.multiplications * (self.channels_in + self.channels_out)
        length = max(1, _PIECE // values)
        return [(start, min(start + length, self.n)) for start in range(0, self.n, length)]

    def tiles(self, n: int) -> tuple[Tensor, Tensor]:
        """Memory for n images' transformed patches and products: [places, n * tiles, channels], until the next call."""
        places, num = self.tiling.places**2, n * self.tiling.rows * self.tiling.columns
        patches, products = (
            _MEMORY.take(name, places * num * _padded(channels)).view(places, num, -1)[:, :, :channels]
            for name, channels in (("patches", self.channels_in), ("products", self.channels_out))
        )
        return patches, products

    def to_patches(self, images_nhwc: Tensor, patches: Tensor) -> None:
        """Transform the images' overlapping patches."""
        self._run(TO_PATCH, images_nhwc, patches)

    def from_products(self, products: Tensor, output_nhwc: Tensor) -> None:
        """Write the output that the products are the transform of."""
        self._run(FROM_PRODUCT, output_nhwc, products)

    def to_gradients(self, gradient_nhwc: Tensor, products: Tensor) -> None:
        """Transform the output's gradient to that of the products."""
        self._run(TO_GRADIENT, gradient_nhwc, products)

    def from_patches(self, patches: Tensor, result_nhwc: Tensor) -> None:
        """Write the images' gradient from that of the transformed patches."""
        self._run(FROM_PATCH, result_nhwc, patches)

    def _run(self, use: int, images_nhwc: Tensor, tiles: Tensor) -> None:
        n, height, width, channels = images_nhwc.shape
        of_patches = use in (TO_PATCH, FROM_PATCH)
        size, rows, columns = self.tiling.size, self.tiling.rows, self.tiling.columns
        side = self.tiling.places if of_patches else size
        left, top = (self.sides[0], self.sides[2]) if of_patches else (0, 0)
        framed = ((rows - 1) * size + side) * ((columns - 1) * size + side) * _padded(channels)
        num_tasks = num_tasks_for(n)
        run_parallel(
            numba_tiles.to_tiles if use in (TO_PATCH, TO_GRADIENT) else numba_tiles.from_tiles,
            num_tasks,
            numba_tiles.transform(size, use).address,
            images_nhwc.data_ptr(),
            (n, height, width, channels, top, left, rows, columns, side, size, self.tiling.places, tiles.stride(0)),
            np.empty((num_tasks, framed), dtype=np.float32),
            tiles.data_ptr(),
        )
