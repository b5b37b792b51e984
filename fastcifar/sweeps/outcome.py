"""What a sweep comes to: lines and a table of its trials, and the best one as a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fastcifar import config as configs
from fastcifar.report.card import percent
from fastcifar.sweeps import study as studies
from fastcifar.sweeps.space import Definition

if TYPE_CHECKING:
    from rich.console import RenderableType

NUM_ROWS = 10


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ended in any way, by number, without those that were one too many."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state.is_finished() and "surplus" not in trial.user_attrs]


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials, best first; of equals, the earlier."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(trials, key=lambda trial: (-_value(trial), trial.number))


def line(study: optuna.Study, trial: FrozenTrial) -> str:
    """A trial that ended, in one line."""
    words = [f"trial {trial.number}", how_it_ended(study, trial), settings_text(trial), f"{_seconds(trial):.0f} s"]
    return "  ".join(word for word in words if word)


def how_it_ended(study: optuna.Study, trial: FrozenTrial) -> str:
    """A complete trial's accuracy, or what came in between."""
    if trial.state == TrialState.COMPLETE:
        return accuracy_text(trial)
    if trial.state == TrialState.PRUNED:
        if "reason" in trial.user_attrs:
            return f"pruned: {trial.user_attrs['reason']}"
        return f"pruned after epoch {trial.last_step} at {accuracy_text(trial)}"
    again = studies.taken_up_as(study, trial.number)
    return "killed or interrupted, " + ("given up" if again is None else f"taken up again as trial {again}")


def accuracy_text(trial: FrozenTrial) -> str:
    """A trial's accuracy, on what."""
    return f"{percent(_value(trial))} ({trial.user_attrs['dataset']} validation)"


def settings_text(trial: FrozenTrial) -> str:
    """The searched settings and a trial's values."""
    return " ".join(f"{key}={_short(value)}" for key, value in trial.params.items())


def table(study: optuna.Study) -> "RenderableType":
    """The best trials."""
    from rich.table import Table

    best = ranked(study)[:NUM_ROWS]
    dataset = best[0].user_attrs["dataset"]
    title = f"best of the sweep {study.study_name}, by accuracy on the validation images of {dataset}"
    rows = Table(title=title, title_justify="left")
    keys = list(best[0].params)
    rows.add_column("trial", justify="right")
    rows.add_column("validation", justify="right", no_wrap=True)
    for key in keys:
        rows.add_column(key, justify="right", overflow="fold")
    rows.add_column("s", justify="right")
    for trial in best:
        values = [_short(trial.params[key]) for key in keys]
        rows.add_row(str(trial.number), f"{percent(_value(trial))} {dataset}", *values, f"{_seconds(trial):.0f}")
    return rows


def write_recipe(study: optuna.Study, definition: Definition, path: Path) -> None:
    """The best trial's settings, whole, as a recipe; where the data lies is left to whoever trains by it."""
    best, num = ranked(study)[0], len(ended(study))
    summary = f"best of {num} trials of the sweep {definition.space.name}: {accuracy_text(best)}"
    plain = definition.with_data(definition.config.data.dataset, "")
    config = plain.config_of(best.params, f"{definition.space.name}-best", summary)
    about = (
        f"# Trial {best.number}, as it was run: data.validation = {config.data.validation:g} is held out of training.\n"
        "# To train on all images: --set data.validation=0\n"
    )
    path.write_text(about + configs.dumps(config), encoding="utf-8")


def to_json(study: optuna.Study, definition: Definition, url: str, folder: Path) -> dict[str, Any]:
    """The sweep's result as plain values; accuracies are shares of the data set's validation images."""
    counted = studies.tally(study)
    result: dict[str, Any] = {
        "sweep": study.study_name,
        "storage": studies.shown(url),
        "folder": str(folder),
        "trials": definition.num_trials,
        "complete": counted.complete,
        "pruned": counted.pruned,
        "given_up": counted.given_up,
        "best": None,
    }
    if best := next(iter(ranked(study)), None):
        result["best"] = {
            "trial": best.number,
            "dataset": best.user_attrs["dataset"],
            "validation_accuracy": best.value,
            "settings": best.params,
            "seconds": _seconds(best),
            "run": best.user_attrs["run"],
        }
    return result


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _seconds(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration is not None else 0.0


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
