"""3x3 convolutions that take another way on CPUs, where the library's is the slow part of training.

In float32, and in bfloat16 where vectors are the units for it, they are made with a fraction of the multiplications
(kernels/winograd.py); told `int8`, of 8 bits where there are units for these (kernels/products.py; of few channels and
pooled, kernels/direct.py). In bfloat16 on AMX the library is said to be slow at the weight gradient of narrow maps, so
images are laid side by side with columns of zeros between them and it is asked for the gradient of that (right by the
tests, its gain not measured yet). Which way is taken depends on dtype, device, shape and `int8` alone, never on a
timing, so that a seed repeats its bits.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastcifar.kernels.dispatch import has_numba
from fastcifar.kernels.shapes import Sides, channels_last, out_size

_PACKED_MAX_WIDTH_PX = 8
"""Widest map that is packed: at 16 the library is said to be at its full rate."""
_PACKED_WIDTH_PX = 64
"""Width that images are packed to, more or less."""


class Conv2d(nn.Conv2d):
    """nn.Conv2d, by `convolve_3x3` where the kernel is 3x3 and moves by one, or by more but there is one pixel."""

    int8 = False
    """Whether products are made of 8 bits where that is faster: `convolve_3x3`."""

    def forward(self, input: Tensor) -> Tensor:
        """[n, channels_in, h, w] to [n, channels_out, h', w'] as nn.Conv2d."""
        shape = (self.kernel_size, self.padding, self.dilation, self.groups, self.padding_mode)
        if shape != ((3, 3), (1, 1), (1, 1), 1, "zeros"):
            return super().forward(input)
        # From a single pixel no step leads anywhere. Asked to take one, oneDNN leaves what is not the middle of a
        # weight's gradient in bfloat16 as it finds the memory.
        if self.stride == (1, 1) or input.shape[-2:] == (1, 1):
            return convolve_3x3(input, self.weight, self.bias, int8=self.int8)
        return super().forward(input)


def convolve_3x3(
    images: Tensor, weight: Tensor, bias: Tensor | None = None, sides: Sides = (1, 1, 1, 1), *, int8: bool = False
) -> Tensor:
    """Images [n, channels_in, h, w] convolved by weight [channels_out, channels_in, 3, 3], zeros put on `sides`.

    Returns [n, channels_out, h + top + bottom - 2, w + left + right - 2] in the autocast dtype, if there is one. int8:
    have the products in it and in its gradients made of 8 bits where these are faster (kernels/products.py).
    """
    way = _way_for(images, weight, sides, int8)
    if way is None:
        return _convolve(images, weight, bias, sides)
    dtype = compute_dtype(images)
    if way is _Winograd:
        # It rounds the weight once it is transformed, and not before.
        output = _Winograd.apply(images.to(dtype), weight, sides, trains(weight), int8)
    else:
        output = _Packed.apply(images.to(dtype), weight.to(dtype), sides)
    return output if bias is None else output + bias.to(dtype)[:, None, None]


def takes_winograd(images: Tensor, weight: Tensor, sides: Sides, *, int8: bool = False) -> bool:
    """Whether `convolve_3x3` makes the convolution with few multiplications, so that it need not be the library's."""
    return _way_for(images, weight, sides, int8) is _Winograd


def trains(weight: Tensor) -> bool:
    """Whether a weight's gradient will be wanted of what is computed now."""
    return torch.is_grad_enabled() and weight.requires_grad


def prepare(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Have the compiled code for training in `dtype` on `device` ready, which otherwise the first step waits for."""
    if device.type == "cpu" and _has_winograd(dtype):
        from fastcifar.kernels import direct, winograd

        int8 = network_takes_int8(network, device, dtype)
        winograd.prepare(dtype, int8=int8)
        if int8:
            direct.prepare()


def network_takes_int8(network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether any convolution of the network has products made of 8 bits on this device, if it is not compiled."""
    if device.type != "cpu" or dtype != torch.bfloat16 or not _has_winograd(dtype):
        return False
    from fastcifar.kernels import tiling

    layers = (module for module in network.modules() if isinstance(module, Conv2d) and module.kernel_size == (3, 3))
    return any(layer.int8 and tiling.takes_int8(dtype, layer.in_channels, layer.out_channels) for layer in layers)


def compute_dtype(images: Tensor) -> torch.dtype:
    """What a convolution on a CPU computes in: the autocast dtype, if there is one, or else the images'."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype


def _way_for(images: Tensor, weight: Tensor, sides: Sides, int8: bool) -> type[torch.autograd.Function] | None:
    # A compiler sees more of the library's convolution than of ours.
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    # What does not go together is the library's to refuse: ours read and write memory by these shapes.
    if images.ndim != 4 or images.shape[1] != weight.shape[1] or weight.device != images.device:
        return None
    return _way(compute_dtype(images), weight, *out_size(images.shape[2], images.shape[3], sides), int8)


def _way(
    dtype: torch.dtype, weight: Tensor, height: int, width: int, int8: bool
) -> type[torch.autograd.Function] | None:
    """How a CPU makes maps of this height and width; None where the library is as fast."""
    if _has_winograd(dtype):
        from fastcifar.kernels import tiling

        pays = tiling.pays(weight.shape[1], weight.shape[0], height, width, dtype, int8=int8)
        return _Winograd if pays else None
    narrow = width <= _PACKED_MAX_WIDTH_PX
    return _Packed if dtype == torch.bfloat16 and _has("amx_bf16") and trains(weight) and narrow else None


def _has_winograd(dtype: torch.dtype) -> bool:
    """Whether few multiplications are taken on this CPU: with matrix units (AMX) it has not been measured to pay."""
    if not has_numba():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and _has("avx512_bf16") and not _has("amx_bf16"))


def _has(units: str) -> bool:
    return bool(torch.cpu.get_capabilities().get(units, False))


class _Winograd(torch.autograd.Function):
    """The convolution and its gradients with few multiplications.

    `keeps_patches`: for the weight's gradient, whether there will be one being what forward cannot see.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, sides: Sides, keeps_patches: bool, int8: bool = False
    ) -> Tensor:
        from fastcifar.kernels import winograd

        ctx.convolution = winograd.Convolution.of(images, weight, sides, int8=int8)
        patches = ctx.convolution.room_for_patches() if keeps_patches else None
        output = ctx.convolution.output(images, patches)
        ctx.save_for_backward(images, patches)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_images, of_weight = ctx.needs_input_grad[:2]
        images, patches = ctx.saved_tensors
        both = ctx.convolution.gradients(images, gradients[0], patches, of_images=of_images, of_weight=of_weight)
        return (*both, None, None, None)


