"""The networks, by name: `build("resnet4m", num_classes=10)`."""

import dataclasses
from typing import TYPE_CHECKING

from fastcifar.models.specification import ResNetSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

# The networks of the five systems that fastcifar replaces; resnet18 is the teacher that one of them distilled from.
RESNETS = {
    "resnet4m": ResNetSpec((64, 128, 242, 256), (2, 2, 2, 2)),
    "preact_resnet4m": ResNetSpec((64, 128, 242, 256), (2, 2, 2, 2), block="preactivation"),
    "resnet18": ResNetSpec((64, 128, 256, 512), (2, 2, 2, 2)),
    "resnet18_pool5": ResNetSpec((64, 128, 256, 242), (2, 2, 2, 2), bias=True, pool_kernel=5, pool_stride=3),
    "resnet18_stem7": ResNetSpec(
        (64, 128, 256, 242), (2, 2, 2, 2), bias=True, stem_kernel=7, pool_kernel=3, pool_stride=2
    ),
    "resnet18_dropout": ResNetSpec((64, 128, 244, 256), (2, 2, 2, 2), stem_stride=2, dropout=0.1),
    "resnet_2111": ResNetSpec((64, 128, 256, 512), (2, 1, 1, 1)),
    "modified_resnet": ResNetSpec((64, 128, 256), (2, 2, 2)),
    "efficient_resnet": ResNetSpec((64, 128, 256), (4, 4, 3)),
    "se_resnet": ResNetSpec((64, 128, 256), (4, 4, 3), attention_ratio=16),
    # Its dropout rate was not published: 0.1 is that of resnet18_dropout.
    "sweep_resnet": ResNetSpec(
        (64, 128, 256), (3, 5, 3), shortcut="first", dropout=0.1, dropout_after="norm", stem_width=16
    ),
}
NAMES = ("speednet", *RESNETS)


def build(
    name: str,
    *,
    num_classes: int,
    widths: tuple[int, ...] = (),
    dropout: float | None = None,
    int8: bool = False,
    max_parameters: int = 0,
) -> "nn.Module":
    """A freshly initialised network for float images [n, 3, h, w], giving logits [n, num_classes].

    `widths` are the channels of each stage, `dropout` the rate of a network that has dropout; empty and None take the
    network's own. `int8`: have its 3x3 convolutions' products made of 8 bits where that is faster. Raises `ValueError`
    for an unknown name, no classes, another number of widths than the network has stages, a dropout rate where there is
    no dropout, and a network of `max_parameters` parameters or more (0: no limit).
    """
    if name not in NAMES:
        raise ValueError(f"model.name: got {name!r}, takes one of: {', '.join(NAMES)}")
    if num_classes < 1:
        raise ValueError(f"num_classes: got {num_classes}, takes a whole number above 0")
    if any(width < 1 for width in widths):
        raise ValueError(f"model.widths: got {list(widths)}, takes whole numbers above 0")
    if dropout is not None and (name not in RESNETS or not RESNETS[name].dropout):
        raise ValueError(f"model.dropout: got {dropout}, {name} has no dropout")
    if max_parameters:
        import torch

        with torch.device("meta"):  # what is too large may not fit into memory either
            num = num_parameters(_network(name, num_classes, widths, dropout))
        if num >= max_parameters:
            raise ValueError(
                f"model: {name} has {num:,} parameters, model.max_parameters takes under {max_parameters:,}"
            )
    network = _network(name, num_classes, widths, dropout)
    _set_int8(network, int8)
    return network


def prepare(network: "nn.Module", device: "torch.device", dtype: "torch.dtype") -> None:
    """Have the compiled code for training the network ready, which otherwise its first step waits for."""
    from fastcifar.models import activation, convolution
    from fastcifar.models.speednet import SpeedNet

    convolution.prepare(network, device, dtype)
    if isinstance(network, SpeedNet):
        activation.prepare(device, dtype)


def arithmetic(network: "nn.Module", device: "torch.device", dtype: "torch.dtype", *, compiled: bool = False) -> str:
    """What the network computes in, in words: bfloat16, say, or "bfloat16 with int8 products"."""
    from fastcifar.models import convolution

    name, int8 = (
        str(dtype).removeprefix("torch."),
        not compiled and convolution.network_takes_int8(network, device, dtype),
    )
    return f"{name} with int8 products" if int8 else name


def check_side(network: "nn.Module", side: int) -> None:
    """Raise `ValueError` where square images of `side` pixels are too small for the network: a map would be empty."""
    import copy

    import torch

    try:
        with torch.no_grad():
            copy.deepcopy(network).to("meta").eval()(torch.empty(1, 3, side, side, device="meta"))
    except RuntimeError:
        raise ValueError(f"{side} pixels are too few for this network") from None


def num_parameters(network: "nn.Module") -> int:
    """All parameters, frozen ones too; buffers (running statistics) do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def _set_int8(network: "nn.Module", int8: bool) -> None:
    from fastcifar.models.convolution import Conv2d

    for module in network.modules():
        if isinstance(module, Conv2d):
            module.int8 = int8


def _network(name: str, num_classes: int, widths: tuple[int, ...], dropout: float | None) -> "nn.Module":
    from fastcifar.models.resnet import ResNet
    from fastcifar.models.speednet import SpeedNet

    if name not in RESNETS:
        return SpeedNet(num_classes, widths) if widths else SpeedNet(num_classes)
    spec = RESNETS[name]
    if widths:
        if len(widths) != len(spec.blocks):
            raise ValueError(f"model.widths: got {list(widths)}, {name} takes {len(spec.blocks)} of them")
        spec = dataclasses.replace(spec, widths=tuple(widths))
    if dropout is not None:
        spec = dataclasses.replace(spec, dropout=dropout)
    return ResNet(spec, num_classes)
