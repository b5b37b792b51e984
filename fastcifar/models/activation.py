"""GELU of a normalised map, which may be pooled first and have a shortcut added: what stands between convolutions.

On CPUs it is done in few passes over memory (kernels/maps.py), where the library's make one for each step.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastcifar.kernels.dispatch import has_numba
from fastcifar.kernels.shapes import Sides, channels_last, out_size
from fastcifar.models.convolution import Conv2d, compute_dtype, convolve_3x3, takes_winograd, trains

if TYPE_CHECKING:
    from fastcifar.kernels import direct, winograd


def gelu(x: Tensor) -> Tensor:
    """GELU of a map [n, channels, h, w]."""
    return _Gelu.apply(channels_last(x)) if _is_ours(x) else F.gelu(x)


def norm_gelu(x: Tensor, norm: nn.BatchNorm2d, *, shortcut: Tensor | None = None, pool: bool = False) -> Tensor:
    """GELU of norm(x) + shortcut for a map x [n, channels, h, w]; with `pool`, of x after max-pooling by 2x2.

    The shortcut is of the norm's shape, and so is the result, in x's dtype. A norm whose scale is trained is the
    library's.
    """
    if not _takes_ours(x, norm):
        normalised = norm(F.max_pool2d(x, 2) if pool else x)
        return F.gelu(normalised if shortcut is None else normalised + shortcut)
    shortcut = None if shortcut is None else channels_last(shortcut.to(x.dtype))
    return _NormGelu.apply(channels_last(x), norm.bias, shortcut, norm, pool)


def convolve_pool_norm_gelu(images: Tensor, convolution: Conv2d, norm: nn.BatchNorm2d, sides: Sides) -> Tensor:
    """`norm_gelu` of `convolve_3x3`'s output, pooled; where it pays, that output is never written to memory.

    convolution: what has the weight, and no bias; its own padding counts for nothing.
    """
    assert convolution.bias is None
    weight, int8 = convolution.weight, convolution.int8
    if _takes_ours(images, norm) and takes_winograd(images, weight, sides, int8=int8):
        dtype = compute_dtype(images)
        return _ConvolvePoolNormGelu.apply(images.to(dtype), weight, norm.bias, norm, sides, trains(weight), int8)
    return norm_gelu(convolve_3x3(images, weight, sides=sides, int8=int8), norm, pool=True)


def prepare(device: torch.device, dtype: torch.dtype) -> None:
    """Have the compiled code for maps of `dtype` on `device` ready, which otherwise the first step waits for."""
    if device.type == "cpu" and has_numba():
        from fastcifar.kernels import maps

        if dtype in maps.DTYPES:
            maps.prepare(dtype)


def _is_ours(x: Tensor) -> bool:
    # A compiler sees more of the library's operations than of ours.
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not has_numba():
        return False
    from fastcifar.kernels import maps

    return x.dtype in maps.DTYPES and x.numel() > 0


def _takes_ours(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    # In evaluation mode the library's way is taken where a gradient is wanted: nobody trains so.
    records = torch.is_grad_enabled()
    return _is_ours(x) and not (records and (norm.weight.requires_grad or not norm.training))


class _Gelu(torch.autograd.Function):
    """GELU alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from fastcifar.kernels import maps

        ctx.save_for_backward(x)
        return maps.gelu(x, _identity(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        from fastcifar.kernels import maps

        (x,) = ctx.saved_tensors
        return maps.gelu_gradient(x, _identity(x), None, channels_last(gradients[0]))[0]


def _identity(x: Tensor) -> Any:
    from fastcifar.kernels import maps

    return maps.Affine(torch.ones(x.shape[1]), torch.zeros(x.shape[1]))


class _Normed(NamedTuple):
    """A norm's way for one batch: x * scale + shift, float32, by mean and 1 / deviation, float64; all [channels]."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    inverse: Tensor


class _NormGelu(torch.autograd.Function):
    """Max-pooling, the norm, the shortcut and GELU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, shortcut: Tensor | None, norm: nn.BatchNorm2d, pool: bool) -> Tensor:
        from fastcifar.kernels import maps

        ctx.size = x.shape[-2:]
        places, sums = None, None
        if pool:
            (x, places), sums = maps.max_pool(x)
        elif norm.training:
            sums = maps.add_up(x)
        normed = _normed(x, sums, bias, norm)
        ctx.save_for_backward(x, shortcut, places, *normed)
        return maps.gelu(x, maps.Affine(*normed[:2]), shortcut)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from fastcifar.kernels import maps

        x, shortcut, places, *normed = ctx.saved_tensors
        gradient, by_channel, of_bias = _gradients(x, _Normed(*normed), shortcut, gradients[0])
        if places is None:
            of_x = maps.combine(gradient, x, by_channel)
        else:
            of_x = maps.max_unpool(gradient, maps.Pooled(x, places), by_channel, *ctx.size)
        return of_x, of_bias, None if shortcut is None else gradient, None, None


class _ConvolvePoolNormGelu(torch.autograd.Function):
    """Our convolution, max-pooling, the norm and GELU: the map before pooling is never written."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm: nn.BatchNorm2d,
        sides: Sides,
        keeps_patches: bool,
        int8: bool = False,
    ) -> Tensor:
        from fastcifar.kernels import maps

        ctx.convolution = _pooled_convolution(images, weight, sides, int8)
        patches = ctx.convolution.room_for_patches() if keeps_patches else None
        (x, places), sums = ctx.convolution.pooled_output(images, patches)
        normed = _normed(x, sums, bias, norm)
        ctx.save_for_backward(images, patches, x, places, *normed)
        return maps.gelu(x, maps.Affine(*normed[:2]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from fastcifar.kernels import maps, winograd

        images, patches, x, places, *normed = ctx.saved_tensors
        gradient, by_channel, of_bias = _gradients(x, _Normed(*normed), None, gradients[0])
        unpooled = winograd.Unpooled(gradient, maps.Pooled(x, places), by_channel)
        of_images, of_weight = ctx.needs_input_grad[:2]
        both = ctx.convolution.gradients(images, unpooled, patches, of_images=of_images, of_weight=of_weight)
        return (*both, of_bias, None, None, None, None)


def _pooled_convolution(
    images: Tensor, weight: Tensor, sides: Sides, int8: bool
) -> "direct.Convolution | winograd.Convolution":
    """By bytes and of few channels a direct one, else Winograd's."""
    from fastcifar.kernels import direct, winograd

    size = out_size(images.shape[2], images.shape[3], sides)
    if int8 and direct.takes(weight.shape[1], weight.shape[0], *size, images.dtype):
        return direct.Convolution.of(images, weight, sides)
    return winograd.Convolution.of(images, weight, sides, int8=int8)


def _normed(x: Tensor, sums: Tensor | None, bias: Tensor, norm: nn.BatchNorm2d) -> _Normed:
    """The norm's way for x, whose sums it has while training; the running statistics follow."""
    if norm.training:
        assert sums is not None
        mean, variance = _moments(sums, x)
        if norm.track_running_stats:
            _follow(norm, mean, variance, x.numel() // x.shape[1])
    else:
        mean, variance = (statistic.double() for statistic in _running(norm))
    inverse = (variance + norm.eps).rsqrt()
    scale = norm.weight * inverse
    return _Normed(scale.float(), (bias - mean * scale).float(), mean, inverse)


def _gradients(
    x: Tensor, normed: _Normed, shortcut: Tensor | None, gradient: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
    """The gradient of what GELU was taken of, the a, b and c by which maps.combine makes x's of it, and the bias's."""
    from fastcifar.kernels import maps

    scale, shift, mean, inverse = normed
    gradient, sums = maps.gelu_gradient(x, maps.Affine(scale, shift), shortcut, channels_last(gradient))
    num = x.numel() // x.shape[1]
    # The norm's gradient is scale * (g - mean(g) - x' * mean(g x')), where x' = (x - mean) * inverse.
    along = (sums[1] - mean * sums[0]) * inverse / num
    by_x = -scale * inverse * along
    constant = -scale * sums[0] / num - by_x * mean
    return gradient, (scale, by_x.float(), constant.float()), sums[0].float()


def _moments(sums: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance by channel, float64, from sums of values and squares."""
    mean, square = sums / (x.numel() // x.shape[1])
    return mean, (square - mean * mean).clamp_(min=0)


def _follow(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, num: int) -> None:
    """Move the running statistics as the library does."""
    running_mean, running_variance = _running(norm)
    assert norm.num_batches_tracked is not None and norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    running_mean.lerp_(mean.float(), norm.momentum)
    running_variance.lerp_((variance * (num / max(1, num - 1))).float(), norm.momentum)


def _running(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var
