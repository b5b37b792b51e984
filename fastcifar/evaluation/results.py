"""What an evaluation leaves in the run folder: JSON and pictures."""

import json
import re
from pathlib import Path

import numpy as np

from fastcifar.artefacts import Source
from fastcifar.atomic import write_atomically
from fastcifar.evaluation import measures, preview
from fastcifar.evaluation.finished import Finished
from fastcifar.evaluation.scoring import Images, Scored, images_for, score
from fastcifar.report import pictures
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.training.checkpoints import load_predictions

NUM_PREVIEWED, NUM_PREVIEWED_EPOCHS = 8, 8


def suffix(data: Path | None, images: Images, *, best: bool = False) -> str:
    """What tells this evaluation's files from those of the last weights and the whole test set: the best weights, other
    images, or a few of them."""
    parts = ["best"] if best else []
    if data is not None:
        parts.append(re.sub(r"[^A-Za-z0-9._-]+", "-", data.resolve().name.removesuffix(".tar.gz")) or "data")
    if len(images.labels_n) < images.num_whole:
        parts.append(f"{len(images.labels_n)}-images")
    return "".join(f"-{part}" for part in parts)


def write(folder: RunFolder, scored: Scored, suffix: str, *, draw: bool) -> list[Path]:
    """Write `evaluation<suffix>.json` and, with `draw`, the run's curves and this evaluation's pictures."""
    path = folder.path / f"evaluation{suffix}.json"
    write_atomically(path, (json.dumps(scored.evaluation.to_json(), indent=2) + "\n").encode())
    if not draw:
        return [path]
    return [path, *pictures.draw_run(folder, predicted=predicted(scored), suffix=suffix)]


def predicted(scored: Scored) -> pictures.Predicted:
    """What pictures need of an evaluation."""
    evaluation, images = scored.evaluation, scored.images
    return pictures.Predicted(
        images_nhwc=images.images_nhwc,
        labels_n=images.labels_n,
        probabilities_nk=scored.probabilities_nk,
        class_names=tuple(row.name for row in evaluation.classes),
        network=f"{evaluation.recipe} ({evaluation.network})",
        title=images.title,
        dataset=evaluation.dataset,
        mistakes_m=measures.most_confident_mistakes(scored.probabilities_nk, images.labels_n, len(images.labels_n)),
        confusion_kk=np.array(evaluation.confusion),
    )


def draw_finished(folder: RunFolder, source: Source, reporter: Reporter) -> list[Path]:
    """Every picture of a run that has just finished, into its folder; the paths that were written.

    `source` is the data set that it was trained on. The test set's predictions are those that the run left.
    """
    run = Finished.load(folder)
    scored = score(run, images_for(run, reporter, None), reporter, predictions=load_predictions(folder.predictions))
    try:
        shown = preview.augmented(
            run.config, source, reporter, num_images=NUM_PREVIEWED, num_epochs=NUM_PREVIEWED_EPOCHS
        )
    except ValueError as error:  # a set of a few images: no reason to end a run that is trained and scored
        reporter.line(f"no picture of the augmentation: {error}")
        shown = None
    return pictures.draw_run(folder, predicted=predicted(scored), augmented=shown)


def draw_if_possible(folder: RunFolder, source: Source, reporter: Reporter) -> None:
    """`draw_finished`, or one line on why there are no pictures: a run that is scored can do without."""
    try:
        draw_finished(folder, source, reporter)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        reporter.line(f"no pictures: {' '.join(str(error).split()) or type(error).__name__}")
