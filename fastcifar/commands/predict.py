"""`fastcifar predict`: predictions for unlabelled images, as a submission file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar predict`."""

    paths: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN [RUN ...] INPUT", help_behavior_hint="(required)"),
    ]
    """Folders of finished runs, then the images: a pickle of `data` and perhaps `ids`, a .npy, or a folder of PNGs."""
    out: Path
    """The CSV file to write, whole or not at all."""
    format: Literal["ID,Labels", "id,label"] = "ID,Labels"
    """ID,Labels: ids from 0 and classes as integers; id,label: ids from 1 and class names."""
    best: bool = False
    """The weights of each run's best validated epoch instead of its last."""
    tta: bool = True
    """Average over the views that each run's settings name (evaluate.tta)."""
    resize: bool = False
    """Scale images of a folder to 32 x 32 instead of refusing those of another size."""


def run(args: Args) -> int:
    """Predict, write and check the file; JSON is the last line."""
    import json

    import numpy as np

    from fastcifar.report.progress import Reporter
    from fastcifar.report.run_folder import RunFolder
    from fastcifar.submission import formats, inputs

    if len(args.paths) < 2:
        got = "1 path" if args.paths else "0 paths"
        raise ValueError(f"RUN ... INPUT: got {got}, takes one run folder or more, then the images")
    if not args.out.absolute().parent.is_dir():
        raise ValueError(f"--out: {args.out.absolute().parent} is not there, takes a file in a folder that is")
    folders = [RunFolder.open(path) for path in args.paths[:-1]]
    unlabelled = inputs.read(args.paths[-1], resize=args.resize)

    from fastcifar.evaluation.ensemble import load_runs, mean_probabilities

    with Reporter() as reporter:
        runs = load_runs(folders, best=args.best)
        class_names = runs[0].class_names
        formats.check_classes(args.format, class_names)
        ids_n = formats.ids_for(args.format, unlabelled.ids_n, len(unlabelled.images_nhwc))
        labels_n = mean_probabilities(runs, unlabelled.images_nhwc, tta=args.tta).argmax(1)
        formats.write(args.out, args.format, ids_n, labels_n, class_names)
        who = f"{len(runs)} runs averaged" if len(runs) > 1 else "1 run"
        sets = ", ".join(dict.fromkeys(run.dataset for run in runs))
        reporter.line(f"wrote {len(labels_n):,} rows ({args.format}) to {args.out}: {who}, trained on {sets}")
    counts = np.bincount(labels_n, minlength=len(class_names)).tolist()
    result = {
        "out": str(args.out),
        "format": args.format,
        "num_rows": len(labels_n),
        "ids": "counted" if unlabelled.ids_n is None else "of the input",
        "runs": [str(folder.path) for folder in folders],
        "trained_on": [run.dataset for run in runs],
        "best": args.best,
        "tta": [run.config.evaluate.tta if args.tta else "none" for run in runs],
        "predicted": dict(zip(class_names, counts, strict=True)),
    }
    print(json.dumps(result))
    return 0
