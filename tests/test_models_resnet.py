"""The residual networks: known to the parameter and the shape, and built as their papers and their tables say."""

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock as TorchvisionBlock
from torchvision.models.resnet import ResNet as TorchvisionResNet

from fastcifar import models
from fastcifar.models.resnet import ResNet

PUBLISHED = {
    "resnet4m": 4_962_922,
    "resnet18": 11_173_962,
    "resnet18_pool5": 4_984_152,
    "resnet18_stem7": 4_991_832,
    "resnet18_dropout": 4_996_866,
    "resnet_2111": 4_977_226,
    "modified_resnet": 2_777_674,
    "efficient_resnet": 4_697_162,
    "se_resnet": 4_697_742,
    "sweep_resnet": 4_934_746,
}
# Channels and side of the map that enters the first stage, then of what each stage returns, at 32x32.
SHAPES = {
    "resnet4m": [(64, 32), (64, 32), (128, 16), (242, 8), (256, 4)],
    "preact_resnet4m": [(64, 32), (64, 32), (128, 16), (242, 8), (256, 4)],
    "resnet18": [(64, 32), (64, 32), (128, 16), (256, 8), (512, 4)],
    "resnet18_pool5": [(64, 10), (64, 10), (128, 5), (256, 3), (242, 2)],
    "resnet18_stem7": [(64, 13), (64, 13), (128, 7), (256, 4), (242, 2)],
    "resnet18_dropout": [(64, 16), (64, 16), (128, 8), (244, 4), (256, 2)],
    "resnet_2111": [(64, 32), (64, 32), (128, 16), (256, 8), (512, 4)],
    "modified_resnet": [(64, 32), (64, 32), (128, 16), (256, 8)],
    "efficient_resnet": [(64, 32), (64, 32), (128, 16), (256, 8)],
    "se_resnet": [(64, 32), (64, 32), (128, 16), (256, 8)],
    "sweep_resnet": [(16, 32), (64, 32), (128, 16), (256, 8)],
}
NAMES = list(models.RESNETS)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Networks this small spend more time on waking threads than on work, the more so where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def valueless(name: str, num_classes: int = 10, max_parameters: int = 0) -> ResNet:
    """The network on the meta device: shapes alone, no time spent on drawing and multiplying values."""
    with torch.device("meta"):
        network = models.build(name, num_classes=num_classes, max_parameters=max_parameters)
    assert isinstance(network, ResNet)
    return network


def narrow(name: str, num_classes: int = 10) -> ResNet:
    """The network with few channels: all of its paths, little of its work."""
    widths = tuple(8 * (stage + 1) for stage in range(len(models.RESNETS[name].widths)))
    network = models.build(name, num_classes=num_classes, widths=widths)
    assert isinstance(network, ResNet)
    return network


