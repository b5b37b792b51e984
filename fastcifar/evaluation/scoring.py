"""A finished run scored on a set of images: all that `fastcifar evaluate` tells."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastcifar import models
from fastcifar.artefacts.sources import artefact_at
from fastcifar.data import DataError, Split
from fastcifar.data.errors import refuse
from fastcifar.data.locate import find
from fastcifar.evaluation import corruptions, measures
from fastcifar.evaluation.finished import Finished, read_test_set
from fastcifar.evaluation.image_files import read_image_folder
from fastcifar.report.environment import environment
from fastcifar.report.progress import Reporter
from fastcifar.training.device import describe
from fastcifar.training.evaluation import Predictions

NUM_MISTAKES = 10


@dataclass(frozen=True)
class Images:
    """What is scored: images with labels, and what to call them."""

    images_nhwc: np.ndarray
    """uint8 [n, h, w, 3]."""
    labels_n: np.ndarray
    """int64 [n]."""
    indices_n: np.ndarray
    """int64 [n]: which images of the whole these are."""
    dataset: str
    part: str
    """"test", or "images" of a folder of images."""
    source: str
    num_whole: int
    """Images of the whole part, of which these may be a few."""
    names: tuple[str, ...] = ()
    """Of the images' files, where they came from such."""

    @classmethod
    def of(cls, split: Split, names: Sequence[str] = (), limit: int = 0) -> "Images":
        """All of `split`, or `limit` images spread evenly over it."""
        num = len(split)
        indices_n = np.arange(num) if not 0 < limit < num else np.arange(limit) * num // limit
        images_nhwc = split.images_nhwc if len(indices_n) == num else split.images_nhwc[indices_n]
        few = tuple(names[index] for index in indices_n.tolist()) if names else ()
        return cls(images_nhwc, split.labels_n[indices_n], indices_n, split.dataset, split.part, split.source, num, few)

    @property
    def title(self) -> str:
        """`10,000 cifar10 test images`; says of a few how many there are."""
        count = f"{len(self.labels_n):,}"
        if len(self.labels_n) < self.num_whole:
            count += f" of {self.num_whole:,}"
        return f"{count} {self.dataset}{' test' if self.part == 'test' else ''} images"


@dataclass(frozen=True)
class Mistake:
    """An image told wrong."""

    index: int
    """In the whole data set."""
    name: str
    """Its file's name; empty where it came from none."""
    truth: str
    prediction: str
    confidence: float


@dataclass(frozen=True)
class ClassScore:
    """One class's share told right; None where there is no image of it."""

    name: str
    num_images: int
    accuracy: float | None
    tta_accuracy: float | None


