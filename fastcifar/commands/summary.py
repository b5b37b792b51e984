"""`fastcifar summary`: a network's layers, parameters, FLOPs and memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from torch import nn

    from fastcifar.models.summary import Summary


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar summary`."""

    network: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK")]
    """Name of a network (speednet, resnet18, se_resnet, ...), or a recipe's name or file; a wrong one lists all."""
    classes: int = 10
    """Classes that the network tells apart."""
    size: int = 32
    """Height and width of the images, px."""
    batch: int = 1
    """Images in the batch that shapes and memory are for; parameters and FLOPs do not depend on it."""
    json: bool = False
    """Print one line of JSON instead of the table."""


def run(args: Args) -> int:
    """One row a layer, then the totals and how they are counted."""
    import json

    from fastcifar.models.summary import summarise

    summary = summarise(_network(args), size_px=args.size, batch_size=args.batch)
    if args.json:
        print(json.dumps(to_json(args, summary)))
    else:
        print(render(f"{args.network}, {args.classes} classes, {args.size}x{args.size}, batch {args.batch}", summary))
    return 0


def _network(args: Args) -> "nn.Module":
    """The network of that name, or else that of the recipe."""
    from fastcifar import config as configs
    from fastcifar import models

    if args.network in models.NAMES:
        return models.build(args.network, num_classes=args.classes)
    recipes = configs.recipe_names()
    if args.network not in recipes and not args.network.endswith(".toml"):
        networks = ", ".join(models.NAMES)
        raise ValueError(f"NETWORK: got {args.network!r}, takes one of {networks}, or a recipe: {', '.join(recipes)}")
    model = configs.load(args.network).model
    return models.build(model.name, num_classes=args.classes, widths=model.widths, dropout=model.dropout)


def to_json(args: Args, summary: "Summary") -> dict[str, object]:
    """Plain values: the settings, a list of layers, the totals."""
    from dataclasses import asdict

    return {
        "network": args.network,
        "num_classes": args.classes,
        "input_shape": list(summary.input_shape),
        "layers": [asdict(layer) for layer in summary.layers],
        "totals": {
            "parameters": summary.parameters,
            "trainable_parameters": summary.trainable_parameters,
            "flops_an_image": summary.flops,
            "input_bytes": summary.input_bytes,
            "activation_bytes": summary.activation_bytes,
            "parameter_bytes": summary.parameter_bytes,
            "total_bytes": summary.total_bytes,
        },
    }


def render(title: str, summary: "Summary") -> str:
    """The table as text: columns as wide as they need to be, whatever the terminal."""
    header = ("layer", "kind", "output shape", "parameters", "FLOPs")
    rows = [
        (layer.name, layer.kind, str(list(layer.output_shape)), f"{layer.parameters:,}", f"{layer.flops:,}")
        for layer in summary.layers
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    totals = {
        "parameters": f"{summary.parameters:,}",
        "trainable": f"{summary.trainable_parameters:,}",
        "FLOPs an image": f"{summary.flops:,}",
        "input": _mb(summary.input_bytes),
        "forward/backward": _mb(summary.activation_bytes),
        "parameter memory": _mb(summary.parameter_bytes),
        "total": _mb(summary.total_bytes),
    }
    wide = max(map(len, totals.values()))
    return "\n".join(
        [
            title,
            rule,
            _line(header, widths),
            rule,
            *(_line(row, widths) for row in rows),
            rule,
            *(f"{name:<17} {value:>{wide}}" for name, value in totals.items()),
            "",
            "FLOPs: multiply-adds of convolutions and linear layers x 2, forward, of one image.",
            "Forward/backward: the output of every row above, twice (value and gradient), in float32; ReLU, addition",
            "and averaging happen between rows and are not counted (torchsummary's definition). 1 MB is 2^20 bytes.",
        ]
    )


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    texts = [f"{cell:<{width}}" for cell, width in zip(cells[:3], widths[:3], strict=True)]
    numbers = [f"{cell:>{width}}" for cell, width in zip(cells[3:], widths[3:], strict=True)]
    return "  ".join([*texts, *numbers])


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.2f} MB"
