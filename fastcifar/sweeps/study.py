"""The study that workers share through an SQL database: how it is opened, who samples and prunes, what is recovered.

A trial is over when it is complete or pruned. One that was killed or interrupted is marked failed and put back into the
queue with its settings, under a new number, `MAX_RETRIES` times at most.
"""

import contextlib
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from fastcifar.sweeps.space import Definition

MAX_RETRIES = 3
# Heartbeats without a sign of life after which a trial counts as killed.
GRACE_BEATS = 3
SQLITE_TIMEOUT_S = 60
# What a trial that is taken up again keeps of a sampler's notes; a pruner's notes are about the run that is lost.
_KEPT_NOTES = ("fixed_params", "grid_id", "search_space")
_DRIVERS = "pip install 'psycopg[binary]' for postgresql+psycopg://, pip install pymysql for mysql+pymysql://"


@dataclass(frozen=True)
class Tally:
    """How many trials are where."""

    complete: int
    pruned: int
    given_up: int
    """Killed once too often."""
    running: int

    @property
    def over(self) -> int:
        """Trials that count."""
        return self.complete + self.pruned + self.given_up


def tally(study: optuna.Study) -> Tally:
    """Count the study's trials."""
    trials = study.get_trials(deepcopy=False)
    states = [trial.state for trial in trials]
    return Tally(
        states.count(TrialState.COMPLETE),
        states.count(TrialState.PRUNED),
        sum(is_given_up(trial) for trial in trials),
        states.count(TrialState.RUNNING),
    )


def is_given_up(trial: FrozenTrial) -> bool:
    """Whether a trial failed so often that it is not taken up again."""
    often = trial.user_attrs.get("retries", 0) >= MAX_RETRIES
    return trial.state == TrialState.FAIL and often and "surplus" not in trial.user_attrs


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file. Not for a network file system: SQLite's locks do not hold on NFS."""
    return f"sqlite:///{path.absolute()}"


def shown(url: str) -> str:
    """A database's URL without its password."""
    from sqlalchemy.engine import make_url

    return make_url(url).render_as_string(hide_password=True)


@contextlib.contextmanager
def opened(definition: Definition, url: str) -> Iterator[optuna.Study]:
    """The sweep's study in the database at `url`, made where it is not there yet.

    `ValueError` where the URL leads nowhere, and where the study there is another sweep's.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = _storage(url, definition.space.heartbeat_s)
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=definition.space.name,
            direction="maximize",
            sampler=_sampler(definition),
            pruner=_pruner(definition),
            load_if_exists=True,
        )
        _claim(study, definition, shown(url))
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _claim(study: optuna.Study, definition: Definition, where: str) -> None:
    """Write down what the study searches, or see that it is the same."""
    identity = definition.identity()
    found = study.user_attrs.get("definition")
    if found is None:
        study.set_user_attr("definition", identity)
        return
    differing = [key for key in identity if json.dumps(identity[key]) != json.dumps(found.get(key))]
    if differing:
        raise ValueError(
            f"SPACE: the study {study.study_name!r} in {where} is of another sweep: {', '.join(differing)} differ; "
            "go on with what it was begun with, or take another name and folder"
        )


def _storage(url: str, heartbeat_s: int) -> optuna.storages.RDBStorage:
    from sqlalchemy import event
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        backend = make_url(url).get_backend_name()
    except ArgumentError:
        takes = "an SQL URL such as postgresql+psycopg://user@host/database"
        raise ValueError(f"sweep.storage: got {url!r}, takes {takes}") from None
    engine_kwargs = {"connect_args": {"timeout": SQLITE_TIMEOUT_S}} if backend == "sqlite" else {"pool_pre_ping": True}
    for attempt in range(5):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = optuna.storages.RDBStorage(
                    url,
                    engine_kwargs,
                    heartbeat_interval=heartbeat_s,
                    grace_period=GRACE_BEATS * heartbeat_s,
                    heartbeat_stale_trial_callback=requeue,
                )
            break
        except ImportError as error:
            missing = error.__cause__ or error
            raise ValueError(
                f"sweep.storage: {shown(url)} needs its database's driver ({missing}): {_DRIVERS}"
            ) from None
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            # Another worker may be making the same tables at this moment.
            if attempt == 4:
                reason = str(error.__cause__ or error).splitlines()[0]
                raise ValueError(f"sweep.storage: cannot open {shown(url)}: {reason}") from None
            time.sleep(0.5)
    if backend == "sqlite":
        # SQLite knows no row locks: without this two workers could read a trial as waiting and both take it.
        # https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#serializable-isolation-savepoints-transactional-ddl
        event.listen(storage.engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        storage.remove_session()
        storage.engine.dispose()
    return storage


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Put a failed trial's settings back into the queue, unless that was done or it failed too often."""
    if is_given_up(trial) or "surplus" in trial.user_attrs or taken_up_as(study, trial.number) is not None:
        return
    attrs = {"retries": trial.user_attrs.get("retries", 0) + 1, "retry_of": trial.number}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attrs,
            system_attrs={key: value for key, value in trial.system_attrs.items() if key in _KEPT_NOTES},
        )
    )


