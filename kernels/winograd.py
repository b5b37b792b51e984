"""3x3 convolutions on a CPU with about a quarter of the multiplications, forward and backward.

Winograd's minimal filtering (Lavin and Gray, arXiv:1509.09308): an output of m x m pixels comes from a patch of
(m + 2) x (m + 2) by (m + 2)^2 multiplications a pair of channels in place of 9 m^2. Patches are transformed
(numba_tiles.py), one matrix product for each of their places does the rest, and the result is transformed back. Its
gradients are the same three steps the other way round. m is chosen by the shape alone (tiling.py).

In float32 the result is the library's but for some 1e-5 of it. In bfloat16, whose products the library makes in
float32 and rounds once, patches and products are rounded too, and errors are some 2 % of the result's size. With
`int8` the products' factors are rounded further, to 8 bits (products.py), where that is faster: some 5 % then.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.kernels import numba_passes, numba_tiles, products
from fastcifar.kernels.maps import Pooled, Sums, empty
from fastcifar.kernels.numba_tiles import (
    FROM_PATCH,
    FROM_PLACES,
    FROM_PRODUCT,
    FROM_TILES,
    POOL_TILES,
    TO_GRADIENT,
    TO_PATCH,
    TO_PLACES,
    TO_TILES,
    UNPOOL_TILES,
)
from fastcifar.kernels.shapes import TAPS, Sides, channels_last, out_size
from fastcifar.kernels.threads import num_tasks_for, share_out
from fastcifar.kernels.tiling import SIZES_FOR, Tiling, padded, takes_int8, tiling_for

_PIECE = 2**26
"""Most transformed values made at a time, 256 MiB of float32: a batch of any size must not take more."""
_MOST_KEPT = 2**27
"""Most bytes of patches that are kept for the way back, which makes others anew: each layer keeps its own."""


def prepare(dtype: torch.dtype, *, int8: bool = False) -> None:
    """Have the compiled code for this dtype ready, which otherwise happens when a step or a size is first used.

    int8: that for products of 8 bits too.
    """
    if int8:
        products.prepare()
        numba_passes.kernel()
    in_words = dtype == torch.bfloat16
    for step in (TO_TILES, FROM_TILES, POOL_TILES, UNPOOL_TILES):
        numba_tiles.kernel(step, in_words)
    numba_tiles.weight_kernel()
    for size in SIZES_FOR[dtype]:
        for use in (TO_PATCH, FROM_PRODUCT, TO_GRADIENT, FROM_PATCH, TO_PLACES, FROM_PLACES):
            numba_tiles.transform(size, use, in_words)


class Unpooled(NamedTuple):
    """The gradient of a map that was pooled: what maps.max_unpool would make of these, which is never made."""

    gradient: Tensor
    pooled: Pooled
    by_channel: tuple[Tensor, Tensor, Tensor]


@lru_cache(maxsize=256)
def _group(each: int) -> int:
    """Images, of so many tiles each, that a thread takes through all three steps at a time with products of 8 bits.

    The fewest that have tiles for two products of MIN_ROWS rows or more, of which the last has nearly as many: of more
    images less would be found in the core's own cache, and of fewer the weight would be read more often.
    """
    least = products.MIN_ROWS
    return next(n for n in count(1) if n * each >= 2 * least and -(n * each) % least <= n * each / 8)


def _transformed(weight: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """[(size + 2)^2, channels_out, channels_in] of a weight [channels_out, channels_in, 3, 3], in a dtype.

    Behind the channels there are zeros, to whole registers.
    """
    channels_out, channels_in = weight.shape[:2]
    taps = weight.float().permute(0, 2, 3, 1)
    taps = F.pad(taps, (0, padded(channels_in) - channels_in)).contiguous()
    tiles = torch.empty(((size + 2) ** 2, channels_out, taps.shape[-1]), dtype=dtype)
    _run_weight(TO_PLACES, size, tiles, taps)
    return tiles


def _run_weight(use: int, size: int, tiles: Tensor, taps: Tensor) -> None:
    """Transform taps [channels_out, 3, 3, channels] to tiles [(size + 2)^2, channels_out, channels], or add these back.

    Taps are float32; channels have room for whole registers.
    """
    channels_out, *_, channels = taps.shape
    pitch = tiles.stride(0)
    told = numba_tiles.WeightLayout(
        numba_tiles.transform(size, use, tiles.dtype == torch.bfloat16).address,
        tiles=tiles.data_ptr(),
        tiles_bytes=channels * tiles.element_size(),
        tiles_row=(size + 2) * pitch,
        tiles_column=pitch,
        taps=taps.data_ptr(),
        taps_bytes=taps.stride(0) * taps.element_size(),
        taps_row=taps.stride(1),
        taps_column=taps.stride(2),
        channels=channels,
        into=int(use == TO_PLACES),
    )
    share_out(numba_tiles.weight_kernel(), channels_out, told, num_tasks_for(channels_out))


class _Memory(threading.local):
    """The calling thread's memory for transformed tiles and what else a call needs, kept from call to call.

    It is the largest that a step takes: freed and taken anew, it falls apart among what a step keeps.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, dtype: torch.dtype, num: int) -> Tensor:
        """[num] values, whatever is in them."""
        kept = self._kept.get((name, dtype))
        if kept is None or kept.numel() < num:
            self._kept.pop((name, dtype), None)
            with torch.inference_mode(False):  # or it would be of no use outside of it
                kept = self._kept[name, dtype] = torch.empty(num, dtype=dtype)
        return kept[:num]


