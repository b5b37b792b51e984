"""Convolutions of few channels by bytes: exact where nothing is lost, else near what float64 has."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import rms_error
from torch import Tensor, nn

from fastcifar.kernels import direct, maps, products, winograd
from fastcifar.kernels.shapes import Sides
from fastcifar.models import activation
from fastcifar.models.convolution import Conv2d

pytestmark = pytest.mark.skipif(not products.HAS_UNITS, reason="takes a CPU with VNNI and bfloat16 units (AVX-512)")

sides = st.tuples(*[st.integers(0, 1)] * 4)


def map_of(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def whole_numbers(*shape: int) -> Tensor:
    """From -127 to 127, both of which are in each image, filter or channel of one, so that a scale is 1."""
    numbers = torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(sum(shape)))
    numbers[:, :, 0, 0], numbers[:, :, -1, -1] = 127, -127
    return numbers.bfloat16().contiguous(memory_format=torch.channels_last)


def unpooled(pooled: maps.Pooled, gradient: Tensor, by_channel: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
    """The gradient of the output, float64."""
    exact = maps.Pooled(pooled.values.float(), pooled.places)
    return maps.max_unpool(gradient.float(), exact, by_channel, *size).double()


def identity(channels: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ones(channels), torch.zeros(channels), torch.zeros(channels)


@given(
    n=st.integers(1, 4),
    channels=st.sampled_from([(8, 32), (16, 64), (24, 32), (32, 96)]),
    height=st.integers(4, 13),
    width=st.integers(10, 21),
    sides=sides,
)
def test_whole_numbers_are_convolved_exactly(
    n: int, channels: tuple[int, int], height: int, width: int, sides: Sides
) -> None:
    images, weight = whole_numbers(n, channels[0], height, width), whole_numbers(channels[1], channels[0], 3, 3)
    work = direct.Convolution.of(images, weight, sides)
    pooled, sums = work.pooled_output(images)
    padded = F.pad(images.double(), sides)
    output = F.conv2d(padded, weight.double())
    values, indices = F.max_pool2d(output, 2, return_indices=True)
    assert torch.equal(pooled.values, values.bfloat16())
    row, column = indices // output.shape[3] % 2, indices % output.shape[3] % 2
    assert torch.equal(pooled.places, (2 * row + column).to(torch.uint8))
    assert rms_error(sums, torch.stack((values.sum((0, 2, 3)), values.square().sum((0, 2, 3))))) < 1e-6
    gradient = whole_numbers(*pooled.values.shape)
    told = winograd.Unpooled(gradient, pooled, identity(channels[1]))
    of_images, of_weight = work.gradients(images, told, of_images=False, of_weight=True)
    of_output = unpooled(pooled, gradient, told.by_channel, output.shape[2:])
    assert of_images is None
    assert torch.equal(of_weight.double(), nn.grad.conv2d_weight(padded, weight.shape, of_output))


@pytest.mark.parametrize("channels", [(8, 32), (24, 64)])
def test_the_error_is_about_a_hundredth(channels: tuple[int, int]) -> None:
    """Of a layer whose images are what GELU leaves, and of a gradient put together by channel."""
    images, weight = F.gelu(map_of(5, channels[0], 15, 16)), map_of(channels[1], channels[0], 3, 3, seed=1).float()
    work, sides = direct.Convolution.of(images, weight, (1, 0, 1, 0)), (1, 0, 1, 0)
    pooled, _ = work.pooled_output(images)
    inputs = [images.double().requires_grad_(), weight.double().requires_grad_()]
    output = F.conv2d(F.pad(inputs[0], sides), inputs[1])
    assert rms_error(pooled.values, F.max_pool2d(output, 2).detach()) < 0.012
    by_channel = tuple(torch.rand(3, channels[1], generator=torch.Generator().manual_seed(2)))
    told = winograd.Unpooled(map_of(*pooled.values.shape, seed=3), pooled, by_channel)
    ours = work.gradients(images, told, of_images=True, of_weight=True)
    of_output = unpooled(pooled, told.gradient, by_channel, output.shape[2:])
    theirs = torch.autograd.grad(output, inputs, of_output)
    # The images' gradient is made by Winograd's way.
    for our, their, most in zip(ours, theirs, (0.12, 0.012), strict=True):
        assert rms_error(our, their) < most


def test_images_and_channels_have_scales_of_their_own() -> None:
    by_image, by_filter = torch.logspace(-12, 12, 6).double(), torch.logspace(6, -6, 32).double()
    images, weight = map_of(6, 8, 12, 12), map_of(32, 8, 3, 3, seed=1)
    plain = direct.Convolution.of(images, weight, (0, 0, 0, 0)).pooled_output(images)[0].values.double()
    scaled = (images * by_image[:, None, None, None]).bfloat16()
    work = direct.Convolution.of(scaled, (weight * by_filter[:, None, None, None]).bfloat16(), (0, 0, 0, 0))
    pooled, _ = work.pooled_output(scaled)
    size = by_image[:, None, None, None] * by_filter[:, None, None]
    # The factors round to bfloat16 anew.
    assert rms_error(pooled.values / size, plain) < 0.02


def test_images_of_any_layout_are_taken() -> None:
    images, weight = map_of(3, 8, 10, 11), map_of(32, 8, 3, 3, seed=1).float()
    work = direct.Convolution.of(images, weight, (0, 0, 0, 0))
    pooled, _ = work.pooled_output(images)
    assert torch.equal(work.pooled_output(images.contiguous())[0].values, pooled.values)
    told = winograd.Unpooled(map_of(*pooled.values.shape, seed=2), pooled, identity(32))
    made = [work.gradients(x, told, of_images=False, of_weight=True)[1] for x in (images, images.contiguous())]
    assert torch.equal(*made)


def test_threads_make_no_difference() -> None:
    images, weight, kept = map_of(21, 24, 11, 12), map_of(64, 24, 3, 3, seed=1).float(), torch.get_num_threads()
    made = []
    try:
        for num in (1, 2, 3):
            torch.set_num_threads(num)
            work = direct.Convolution.of(images, weight, (1, 1, 1, 1))
            pooled, _ = work.pooled_output(images)
            told = winograd.Unpooled(map_of(*pooled.values.shape, seed=2), pooled, identity(64))
            made.append([*pooled, work.gradients(images, told, of_images=False, of_weight=True)[1]])
    finally:
        torch.set_num_threads(kept)
    for others in made[1:]:
        assert all(torch.equal(one, other) for one, other in zip(made[0], others, strict=True))


def test_zeros_give_zeros_and_what_is_no_number_stays_visible() -> None:
    images, weight = map_of(4, 8, 10, 10), map_of(32, 8, 3, 3, seed=1).float()
    images[0], images[1, 2, 3, 4], images[2, 0, 5, 5], weight[7] = 0, torch.nan, torch.inf, 0
    pooled, _ = direct.Convolution.of(images, weight, (0, 0, 0, 0)).pooled_output(images)
    assert not pooled.values[0].any() and not pooled.values[3, 7].any()
    assert not pooled.values[1].isfinite().any() and not pooled.values[2].isfinite().any()
    assert pooled.values[3].isfinite().all()
    for bad in (torch.nan, torch.inf):
        images, (weight[3, 0, 1, 1]) = map_of(4, 8, 10, 10), bad
        work = direct.Convolution.of(images, weight, (0, 0, 0, 0))
        assert not work.pooled_output(images)[0].values[:, 3].isfinite().any()
    work = direct.Convolution.of(images, map_of(32, 8, 3, 3).float(), (0, 0, 0, 0))
    pooled, _ = work.pooled_output(images)
    gradient = map_of(*pooled.values.shape, seed=2)
    gradient[2, 5, 1, 1] = torch.nan
    told = winograd.Unpooled(gradient, pooled, identity(32))
    _, of_weight = work.gradients(images, told, of_images=False, of_weight=True)
    assert not of_weight[5].isfinite().any() and of_weight[6].isfinite().all()


def test_what_is_taken() -> None:
    assert direct.takes(24, 64, 30, 30, torch.bfloat16)
    for no in [
        (24, 64, 30, 30, torch.float32),
        (20, 64, 30, 30, torch.bfloat16),
        (64, 64, 30, 30, torch.bfloat16),
        (24, 40, 30, 30, torch.bfloat16),
        (24, 64, 1, 30, torch.bfloat16),
        (24, 64, 30, 7, torch.bfloat16),
        (24, 64, 300, 300, torch.bfloat16),
    ]:
        assert not direct.takes(*no)


@pytest.mark.parametrize(("int8", "width"), [(True, 12), (True, 8), (False, 12)])
def test_a_layer_takes_this_way_where_it_can(int8: bool, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    used: list[int] = []
    honest = direct.Convolution.pooled_output
    monkeypatch.setattr(direct.Convolution, "pooled_output", lambda *told: used.append(1) or honest(*told))
    images, layer, norm = map_of(3, 24, 12, width).requires_grad_(), Conv2d(24, 64, 3, bias=False), nn.BatchNorm2d(64)
    norm.weight.requires_grad_(False)
    layer.int8 = int8
    with torch.autocast("cpu", torch.bfloat16):
        result = activation.convolve_pool_norm_gelu(images, layer, norm, (0, 0, 0, 0))
    assert bool(used) == (int8 and width == 12)
    of_images, of_weight = torch.autograd.grad(result.float().square().sum(), [images, layer.weight])
    assert of_images.shape == images.shape and of_weight.shape == layer.weight.shape
    theirs = F.gelu(nn.BatchNorm2d(64)(F.max_pool2d(F.conv2d(images.float(), layer.weight), 2)))
    assert rms_error(result.detach(), theirs.detach()) < 0.1
