"""Several runs in one table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar.report.card import percent
from fastcifar.report.run_folder import RunFolder

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One run. What only a finished run has is None before that; accuracies are shares."""

    run: str
    recipe: str
    network: str
    num_parameters: int | None
    epochs: float
    dataset: str
    seed: int
    accuracy: float | None
    tta: str
    tta_accuracy: float | None
    validation_accuracy: float | None
    train_s: float | None

    @classmethod
    def of(cls, folder: RunFolder) -> "Row":
        """Read from the run's configuration, card and metrics."""
        config, card, lines = folder.read_config(), folder.read_card(), folder.read_metrics()
        done = min(lines[-1]["epoch"], config.train.epochs) if lines else 0.0
        told: dict[str, Any] = card or {"dataset": lines[-1]["dataset"] if lines else config.data.dataset}
        return cls(
            run=str(folder.path),
            recipe=config.name,
            network=config.model.name,
            num_parameters=told.get("num_parameters"),
            epochs=config.train.epochs if card else done,
            dataset=told["dataset"],
            seed=config.seed,
            accuracy=card["accuracy"] if card else None,
            tta=config.evaluate.tta,
            tta_accuracy=card["tta_accuracy"] if card else None,
            validation_accuracy=lines[-1].get("validation_accuracy") if lines else None,
            train_s=card["seconds"]["train"] if card else None,
        )


@dataclass(frozen=True)
class Comparison:
    """Runs in the order in which they were named."""

    rows: tuple[Row, ...]

    @property
    def datasets(self) -> list[str]:
        """The data sets, each once."""
        return list(dict.fromkeys(row.dataset for row in self.rows))

    @property
    def warning(self) -> str:
        """What must be said where the runs are on different data sets; empty where they are on one."""
        if len(self.datasets) == 1:
            return ""
        return f"Different data sets ({', '.join(self.datasets)}): accuracies on one do not compare with another's."

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        comparable = len(self.datasets) == 1
        return {"datasets": self.datasets, "comparable": comparable, "runs": [asdict(row) for row in self.rows]}


def compare(folders: Sequence[RunFolder]) -> Comparison:
    """Read all runs. `ValueError` where there is none, or one is named twice."""
    if not folders:
        raise ValueError("runs: got none, takes one run folder or more")
    paths = [folder.path.resolve() for folder in folders]
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise ValueError(f"runs: {folders[place].path} is named twice")
    return Comparison(tuple(Row.of(folder) for folder in folders))


def labels(comparison: Comparison) -> list[str]:
    """What to call each run: its folder's name, or all of its path where two folders have one name."""
    names = [Path(row.run).name or row.run for row in comparison.rows]
    return names if len(set(names)) == len(names) else [row.run for row in comparison.rows]


def render(comparison: Comparison) -> "Table":
    """The table; data sets other than the first row's are marked."""
    from rich.table import Table

    num = len(comparison.rows)
    lines = [_line(label, row, comparison) for label, row in zip(labels(comparison), comparison.rows, strict=True)]
    columns = list(zip(*lines, strict=True))
    # What all have alike is said once, and what none has takes no room: a terminal has little.
    alike = [place for place in _SAID_ONCE if num > 1 and len(set(columns[place])) == 1 and columns[place][0]]
    title = f"{num} {'run' if num == 1 else 'runs'} on {', '.join(comparison.datasets)}"
    title += "".join(f", {_COLUMNS[place]} {columns[place][0]}" for place in alike)
    shown = [place for place, cells in enumerate(columns) if any(cells) and place not in alike]
    table = Table(title=title, title_justify="left")
    for place in shown:
        name = _COLUMNS[place]
        # A name that is cut is no name: in a narrow terminal it goes on in the next line.
        table.add_column(name, justify="left" if name in _TEXTS else "right", overflow="fold")
    for line in lines:
        table.add_row(*(line[place] for place in shown))
    return table


_TEXTS = ("run", "data set", "recipe", "network")
_NUMBERS = ("parameters", "epochs", "test accuracy", "with TTA", "validation", "training s")
_COLUMNS = _TEXTS + _NUMBERS
_SAID_ONCE = [_COLUMNS.index(name) for name in ("recipe", "network", "parameters")]


def _line(label: str, row: Row, comparison: Comparison) -> tuple[str, ...]:
    """What stands in the columns."""
    marked = row.dataset if row.dataset == comparison.datasets[0] else f"{row.dataset} (!)"
    with_tta = None if row.tta == "none" else row.tta_accuracy
    return (
        label,
        marked,
        row.recipe,
        row.network,
        "" if row.num_parameters is None else f"{row.num_parameters:,}",
        f"{row.epochs:g}",
        "not finished" if row.accuracy is None else percent(row.accuracy),
        "" if with_tta is None else percent(with_tta),
        "" if row.validation_accuracy is None else percent(row.validation_accuracy),
        "" if row.train_s is None else f"{row.train_s:,.1f}",
    )