def shake_norms(network: nn.Module) -> None:
    """Give every BN scales, shifts and statistics that a mistake in its place would show."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_parameters(name: str) -> None:
    assert models.num_parameters(valueless(name)) == PUBLISHED[name]


def test_preactivation_costs_the_norms_that_move() -> None:
    # Of resnet4m's BNs, those of the stem (64) and of the three shortcuts (128, 242, 256) go, the last one (256)
    # comes, and the first in each stage normalises what enters (64, 64, 128, 242), not what leaves.
    norms = -64 - (128 + 242 + 256) + 256 + (64 + 64 + 128 + 242) - (64 + 128 + 242 + 256)
    network = valueless("preact_resnet4m")
    assert models.num_parameters(network) == PUBLISHED["resnet4m"] + 2 * norms == 4_961_670


def test_every_network_of_the_table_is_tested() -> None:
    assert set(NAMES) == {*PUBLISHED, "preact_resnet4m"} == set(SHAPES)
    assert set(models.NAMES) == {"speednet", *NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_stages_have_their_shapes(name: str) -> None:
    network = valueless(name).eval()
    shapes: list[tuple[int, ...]] = []
    network.stages.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    for stage in network.stages:
        stage.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    logits = network(torch.empty(2, 3, 32, 32, device="meta"))
    assert shapes == [(2, channels, side, side) for channels, side in SHAPES[name]]
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [2, 100])
def test_classes_change_the_head_alone(name: str, num_classes: int) -> None:
    network = valueless(name, num_classes)
    ten = models.num_parameters(valueless(name))
    assert models.num_parameters(network) == ten + (num_classes - 10) * (models.RESNETS[name].widths[-1] + 1)
    for height, width in [(28, 28), (32, 48), (64, 64), (96, 96)]:
        assert network(torch.empty(2, 3, height, width, device="meta")).shape == (2, num_classes)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_under_autocast_and_channels_last(name: str) -> None:
    torch.manual_seed(0)
    network = narrow(name).to(memory_format=torch.channels_last)
    if network.attention is not None:
        # So narrow, it has a single hidden unit, which may start below zero and then learns nothing.
        nn.init.ones_(network.attention.squeeze.bias)
    images = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    layouts: list[bool] = []
    for stage in network.stages:
        stage.register_forward_hook(
            lambda module, args, output: layouts.append(output.is_contiguous(memory_format=torch.channels_last))
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(images)
        loss = F.cross_entropy(logits, torch.tensor([0, 1, 2, 3]))
    assert logits.dtype == torch.bfloat16
    assert all(layouts)
    loss.backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        # BN takes a bias before it away again: its gradient is zero but for rounding.
        if not parameter_name.endswith("conv.bias"):
            assert parameter.grad.count_nonzero(), parameter_name


def test_plain_networks_are_torchvisions() -> None:
    """Blocks, strides, shortcuts and BN against an implementation of others, weights carried over in order."""
    theirs = TorchvisionResNet(TorchvisionBlock, [2, 2, 2, 2], num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    ours = models.build("resnet18", num_classes=10)
    shake_norms(ours)
    state = dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", [0, 1])
def test_the_sweeps_first_blocks_shortcut_reads_what_the_first_convolution_gave(stage: int) -> None:
    network = narrow("sweep_resnet").eval()
    shake_norms(network)
    block, after = network.stages[stage][0], network.stages[stage][1]
    channels_out, channels_in = block.first.conv.weight.shape[:2]
    assert block.shortcut.conv.weight.shape == (channels_out, channels_out, 1, 1)
    x = torch.randn(2, channels_in, 8, 8)
    with torch.no_grad():
        middle = F.relu(block.first.norm(F.conv2d(x, block.first.conv.weight, stride=stage + 1, padding=1)))
        second = block.second.norm(F.conv2d(middle, block.second.conv.weight, padding=1))
        shortcut = block.shortcut.norm(F.conv2d(middle, block.shortcut.conv.weight))
        torch.testing.assert_close(block(x), F.relu(second + shortcut))
        x = torch.randn(2, channels_out, 8, 8)
        torch.testing.assert_close(after(x), F.relu(after.second(F.relu(after.first(x))) + x))


def test_the_sweeps_parameters_are_those_of_its_derivation() -> None:
    network = valueless("sweep_resnet")
    assert [models.num_parameters(stage) for stage in network.stages] == [198_528, 1_420_032, 3_313_152]
    assert models.num_parameters(network.conv) + models.num_parameters(network.norm) == 464


def test_dropout_comes_after_the_convolution_or_after_its_norm() -> None:
    x = torch.randn(2, 8, 8, 8)
    for name, index, expected in [("resnet18_dropout", 1, "shift"), ("sweep_resnet", 1, "nothing")]:
        network = narrow(name)
        drops = [module for module in network.modules() if isinstance(module, nn.Dropout)]
        assert len(drops) == 2 * sum(models.RESNETS[name].blocks)
        assert {drop.p for drop in drops} == {0.1}
        block = network.stages[0][index]
        block.second.dropout.p = 1.0
        shift_c = nn.init.normal_(block.second.norm.bias.data)
        # BN turns zeros into its shift; dropout after BN takes the shift, too.
        branch = shift_c[:, None, None] if expected == "shift" else 0.0
        torch.testing.assert_close(block(x), F.relu(x + branch))


def test_evaluation_drops_nothing() -> None:
    network = narrow("resnet18_dropout").eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(images), network(images))
        assert not torch.equal(network.train()(images), network(images))


def test_preactivation_leaves_the_sum_alone() -> None:
    network = narrow("preact_resnet4m").eval()
    shake_norms(network)
    plain, widening = network.stages[0][1], network.stages[1][0]
    x = torch.randn(2, 8, 8, 8)

    def branch(block: nn.Module, x: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        activated = F.relu(block.norm1(x))
        middle = F.relu(block.norm2(F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)))
        return activated, F.conv2d(middle, block.conv2.weight, padding=1)

    with torch.no_grad():
        torch.testing.assert_close(plain(x), branch(plain, x, 1)[1] + x)
        activated, out = branch(widening, x, 2)
        torch.testing.assert_close(widening(x), out + F.conv2d(activated, widening.project.weight, stride=2))
        images = torch.randn(2, 3, 16, 16)
        last = F.relu(network.last_norm(network.stages(F.conv2d(images, network.conv.weight, padding=1))))
        torch.testing.assert_close(network(images), network.head(last.mean((2, 3))))


def test_attention_scales_the_stems_channels() -> None:
    network = models.build("se_resnet", num_classes=10).eval()
    gate = network.attention
    assert models.num_parameters(gate) == (64 * 4 + 4) + (4 * 64 + 64)
    x = torch.randn(2, 64, 4, 4)
    entered: list[Tensor] = []
    network.stages = nn.Sequential(nn.MaxPool2d(32), nn.Conv2d(64, 256, 1))
    network.stages.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    with torch.no_grad():
        hidden = F.relu(x.mean((2, 3)) @ gate.squeeze.weight.T + gate.squeeze.bias)
        gates = torch.sigmoid(hidden @ gate.excite.weight.T + gate.excite.bias)
        torch.testing.assert_close(gate(x), torch.einsum("nchw,nc->nchw", x, gates))
        images = torch.randn(2, 3, 32, 32)
        network(images)
        torch.testing.assert_close(entered[0], gate(F.relu(network.norm(network.conv(images)))))


@pytest.mark.parametrize("name", ["resnet18_pool5", "resnet18_stem7"])
def test_every_convolution_of_the_biased_networks_has_a_bias(name: str) -> None:
    convolutions = [module for module in narrow(name).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 1 + 16 + 3
    assert all(convolution.bias is not None for convolution in convolutions)


@pytest.mark.parametrize("name", ["resnet18_stem7", "preact_resnet4m"])
def test_weights_start_as_he_et_al_say(name: str) -> None:
    torch.manual_seed(0)
    for module in models.build(name, num_classes=10).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            expected = math.sqrt(2 / fan_out)
            error = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=error)
            assert module.bias is None or not module.bias.count_nonzero()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_widths_replace_the_stages_channels() -> None:
    network = models.build("modified_resnet", num_classes=10, widths=(8, 24, 16))
    assert [stage[-1].second.conv.out_channels for stage in network.stages] == [8, 24, 16]
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert models.build("sweep_resnet", num_classes=10, widths=(8, 8, 8)).conv.out_channels == 16


@pytest.mark.parametrize(
    ("name", "widths", "message"),
    [
        ("resnet4m", (64, 128, 242), r"model.widths: got \[64, 128, 242\], resnet4m takes 4"),
        ("se_resnet", (64, 128, 256, 512), r"se_resnet takes 3"),
        ("speednet", (64, 128), r"speednet takes three"),
        ("resnet4m", (64, 0, 242, 256), r"model.widths: got .* takes whole numbers above 0"),
    ],
)
def test_widths_that_a_network_has_no_stages_for_are_an_error(name: str, widths: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(name, num_classes=10, widths=widths)


def test_a_network_without_classes_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_classes: got 0"):
        models.build("resnet4m", num_classes=0)


def test_the_teacher_is_over_the_budget() -> None:
    with pytest.raises(ValueError, match="resnet18 has 11,173,962 parameters"):
        valueless("resnet18", max_parameters=5_000_000)
    for name in set(NAMES) - {"resnet18"}:
        valueless(name, max_parameters=5_000_000)


def test_specifications_that_no_block_follows_are_refused() -> None:
    with pytest.raises(AssertionError):
        dataclasses.replace(models.RESNETS["preact_resnet4m"], dropout=0.1)
