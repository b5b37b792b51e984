"""Norm, GELU and pooling in few passes are the library's in many, forward and backward."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import rms_error
from torch import Tensor, nn

from fastcifar.kernels import maps, products, winograd
from fastcifar.kernels.shapes import Sides
from fastcifar.models import activation, convolution
from fastcifar.models.activation import gelu, norm_gelu
from fastcifar.models.convolution import Conv2d
from fastcifar.models.speednet import BatchNorm, SpeedNet

# Rounding to bfloat16 is by at most 2^-9 of a value, and a few roundings come together; in both, a norm of few values
# makes more of them where these lie close together.
CLOSE = {torch.float32: 2e-5, torch.bfloat16: 2**-4}


def random_map(*shape: int, seed: int = 0, spread: float = 2.0, offset: float = 0.3) -> Tensor:
    """float64, channels-last."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=random, dtype=torch.float64) * spread + offset
    return values.contiguous(memory_format=torch.channels_last)


def as_library(x: Tensor, norm: nn.BatchNorm2d, *, shortcut: Tensor | None = None, pool: bool = False) -> Tensor:
    """What `norm_gelu` promises, step by step."""
    x = norm(F.max_pool2d(x, 2) if pool else x)
    return F.gelu(x if shortcut is None else x + shortcut)


def norm_for(channels: int, dtype: torch.dtype = torch.float32) -> BatchNorm:
    """With biases that are not zero and statistics that have moved."""
    norm = BatchNorm(channels)
    with torch.no_grad():
        norm.bias.copy_(torch.linspace(-1, 1, channels))
        norm.running_mean.fill_(0.25)
        norm.running_var.fill_(3)
    return norm.to(dtype)


def outputs(function: object, norm: nn.BatchNorm2d, inputs: list[Tensor], pool: bool) -> list[Tensor]:
    """The result, and the gradients of inputs and bias where no two results count alike."""
    x, *shortcut = inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    result = function(x, norm, shortcut=shortcut[0] if shortcut else None, pool=pool)
    weights = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).reshape(result.shape).sin() + 0.1
    gradients = torch.autograd.grad((result * weights.to(result.dtype)).sum(), [*inputs, norm.bias])
    return [result.detach(), *gradients]


def assert_close(ours: Tensor, theirs: Tensor, share: float, least: float = 0.0) -> None:
    """Within this share of the largest value, which counts as `least` where it is less."""
    assert ours.shape == theirs.shape
    largest = max(least, float(theirs.abs().max()))
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=share * largest)


