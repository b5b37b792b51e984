"""Networks have the parameters and shapes they are known by."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from fastcifar import models
from fastcifar.kernels import products
from fastcifar.models.convolution import Conv2d


def test_the_speedrun_network_is_known_to_the_parameter() -> None:
    network = models.build("speednet", num_classes=10, max_parameters=5_000_000)
    assert models.num_parameters(network) == 1_972_792
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("size", [24, 27, 30, 32])
def test_leaving_out_what_pooling_drops_changes_nothing(size: int) -> None:
    # In float64 all convolutions are the library's: what is left out must not hide behind another way's rounding.
    network = models.build("speednet", num_classes=7).double()
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    x = F.gelu(network.whiten(images))
    for stage in network.stages:
        x = F.gelu(stage.norm1(F.max_pool2d(stage.conv1(x), 2)))
        x = F.gelu(x + stage.norm2(stage.conv2(x)))
    expected = network.head(x.amax((2, 3))) / network.head.in_features
    torch.testing.assert_close(network(images), expected)


def test_whitening_makes_patches_white() -> None:
    # Neighbouring pixels and channels of these images are correlated, as natural images' are.
    noise = torch.randn(500, 3, 17, 17)
    images = 0.3 * noise + F.avg_pool2d(noise, 3, stride=1, padding=1) + noise.mean(1, keepdim=True)
    network = models.build("speednet", num_classes=10)
    network.init_whiten(images, eps=0.0)
    with torch.no_grad():
        out = F.conv2d(images, network.whiten.weight[:12])
        covariance = torch.einsum("nchw,ndhw->cd", out, out) / (out.shape[0] * out.shape[2] * out.shape[3])
    torch.testing.assert_close(covariance, torch.eye(12), atol=1e-3, rtol=0)
    torch.testing.assert_close(network.whiten.weight[12:], -network.whiten.weight[:12])


@pytest.mark.parametrize(("name", "least"), [("speednet", 9), ("resnet4m", 1), ("resnet18_pool5", 5)])
def test_images_too_small_for_a_network_are_refused(name: str, least: int) -> None:
    network = models.build(name, num_classes=10, widths=(8, 8, 8) if name == "speednet" else (8, 8, 8, 8))
    models.check_side(network, least)
    network(torch.randn(2, 3, least + 1, least + 1))
    if least > 1:
        with pytest.raises(ValueError, match=f"{least - 1} pixels are too few"):
            models.check_side(network, least - 1)


def test_a_frozen_stem_is_compiled_away() -> None:
    network = models.build("speednet", num_classes=10, widths=(8, 8, 8))
    seen = CompileCounter()
    compiled = torch.compile(network, backend=seen, dynamic=False)
    images = torch.randn(2, 3, 16, 16)
    compiled(images).sum().backward()
    assert network.whiten.bias.grad is not None
    network.whiten.bias.grad, network.stem_trains = None, False
    compiled(images).sum().backward()
    assert network.whiten.bias.grad is None
    assert network.stages[0].conv1.weight.grad is not None
    assert seen.frame_count == 2


def test_a_network_over_the_budget_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"speednet has 1,972,792 parameters, model.max_parameters takes under 1,972,792"
    ):
        models.build("speednet", num_classes=10, max_parameters=1_972_792)


def test_what_is_too_large_is_refused_before_there_is_memory_for_it() -> None:
    with pytest.raises(ValueError, match=r"parameters, model.max_parameters takes under 5,000,000"):
        models.build("speednet", num_classes=10, widths=(64, 10**6, 10**6), max_parameters=5_000_000)


def test_counting_parameters_draws_no_random_number() -> None:
    """Or the seed would give other weights where there is a limit."""
    weights = []
    for max_parameters in (0, 5_000_000):
        torch.manual_seed(3)
        network = models.build("speednet", num_classes=10, max_parameters=max_parameters)
        weights.append(torch.cat([value.flatten() for value in network.state_dict().values()]))
    assert torch.equal(*weights)


def test_an_unknown_network_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="speednet"):
        models.build("resnet9000", num_classes=10)


def test_int8_is_for_every_convolution_of_a_network_or_for_none() -> None:
    for name in ("speednet", "resnet_2111"):
        for int8 in (False, True):
            network = models.build(name, num_classes=10, int8=int8)
            layers = [module for module in network.modules() if isinstance(module, Conv2d)]
            assert len(layers) > 4
            assert {layer.int8 for layer in copy.deepcopy(layers)} == {int8}


@pytest.mark.skipif(not products.HAS_UNITS, reason="takes a CPU with VNNI and bfloat16 units (AVX-512)")
def test_a_networks_step_with_products_of_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss and gradients are near those without, and it is another way that they come about."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    torch.manual_seed(0)
    images, labels = torch.randn(16, 3, 20, 20), torch.arange(16) % 10
    found = {}
    for int8 in (False, True):
        torch.manual_seed(1)
        network = models.build("speednet", num_classes=10, int8=int8).to(memory_format=torch.channels_last)
        models.prepare(network, torch.device("cpu"), torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        found[int8] = loss.item(), torch.cat(gradients)
        wanted = "bfloat16 with int8 products" if int8 else "bfloat16"
        assert models.arithmetic(network, torch.device("cpu"), torch.bfloat16) == wanted
        assert models.arithmetic(network, torch.device("cpu"), torch.bfloat16, compiled=True) == "bfloat16"
        assert models.arithmetic(network, torch.device("cpu"), torch.float32) == "float32"
        assert models.arithmetic(network, torch.device("cuda"), torch.bfloat16) == "bfloat16"
    assert found[True][0] == pytest.approx(found[False][0], abs=0.05)
    assert found[True][0] != found[False][0]
    assert F.cosine_similarity(found[True][1], found[False][1], dim=0) > 0.85


def test_channels_that_8_bits_do_not_take_are_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    network = models.build("speednet", num_classes=10, widths=(8, 16, 16), int8=True)
    assert models.arithmetic(network, torch.device("cpu"), torch.bfloat16) == "bfloat16"
