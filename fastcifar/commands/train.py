"""`fastcifar train`: one run by a recipe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastcifar.commands import Option


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar train`."""

    recipe: Annotated[Option[str], tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE]")] = None
    """Name of a recipe (`fastcifar recipes`) or path of a TOML file; speedrun by default."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """section.key=value on top of the recipe; may be given again and again."""
    data: Option[Path] = None
    """CIFAR folder, its .tar.gz or a folder with one; else the recipe's, $FASTCIFAR_DATA, ./data, cache, a download."""
    dataset: Option[str] = None
    """cifar10, cifar100, shapes10 or auto; by default the recipe's own."""
    pipeline: Option[str] = None
    """resident, ffcv, dali or torchvision; by default the recipe's own."""
    seed: Option[int] = None
    """Fixes initial weights, order, augmentation, dropout, and the images held out; by default the recipe's."""
    start_from: Annotated[Option[Path], tyro.conf.arg(name="from")] = None
    """Folder of a run whose weights training starts from (fine-tuning)."""
    on_nonfinite: Option[Literal["stop", "skip"]] = None
    """What a loss that is not finite does: stop the run, or skip the step and be counted; by default the recipe's."""
    out: Option[Path] = None
    """The run's folder; a new one under ./runs by default."""
    track: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """tensorboard or wandb, beside the JSON lines; may be given again."""
    pictures: bool = True
    """Draw curves, confusion matrix, predictions and augmentation into the run folder."""
    resume: Option[Path] = None
    """Folder of a run that stopped: go on from its last checkpoint. Only threads and the data's place may change."""


# What a resumed run may have another of: these change where and how fast it computes, not what.
MAY_CHANGE = ("train.threads", "data.path")


def settings(args: Args) -> list[str]:
    """The command line's shorthands and --set, as settings; --set has the last word."""
    from fastcifar.config import quoted

    shorthands = {
        "data.path": args.data and quoted(args.data),
        "data.dataset": args.dataset,
        "pipeline.name": args.pipeline,
        "seed": args.seed,
        "train.start_from": args.start_from and quoted(args.start_from),
        "train.on_nonfinite": args.on_nonfinite,
    }
    return [f"{key}={value}" for key, value in shorthands.items() if value is not None] + list(args.set)


def run(args: Args) -> int:
    """Train, evaluate, print the card."""
    import json

    from fastcifar import config as configs
    from fastcifar.evaluation.results import draw_if_possible
    from fastcifar.report.card import Card, render
    from fastcifar.report.progress import Reporter
    from fastcifar.report.run_folder import RunFolder
    from fastcifar.report.tracking import trackers
    from fastcifar.training import distributed
    from fastcifar.training.clock import Clock
    from fastcifar.training.run import run as train
    from fastcifar.training.session import find_data, resolve

    clock = Clock()
    distributed.join()
    resume = args.resume is not None
    if args.resume is not None:
        if args.out is not None or args.recipe is not None:
            raise ValueError("--resume: goes on in the run's own folder by its own recipe, takes no other")
        folder = RunFolder.open(distributed.own_folder(args.resume, goes_on=True), claim=True)
        config = folder.read_config(settings(args))
        changed = [
            sentence
            for name, sentence in configs.differences(folder.read_config(), config).items()
            if name not in MAY_CHANGE
        ]
        if changed:
            raise ValueError(f"--resume: the run has another configuration: {'; '.join(changed)}")
        if (kept := Card.of(folder)) is not None:
            # The test set is read once: what a finished run has written stays as it is.
            reporter = Reporter()
            reporter.line(f"{folder.path}: is finished, nothing is left to do")
            reporter.console.print(render(kept))
            print(json.dumps(kept.to_json()))
            return 0
    else:
        config = configs.load(args.recipe or "speedrun", settings(args))
    # What is wrong or missing is said before anything is computed.
    distributed.check_batch_size(config.pipeline.batch_size)
    trackers(args.track)
    with Reporter() as reporter:
        source = find_data(config.data, clock, reporter)
        if not resume:
            config = resolve(config, source)
            folder = RunFolder.create(distributed.own_folder(args.out), config)
        listeners = trackers(args.track, reporter.line) if distributed.is_first() else []
        card = train(config, source, folder, clock, reporter, resume=resume, listeners=listeners)
        reporter.console.print(render(card))
        if args.pictures and distributed.is_first():
            draw_if_possible(folder, source, reporter)
    print(json.dumps(card.to_json()))
    return 0
