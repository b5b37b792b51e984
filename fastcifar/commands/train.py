"""`fastcifar train`: one run by a recipe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar train`."""

    recipe: str = "speedrun"
    """Name of a recipe (`fastcifar recipes`) or path of a TOML file."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """section.key=value on top of the recipe; may be given again and again."""
    data: Path | None = None
    """CIFAR folder or .tar.gz."""
    dataset: str | None = None
    """cifar10, cifar100, shapes10 or auto."""
    pipeline: str | None = None
    """resident, ffcv, dali or torchvision."""
    seed: int | None = None
    """Fixes initial weights, order and augmentation."""
    out: Path | None = None
    """The run's folder; a new one under ./runs by default."""
    resume: Path | None = None
    """Folder of a run that stopped: go on from its checkpoint, with its configuration."""


def settings(args: Args) -> list[str]:
    """The command line's shorthands and --set, as settings; --set has the last word."""
    shorthands = {
        "data.path": args.data and f"'{args.data}'",
        "data.dataset": args.dataset,
        "pipeline.name": args.pipeline,
        "seed": args.seed,
    }
    return [f"{key}={value}" for key, value in shorthands.items() if value is not None] + list(args.set)


def run(args: Args) -> int:
    """Train, evaluate, print the card."""
    import json

    from fastcifar import config as configs
    from fastcifar.report.card import render
    from fastcifar.report.progress import Reporter
    from fastcifar.report.run_folder import RunFolder
    from fastcifar.training.clock import Clock
    from fastcifar.training.run import run as train
    from fastcifar.training.session import find_data, resolve

    clock = Clock()
    resume = args.resume is not None
    if args.resume is not None:
        if settings(args) or args.out is not None:
            raise ValueError("--resume: goes on with the run's own configuration, takes no other setting beside it")
        folder = RunFolder.open(args.resume)
        config = folder.read_config()
    else:
        config = configs.load(args.recipe, settings(args))
    with Reporter() as reporter:
        source = find_data(config.data, clock, reporter)
        if not resume:
            config = resolve(config, source)
            folder = RunFolder.create(args.out, config)
        card = train(config, source, folder, clock, reporter, resume=resume)
        reporter.console.print(render(card))
    print(json.dumps(card.to_json()))
    return 0
