"""3x3 convolutions of few channels, pooled, on CPUs with VNNI units: by products of 8 bits, with nothing transformed.

With few channels transforming costs more than the multiplications that it saves (winograd.py). Here an image's values
share a scale and a zero point, a weight's those of an output channel, and in the weight's gradient those of a channel
of one image's gradient (numba_direct.py, numba_direct_gradient.py); errors are some 1 % of a result's size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastcifar.kernels import numba_direct, numba_direct_gradient, products, winograd
from fastcifar.kernels.maps import Pooled, Sums, empty
from fastcifar.kernels.numba_bytes import FOUR, PANEL
from fastcifar.kernels.numba_direct import ROWS_AT_ONCE
from fastcifar.kernels.numba_frame import Frame
from fastcifar.kernels.shapes import TAPS, Sides, channels_last, out_size
from fastcifar.kernels.threads import num_tasks_for, share_out
from fastcifar.kernels.winograd import Unpooled

_MOST_CHANNELS = 32
"""Of the images: of more Winograd's way takes less time."""
_MOST_PIXELS = 2**16
"""Of an output: 32 bits are sure to hold the sum of as many products of bytes."""
_GROUPS = 32
"""The weight's gradient is summed in so many parts of the batch, each by one thread, and then over the parts, so that
its bits do not depend on the number of threads. More threads than these have nothing to do."""


def prepare() -> None:
    """Have the compiled code ready, which otherwise happens when it is first used."""
    numba_direct.kernel()
    numba_direct_gradient.kernel()


def takes(channels_in: int, channels_out: int, height: int, width: int, dtype: torch.dtype) -> bool:
    """Whether a convolution that gives maps of this height and width, then pooled, can be made so, and fast."""
    few = channels_in % ROWS_AT_ONCE == 0 and channels_in <= _MOST_CHANNELS
    fits = height >= 2 and width >= ROWS_AT_ONCE and height * width <= _MOST_PIXELS
    return few and fits and products.takes(dtype, channels_out)


@dataclass(frozen=True)
class Convolution:
    """A convolution's shapes and its weight, rounded: used as winograd.Convolution is, for outputs that are pooled.

    Images and outputs are bfloat16, results channels-last. The images' gradient, which a network's first convolution
    seldom needs, is made by Winograd's way.
    """

    n: int
    height: int
    width: int
    sides: Sides
    channels_in: int
    weight: Tensor
    """[channels_out, channels_in, 3, 3], as it was given."""
    panels: Tensor
    """int8 [channels_out / PANEL, 9 * channels_in / 4, PANEL, 4]."""
    scales: Tensor
    """float32 [channels_out]."""
    totals: Tensor
    """int32 [channels_out]: sums of the rounded weight."""

    @classmethod
    def of(cls, images: Tensor, weight: Tensor, sides: Sides) -> "Convolution":
        """For images [n, channels_in, h, w], weight [channels_out, channels_in, 3, 3], zeros put on `sides`."""
        n, channels_in, height, width = images.shape
        rows = weight.float().permute(0, 2, 3, 1).flatten(1)
        scales = rows.abs().amax(1).clamp_(min=2.0**-100) / 127
        whole = (rows / scales[:, None]).round_()
        panels = whole.to(torch.int8).view(-1, PANEL, rows.shape[1] // FOUR, FOUR).transpose(1, 2).contiguous()
        convolution = cls(n, height, width, sides, channels_in, weight, panels, scales, whole.sum(1).to(torch.int32))
        assert takes(channels_in, len(weight), *convolution._out_size, images.dtype)
        return convolution

    @property
    def _frame_size(self) -> tuple[int, int]:
        left, right, top, bottom = self.sides
        return self.height + top + bottom, self.width + left + right

    @property
    def _out_size(self) -> tuple[int, int]:
        return out_size(self.height, self.width, self.sides)

    def room_for_patches(self) -> None:
        """Nothing is kept for the way back."""

    def pooled_output(self, images: Tensor, patches: None = None) -> tuple[Pooled, Tensor]:
        """What maps.max_pool makes of the output, which itself is never written."""
        height, width = self._out_size
        columns = len(self.scales)
        values = empty(self.n, columns, height // 2, width // 2, dtype=images.dtype)
        pooled, sums = Pooled(values, torch.empty_like(values, dtype=torch.uint8)), Sums(values)
        num_tasks = num_tasks_for(self.n)
        scratch = products.Scratch.of(num_tasks, numba_direct.output_scratch(self._frame_values, width, columns)[-1])
        images, frame = self._framed(images)
        told = numba_direct.Output(
            results=values.data_ptr(),
            places=pooled.places.data_ptr(),
            sums=sums.begun[0].data_ptr(),
            partial=sums.begun[1].data_ptr(),
            columns=columns,
            panels=self.panels.data_ptr(),
            scales=self.scales.data_ptr(),
            totals=self.totals.data_ptr(),
            scratch=scratch.memory.data_ptr(),
            scratch_bytes=scratch.task_bytes,
        )
        share_out(numba_direct.kernel(), self.n, [*frame, *told], num_tasks)
        return pooled, sums.total()

    def gradients(
        self, images: Tensor, gradient: Unpooled, patches: None = None, *, of_images: bool, of_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the images and of the weight, those that are asked for, from the pooled output's."""
        result = None
        if of_images:
            other = winograd.Convolution.of(images, self.weight, self.sides, int8=True)
            result, _ = other.gradients(images, gradient, of_images=True, of_weight=False)
        return result, self._weight_gradient(images, gradient) if of_weight else None

    def _weight_gradient(self, images: Tensor, gradient: Unpooled) -> Tensor:
        assert gradient.gradient.dtype == gradient.pooled.values.dtype == torch.bfloat16
        columns, groups = len(self.scales), min(self.n, _GROUPS)
        num_tasks = num_tasks_for(groups)
        total = torch.zeros((groups, TAPS, TAPS, self.channels_in, columns))
        rows, pooled_columns = gradient.pooled.values.shape[2:]
        parts = numba_direct_gradient.gradient_scratch(self._frame_values, rows, pooled_columns, columns)
        scratch = products.Scratch.of(num_tasks, parts[-1])
        by_channel = torch.stack(gradient.by_channel)
        images, frame = self._framed(images)
        told = numba_direct_gradient.Gradient(
            gradient=gradient.gradient.data_ptr(),
            values=gradient.pooled.values.data_ptr(),
            places=gradient.pooled.places.data_ptr(),
            by_channel=by_channel.data_ptr(),
            columns=columns,
            n=self.n,
            groups=groups,
            products=total.data_ptr(),
            scratch=scratch.memory.data_ptr(),
            scratch_bytes=scratch.task_bytes,
        )
        share_out(numba_direct_gradient.kernel(), groups, [*frame, *told], num_tasks)
        return total.sum(0).permute(3, 2, 0, 1)

    @property
    def _frame_values(self) -> int:
        height, width = self._frame_size
        return height * width * self.channels_in

    def _framed(self, images: Tensor) -> tuple[Tensor, Frame]:
        """The images as they are read, which must be kept meanwhile, and what tells of them."""
        assert images.dtype == torch.bfloat16 and images.device.type == "cpu"
        images = channels_last(images)
        sizes = self.height, self.width, self.channels_in, self.sides[2], self.sides[0]
        return images, Frame(images.data_ptr(), *sizes, *self._frame_size)
