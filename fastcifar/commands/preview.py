"""`fastcifar preview`: what a recipe's augmentation does to training images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from fastcifar.commands import Option


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar preview`."""

    recipe: Annotated[Option[str], tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE]")] = None
    """Name of a recipe (`fastcifar recipes`) or path of a TOML file, such as a run's config.toml; or speedrun."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """section.key=value on top of the recipe, such as data.dataset=cifar100, pipeline.name=ffcv; may be given again."""
    data: Option[Path] = None
    """CIFAR folder, its .tar.gz or a folder with one; else the recipe's, $FASTCIFAR_DATA, ./data, cache, a download."""
    images: int = 8
    """Training images to show, one of each class first."""
    epochs: int = 8
    """Epochs whose draws are shown, from the first."""
    out: Option[Path] = None
    """The PNG; ./preview-RECIPE.png by default."""


def run(args: Args) -> int:
    """Draw one row an image: the original, then what each epoch makes of it; JSON is the last line."""
    import json

    from fastcifar import config as configs
    from fastcifar.evaluation.preview import augmented
    from fastcifar.report.pictures import draw_augmented
    from fastcifar.report.progress import Reporter
    from fastcifar.training.clock import Clock
    from fastcifar.training.session import find_data

    path = [] if args.data is None else [f"data.path={configs.quoted(args.data)}"]
    config = configs.load(args.recipe or "speedrun", [*path, *args.set])
    out = args.out or Path(f"preview-{config.name}.png")
    with Reporter() as reporter:
        source = find_data(config.data, Clock(since_process_start=False), reporter)
        shown = augmented(config, source, reporter, num_images=args.images, num_epochs=args.epochs)
        draw_augmented(shown, out)
        reporter.line(f"wrote {out}: {shown.title}; {shown.note}")
    print(json.dumps({"picture": str(out), "title": shown.title, "augmentation": shown.note}))
    return 0
