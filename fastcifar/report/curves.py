"""How runs went, epoch by epoch, as pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar.report import canvas
from fastcifar.report.card import percent
from fastcifar.report.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_MARKED = 40
"""Points are marked while they are few: a single epoch has no line."""


@dataclass(frozen=True)
class Curves:
    """One run's epochs: lists of one value each, accuracies in percent."""

    label: str
    dataset: str
    epochs: list[float]
    """Epochs done; a run of fractional length ends within one."""
    loss: list[float]
    train_accuracy: list[float]
    validation_accuracy: list[float | None]
    lr: list[float]
    test_accuracy: float | None
    """Without TTA, after the last epoch; None where the run is not finished."""

    @classmethod
    def of(cls, folder: RunFolder, label: str = "") -> "Curves":
        """Read from a run's metrics and card. `ValueError` where no epoch is over yet."""
        config, lines, card = folder.read_config(), folder.read_metrics(), folder.read_card()
        if not lines:
            raise ValueError(f"{folder.metrics}: holds no epoch, expected one at least")
        return cls(
            label=label or f"{config.name} ({config.model.name})",
            dataset=lines[-1]["dataset"],
            epochs=[min(line["epoch"], config.train.epochs) for line in lines],
            loss=[line["loss"] for line in lines],
            train_accuracy=[100 * line["accuracy"] for line in lines],
            validation_accuracy=[_percent(line.get("validation_accuracy")) for line in lines],
            lr=[line["lr"] for line in lines],
            test_accuracy=None if card is None else 100 * card["accuracy"],
        )


def draw_run(curves: Curves, path: Path) -> Path:
    """Loss, accuracy and learning rate of one run, one below the other."""
    figure = canvas.new_figure(8, 8.5)
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    figure.suptitle(f"{curves.label} on {curves.dataset}", fontweight="bold")
    _line(loss, curves.epochs, curves.loss, "training", color=canvas.BLUE)
    loss.set_ylabel("loss (nats, as trained)")
    _draw_accuracies(accuracy, curves, canvas.BLUE, canvas.ORANGE, "")
    accuracy.set_ylabel(f"{curves.dataset} accuracy (%)")
    _line(rate, curves.epochs, curves.lr, "last step of the epoch", color=canvas.GREEN)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("epochs")
    rate.set_xlim(left=0)
    figure.align_ylabels()
    for axes in (loss, accuracy, rate):
        canvas.style(axes)
        axes.legend(frameon=False, fontsize=8.5)
    return canvas.save(figure, path)


def draw_comparison(runs: Sequence[Curves], path: Path) -> Path:
    """Loss and accuracy of several runs, a colour each."""
    figure = canvas.new_figure(9, 8 + 0.2 * len(runs))
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    several = len(datasets) > 1
    title = f"{len(runs)} runs on {', '.join(datasets)}"
    figure.suptitle(title + "\naccuracies on different data sets do not compare" * several, fontweight="bold")
    for number, run in enumerate(runs):
        colour = canvas.COLOURS[number % len(canvas.COLOURS)]
        label = f"{run.label}, {run.dataset}"
        _line(loss, run.epochs, run.loss, label, color=colour)
        _draw_accuracies(accuracy, run, colour, colour, label)
    loss.set_ylabel("training loss (nats, as trained)")
    accuracy.set_ylabel("accuracy (%)" if several else f"{datasets[0]} accuracy (%)")
    accuracy.set_xlabel("epochs    (accuracy: training solid, validation dashed, test a star)")
    accuracy.set_xlim(left=0)
    for axes in (loss, accuracy):
        canvas.style(axes)
    handles, labels = loss.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=8.5)
    return canvas.save(figure, path)


def _draw_accuracies(axes: "Axes", run: Curves, train_colour: str, other_colour: str, label: str) -> None:
    _line(axes, run.epochs, run.train_accuracy, label or "training, augmented images", color=train_colour)
    held = [
        (epoch, share) for epoch, share in zip(run.epochs, run.validation_accuracy, strict=True) if share is not None
    ]
    if held:
        epochs, shares = zip(*held, strict=True)
        _line(axes, epochs, shares, "validation", color=other_colour, linestyle="--")
    if run.test_accuracy is not None:
        told = f"{run.dataset} test, without TTA: {percent(run.test_accuracy / 100)}"
        colour = other_colour if label else canvas.VERMILION
        axes.plot(run.epochs[-1], run.test_accuracy, "*", markersize=13, color=colour, label=told, clip_on=False)


def _line(axes: "Axes", epochs: Sequence[float], values: Sequence[Any], label: str, **look: Any) -> None:
    marker = "o" if len(epochs) <= _MOST_MARKED else None
    axes.plot(epochs, values, marker=marker, markersize=3.5, linewidth=1.5, label=label, **look)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
