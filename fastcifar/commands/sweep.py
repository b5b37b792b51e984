"""`fastcifar sweep`: search settings on the validation split, by any number of workers, and go on where one stopped."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fastcifar.commands import Option

if TYPE_CHECKING:
    import optuna

    from fastcifar.report.progress import Reporter
    from fastcifar.sweeps.space import Definition
    from fastcifar.sweeps.worker import Job


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar sweep`. The same command again goes on with the same study."""

    space: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPACE")]
    """Name of a search space that comes with fastcifar, or path of a SPACE.toml."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """section.key=value on top of the recipe and what the space fixes; may be given again and again."""
    data: Option[Path] = None
    """CIFAR folder, its .tar.gz or a folder with one; else the recipe's, $FASTCIFAR_DATA, ./data, cache, a download."""
    trials: Option[int] = None
    """Trials over all workers, in place of the space's own number; more than before goes on from there."""
    workers: int = 1
    """Processes on this machine; the same command on another one, with the same --storage, shares the work."""
    storage: Option[str] = None
    """SQL URL of the study's database, such as postgresql+psycopg://user@host/database; an SQLite file by default."""
    out: Option[Path] = None
    """The sweep's folder; runs/sweep-NAME by default."""
    track: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """tensorboard or wandb, for each trial; may be given again."""


def run(args: Args) -> int:
    """Search, print the best trials, write the best one's recipe and the pictures; JSON is the last line."""
    if args.workers < 1:
        raise ValueError(f"--workers: got {args.workers}, takes a whole number above 0")
    import importlib.util
    import json
    import os
    from dataclasses import replace

    if importlib.util.find_spec("optuna") is None:
        raise ValueError("optuna is not installed: pip install -e '.[sweep]' in fastcifar's folder")
    from fastcifar.interruption import FailedError
    from fastcifar.report.progress import Reporter
    from fastcifar.report.tracking import trackers
    from fastcifar.sweeps import outcome, worker
    from fastcifar.sweeps import space as spaces
    from fastcifar.sweeps import study as studies
    from fastcifar.training.clock import Clock
    from fastcifar.training.session import Session, find_data, resolve

    definition = spaces.load(args.space, args.set)
    if args.trials is not None:
        definition = replace(definition, space=replace(definition.space, trials=args.trials))
    trackers(args.track)  # one that is missing is said now
    out = args.out or Path("runs") / f"sweep-{definition.space.name}"
    out.mkdir(parents=True, exist_ok=True)
    url = args.storage or definition.space.storage or studies.sqlite_url(out / "study.db")
    clock = Clock()
    with Reporter() as reporter:
        config = definition.config
        source = find_data(replace(config.data, path=str(args.data or config.data.path)), clock, reporter)
        config = resolve(config, source)
        definition = definition.with_data(config.data.dataset, config.data.path)
        Session.prepare(config, source, clock, reporter)  # converts once, for all workers
        with studies.opened(definition, url) as study:
            _refuse_strangers(study, out / "trials")
            threads = max(1, (os.cpu_count() or 1) // args.workers) if args.workers > 1 else 0
            job = worker.Job(definition, url, source, out / "trials", args.track, config.train.threads or threads)
            _search([job] * args.workers, study, definition, reporter)
            result = outcome.to_json(study, definition, url, out)
            if result["best"] is not None:
                result |= _write(study, definition, out)
                reporter.console.print(outcome.table(study))
                reporter.line(f"recipe of the best: {result['recipe']}")
            done = studies.tally(study).over
    if done < definition.num_trials:
        print(json.dumps(result))
        raise FailedError(
            f"the workers ended after {done} of {definition.num_trials} trials; the same command goes on from there"
        )
    if result["best"] is None:
        raise FailedError(f"none of {done} trials was complete: their settings cannot be trained, or all diverged")
    print(json.dumps(result))
    return 0


def _refuse_strangers(study: "optuna.Study", folder: Path) -> None:
    if not study.get_trials(deepcopy=False) and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"--out: {folder} holds trials that the study does not know; name another folder")


def _search(jobs: "list[Job]", study: "optuna.Study", definition: "Definition", reporter: "Reporter") -> None:
    """Have the workers try what is left to try. `InterruptedRunError` says how to go on."""
    from fastcifar.interruption import InterruptedRunError
    from fastcifar.sweeps import worker

    try:
        _watch(worker.start(jobs), study, definition, reporter)
    except KeyboardInterrupt as error:
        message = f"stopped, what was done is kept in {jobs[0].folder.parent}; the same command goes on from there"
        raise InterruptedRunError(message, getattr(error, "exit_code", 130)) from error


def _watch(processes: list[Any], study: "optuna.Study", definition: "Definition", reporter: "Reporter") -> None:
    """Tell of every trial that ends, here or elsewhere, until all workers of this machine have ended."""
    import time

    from fastcifar.sweeps import outcome
    from fastcifar.sweeps import study as studies

    told = {trial.number for trial in outcome.ended(study)}
    if told:
        done = studies.tally(study).over
        reporter.line(f"going on after {done} of {definition.num_trials} trials")
    try:
        alive = True
        while alive:
            alive = any(process.is_alive() for process in processes)
            for trial in outcome.ended(study):
                # A killed trial is told of once it is clear what becomes of it.
                if trial.number not in told:
                    told.add(trial.number)
                    reporter.line(outcome.line(study, trial))
            counted, best = studies.tally(study), outcome.ranked(study)
            unit = f"{counted.over}/{definition.num_trials} trials"
            unit += f", best {outcome.accuracy_text(best[0])}" if best else ""
            reporter.advance("sweep", counted.over, definition.num_trials, unit)
            if alive:
                time.sleep(0.5)
        for process in processes:
            if process.exitcode is not None and process.exitcode < 0:
                reporter.line(f"{process.name} was killed by signal {-process.exitcode}")
    except BaseException:
        _end(processes)
        raise


def _end(processes: list[Any]) -> None:
    """Have the workers put their trials back and end; those that do not within 20 s are killed."""
    import os
    import signal
    import time

    # From a terminal they got the interrupt themselves.
    time.sleep(1)
    for process in processes:
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
    for process in processes:
        process.join(20)
        if process.is_alive():
            process.kill()


def _write(study: "optuna.Study", definition: "Definition", out: Path) -> dict[str, Any]:
    """The best trial's recipe and the pictures; their paths, and the importances."""
    from fastcifar.sweeps import outcome, plots

    recipe, history, importance = out / "best.toml", out / "history.png", out / "importance.png"
    outcome.write_recipe(study, definition, recipe)
    plots.draw_history(study, history)
    found = plots.importances(study)
    if found:
        plots.draw_importances(study, found, importance)
    pictures = [str(history), *([str(importance)] if found else [])]
    return {"recipe": str(recipe), "pictures": pictures, "importances": found}
