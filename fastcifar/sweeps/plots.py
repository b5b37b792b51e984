"""A sweep as pictures: how the accuracy rose, and which settings it hangs on."""

import warnings
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from fastcifar.report import canvas

COMPLETE, PRUNED, BEST = canvas.BLUE, canvas.ORANGE, "#333333"
# PED-ANOVA asks what the best trials have in common; its authors want 5 of them at least.
FEWEST_GOOD_TRIALS = 5


def importances(study: optuna.Study) -> dict[str, float]:
    """Each searched setting's share of what makes a trial good (PED-ANOVA), largest first; empty of too few trials."""
    values = {trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    num = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if num < 2 * FEWEST_GOOD_TRIALS or len(values) == 1:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, FEWEST_GOOD_TRIALS / num))
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


def draw_history(study: optuna.Study, path: Path) -> None:
    """Accuracy of each trial by its number, and the best so far, as a PNG."""
    from matplotlib.ticker import MaxNLocator

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED and trial.value is not None]
    figure = canvas.new_figure(7.5, 4.2)
    axes = figure.subplots()
    axes.plot(*_points(complete), "o", color=COMPLETE, label="complete")
    if pruned:
        axes.plot(*_points(pruned), "x", color=PRUNED, label="pruned, at its last epoch")
    numbers, values = _points(complete)
    best = [max(values[: i + 1]) for i in range(len(values))]
    axes.step(numbers, best, where="post", color=BEST, linewidth=1, label="best so far")
    dataset = complete[0].user_attrs["dataset"]
    axes.set_title(f"{study.study_name}: {len(trials)} trials on {dataset}", loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{dataset} validation accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    canvas.style(axes)
    axes.legend(frameon=False, fontsize=9)
    canvas.save(figure, path)


def draw_importances(study: optuna.Study, found: dict[str, float], path: Path) -> None:
    """Bars of the settings' importances, as a PNG."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    figure = canvas.new_figure(7.5, 1.5 + 0.34 * len(found))
    axes = figure.subplots()
    names = list(found)[::-1]
    bars = axes.barh(names, [found[name] for name in names], color=COMPLETE, height=0.66)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.margins(x=0.12)
    dataset = complete[0].user_attrs["dataset"]
    title = f"{study.study_name}: what the {dataset} validation accuracy hangs on"
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(f"importance (PED-ANOVA over {len(complete)} complete trials)")
    axes.spines[["top", "right"]].set_visible(False)
    canvas.save(figure, path)


def _points(trials: list[FrozenTrial]) -> tuple[list[int], list[float]]:
    return [trial.number for trial in trials], [100 * (trial.value or 0.0) for trial in trials]
