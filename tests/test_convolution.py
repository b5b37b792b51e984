"""Our convolution's gradients are the library's, and which way they are taken depends on no clock."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fastcifar.models import convolution
from fastcifar.models.convolution import Conv2d, Way, convolve_3x3, packed_gradient, product_gradient

sides = st.tuples(*[st.integers(0, 1)] * 4)
ways = pytest.mark.parametrize("way", [product_gradient, packed_gradient])


def gradients(images: Tensor, weight: Tensor, bias: Tensor | None, function: object) -> list[Tensor]:
    """Of the output's sum, weighted so that no two outputs count alike."""
    inputs = [tensor.clone().requires_grad_() for tensor in (images, weight, bias) if tensor is not None]
    output = function(*inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape).sin()
    return [output.detach(), *torch.autograd.grad((output * weights.to(output.dtype)).sum(), inputs)]


@ways
@given(
    n=st.integers(0, 40),
    channels=st.sampled_from([(8, 8), (8, 24), (16, 8)]),
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    sides=sides,
    has_bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_gradients_are_the_librarys(
    way: Way,
    n: int,
    channels: tuple[int, int],
    height: int,
    width: int,
    sides: convolution.Sides,
    has_bias: bool,
    channels_last: bool,
) -> None:
    random = torch.Generator().manual_seed(n + height * width)
    randn = functools.partial(torch.randn, generator=random, dtype=torch.float64)
    images, weight = randn(n, channels[0], height, width), randn(channels[1], channels[0], 3, 3)
    bias = randn(channels[1]) if has_bias else None
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    ours = gradients(images, weight, bias, lambda x, w, b=None: convolution._Convolution.apply(x, w, b, sides, way))
    theirs = gradients(images, weight, bias, lambda x, w, b=None: F.conv2d(F.pad(x, sides), w, b))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("piece", [1, 3 * 9 * 9 * 8 * 7 * 7, 2**22])
def test_pieces_of_the_batch_add_up(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_PRODUCT_PIECE", piece)
    images, gradient = torch.randn(10, 8, 7, 7).double(), torch.randn(10, 16, 7, 7).double()
    weight = torch.zeros(16, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(F.conv2d(images, weight, padding=1), weight, gradient)
    torch.testing.assert_close(product_gradient(images, gradient, (1, 1, 1, 1)), expected)


def test_bfloat16_on_amx_takes_the_packed_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AMX here: what is told of the CPU is made up, the arithmetic is not."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    took = []
    monkeypatch.setattr(convolution, "packed_gradient", lambda *given: took.append(given) or packed_gradient(*given))
    images, weight = torch.randn(5, 8, 3, 3), torch.randn(8, 8, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(images, weight, torch.zeros(8), convolve_3x3)
        theirs = gradients(images, weight, torch.zeros(8), lambda x, w, b: F.conv2d(x, w, b, padding=1))
    assert len(took) == 1
    assert ours[0].dtype == torch.bfloat16
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == their.dtype
        torch.testing.assert_close(our, their, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("dtype", "amx", "width", "way"),
    [
        (torch.float32, False, 15, product_gradient),
        (torch.float32, True, 2, product_gradient),
        (torch.float32, False, 16, None),
        (torch.float64, False, 7, None),
        (torch.bfloat16, False, 7, None),
        (torch.bfloat16, True, 8, packed_gradient),
        (torch.bfloat16, True, 9, None),
    ],
)
def test_the_way_follows_from_dtype_device_and_width(
    dtype: torch.dtype, amx: bool, width: int, way: Way | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    assert convolution._way(dtype, width) is way


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3},
        {"kernel_size": 3, "padding": 1, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "groups": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "bias": False},
    ],
)
def test_the_layer_is_torchs(settings: dict) -> None:
    ours, theirs = Conv2d(8, 16, **settings), nn.Conv2d(8, 16, **settings)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(6, 8, 7, 6)
    for layer in (ours, theirs):
        layer(images).sin().sum().backward()
    torch.testing.assert_close(ours(images), theirs(images))
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)


def test_a_gradient_of_a_gradient_is_refused() -> None:
    layer = Conv2d(8, 8, 3, padding=1)
    images = torch.randn(2, 8, 4, 4, requires_grad=True)
    (first,) = torch.autograd.grad(layer(images).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_it_compiles_whole() -> None:
    layer = Conv2d(8, 8, 3, padding=1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(compiled(images), layer(images))
    compiled(images).sum().backward()
    assert layer.weight.grad is not None