@given(
    n=st.integers(1, 5),
    channels=st.sampled_from([1, 3, 8, 24, 67]),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    pool=st.booleans(),
    with_shortcut=st.booleans(),
    dtype=st.sampled_from(list(CLOSE)),
)
def test_result_and_gradients_are_the_librarys(
    n: int, channels: int, height: int, width: int, pool: bool, with_shortcut: bool, dtype: torch.dtype
) -> None:
    height, width = max(height, 4), max(width, 4)
    # What both start from is what the dtype can hold.
    inputs = [random_map(n, channels, height, width).to(dtype)]
    if with_shortcut:
        factor = 2 if pool else 1
        inputs.append(random_map(n, channels, height // factor, width // factor, seed=1).to(dtype))
    norm, exact = norm_for(channels), norm_for(channels, torch.float64)
    ours = outputs(norm_gelu, norm, inputs, pool)
    theirs = outputs(as_library, exact, [tensor.double() for tensor in inputs], pool)
    assert [tensor.dtype for tensor in ours] == [dtype] * (1 + len(inputs)) + [torch.float32]
    for our, their in zip(ours, theirs, strict=True):
        # The bias's gradient is a sum of values about 1, which may cancel.
        assert_close(our, their, CLOSE[dtype], least=1.0 if our is ours[-1] else 0.0)
    for name in ("running_mean", "running_var"):
        assert_close(getattr(norm, name), getattr(exact, name), 1e-5)
    assert norm.num_batches_tracked == exact.num_batches_tracked == 1


@given(
    n=st.integers(1, 7),
    channels=st.sampled_from([(1, 3), (8, 24), (30, 16)]),
    height=st.integers(4, 13),
    width=st.integers(4, 13),
    sides=st.tuples(*[st.integers(0, 1)] * 4),
    piece=st.sampled_from([1, 2**26]),
)
def test_pooling_within_the_convolution_is_pooling_after_it(
    n: int, channels: tuple[int, int], height: int, width: int, sides: Sides, piece: int
) -> None:
    images = random_map(n, channels[0], height, width).float()
    weight = random_map(channels[1], channels[0], 3, 3, seed=1).float()

    def both_ways(function: object) -> list[Tensor]:
        inputs, norm = [images.clone().requires_grad_(), weight.clone().requires_grad_()], norm_for(channels[1])
        result = function(*inputs, norm)
        weights = torch.linspace(-1, 1, result.numel()).reshape(result.shape).sin()
        return [result.detach(), *torch.autograd.grad((result * weights).sum(), [*inputs, norm.bias]), *norm.buffers()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_PIECE", piece)
        within = both_ways(
            lambda x, w, norm: activation._ConvolvePoolNormGelu.apply(x, w, norm.bias, norm, sides, True)
        )
        after = both_ways(lambda x, w, norm: norm_gelu(convolution._Winograd.apply(x, w, sides, True), norm, pool=True))
    for one, other in zip(within, after, strict=True):
        assert_close(one, other, 1e-5)


def test_pooling_within_the_convolution_in_bfloat16() -> None:
    sides = (1, 1, 1, 0)
    images, weight = random_map(6, 16, 13, 12).bfloat16(), random_map(24, 16, 3, 3, seed=1).bfloat16()
    work = winograd.Convolution.of(images, weight, sides)
    pooled, sums = work.pooled_output(images)
    inputs = [images.double().requires_grad_(), weight.double().requires_grad_()]
    whole = F.conv2d(F.pad(inputs[0], sides), inputs[1])
    assert pooled.values.dtype == torch.bfloat16
    assert rms_error(pooled.values, F.max_pool2d(whole, 2).detach()) < 0.03
    assert rms_error(sums[1], pooled.values.double().square().sum((0, 2, 3))) < 0.01
    # Of two pixels nearly alike either may be the larger: the gradient goes where ours came from.
    gradient, by_channel = random_map(*pooled.values.shape, seed=2).bfloat16(), torch.rand(3, 24).unbind()
    ours = work.gradients(images, winograd.Unpooled(gradient, pooled, by_channel), of_images=True, of_weight=True)
    exact = maps.Pooled(pooled.values.float(), pooled.places)
    unpooled = maps.max_unpool(gradient.float(), exact, by_channel, work.out_height, work.out_width)
    theirs = torch.autograd.grad(whole, inputs, unpooled.double())
    for our, their in zip(ours, theirs, strict=True):
        assert rms_error(our, their) < 0.05


@pytest.mark.skipif(not products.HAS_UNITS, reason="takes a CPU with VNNI and bfloat16 units (AVX-512)")
def test_pooling_within_the_convolution_with_products_of_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near what the library makes in float64, and by pieces of the batch the same to the bit."""
    sides = (1, 1, 1, 0)
    images, weight = random_map(20, 24, 13, 12).bfloat16(), random_map(64, 24, 3, 3, seed=1).bfloat16()
    gradient, by_channel = random_map(20, 64, 6, 6, seed=2).bfloat16(), torch.rand(3, 64).unbind()

    def ours(num_pieces: int) -> list[Tensor]:
        work = winograd.Convolution.of(images, weight, sides, int8=True)
        assert len(work._pieces()) == num_pieces
        patches = work.room_for_patches()
        pooled, sums = work.pooled_output(images, patches)
        unpooled = winograd.Unpooled(gradient, pooled, by_channel)
        both = work.gradients(images, unpooled, patches, of_images=True, of_weight=True)
        return [*pooled, *both, sums]

    whole = ours(num_pieces=1)
    monkeypatch.setattr(winograd, "_PIECE", 3 * work_values(images, weight, sides))
    in_pieces = ours(num_pieces=7)
    for one, other in zip(in_pieces[:3], whole, strict=False):
        assert torch.equal(one, other)
    # A piece's tiles share a scale in the weight's gradient, and sums are added up image by image within a piece.
    assert rms_error(in_pieces[3], whole[3]) < 0.08
    assert rms_error(in_pieces[4], whole[4]) < 1e-6
    inputs = [images.double().requires_grad_(), weight.double().requires_grad_()]
    output = F.conv2d(F.pad(inputs[0], sides), inputs[1])
    assert rms_error(whole[0], F.max_pool2d(output, 2).detach()) < 0.08
    exact = maps.Pooled(whole[0].float(), whole[1])
    unpooled = maps.max_unpool(gradient.float(), exact, by_channel, *output.shape[2:])
    for our, their in zip(whole[2:4], torch.autograd.grad(output, inputs, unpooled.double()), strict=True):
        assert rms_error(our, their) < 0.12


def work_values(images: Tensor, weight: Tensor, sides: Sides) -> int:
    """Transformed values of an image."""
    work = winograd.Convolution.of(images, weight, sides)
    return work.tiling.multiplications * (work.channels_in + work.channels_out)


def test_autocast_takes_the_way_with_few_multiplications(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with vectors for bfloat16: weights of float32, and a map of bfloat16 from the layer before."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    images, norm = random_map(3, 64, 8, 8).float().requires_grad_(), norm_for(64)
    layer = Conv2d(64, 64, kernel_size=3, bias=False)
    weight = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        result = activation.convolve_pool_norm_gelu(images, layer, norm, (1, 1, 1, 1))
    assert type(result.grad_fn).__name__ == "_ConvolvePoolNormGeluBackward"
    assert result.dtype == torch.bfloat16
    gradients = torch.autograd.grad(result.float().square().sum(), [images, weight, norm.bias])
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 3
    theirs = F.gelu(norm_for(64)(F.max_pool2d(F.conv2d(images, weight, padding=1), 2)))
    assert rms_error(result.detach(), theirs.detach()) < 0.05


def test_a_scale_that_is_trained_gets_its_gradient() -> None:
    """By the library: ours takes a norm's scale for fixed."""
    norm = norm_for(8)
    norm.weight.requires_grad_(True)
    norm_gelu(random_map(3, 8, 4, 4).float(), norm).square().sum().backward()
    assert norm.weight.grad is not None and norm.weight.grad.all()


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("with_shortcut", [False, True])
def test_evaluation_takes_the_running_statistics_and_leaves_them(pool: bool, with_shortcut: bool) -> None:
    x, norm = random_map(3, 8, 7, 6).float(), norm_for(8).eval()
    shortcut = random_map(3, 8, 3, 3, seed=1).float() if pool else random_map(3, 8, 7, 6, seed=1).float()
    shortcut = shortcut if with_shortcut else None
    kept = copy.deepcopy(norm.state_dict())
    with torch.no_grad():
        assert_close(
            norm_gelu(x, norm, shortcut=shortcut, pool=pool), as_library(x, norm, shortcut=shortcut, pool=pool), 1e-6
        )
    for name, value in norm.state_dict().items():
        assert torch.equal(value, kept[name])


def test_statistics_that_are_not_to_be_followed_stay() -> None:
    norm = norm_for(8)
    norm.track_running_stats = False
    kept = copy.deepcopy(norm.state_dict())
    x = random_map(3, 8, 4, 4).float()
    with torch.no_grad():
        theirs = F.gelu(F.batch_norm(x, None, None, norm.weight, norm.bias, training=True))
        assert_close(norm_gelu(x, norm), theirs, 1e-5)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, kept[name])


@pytest.mark.parametrize("dtype", CLOSE)
def test_gelu_is_exact_from_end_to_end(dtype: torch.dtype) -> None:
    """Over all of what a network makes, in the tails as well, and its slope."""
    line = torch.linspace(-40, 40, 2 * 3 * 40 * 40, dtype=torch.float64).reshape(2, 3, 40, 40).to(dtype)
    ours, theirs = line.clone().requires_grad_(), line.double().requires_grad_()
    result, exact = gelu(ours), F.gelu(theirs)
    result.sum().backward()
    exact.sum().backward()
    relative = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(result.double(), exact, rtol=relative, atol=4e-7)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=relative, atol=4e-7)


def test_what_is_no_number_is_not_hidden() -> None:
    for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x = random_map(2, 8, 4, 4).float()
        x[(0, 3, *place)] = float("nan")
        for dtype in CLOSE:
            pooled, _ = maps.max_pool(x.to(dtype))
            assert pooled.values.isnan().sum() == 1
            assert norm_gelu(x.to(dtype), norm_for(8), pool=True)[:, 3].isnan().all()


def test_of_equal_values_the_first_takes_the_gradient() -> None:
    x = torch.zeros(2, 8, 4, 6).contiguous(memory_format=torch.channels_last)
    pooled, _ = maps.max_pool(x)
    assert not pooled.places.any()


def test_memory_layouts_do_not_matter() -> None:
    x, shortcut = random_map(3, 16, 6, 6).float(), random_map(3, 16, 6, 6, seed=1).float()
    last = outputs(norm_gelu, norm_for(16), [x, shortcut], pool=False)
    first = outputs(norm_gelu, norm_for(16), [x.contiguous(), shortcut.contiguous()], pool=False)
    for one, other in zip(last, first, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_share_the_work_and_repeat_its_bits(num_threads: int) -> None:
    x = random_map(7, 16, 8, 8).float()
    whole = outputs(norm_gelu, norm_for(16), [x], pool=True)
    kept = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        runs = [outputs(norm_gelu, norm_for(16), [x], pool=True) for _ in range(2)]
    finally:
        torch.set_num_threads(kept)
    for one, again, reference in zip(*runs, whole, strict=True):
        assert torch.equal(one, again)
        assert_close(one, reference, 1e-6)


def test_the_network_is_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of the whole speedrun network, ours and the library's activations."""
    torch.manual_seed(0)
    network = SpeedNet(10, (16, 16, 24))
    images, labels = random_map(6, 3, 32, 32).float(), torch.arange(6)

    def step() -> list[Tensor]:
        ours = copy.deepcopy(network)
        F.cross_entropy(ours(images), labels).backward()
        gradients = [parameter.grad for parameter in ours.parameters() if parameter.requires_grad]
        return [*gradients, *(buffer for name, buffer in ours.named_buffers() if "running" in name)]

    ours = step()
    monkeypatch.setattr(activation, "_is_ours", lambda x: False)
    for our, their in zip(ours, step(), strict=True):
        # Tiles of 7 pixels, in both, make more of the last bits than these few images average out.
        assert_close(our, their, 5e-3)
