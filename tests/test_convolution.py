"""Our convolutions and their gradients are the library's, and which way they are taken depends on no clock."""

import functools
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import rms_error
from torch import Tensor, nn

from fastcifar.kernels import numba_tiles, products, tiling, winograd
from fastcifar.kernels.shapes import Sides
from fastcifar.models import convolution
from fastcifar.models.convolution import Conv2d, convolve_3x3, packed_gradient

sides = st.tuples(*[st.integers(0, 1)] * 4)


def gradients(images: Tensor, weight: Tensor, bias: Tensor | None, function: object) -> list[Tensor]:
    """The output, and the gradients of its sum, weighted so that no two outputs count alike."""
    inputs = [tensor.clone().requires_grad_() for tensor in (images, weight, bias) if tensor is not None]
    output = function(*inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape).sin()
    return [output.detach(), *torch.autograd.grad((output * weights.to(output.dtype)).sum(), inputs)]


def images_and_weight(n: int, channels: tuple[int, int], height: int, width: int, last: bool) -> tuple[Tensor, Tensor]:
    """Numbers in float64; `last` lays the images out channels-last."""
    random = torch.Generator().manual_seed(n + height * width)
    randn = functools.partial(torch.randn, generator=random, dtype=torch.float64)
    images, weight = randn(n, channels[0], height, width), randn(channels[1], channels[0], 3, 3)
    return images.contiguous(memory_format=torch.channels_last) if last else images, weight


def close(our: Tensor, their: Tensor) -> None:
    """But for a small share of the largest value: of few channels, tiles lose more than of many."""
    largest = float(their.detach().abs().max()) if their.numel() else 0.0
    torch.testing.assert_close(our.double(), their.double(), rtol=0, atol=2**-11 * largest)


@given(
    n=st.integers(0, 40),
    channels=st.sampled_from([(8, 8), (8, 24), (16, 8)]),
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    sides=sides,
    channels_last=st.booleans(),
)
def test_packed_gradients_are_the_librarys(
    n: int, channels: tuple[int, int], height: int, width: int, sides: Sides, channels_last: bool
) -> None:
    images, weight = images_and_weight(n, channels, height, width, channels_last)
    ours = gradients(images, weight, None, lambda x, w: convolution._Packed.apply(x, w, sides))
    theirs = gradients(images, weight, None, lambda x, w: F.conv2d(F.pad(x, sides), w))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-9)


@given(
    n=st.integers(0, 9),
    channels=st.sampled_from([(1, 3), (8, 8), (8, 24), (17, 16), (30, 5)]),
    height=st.integers(3, 14),
    width=st.integers(3, 14),
    sides=sides,
    channels_last=st.booleans(),
)
def test_winograds_outputs_and_gradients_are_the_librarys(
    n: int, channels: tuple[int, int], height: int, width: int, sides: Sides, channels_last: bool
) -> None:
    images, weight = images_and_weight(n, channels, height, width, channels_last)
    ours = gradients(images.float(), weight.float(), None, lambda x, w: convolution._Winograd.apply(x, w, sides, True))
    theirs = gradients(images, weight, None, lambda x, w: F.conv2d(F.pad(x, sides), w))
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == torch.float32
        assert our.shape == their.shape
        close(our, their)


@given(
    n=st.integers(1, 5),
    channels=st.sampled_from([(8, 8), (17, 24), (30, 16)]),
    height=st.integers(3, 11),
    width=st.integers(3, 11),
    sides=sides,
)
def test_winograds_bfloat16_is_near_the_librarys_float64(
    n: int, channels: tuple[int, int], height: int, width: int, sides: Sides
) -> None:
    images, weight = (tensor.bfloat16() for tensor in images_and_weight(n, channels, height, width, last=True))
    ours = gradients(images, weight, None, lambda x, w: convolution._Winograd.apply(x, w, sides, True))
    theirs = gradients(images.double(), weight.double(), None, lambda x, w: F.conv2d(F.pad(x, sides), w))
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == torch.bfloat16
        assert our.shape == their.shape
        # Squares of 5 have twice the error of those of 4.
        assert rms_error(our, their) < (0.12 if our_size(images, sides) == 5 else 0.06)


needs_int8 = pytest.mark.skipif(not products.HAS_UNITS, reason="takes a CPU with VNNI and bfloat16 units (AVX-512)")


def ours_int8(images: Tensor, weight: Tensor, sides: Sides = (1, 1, 1, 1)) -> list[Tensor]:
    """Output and gradients with products of 8 bits."""
    return gradients(images, weight, None, lambda x, w: convolution._Winograd.apply(x, w, sides, True, True))