@dataclass(frozen=True)
class Evaluation:
    """Accuracies are shares. All but `tta_*` is of the network alone, without TTA."""

    run: str
    recipe: str
    network: str
    trained_on: str
    dataset: str
    part: str
    source: str
    num_images: int
    num_whole: int
    tta: str
    accuracy: float
    tta_accuracy: float
    loss: float
    classes: tuple[ClassScore, ...]
    confusion: list[list[int]]
    """Rows are true classes, columns predicted ones."""
    calibration: measures.Calibration
    tta_calibration: measures.Calibration
    mistakes: tuple[Mistake, ...]
    environment: dict[str, object]
    """Device, versions and revision that the images were scored by."""
    dtype: str
    corruptions: dict[str, list[float]] | None
    """Accuracy at strengths 1 to 5, by corruption; None where they were not asked for."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        tree = asdict(self)
        tree["calibration"]["num_bins"] = tree["tta_calibration"]["num_bins"] = measures.NUM_BINS
        if self.corruptions is not None:
            mean = float(np.mean(list(self.corruptions.values())))
            tree["corruptions"] = {"source": corruptions.SOURCE, "mean": mean, "accuracy": self.corruptions}
        return tree


@dataclass(frozen=True)
class Scored:
    """An evaluation beside what pictures of it need."""

    evaluation: Evaluation
    images: Images
    probabilities_nk: np.ndarray
    """float64 [n, classes], without TTA."""


def images_for(run: Finished, reporter: Reporter, data: Path | None, *, resize: bool = False, limit: int = 0) -> Images:
    """The run's test set, or the images at `data`: the test part of an artefact or a CIFAR set, or an image folder.

    `DataError` where they are of other classes or another size than the run's.
    """
    if limit < 0:
        raise ValueError(f"--limit: got {limit}, takes a number of images, 0 for all")
    names: list[str] = []
    found = None if data is None else artefact_at(data) or find(data, ("cifar10", "cifar100"))
    if data is None:
        split, index = read_test_set(run.config, reporter)
        split = replace(split, source=index.source)
    elif found is not None:
        split = found.load().test
    elif data.is_dir():
        split, names = read_image_folder(data, run.class_names, (32, 32), resize=resize)
    else:
        why = "holds no CIFAR set" if data.exists() else "is not there"
        takes = "a CIFAR folder or .tar.gz, an artefact, or a folder of images by class"
        raise DataError(f"--data {data}: {why}; expected {takes}")
    if split.class_names != run.class_names:
        theirs = f"has the classes {', '.join(split.class_names[:10])}{', ...' * (len(split.class_names) > 10)}"
        raise refuse(split.source, theirs, f"those of the run: {', '.join(run.class_names[:10])}")
    return Images.of(split, names, limit)


def score(
    run: Finished,
    images: Images,
    reporter: Reporter,
    *,
    predictions: Predictions | None = None,
    with_corruptions: bool = False,
) -> Scored:
    """Score `run` on `images`, or its `predictions` for them where there are some already.

    Corruptions are another 30 passes over the images, without TTA.
    """
    labels_n, tta = images.labels_n, run.config.evaluate.tta
    if predictions is None:
        predictions = run.predictions(images.images_nhwc, labels_n, tta)
    plain_nk, tta_nk = (
        measures.probabilities(logits.cpu().numpy()) for logits in (predictions.logits, predictions.tta_logits)
    )
    num_classes = len(run.class_names)
    confusion_kk = measures.confusion(labels_n, plain_nk.argmax(1), num_classes)
    tta_confusion_kk = measures.confusion(labels_n, tta_nk.argmax(1), num_classes)
    columns = (
        run.class_names,
        confusion_kk.sum(1).tolist(),
        measures.class_accuracies(confusion_kk),
        measures.class_accuracies(tta_confusion_kk),
    )
    evaluation = Evaluation(
        run=str(run.folder.path),
        recipe=run.config.name,
        network=run.config.model.name,
        trained_on=run.dataset,
        dataset=images.dataset,
        part=images.part,
        source=images.source,
        num_images=len(labels_n),
        num_whole=images.num_whole,
        tta=tta,
        accuracy=predictions.accuracy,
        tta_accuracy=predictions.tta_accuracy,
        loss=predictions.loss,
        classes=tuple(ClassScore(*column) for column in zip(*columns, strict=True)),
        confusion=confusion_kk.tolist(),
        calibration=measures.calibration(plain_nk, labels_n),
        tta_calibration=measures.calibration(tta_nk, labels_n),
        mistakes=_mistakes(run.class_names, images, plain_nk),
        environment={key: value for key, value in environment(describe(run.device)).items() if key != "command"},
        dtype=models.arithmetic(run.network, run.device, run.dtype),
        corruptions=corrupted_accuracies(run, images, reporter.advance) if with_corruptions else None,
    )
    return Scored(evaluation, images, plain_nk)


def corrupted_accuracies(
    run: Finished, images: Images, on_progress: Callable[[str, int, int], None]
) -> dict[str, list[float]]:
    """Accuracy without TTA on the images under each corruption, at strengths 1 to 5."""
    accuracies: dict[str, list[float]] = {name: [] for name in corruptions.NAMES}
    passes = [(name, strength) for name in accuracies for strength in range(1, corruptions.NUM_STRENGTHS + 1)]
    for done, (name, strength) in enumerate(passes, start=1):
        spoilt_nhwc = corruptions.corrupt(images.images_nhwc, images.indices_n, name, strength)
        accuracies[name].append(run.predictions(spoilt_nhwc, images.labels_n).accuracy)
        on_progress("corruptions", done, len(passes))
    return accuracies


def _mistakes(class_names: Sequence[str], images: Images, probabilities_nk: np.ndarray) -> tuple[Mistake, ...]:
    return tuple(
        Mistake(
            index=int(images.indices_n[row]),
            name=images.names[row] if images.names else "",
            truth=class_names[images.labels_n[row]],
            prediction=class_names[probabilities_nk[row].argmax()],
            confidence=float(probabilities_nk[row].max()),
        )
        for row in measures.most_confident_mistakes(probabilities_nk, images.labels_n, NUM_MISTAKES)
    )
