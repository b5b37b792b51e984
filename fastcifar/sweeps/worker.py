"""A worker: runs trials of a shared study until the study has as many as it shall have."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from fastcifar.artefacts import Source
from fastcifar.data import DataError
from fastcifar.interruption import FailedError, InterruptedRunError
from fastcifar.report.card import Card
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.schema import Config
from fastcifar.sweeps import study as studies
from fastcifar.sweeps.space import Definition

POLL_S = 0.5


@dataclass(frozen=True)
class Job:
    """What a worker process is told."""

    definition: Definition
    url: str
    source: Source
    folder: Path
    """Where its trials leave their run folders."""
    trackers: tuple[str, ...] = ()
    threads: int = 0
    """CPU threads; 0: as the configuration says."""


class SurplusError(Exception):
    """A trial that was begun while another worker began the last one."""


def work(job: Job) -> None:
    """Run trials until the sweep is done; while others run the last of them, wait, and take over what they drop.

    Raises what ends a trial and is not the trial's own doing, after putting the trial back into the queue.
    """
    definition = job.definition
    with studies.opened(definition, job.url) as study:
        recovery = studies.Recovery(study, definition.space.heartbeat_s)
        while True:
            recovery.recover()
            tally = studies.tally(study)
            if tally.over >= definition.num_trials:
                return
            if tally.over + tally.running >= definition.num_trials:
                time.sleep(POLL_S)
            else:
                run_trial(study, job)


def run_trial(study: optuna.Study, job: Job) -> None:
    """Run one trial, the next of the queue or a new one."""
    objective = _Objective(study, job)
    try:
        study.optimize(objective, n_trials=1, catch=(SurplusError,))
    except BaseException as error:
        lost = (ValueError, optuna.exceptions.UpdateFinishedTrialError)
        if objective.error is None and isinstance(error, lost):
            return  # the trial gave no sign of life for too long, and another worker has taken it up
        # Where the database is what failed, the heartbeat will tell the others.
        with contextlib.suppress(Exception):
            objective.give_back()
        raise


def main(job: Job) -> None:
    """A worker process: ends with its parent, and says in one line what went wrong."""
    _die_with_parent()
    if job.threads:
        import numba
        import torch

        from fastcifar.kernels.numba_jit import torch_threads_kept

        torch.set_num_threads(job.threads)
        with torch_threads_kept():
            numba.set_num_threads(min(job.threads, numba.get_num_threads()))
    try:
        work(job)
    except KeyboardInterrupt:
        sys.exit(130)
    except InterruptedRunError as error:
        sys.exit(error.exit_code)
    except (ValueError, OSError, FailedError, optuna.exceptions.OptunaError) as error:
        if os.environ.get("FASTCIFAR_TRACEBACK"):
            raise
        print("fastcifar sweep: a worker ended:", " ".join(str(error).split()), file=sys.stderr, flush=True)
        sys.exit(2)


class _Objective:
    """One trial: from the sampler's choice to the validation accuracy after the last epoch."""

    def __init__(self, study: optuna.Study, job: Job) -> None:
        self._study, self._job = study, job
        self._number: int | None = None
        self.error: BaseException | None = None
        """What ended the trial and is neither its result nor another worker's doing."""

    def __call__(self, trial: optuna.Trial) -> float:
        self._number = trial.number
        try:
            return self._run(trial)
        except (optuna.TrialPruned, SurplusError, optuna.exceptions.UpdateFinishedTrialError):
            raise
        except BaseException as error:
            self.error = error
            raise

    def give_back(self) -> None:
        """Put the trial, where one was begun, back into the queue."""
        if self._number is None:
            return
        studies.fail(self._study, self._number)

    def _run(self, trial: optuna.Trial) -> float:
        from fastcifar.report.tracking import trackers
        from fastcifar.training.clock import Clock
        from fastcifar.training.loop import forget_compiled
        from fastcifar.training.run import fit
        from fastcifar.training.tally import NonFiniteLossError

        # Before anyone can see that the trial began, its heartbeat must be there: see `studies.Recovery`.
        trial.storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
        trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        self._refuse_surplus(trial)
        self._job.definition.suggest(trial)
        try:
            name = f"{self._job.definition.space.name}-{trial.number:04d}"
            config = self._job.definition.config_of(trial.params, name)
        except ValueError as error:
            raise _rejected(trial, error) from None
        folder = RunFolder.create(self._job.folder / f"{trial.number:04d}", config)
        trial.set_user_attr("run", str(folder.path))
        listeners = [*trackers(self._job.trackers), _Pruning(trial)]
        clock = Clock(since_process_start=False)
        try:
            trained = fit(config, self._job.source, folder, clock, _Quiet(), listeners=listeners)
        except DataError:
            raise
        except (ValueError, NonFiniteLossError) as error:
            raise _rejected(trial, error) from None
        except InterruptedRunError as error:
            message = "stopped; the trial is back in the queue, and the same command goes on"
            raise InterruptedRunError(message, error.exit_code) from None
        finally:
            for listener in listeners:
                listener.ended()
            forget_compiled()
        assert trained.validation_accuracy is not None  # a space without a validation split is refused
        return trained.validation_accuracy

    def _refuse_surplus(self, trial: optuna.Trial) -> None:
        """Of trials that were begun at the same moment, only as many go on as are wanted, the first by number."""
        others = [t for t in self._study.get_trials(deepcopy=False) if t.number != trial.number]
        ahead = sum(t.state == TrialState.RUNNING and t.number < trial.number for t in others)
        origin = trial.user_attrs.get("retry_of")
        twice = origin is not None and any(
            t.user_attrs.get("retry_of") == origin and t.number < trial.number for t in others
        )
        if twice or studies.tally(self._study).over + ahead >= self._job.definition.num_trials:
            trial.set_user_attr("surplus", True)
            raise SurplusError


def _rejected(trial: optuna.Trial, error: Exception) -> optuna.TrialPruned:
    """These settings cannot be trained, or diverge: that is an answer, from which the sampler learns."""
    trial.set_user_attr("reason", " ".join(str(error).split()))
    return optuna.TrialPruned()


class _Pruning:
    """Reports each epoch's validation accuracy to the study, and ends the run where the pruner says so."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def started(self, config: Config, folder: RunFolder) -> None:
        """Nothing to report yet."""

    def epoch(self, entry: dict[str, Any]) -> None:
        """Report an epoch."""
        self._trial.set_user_attr("dataset", entry["dataset"])
        self._trial.report(entry["validation_accuracy"], entry["epoch"])
        if self._trial.should_prune():
            raise optuna.TrialPruned

    def finished(self, card: Card) -> None:
        """A trial has no card."""

    def ended(self) -> None:
        """Nothing was opened."""


class _Quiet(Reporter):
    """A trial's progress is in its run folder; what a person sees comes from the study."""

    def line(self, text: str) -> None:
        """Nothing."""

    def banner(self, text: str) -> None:
        """Nothing."""

    def advance(self, name: str, done: int, total: int, unit: str = "") -> None:
        """Nothing."""


def _die_with_parent() -> None:
    """A worker whose parent was killed must not train on unseen: end as suddenly, as the heartbeat expects."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def start(jobs: Sequence[Job]) -> "list[Any]":
    """A process for each job."""
    import multiprocessing

    # Not forked: threads and CUDA do not live through a fork.
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=main, args=(job,), name=f"worker {i}") for i, job in enumerate(jobs)]
    try:
        for process in processes:
            process.start()
    except BaseException:
        for process in processes:
            if process.pid is not None:
                process.terminate()
        raise
    return processes
