"""The networks, by name: `build("speednet", num_classes=10)`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

NAMES = ("speednet",)


def build(name: str, *, num_classes: int, widths: tuple[int, ...] = (), max_parameters: int = 0) -> "nn.Module":
    """A freshly initialised network for float images [n, 3, h, w], giving logits [n, num_classes].

    `widths` empty takes the network's own. Raises `ValueError` for an unknown name, and for a network of
    `max_parameters` parameters or more (0: no limit).
    """
    if name not in NAMES:
        raise ValueError(f"model.name: got {name!r}, takes one of: {', '.join(NAMES)}")
    from fastcifar.models.speednet import SpeedNet

    network = SpeedNet(num_classes, widths) if widths else SpeedNet(num_classes)
    num = num_parameters(network)
    if max_parameters and num >= max_parameters:
        raise ValueError(f"model: {name} has {num:,} parameters, model.max_parameters takes under {max_parameters:,}")
    return network


def num_parameters(network: "nn.Module") -> int:
    """All parameters, frozen ones too; buffers (running statistics) do not count."""
    return sum(parameter.numel() for parameter in network.parameters())