@needs_int8
@given(
    n=st.integers(0, 5),
    channels=st.sampled_from([(24, 64), (32, 32), (64, 96), (30, 64)]),
    height=st.integers(3, 11),
    width=st.integers(3, 11),
    sides=sides,
)
def test_products_of_8_bits_are_near_the_librarys_float64(
    n: int, channels: tuple[int, int], height: int, width: int, sides: Sides
) -> None:
    images, weight = (tensor.bfloat16() for tensor in images_and_weight(n, channels, height, width, last=True))
    ours = ours_int8(images, weight, sides)
    theirs = gradients(images.double(), weight.double(), None, lambda x, w: F.conv2d(F.pad(x, sides), w))
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == torch.bfloat16
        assert our.shape == their.shape
        if n == 0:
            assert not our.any()
            continue
        assert rms_error(our, their) < (0.2 if our_size(images, sides) == 5 else 0.12)


@needs_int8
@pytest.mark.parametrize("n", [1, 7, 23])
def test_groups_and_threads_make_no_difference(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many images go through all steps together; nor pieces of the batch, but for a block's scales."""
    images, weight = (tensor.bfloat16() for tensor in images_and_weight(n, (24, 64), 7, 6, last=True))
    whole, kept_threads = ours_int8(images, weight), torch.get_num_threads()
    try:
        for num_threads, group in ((1, 1), (2, 5), (3, 2), (2, 100)):
            torch.set_num_threads(num_threads)
            monkeypatch.setattr(winograd, "_group", lambda each, group=group: max(group, -(-products.MIN_ROWS // each)))
            for one, other in zip(ours_int8(images, weight), whole, strict=True):
                assert torch.equal(one, other)
    finally:
        torch.set_num_threads(kept_threads)
    monkeypatch.setattr(winograd, "_PIECE", 120_000)
    kept = ours_int8(images, weight)
    for one, other in zip(kept[:2], whole, strict=False):
        assert torch.equal(one, other)
    assert rms_error(kept[2], whole[2]) < 0.08
    monkeypatch.setattr(winograd, "_MOST_KEPT", 0)
    for one, other in zip(ours_int8(images, weight), kept, strict=True):
        assert torch.equal(one, other)


def test_groups_are_small_and_their_blocks_of_rows_nearly_full() -> None:
    assert [winograd._group(each) for each in (1, 4, 9, 16, 25, 64)] == [16, 4, 4, 1, 2, 1]


@needs_int8
def test_where_8_bits_cannot_be_had_nothing_changes() -> None:
    for dtype, channels in ((torch.bfloat16, (64, 40)), (torch.float32, (32, 32))):
        images, weight = (tensor.to(dtype) for tensor in images_and_weight(4, channels, 7, 7, last=True))
        plain = gradients(images, weight, None, lambda x, w: convolution._Winograd.apply(x, w, (1, 1, 1, 1), True))
        for one, other in zip(plain, ours_int8(images, weight), strict=True):
            assert torch.equal(one, other)


@needs_int8
def test_fewer_channels_pay_with_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    stem = torch.zeros(64, 24, 3, 3)
    assert convolution._way(torch.bfloat16, stem, 30, 30, int8=False) is None
    assert convolution._way(torch.bfloat16, stem, 30, 30, int8=True) is convolution._Winograd
    assert convolution._way(torch.bfloat16, torch.zeros(64, 20, 3, 3), 30, 30, int8=True) is None
    assert convolution._way(torch.bfloat16, torch.zeros(60, 24, 3, 3), 30, 30, int8=True) is None


def our_size(images: torch.Tensor, sides: Sides) -> int:
    """Side of the squares that the output is cut into."""
    left, right, top, bottom = sides
    height, width = images.shape[-2:]
    return tiling.tiling_for(height + top + bottom - 2, width + left + right - 2, images.dtype).size


def test_autocast_rounds_what_it_should_and_no_more() -> None:
    """Under autocast the weight is transformed in float32, as it is without."""
    images, weight = (tensor.bfloat16() for tensor in images_and_weight(4, (16, 16), 6, 6, last=True))
    plain = gradients(images, weight, None, lambda x, w: convolution._Winograd.apply(x, w, (1, 1, 1, 1), True))
    with torch.autocast("cpu", torch.bfloat16):
        cast = gradients(images, weight, None, lambda x, w: convolution._Winograd.apply(x, w, (1, 1, 1, 1), True))
    for one, other in zip(plain, cast, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_that_are_kept_are_those_made_anew(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, be they too many to keep or the weight not trained; without a gradient none are kept."""
    images, weight = (tensor.to(dtype) for tensor in images_and_weight(4, (64, 64), 7, 7, last=True))
    made: list[torch.Tensor | None] = []
    honest = winograd.Convolution.room_for_patches

    def seen(self: winograd.Convolution) -> torch.Tensor | None:
        made.append(honest(self))
        return made[-1]

    def ours() -> list[torch.Tensor]:
        return gradients(images, weight, None, convolution.convolve_3x3)

    monkeypatch.setattr(winograd.Convolution, "room_for_patches", seen)
    monkeypatch.setattr(convolution, "_has_winograd", lambda _: True)
    kept = ours()
    assert [patches is not None for patches in made] == [True]
    monkeypatch.setattr(winograd, "_MOST_KEPT", 100)
    anew = ours()
    assert [patches is not None for patches in made] == [True, False]
    with torch.no_grad():
        convolution.convolve_3x3(images, weight.requires_grad_())
    assert len(made) == 2
    for one, other in zip(kept, anew, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("size", numba_tiles.SIZES)
def test_winograds_matrices_are_exact(size: int) -> None:
    """F(size, 3) of Lavin and Gray, in one dimension, in fractions."""
    output, kernel, data = (np.array(matrix) for matrix in numba_tiles.matrices(size))
    taps = np.array([Fraction(2, 3), Fraction(-5), Fraction(7, 11)])
    values = np.array([Fraction(number * number - 7, number + 1) for number in range(size + 2)])
    expected = [sum(taps * values[place : place + 3]) for place in range(size)]
    assert list(output @ ((kernel @ taps) * (data @ values))) == expected


@pytest.mark.parametrize(
    ("dtype", "size", "most"),
    # The larger, the less exact. bfloat16's own rounding is 0.002.
    [
        *((torch.float32, size, 1e-5) for size in numba_tiles.SIZES[:-1]),
        (torch.float32, 7, 1e-4),
        (torch.bfloat16, 2, 0.01),
        (torch.bfloat16, 3, 0.015),
        (torch.bfloat16, 4, 0.03),
        (torch.bfloat16, 5, 0.05),
    ],
)
def test_every_size_of_tile_works(dtype: torch.dtype, size: int, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "tiling_for", lambda h, w, _: tiling.Tiling(size, -(-h // size), -(-w // size)))
    images, weight = (tensor.to(dtype) for tensor in images_and_weight(3, (64, 48), 13, 7, last=True))
    ours = gradients(images, weight, None, lambda x, w: convolution._Winograd.apply(x, w, (1, 0, 1, 1), True))
    theirs = gradients(images.double(), weight.double(), None, lambda x, w: F.conv2d(F.pad(x, (1, 0, 1, 1)), w))
    for our, their in zip(ours, theirs, strict=True):
        assert rms_error(our, their) < most


@pytest.mark.parametrize(("values", "num"), [(1, 10), (7 * 81 * 24, 2), (2**26, 1)])
def test_pieces_of_the_batch_add_up(values: int, num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, weight = (tensor.float() for tensor in images_and_weight(10, (8, 16), 7, 7, last=True))
    monkeypatch.setattr(winograd, "_PIECE", values)
    assert len(winograd.Convolution.of(images, weight, (1, 1, 1, 1))._pieces()) == num
    monkeypatch.undo()
    whole = gradients(images, weight, None, lambda x, w: convolution._Winograd.apply(x, w, (1, 1, 1, 1), True))
    monkeypatch.setattr(winograd, "_PIECE", values)
    pieces = gradients(images, weight, None, lambda x, w: convolution._Winograd.apply(x, w, (1, 1, 1, 1), True))
    for one, other in zip(pieces, whole, strict=True):
        close(one, other)


def test_only_what_is_asked_for_is_computed() -> None:
    images, weight = (tensor.float() for tensor in images_and_weight(2, (16, 16), 6, 6, last=True))
    gradient = torch.randn(2, 16, 6, 6)
    for of_images, of_weight in [(False, True), (True, False)]:
        work = winograd.Convolution.of(images, weight, (1, 1, 1, 1))
        both = work.gradients(images, gradient, of_images=of_images, of_weight=of_weight)
        assert [part is not None for part in both] == [of_images, of_weight]


@pytest.mark.parametrize(
    ("channels_in", "channels_out", "height", "width", "pays"),
    [
        (24, 64, 30, 30, True),
        (256, 256, 3, 3, True),
        (256, 256, 2, 2, True),
        (242, 242, 4, 4, True),
        # One output of a tile of four, or one channel of eight, is more work and not less.
        (256, 256, 1, 1, False),
        (3, 64, 32, 32, False),
        (64, 8, 32, 32, False),
    ],
)
def test_where_winograd_pays(channels_in: int, channels_out: int, height: int, width: int, pays: bool) -> None:
    assert tiling.pays(channels_in, channels_out, height, width) is pays


@pytest.mark.parametrize(
    ("channels", "side", "pays"), [(64, 30, True), (256, 3, True), (32, 30, False), (256, 1, False)]
)
def test_where_it_pays_in_bfloat16(channels: int, side: int, pays: bool) -> None:
    assert tiling.pays(channels, 256, side, side, torch.bfloat16) is pays


@pytest.mark.parametrize(
    ("side", "size", "in_bfloat16"),
    [
        (30, 6, 4), (15, 5, 4), (14, 7, 4), (10, 5, 5), (9, 5, 3), (8, 4, 4),
        (7, 7, 4), (6, 6, 3), (5, 5, 5), (4, 4, 4), (3, 3, 3), (2, 2, 2),
    ],
)  # fmt: skip
def test_tiles_fit_the_map(side: int, size: int, in_bfloat16: int) -> None:
    assert tiling.tiling_for(side, side).size == size
    assert tiling.tiling_for(side, side, torch.bfloat16).size == in_bfloat16


def test_bfloat16_on_amx_takes_the_packed_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AMX here: what is told of the CPU is made up, the arithmetic is not."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    took = []
    monkeypatch.setattr(convolution, "packed_gradient", lambda *given: took.append(given) or packed_gradient(*given))
    torch.manual_seed(0)
    images, weight = torch.randn(5, 8, 3, 3), torch.randn(8, 8, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(images, weight, torch.zeros(8), convolve_3x3)
        theirs = gradients(images, weight, torch.zeros(8), lambda x, w, b: F.conv2d(x, w, b, padding=1))
    assert len(took) == 1
    assert ours[0].dtype == torch.bfloat16
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == their.dtype
        torch.testing.assert_close(our, their, rtol=0.02, atol=0.05)


@pytest.mark.parametrize(
    ("dtype", "units", "width", "way"),
    [
        (torch.float32, [], 15, convolution._Winograd),
        (torch.float32, ["avx512_bf16", "amx_bf16"], 2, convolution._Winograd),
        (torch.float64, [], 7, None),
        (torch.bfloat16, [], 7, None),
        (torch.bfloat16, ["avx512_bf16"], 7, convolution._Winograd),
        (torch.bfloat16, ["avx512_bf16", "amx_bf16"], 8, convolution._Packed),
        (torch.bfloat16, ["avx512_bf16", "amx_bf16"], 9, None),
        (torch.float16, ["avx512_bf16"], 7, None),
    ],
)
def test_the_way_follows_from_dtype_device_and_shape(
    dtype: torch.dtype, units: list[str], width: int, way: type | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(units, True))
    assert convolution._way(dtype, torch.zeros(64, 64, 3, 3, requires_grad=True), width, width, int8=False) is way


def test_without_numba_it_is_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "has_numba", lambda: False)
    convolution.prepare(Conv2d(16, 16, 3), torch.device("cpu"), torch.float32)
    images, weight = (tensor.float() for tensor in images_and_weight(2, (16, 16), 6, 6, last=True))
    assert torch.equal(convolve_3x3(images, weight), F.conv2d(images, weight, padding=1))


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
    ours, theirs = Conv2d(16, 32, **settings), nn.Conv2d(16, 32, **settings)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(6, 16, 7, 6)
    for layer in (ours, theirs):
        layer(images).sin().sum().backward()
    close(ours(images), theirs(images))
    close(ours.weight.grad, theirs.weight.grad)


def test_a_gradient_of_a_gradient_is_refused() -> None:
    layer = Conv2d(16, 16, 3, padding=1)
    images = torch.randn(2, 16, 4, 4, requires_grad=True)
    (first,) = torch.autograd.grad(layer(images).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_it_compiles_whole() -> None:
    layer = Conv2d(16, 16, 3, padding=1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 16, 4, 4)
    close(compiled(images), layer(images))
    compiled(images).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("channels", [8, 40, 64])
def test_steps_from_a_single_pixel_leave_no_gradient_unwritten(channels: int) -> None:
    """The library would leave all but the middle of the weight's gradient as it found the memory."""
    torch.manual_seed(0)
    layer = Conv2d(channels, channels, 3, stride=2, padding=1, bias=False).to(memory_format=torch.channels_last)
    images = torch.randn(4, channels, 1, 1).contiguous(memory_format=torch.channels_last)
    for _ in range(5):
        layer.zero_grad()
        rubbish = [torch.full_like(layer.weight, torch.nan, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)]
        del rubbish
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = layer(images)
        assert output.shape == (4, channels, 1, 1)
        output.float().sum().backward()
        assert layer.weight.grad is not None
        beside = layer.weight.grad.clone()
        beside[:, :, 1, 1] = 0
        assert not beside.any()
        assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (64, 8, 8)])
def test_images_that_do_not_suit_the_weight_are_refused_before_any_memory_is_touched(shape: tuple[int, ...]) -> None:
    layer = convolution.Conv2d(64, 64, kernel_size=3, padding=1)
    try:
        ours = layer(torch.zeros(shape)).shape
    except RuntimeError as error:
        assert "channels" in str(error)
    else:
        assert ours == torch.nn.functional.conv2d(torch.zeros(shape), layer.weight, padding=1).shape