_MEMORY = _Memory()


@dataclass(frozen=True)
class Convolution:
    """A convolution's shapes and its weight, transformed: what its way forward and its way back have in common.

    Images and outputs are all float32 or all bfloat16, on a CPU, results channels-last; the weight's gradient is
    float32. Nothing is recorded for a gradient.
    """

    n: int
    height: int
    width: int
    sides: Sides
    tiling: Tiling
    channels_in: int
    by_place: Tensor
    """The transformed weight [places * places, channels_out, channels_in]."""
    int8: bool
    """Whether products are made of 8 bits. Tiles and `by_place` then have zeros for channels, to whole registers."""

    @classmethod
    def of(cls, images: Tensor, weight: Tensor, sides: Sides, *, int8: bool = False) -> "Convolution":
        """For images [n, channels_in, h, w], weight [channels_out, channels_in, 3, 3], zeros put on `sides`.

        h and w with their zeros are at least 3. int8: have products made of 8 bits where they can be.
        """
        n, channels_in, height, width = images.shape
        assert channels_in == weight.shape[1]
        assert images.device.type == weight.device.type == "cpu"
        tiling = tiling_for(*out_size(height, width, sides), images.dtype)
        int8 = int8 and takes_int8(images.dtype, channels_in, len(weight))
        by_place = _transformed(weight, tiling.size, images.dtype)
        by_place = by_place if int8 else by_place[:, :, :channels_in]
        return cls(n, height, width, sides, tiling, channels_in, by_place, int8)

    @property
    def channels_out(self) -> int:
        """Channels of the output."""
        return self.by_place.shape[1]

    @property
    def out_height(self) -> int:
        """Rows of the output: h + top + bottom - 2."""
        return out_size(self.height, self.width, self.sides)[0]

    @property
    def out_width(self) -> int:
        """Columns of the output: w + left + right - 2."""
        return out_size(self.height, self.width, self.sides)[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of images and output."""
        return self.by_place.dtype

    def room_for_patches(self) -> Tensor | None:
        """Memory in which the way forward leaves patches for the way back, which then need not transform them again.

        None where it would take much.
        """
        values = self.n * self.tiling.multiplications * padded(self.channels_in)
        if values * self.dtype.itemsize > _MOST_KEPT:
            return None
        # The library copies what is no whole block, as a piece of it is none.
        return self._tiles(slice(0, self.n), self.channels_in) if self.int8 or len(self._pieces()) == 1 else None

    def output(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """[n, channels_out, out_height, out_width]; `patches`: of `room_for_patches`, to be filled."""
        output = empty(self.n, self.channels_out, self.out_height, self.out_width, dtype=self.dtype)
        self._forward(images, _Step(FROM_TILES, FROM_PRODUCT, (output,)), patches)
        return output

    def pooled_output(self, images: Tensor, patches: Tensor | None = None) -> tuple[Pooled, Tensor]:
        """What maps.max_pool makes of the output, which itself is never written; `patches` as of `output`."""
        values = empty(self.n, self.channels_out, self.out_height // 2, self.out_width // 2, dtype=self.dtype)
        pooled, sums = Pooled(values, torch.empty_like(values, dtype=torch.uint8)), Sums(values)
        self._forward(images, _Step(POOL_TILES, FROM_PRODUCT, pooled, sums.begun), patches)
        return pooled, sums.total()

    def gradients(
        self,
        images: Tensor,
        gradient: Tensor | Unpooled,
        patches: Tensor | None = None,
        *,
        of_images: bool,
        of_weight: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the images and of the weight, those that are asked for, from that of the output.

        `patches`: those that the way forward has left.
        """
        images = channels_last(images)
        to_patches = _Step(TO_TILES, TO_PATCH, (images,))
        if isinstance(gradient, Tensor):
            to_gradients = _Step(TO_TILES, TO_GRADIENT, (channels_last(gradient),))
        else:
            maps = gradient.gradient, *gradient.pooled
            to_gradients = _Step(UNPOOL_TILES, TO_GRADIENT, maps, (torch.stack(gradient.by_channel),))
        by_place = self._right(self.by_place) if of_images else None
        result = empty(*images.shape, dtype=self.dtype) if of_images else None
        taps = torch.zeros((self.channels_out, TAPS, TAPS, padded(self.channels_in))) if of_weight else None
        for piece in self._pieces():
            of_products = self._tiles(piece, self.channels_out, _memory_name(TO_GRADIENT)) if of_weight else None
            if by_place is not None and result is not None:
                from_patches = _Step(FROM_TILES, FROM_PATCH, (result,))
                self._pass(piece, to_gradients, by_place, from_patches, of_products)
            elif of_products is not None:
                self._run(piece, to_gradients, of_products)
            if taps is not None and of_products is not None:
                if patches is None:
                    kept = self._tiles(piece, self.channels_in, _memory_name(TO_PATCH))
                    self._run(piece, to_patches, kept)
                else:
                    kept = self._of_piece(patches, piece)
                of_places = self._of_places()
                self._multiply_transposed(piece, of_products, kept, of_places)
                _run_weight(FROM_PLACES, self.tiling.size, of_places, taps)
        return result, None if taps is None else taps[..., : self.channels_in].permute(0, 3, 1, 2)

    def _forward(self, images: Tensor, from_products: "_Step", patches: Tensor | None) -> None:
        to_patches, by_place = _Step(TO_TILES, TO_PATCH, (channels_last(images),)), self._right(self.by_place.mT)
        for piece in self._pieces():
            self._pass(
                piece, to_patches, by_place, from_products, None if patches is None else self._of_piece(patches, piece)
            )

    def _right(self, by_place: Tensor) -> Tensor | products.Panels:
        """The weight as the right factor of products."""
        return products.Panels.of(by_place) if self.int8 else by_place

    def _pieces(self) -> list[slice]:
        """Which images' tiles are in memory at a time: pieces of much the same size."""
        values = self.tiling.multiplications * (self.channels_in + self.channels_out)
        num = -(-self.n // max(1, _PIECE // values))
        return [slice(self.n * at // num, self.n * (at + 1) // num) for at in range(num)]

    def _tiles(self, images: slice, channels: int, name: str = "") -> Tensor:
        """Memory for images, transformed: [places, n * tiles, channels]. By a name, until it is asked for again.

        Of an even number of tiles one more, of zeros: places a multiple of 4 KiB apart would share a few lines of the
        first cache. Leaving a gap instead, so that the places are no whole block, costs the library a copy. Where
        products are of 8 bits there is room for as many more as these take at least.
        """
        places, num = self.tiling.places**2, (images.stop - images.start) * self._tiles_each
        whole = (num + products.MIN_ROWS if self.int8 else num) | 1
        size = places * whole * padded(channels)
        memory = _MEMORY.take(name, self.dtype, size) if name else torch.empty(size, dtype=self.dtype)
        tiles = memory.view(places, whole, -1)
        if not self.int8 and whole > num:
            tiles[:, num:] = 0
        return tiles if self.int8 else tiles[:, :, :channels]

    def _of_piece(self, tiles: Tensor, piece: slice) -> Tensor:
        """Of the tiles of all images those of a piece, with what is behind the last one's."""
        last = None if piece.stop == self.n else piece.stop * self._tiles_each
        return tiles[:, piece.start * self._tiles_each : last]

    @property
    def _tiles_each(self) -> int:
        """Tiles of an image."""
        return self.tiling.rows * self.tiling.columns

    def _of_places(self) -> Tensor:
        """Memory for the gradient of the transformed weight, until the next call."""
        shape = self.tiling.places**2, self.channels_out, padded(self.channels_in)
        of_places = _MEMORY.take("of_places", self.dtype, math.prod(shape)).view(shape)
        return of_places if self.int8 else of_places[:, :, : self.channels_in]

    def _pass(
        self,
        piece: slice,
        first: "_Step",
        by_place: Tensor | products.Panels,
        last: "_Step",
        kept: Tensor | None,
    ) -> None:
        """Transform a piece's images or gradients, multiply and transform back; `kept`: where tiles are to stay."""
        if isinstance(by_place, products.Panels):
            self._pass_in_groups(piece, first, by_place, last, kept)
            return
        tiles = self._tiles(piece, self._channels(first.use), _memory_name(first.use)) if kept is None else kept
        made = self._tiles(piece, self._channels(last.use), _memory_name(last.use))
        self._run(piece, first, tiles)
        torch.bmm(tiles, by_place, out=made)
        self._run(piece, last, made)

    def _pass_in_groups(
        self, piece: slice, first: "_Step", panels: products.Panels, last: "_Step", kept: Tensor | None
    ) -> None:
        """The same by products of 8 bits: each thread takes a few images at a time through all three."""
        n, each, places = piece.stop - piece.start, self._tiles_each, self.tiling.places**2
        group = _group(each)
        num_tasks = num_tasks_for(-(-n // group))

        def of_tasks(use: int) -> Tensor:
            shape = num_tasks, places, group * each | 1, padded(self._channels(use))
            return _MEMORY.take(_memory_name(use), self.dtype, math.prod(shape)).view(shape)

        tiles = of_tasks(first.use) if kept is None else kept[None]
        made = of_tasks(last.use)
        multiply, _scratch = products.rows_layout(tiles[0], panels, made[0], num_tasks)
        row_bytes = [memory.stride(2) * memory.element_size() for memory in (tiles, made)]
        numbers = numba_passes.numbers_of(
            num_tasks,
            (
                self._numbers(piece, first, tiles[0], num_tasks),
                multiply,
                self._numbers(piece, last, made[0], num_tasks),
            ),
            group=group,
            each=each,
            places=places,
            tiles_row_bytes=row_bytes[0],
            tiles_task_bytes=0 if kept is not None else tiles.stride(0) * tiles.element_size(),
            made_row_bytes=row_bytes[1],
            made_task_bytes=made.stride(0) * made.element_size(),
            into=self._kernel(first).address,
            multiply=products.kernel_by_panels().address,
            out_of=self._kernel(last).address,
        )
        share_out(numba_passes.kernel(), n, numbers, num_tasks)

    def _multiply_transposed(self, piece: slice, left: Tensor, right: Tensor, out: Tensor) -> None:
        """Write left, transposed, times right: tiles of a piece."""
        if self.int8:
            rows = (piece.stop - piece.start) * self._tiles_each
            products.by_columns(left[:, :rows].mT, right[:, :rows], out)
        else:
            torch.bmm(left.mT, right, out=out)

    def _run(self, piece: slice, step: "_Step", tiles: Tensor) -> None:
        """Do one of the steps for some of the images or of their outputs, as its use has it."""
        n = piece.stop - piece.start
        num_tasks = num_tasks_for(n)
        share_out(self._kernel(step), n, self._numbers(piece, step, tiles, num_tasks), num_tasks)

    def _kernel(self, step: "_Step") -> Any:
        return numba_tiles.kernel(step.step, self.dtype == torch.bfloat16)

    def _channels(self, use: int) -> int:
        """Of the maps that a use is for."""
        return self.channels_in if use in (TO_PATCH, FROM_PATCH) else self.channels_out

    def _numbers(self, piece: slice, step: "_Step", tiles: Tensor, num_tasks: int) -> list[int]:
        """What a step's kernel takes."""
        maps = [values[piece] for values in step.maps]
        # They are read by their addresses: maps of another dtype would be read beyond their ends.
        assert maps[0].dtype == self.dtype
        size, rows, columns = self.tiling.size, self.tiling.rows, self.tiling.columns
        if step.use in (TO_PATCH, FROM_PATCH):
            height, width, side = self.height, self.width, self.tiling.places
            before = self.sides[2], self.sides[0]
        else:
            height, width, side, before = self.out_height, self.out_width, size, (0, 0)
        channels = self._channels(step.use)
        scratch_floats = ((rows - 1) * size + side) * ((columns - 1) * size + side) * padded(channels)
        scratch = _MEMORY.take(f"scratch {step.step}", torch.float32, num_tasks * scratch_floats)
        layout = numba_tiles.Layout(
            numba_tiles.transform(size, step.use, self.dtype == torch.bfloat16).address,
            height,
            width,
            channels,
            *before,
            rows,
            columns,
            side,
            step=size,
            places=self.tiling.places,
            pitch=tiles.stride(0),
            scratch=scratch.data_ptr(),
            scratch_floats=scratch_floats,
            tiles=tiles.data_ptr(),
            value_bytes=tiles.element_size(),
        )
        return [*layout, *(tensor.data_ptr() for tensor in (*maps, *step.others))]


def _memory_name(use: int) -> str:
    """Name of the memory for the tiles of a use; of a pass's two uses, one is of patches."""
    return "patches" if use in (TO_PATCH, FROM_PATCH) else "products"


class _Step(NamedTuple):
    """One of numba_tiles' steps, the use of its transform, maps of all images, and what it takes beside these."""

    step: int
    use: int
    maps: Sequence[Tensor]
    others: Sequence[Tensor] = ()
