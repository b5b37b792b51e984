"""The result card: what a run reached, on what, and where the time went."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, get_args, get_origin

from fastcifar.data.errors import quote
from fastcifar.report.run_folder import RunFolder

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Card:
    """One run's result. Accuracies are shares of the test set, read once; seconds are told apart by `Clock`'s parts."""

    recipe: str
    dataset: str
    num_train: int
    num_test: int
    source: str
    device: str
    dtype: str
    """What was computed in, as `models.arithmetic` has it."""
    compiled: bool
    pipeline: str
    network: str
    num_parameters: int
    epochs: float
    batch_size: int
    seed: int
    tta: str
    accuracy: float
    tta_accuracy: float
    test_loss: float
    train_accuracy: float | None
    validation_accuracy: float | None
    skipped_steps: int
    target: float | None
    seconds: dict[str, float]
    """By the clock's parts, of all the processes that the run went on in."""
    energy_j: float | None
    """None where the device does not tell."""
    run: str

    @classmethod
    def of(cls, folder: RunFolder) -> "Card | None":
        """The card that a run left; None where the run is not finished. `ValueError` where it is damaged."""
        held = folder.read_card()
        if held is None:
            return None
        kinds = {field.name: field.type for field in fields(cls)}
        for name, kind in kinds.items():
            if name not in held:
                raise ValueError(f"{folder.card}: holds no {name!r}")
            if not _is_of(kind, held[name]):
                expected = getattr(kind, "__name__", kind)
                raise ValueError(f"{folder.card}: {name!r} is {quote(held[name])}, expected {expected}")
        return cls(**{name: held[name] for name in kinds})

    def to_json(self) -> dict[str, Any]:
        """Plain values, accuracies beside the data set's name."""
        return asdict(self)

    @property
    def target_sentence(self) -> str:
        """How far from the target the run ended; empty without a target."""
        if self.target is None:
            return ""
        gap = 100 * (self.tta_accuracy - self.target)
        return f"target {100 * self.target:g} %: {'met' if gap >= 0 else 'missed'} by {abs(gap):.2f} points"


def _is_of(kind: Any, value: object) -> bool:
    """Whether a value out of JSON is of a field's type."""
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is_of(get_args(kind)[1], item) for item in value.values())
    kinds = get_args(kind) or (kind,)
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def render(card: Card) -> "RenderableType":
    """The card as a table for a terminal or a pipe."""
    from rich.table import Table

    table = Table(title=f"fastcifar {card.recipe} on {card.dataset}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("data set", f"{card.dataset}: {card.num_train:,} training, {card.num_test:,} test images")
    table.add_row("from", card.source)
    table.add_row("device", f"{card.device}, {card.dtype}{', compiled' if card.compiled else ''}")
    table.add_row("network", f"{card.network}, {card.num_parameters:,} parameters")
    table.add_row(
        "training", f"{card.epochs:g} epochs, batch {card.batch_size}, {card.pipeline} pipeline, seed {card.seed}"
    )
    if card.skipped_steps:
        table.add_row("", f"{card.skipped_steps} steps skipped, their loss was not finite")
    table.add_row("test accuracy", f"{percent(card.accuracy)} on {card.dataset}, without TTA (read once, at the end)")
    if card.tta != "none":
        table.add_row("", f"{percent(card.tta_accuracy)} on {card.dataset}, with TTA ({card.tta})")
    if card.validation_accuracy is not None:
        table.add_row("validation", f"{percent(card.validation_accuracy)} on {card.dataset}, without TTA")
    if card.target is not None:
        table.add_row("", card.target_sentence)
    table.add_row("wall clock", clock_line(card.seconds))
    table.add_row("run folder", card.run)
    return table


def clock_line(seconds: dict[str, float]) -> str:
    """`total 12.3 s = load 1.0 + ...`; parts that took nothing are left out."""
    parts = [f"{name} {value:.1f}" for name, value in seconds.items() if name != "total" and value >= 0.05]
    return f"total {seconds['total']:.1f} s = " + " + ".join(parts)


def percent(share: float) -> str:
    """A share as a percentage with two decimals."""
    return f"{100 * share:.2f} %"


@dataclass(frozen=True)
class Summary:
    """Several runs of one recipe on one data set: accuracies are shares, seconds those of training alone."""

    recipe: str
    dataset: str
    num_runs: int
    tta: str
    accuracy_mean: float
    accuracy_deviation: float | None
    """Sample deviation; None of a single run."""
    tta_accuracy_mean: float
    tta_accuracy_deviation: float | None
    train_mean_s: float
    sentence: str


def with_tta(tta: str) -> str:
    """What stands behind an accuracy of the views that `evaluate.tta` names."""
    return "without TTA" if tta == "none" else f"with TTA ({tta})"


def summarise(cards: Sequence[Card]) -> Summary:
    """Mean and sample deviation over the runs' cards."""
    first = cards[0]
    plain, plain_deviation = mean_and_deviation([card.accuracy for card in cards])
    tta, tta_deviation = mean_and_deviation([card.tta_accuracy for card in cards])
    train_s = statistics.mean(card.seconds["train"] for card in cards)
    deviation = "" if tta_deviation is None else f" +- {100 * tta_deviation:.2f}"
    reached = f"{percent(tta)}{deviation} {with_tta(first.tta)}"
    if first.tta != "none":
        reached += f", {percent(plain)} without"
    sentence = f"{len(cards)} runs of {first.recipe} on {first.dataset}: {reached}; training {train_s:.1f} s on average"
    return Summary(
        first.recipe,
        first.dataset,
        len(cards),
        first.tta,
        plain,
        plain_deviation,
        tta,
        tta_deviation,
        train_s,
        sentence,
    )


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample deviation; None for the latter of a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
