"""`fastcifar summary`: the table that one of the teams made by hand, and its totals."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar import models
from fastcifar.cli import main
from fastcifar.models.summary import summarise


def totals(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, str]:
    assert main(["summary", *args]) == 0
    lines = [line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines()]
    return {line[0].strip(): line[1].strip() for line in lines if len(line) == 2}


def test_modified_resnet_has_the_published_summary(capsys: pytest.CaptureFixture[str]) -> None:
    printed = totals(capsys, "modified_resnet")
    assert printed["parameters"] == printed["trainable"] == "2,777,674"
    assert printed["forward/backward"] == "10.50 MB"
    assert printed["parameter memory"] == "10.60 MB"
    assert printed["total"] == "21.11 MB"


def test_a_recipe_stands_for_its_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert totals(capsys, "speedrun")["parameters"] == totals(capsys, "speednet")["parameters"]
    assert totals(capsys, "speedrun-95")["parameters"] == "4,606,520"
    (tmp_path / "mine.toml").write_text('name = "mine"\n[model]\nwidths = [8, 16, 16]\n')
    mine = models.build("speednet", num_classes=10, widths=(8, 16, 16))
    assert totals(capsys, str(tmp_path / "mine.toml"))["parameters"] == f"{models.num_parameters(mine):,}"


@pytest.mark.parametrize("name", models.NAMES)
def test_rows_add_up_to_the_totals(name: str) -> None:
    with torch.device("meta"):
        network = models.build(name, num_classes=10)
    summary = summarise(network)
    assert sum(layer.parameters for layer in summary.layers) == summary.parameters == models.num_parameters(network)
    assert sum(layer.flops for layer in summary.layers) == summary.flops
    assert summary.layers[-1].name == "head"
    assert summary.layers[-1].output_shape == (1, 10)


def test_rows_are_the_layers_in_order() -> None:
    layers = summarise(models.build("resnet18_pool5", num_classes=10), batch_size=4).layers
    assert [(layer.name, layer.output_shape) for layer in layers[:3]] == [
        ("conv", (4, 64, 32, 32)),
        ("norm", (4, 64, 32, 32)),
        ("pool", (4, 64, 10, 10)),
    ]
    assert [layer.parameters for layer in layers[:3]] == [3 * 9 * 64 + 64, 128, 0]
    assert [layer.flops for layer in layers[:3]] == [2 * 3 * 9 * 64 * 32 * 32, 0, 0]


def test_flops_are_twice_the_multiply_adds() -> None:
    # ResNet-18 for CIFAR: stem, sixteen 3x3 convolutions (the first of a widening stage does half), three 1x1, head.
    stem = 27 * 64 * 32**2
    full = 9 * 64 * 64 * 32**2
    multiply_adds = stem + 13 * full + 3 * full // 2 + 3 * (64 * 128 * 16**2) + 512 * 10
    assert summarise(models.build("resnet18", num_classes=10)).flops == 2 * multiply_adds == 1_110_845_440


def test_convolutions_called_as_functions_count() -> None:
    layers = {layer.name: layer for layer in summarise(models.build("speednet", num_classes=10)).layers}
    assert "stages.0.conv1" not in layers
    assert layers["stages.0"].parameters == 24 * 64 * 9
    # 31x31 in, no row and no column of padding on the far side: 30x30 out, pooled afterwards.
    assert layers["stages.0"].flops == 2 * 24 * 64 * 9 * 30 * 30


def test_a_layer_called_twice_has_two_rows_and_one_set_of_parameters() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.scale = nn.Parameter(torch.ones(3, 1, 1), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(self.conv(x))) * self.scale

    summary = summarise(Twice(), size_px=8, batch_size=2)
    assert [(layer.name, layer.parameters) for layer in summary.layers] == [("conv", 12), ("conv", 0), ("(network)", 3)]
    assert summary.parameters == 15
    assert summary.trainable_parameters == 12
    assert summary.flops == 2 * 2 * 9 * 64
    assert summary.activation_bytes == 3 * 2 * 4 * (2 * 3 * 64)


def test_the_batch_scales_memory_alone() -> None:
    network = models.build("se_resnet", num_classes=10)
    one, many = summarise(network), summarise(network, batch_size=128)
    assert many.activation_bytes == 128 * one.activation_bytes
    assert many.input_bytes == 128 * one.input_bytes == 128 * 3 * 32 * 32 * 4
    assert (many.flops, many.parameter_bytes) == (one.flops, one.parameter_bytes)
    assert many.total_bytes == many.input_bytes + many.activation_bytes + many.parameter_bytes


def test_the_network_stays_as_it_is() -> None:
    network = models.build("modified_resnet", num_classes=10, widths=(8, 8, 8))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    summarise(network)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_json_says_what_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "sweep_resnet", "--classes", "100", "--size", "64", "--batch", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["network"] == "sweep_resnet"
    assert result["num_classes"] == 100
    assert result["input_shape"] == [2, 3, 64, 64]
    assert result["layers"][0] == {
        "name": "conv",
        "kind": "Conv2d",
        "output_shape": [2, 16, 64, 64],
        "parameters": 432,
        "flops": 2 * 432 * 64 * 64,
    }
    assert result["totals"]["parameters"] == 4_934_746 + 90 * 257
    printed = totals(capsys, "sweep_resnet", "--classes", "100", "--size", "64", "--batch", "2")
    assert printed["FLOPs an image"] == f"{result['totals']['flops_an_image']:,}"
    assert printed["total"] == f"{result['totals']['total_bytes'] / 2**20:.2f} MB"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["resnet9000"], "NETWORK: got 'resnet9000', takes one of speednet, "),
        (["resnet4m", "--size", "0"], "size: got 0, takes a whole number above 0"),
        (["resnet4m", "--batch", "-1"], "batch: got -1, takes a whole number above 0"),
        (["resnet4m", "--classes", "0"], "num_classes: got 0"),
        (["resnet18_pool5", "--size", "4"], "size: got 4, which the network cannot take"),
    ],
)
def test_a_wrong_setting_is_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", *args]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""