def fail(study: optuna.Study, number: int) -> None:
    """Mark a trial as failed, if it is not over, and put a failed one back into the queue."""
    trial = _trial(study, number)
    # Not by `Study.tell`: a grid sampler that sees the last of its points wants to stop a loop that is not there.
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    trial = _trial(study, number)
    if trial.state == TrialState.FAIL:
        requeue(study, trial)


def _trial(study: optuna.Study, number: int) -> FrozenTrial:
    return next(trial for trial in study.get_trials(deepcopy=False) if trial.number == number)


def taken_up_as(study: optuna.Study, number: int) -> int | None:
    """The number under which a failed trial was put back into the queue."""
    trials = study.get_trials(deepcopy=False)
    return next((trial.number for trial in trials if trial.user_attrs.get("retry_of") == number), None)


class Recovery:
    """Finds killed trials and puts them back."""

    def __init__(self, study: optuna.Study, heartbeat_s: int) -> None:
        self._study = study
        self._grace_s = GRACE_BEATS * heartbeat_s
        self._first_seen_s: dict[int, float] = {}

    def recover(self) -> None:
        """Take back the trials without a sign of life, and those that were killed before their first."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        now_s = time.monotonic()
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # A worker's name is written after the first heartbeat.
            if "worker" in trial.user_attrs:
                continue
            if now_s - self._first_seen_s.setdefault(trial.number, now_s) > self._grace_s:
                fail(self._study, trial.number)


class _ByNumber(optuna.samplers.BaseSampler):
    """A sampler seeded anew for each trial by its number, so that no two workers or sessions draw the same."""

    def __init__(self, seed: int, kind: str, startup_trials: int) -> None:
        self._seed, self._kind, self._startup_trials = seed, kind, startup_trials
        self._sampler = self._seeded(0)

    def _seeded(self, number: int) -> optuna.samplers.BaseSampler:
        import numpy as np

        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        if self._kind == "random":
            return optuna.samplers.RandomSampler(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Of trials that other workers run, the liar expects the worst: they are not proposed twice.
            return optuna.samplers.TPESampler(
                n_startup_trials=self._startup_trials, constant_liar=True, multivariate=False, seed=seed
            )

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Seed for this trial."""
        self._sampler = self._seeded(trial.number)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler does."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler does."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler does."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the sampler does."""
        self._sampler.after_trial(study, trial, state, values)


def _sampler(definition: Definition) -> optuna.samplers.BaseSampler:
    space = definition.space
    if space.sampler == "grid":
        # Its trials are numbered points of one shuffled grid, the same for every worker.
        return optuna.samplers.GridSampler(definition.grid(), seed=space.seed)
    return _ByNumber(space.seed, space.sampler, definition.startup_trials)


def _pruner(definition: Definition) -> optuna.pruners.BasePruner:
    if definition.space.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=definition.startup_trials)
    if definition.space.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=definition.most_epochs)
    return optuna.pruners.NopPruner()
