"""Several finished runs as one: the mean of their probabilities."""

from collections.abc import Sequence

import numpy as np

from fastcifar.evaluation import measures
from fastcifar.evaluation.finished import Finished
from fastcifar.report.run_folder import RunFolder


def load_runs(folders: Sequence[RunFolder], *, best: bool = False) -> list[Finished]:
    """The runs' networks, `best`: of their best validated epochs.

    `ValueError` where one tells other classes apart than the first.
    """
    runs = [Finished.load(folder, best=best) for folder in folders]
    for run in runs[1:]:
        if run.class_names != runs[0].class_names:
            theirs, first = (f"{len(r.class_names)} classes of {r.dataset}" for r in (run, runs[0]))
            raise ValueError(f"{run.folder.path}: tells {theirs} apart, takes runs of the {first}, as the first")
    return runs


def mean_probabilities(runs: Sequence[Finished], images_nhwc: np.ndarray, *, tta: bool = True) -> np.ndarray:
    """Mean over the runs of their probabilities, float64 [n, classes]; with each run's own TTA, or none."""
    total = np.zeros((len(images_nhwc), len(runs[0].class_names)))
    for run in runs:
        predictions = run.predictions(images_nhwc, tta=run.config.evaluate.tta if tta else "none")
        total += measures.probabilities(predictions.tta_logits.cpu().numpy())
    return total / len(runs)
