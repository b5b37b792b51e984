"""An evaluation as tables for people; every row that quotes an accuracy names the data set."""

from typing import TYPE_CHECKING

from fastcifar.evaluation import corruptions, measures
from fastcifar.evaluation.scoring import Evaluation, Images
from fastcifar.report.card import percent

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

MOST_CLASSES = 20
"""With more, a confusion matrix is for the JSON and the picture alone."""


def render(evaluation: Evaluation, images: Images) -> list["RenderableType"]:
    """The tables, in the order in which they are read."""
    tables = [_summary(evaluation, images), _classes(evaluation)]
    if len(evaluation.classes) <= MOST_CLASSES:
        tables.append(_confusion(evaluation))
    if evaluation.mistakes:
        tables.append(_mistakes(evaluation))
    if evaluation.corruptions is not None:
        tables.append(_corruptions(evaluation, evaluation.corruptions))
    return list(tables)


def _summary(evaluation: Evaluation, images: Images) -> "Table":
    table = _table(f"{evaluation.recipe} ({evaluation.network}) on {images.title}", show_header=False)
    on = f"on {evaluation.dataset}"
    with_tta = evaluation.tta != "none"
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("images", f"{images.title}, from {images.source}")
    if evaluation.num_images < evaluation.num_whole:
        table.add_row("quick look", f"--limit: {evaluation.num_images:,} of {evaluation.num_whole:,}, spread evenly")
    if evaluation.trained_on != evaluation.dataset:
        table.add_row("trained on", evaluation.trained_on)
    table.add_row("accuracy", f"{percent(evaluation.accuracy)} {on}, without TTA")
    if with_tta:
        table.add_row("", f"{percent(evaluation.tta_accuracy)} {on}, with TTA ({evaluation.tta})")
    table.add_row("loss", f"{evaluation.loss:.4f} nats {on}, without TTA")
    bins = f"{measures.NUM_BINS} bins"
    table.add_row("calibration error", f"{percent(evaluation.calibration.error)} {on}, without TTA ({bins})")
    if with_tta:
        table.add_row("", f"{percent(evaluation.tta_calibration.error)} {on}, with TTA ({bins})")
    table.add_row("run folder", evaluation.run)
    return table


def _classes(evaluation: Evaluation) -> "Table":
    with_tta = evaluation.tta != "none"
    table = _table("accuracy by class")
    for name in ("data set", "class"):
        table.add_column(name)
    for name in ("images", "accuracy", *(["with TTA"] if with_tta else [])):
        table.add_column(name, justify="right")
    for row in evaluation.classes:
        accuracies = [row.accuracy, *([row.tta_accuracy] if with_tta else [])]
        cells = ["none" if share is None else percent(share) for share in accuracies]
        table.add_row(evaluation.dataset, row.name, f"{row.num_images:,}", *cells)
    return table


def _confusion(evaluation: Evaluation) -> "Table":
    from rich import box

    title = f"confusion on {evaluation.dataset}, without TTA: images by true class (rows) and predicted class"
    table = _table(title)
    table.box, table.padding = box.SIMPLE_HEAD, (0, 0, 0, 1)
    table.add_column("", no_wrap=True)
    for row in evaluation.classes:
        table.add_column(row.name[:4], justify="right", no_wrap=True)
    for row, counts in zip(evaluation.classes, evaluation.confusion, strict=True):
        table.add_row(row.name, *(f"{count}" if count else "." for count in counts))
    return table


def _mistakes(evaluation: Evaluation) -> "Table":
    table = _table(f"most confident mistakes on {evaluation.dataset}, without TTA")
    for name in ("image", "truth", "prediction"):
        table.add_column(name)
    table.add_column("confidence", justify="right")
    for row in evaluation.mistakes:
        image = row.name or f"{evaluation.dataset} {evaluation.part} {row.index}"
        table.add_row(image, row.truth, row.prediction, percent(row.confidence))
    return table


def _corruptions(evaluation: Evaluation, accuracies: dict[str, list[float]]) -> "Table":
    few = f" ({evaluation.num_images:,} of {evaluation.num_whole:,} images)"
    table = _table(
        f"accuracy on corrupted {evaluation.dataset}, without TTA, by strength"
        f"{few if evaluation.num_images < evaluation.num_whole else ''}; {corruptions.SOURCE}"
    )
    for name in ("data set", "corruption"):
        table.add_column(name)
    strengths = [str(strength) for strength in range(1, corruptions.NUM_STRENGTHS + 1)]
    for name in (*strengths, "mean"):
        table.add_column(name, justify="right")
    table.add_row(evaluation.dataset, "none", *[""] * len(strengths), percent(evaluation.accuracy))
    for name, shares in accuracies.items():
        table.add_row(evaluation.dataset, name, *map(percent, shares), percent(sum(shares) / len(shares)))
    means = [sum(column) / len(column) for column in zip(*accuracies.values(), strict=True)]
    table.add_row(evaluation.dataset, "mean", *map(percent, means), percent(sum(means) / len(means)))
    return table


def _table(title: str, *, show_header: bool = True) -> "Table":
    from rich.table import Table

    return Table(title=title, title_justify="left", show_header=show_header)
