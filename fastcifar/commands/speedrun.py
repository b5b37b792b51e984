"""`fastcifar speedrun`: the main job, from data to result card."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fastcifar.commands import Option

if TYPE_CHECKING:
    from fastcifar.schema import Config


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar speedrun`."""

    data: Option[Path] = None
    """CIFAR folder, its .tar.gz, or a folder that holds one; else $FASTCIFAR_DATA, ./data, the cache, a download."""
    dataset: str = "auto"
    """cifar10, cifar100, shapes10 or auto: the set at --data or $FASTCIFAR_DATA, else CIFAR-10, else drawn shapes10."""
    pipeline: Option[str] = None
    """resident, ffcv, dali or torchvision; by default the recipe's own."""
    runs: int = 1
    """Runs with seeds seed, seed + 1, ...; the last lines give their mean and deviation."""
    seed: int = 0
    """Seed of the first run."""
    target: Option[int] = None
    """94, 95, 96 or 97: CIFAR-10 accuracy in percent, which picks the recipe; 94 without --recipe. Not for shapes10."""
    recipe: Option[str] = None
    """Recipe in place of the target's and data set's own; its seed and data set are those of --seed and --dataset."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """section.key=value on top of the recipe; may be given again and again."""
    track: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """tensorboard or wandb, beside the JSON lines; may be given again."""
    pictures: bool = True
    """Draw curves, confusion matrix, predictions and augmentation into the run folder."""
    out: Option[Path] = None
    """Folder of the run (of the runs, when several); a new one under ./runs by default."""


RECIPES = {94: "speedrun", 95: "speedrun-95", 96: "speedrun-96", 97: "se_resnet-fast"}
SHAPES10_TARGET = 90


def run(args: Args) -> int:
    """Train, evaluate, print the cards; the JSON of the card (or of all of them) is the last line."""
    if args.runs < 1:
        raise ValueError(f"--runs: got {args.runs}, takes a whole number above 0")
    if args.target is not None and args.target not in RECIPES:
        raise ValueError(f"--target: got {args.target}, takes one of {', '.join(map(str, RECIPES))}")
    for setting, option in (("data.path", "--data"), ("data.dataset", "--dataset"), ("seed", "--seed")):
        if any(one.partition("=")[0].strip() == setting for one in args.set):
            raise ValueError(f"--set {setting}: speedrun takes it by {option}")
    import json
    from dataclasses import asdict

    from fastcifar.evaluation.results import draw_if_possible
    from fastcifar.report.card import render, summarise
    from fastcifar.report.progress import Reporter
    from fastcifar.report.run_folder import RunFolder
    from fastcifar.report.tracking import trackers
    from fastcifar.schema import DataConfig
    from fastcifar.training import distributed
    from fastcifar.training.clock import Clock
    from fastcifar.training.run import run as train
    from fastcifar.training.session import find_data, resolve

    clock = Clock()
    distributed.join()
    cards = []
    # Wrong settings are said before a download starts.
    aim = args.target or (0 if args.recipe else 94)
    _load(args.recipe or RECIPES[aim], _settings(args, args.seed))
    trackers(args.track)
    with Reporter() as reporter:
        listeners = trackers(args.track, reporter.line) if distributed.is_first() else []
        source = find_data(DataConfig(args.dataset, str(args.data or "")), clock, reporter)
        recipe = args.recipe or ("speedrun-shapes10" if source.dataset == "shapes10" else RECIPES[aim])
        target = {"cifar10": aim, "shapes10": SHAPES10_TARGET}.get(source.dataset, 0)
        if args.target and args.target != target:
            own = f"its own, {target} %" if target else "none"
            reporter.line(f"--target {args.target} is for cifar10; {source.dataset} has {own}")
        # A recipe that is named may have a target of its own.
        told = [] if args.recipe and not args.target else [f"target={target}"]
        for seed in range(args.seed, args.seed + args.runs):
            config = resolve(_load(recipe, [*told, *_settings(args, seed)]), source)
            out = args.out / f"seed{seed}" if args.out and args.runs > 1 else args.out
            folder = RunFolder.create(distributed.own_folder(out), config)
            card = train(config, source, folder, clock, reporter, listeners=listeners)
            reporter.console.print(render(card))
            if args.pictures and distributed.is_first():
                draw_if_possible(folder, source, reporter)
            cards.append(card)
            clock = Clock(since_process_start=False)
    if args.runs == 1:
        print(json.dumps(cards[0].to_json()))
    else:
        summary = summarise(cards)
        print(summary.sentence)
        print(json.dumps({**asdict(summary), "cards": [card.to_json() for card in cards]}))
    return 0


def _load(recipe: str, settings: list[str]) -> "Config":
    """The recipe with settings on top, which as many processes as there are can train."""
    from fastcifar import config as configs
    from fastcifar.training import distributed

    config = configs.load(recipe, settings)
    distributed.check_batch_size(config.pipeline.batch_size)
    return config


def _settings(args: Args, seed: int) -> list[str]:
    pipeline = [f"pipeline.name={args.pipeline}"] if args.pipeline else []
    return [*pipeline, f"seed={seed}", *args.set]