class _Packed(torch.autograd.Function):
    """The library's convolution, and its weight gradient of packed images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, sides: Sides) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.sides = sides
        return _convolve(images, weight, None, sides)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        gradient = channels_last(gradients[0])
        of_images, of_weight = ctx.needs_input_grad[:2]
        return (
            _images_gradient(images, weight, gradient, ctx.sides) if of_images else None,
            packed_gradient(images, gradient, ctx.sides) if of_weight else None,
            None,
        )


def _convolve(images: Tensor, weight: Tensor, bias: Tensor | None, sides: Sides) -> Tensor:
    if len(set(sides)) == 1:
        return F.conv2d(images, weight, bias, padding=sides[0])
    return F.conv2d(F.pad(images, sides), weight, bias)


def _images_gradient(images: Tensor, weight: Tensor, gradient: Tensor, sides: Sides) -> Tensor:
    """The library's, of the padded images where sides differ, and the padding cut off."""
    if len(set(sides)) == 1:
        return _convolution_backward(gradient, images, weight, sides[0], "images")
    left, right, top, bottom = sides
    n, channels, height, width = images.shape
    padded = images.new_empty((n, height + top + bottom, width + left + right, channels)).permute(0, 3, 1, 2)
    whole = _convolution_backward(gradient, padded, weight, 0, "images")
    return channels_last(whole[:, :, top : top + height, left : left + width])


def packed_gradient(images: Tensor, gradient: Tensor, sides: Sides) -> Tensor:
    """The library's, of images laid side by side: the zeros between two serve both, and the gradient has zeros there.

    The same sums as without. images [n, channels_in, h, w], gradient [n, channels_out, h', w'], of one dtype.
    """
    left, right, top, bottom = sides
    n, channels, height, width = images.shape
    channels_out, rows = gradient.shape[1:3]
    pitch = width + max(left, right)
    per_row = max(1, min(n, _PACKED_WIDTH_PX // pitch))
    num_rows = -(-n // per_row)
    wide = images.new_zeros((num_rows, height + top + bottom, pitch * per_row + 2, channels))
    of_wide = gradient.new_zeros((num_rows, rows, pitch * per_row, channels_out))
    _lay(images, wide[:, top : top + height, left : left + pitch * per_row], per_row)
    _lay(gradient, of_wide, per_row)
    like_weight = gradient.new_empty((channels_out, channels, 3, 3))
    return _convolution_backward(of_wide.permute(0, 3, 1, 2), wide.permute(0, 3, 1, 2), like_weight, 0, "weight")


def _lay(images: Tensor, wide_nhwc: Tensor, per_row: int) -> None:
    """Write images [n, channels, h, w] into `wide_nhwc`, `per_row` of them side by side, as far apart as fits."""
    images_nhwc = images.permute(0, 2, 3, 1)
    n, _, width, _ = images_nhwc.shape
    places = wide_nhwc.unflatten(2, (per_row, -1)).transpose(1, 2)[:, :, :, :width]
    whole = n // per_row
    places[:whole] = images_nhwc[: whole * per_row].unflatten(0, (whole, per_row))
    if n % per_row:
        places[whole, : n % per_row] = images_nhwc[whole * per_row :]


def _convolution_backward(
    gradient: Tensor, images: Tensor, weight: Tensor, padding: int, of: Literal["images", "weight"]
) -> Tensor:
    """The library's gradient of one of the two; of the other it reads the values, of that one only the shape."""
    mask = (of == "images", of == "weight", False)
    gradients = torch.ops.aten.convolution_backward(
        gradient, images, weight, None, (1, 1), (padding, padding), (1, 1), False, (0, 0), 1, mask
    )
    return gradients[mask.index(True)]
