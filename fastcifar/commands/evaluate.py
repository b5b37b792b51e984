"""`fastcifar evaluate`: score a finished run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastcifar.commands import Option


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar evaluate`."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a finished run."""
    data: Option[Path] = None
    """Images in place of the run's test set: CIFAR folder or .tar.gz, or a folder of PNG or JPEG files by class."""
    best: bool = False
    """The weights of the best validated epoch instead of the last; a run without `data.validation` has none."""
    corruptions: bool = False
    """Also score under noise, blur, contrast, brightness, JPEG and pixelation at five strengths: 30 more passes."""
    limit: int = 0
    """A quick look at this many images, spread evenly over the set; 0 takes all."""
    resize: bool = False
    """Scale images of an image folder to the run's size instead of refusing those of another."""
    pictures: bool = True
    """Draw PNGs into the run folder."""


def run(args: Args) -> int:
    """Print tables, write evaluation.json and pictures into the run folder; JSON is the last line."""
    import json

    from fastcifar.evaluation import results
    from fastcifar.evaluation.finished import Finished
    from fastcifar.evaluation.scoring import images_for, score
    from fastcifar.evaluation.tables import render
    from fastcifar.report.progress import Reporter
    from fastcifar.report.run_folder import RunFolder

    folder = RunFolder.open(args.run)
    with Reporter() as reporter:
        network = Finished.load(folder, best=args.best)
        images = images_for(network, reporter, args.data, resize=args.resize, limit=args.limit)
        scored = score(network, images, reporter, with_corruptions=args.corruptions)
        for table in render(scored.evaluation, images):
            reporter.table(table)
        suffix = results.suffix(args.data, images, best=args.best)
        for path in results.write(folder, scored, suffix, draw=args.pictures):
            reporter.line(f"wrote {path}")
    print(json.dumps(scored.evaluation.to_json()))
    return 0
