"""Sweeps: one study, many workers, and no finished trial is ever lost."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from cifar_files import make
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine

from fastcifar import config as configs
from fastcifar.data import Source
from fastcifar.report.environment import environment
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.schema import Config, DataConfig
from fastcifar.sweeps import outcome, plots, worker
from fastcifar.sweeps import space as spaces
from fastcifar.sweeps import study as studies
from fastcifar.training import run as training
from fastcifar.training.clock import Clock
from fastcifar.training.session import Session, find_data
from fastcifar.training.tally import NonFiniteLossError

SPACE = """
trials = {trials}
sampler = "{sampler}"
pruner = "{pruner}"
heartbeat_s = 1
[fixed]
data.validation = 0.2
evaluate.tta = "none"
model.widths = [8, 16, 16]
pipeline.batch_size = 50
train.epochs = {epochs}
train.whiten_epochs = 1
train.checkpoint_epochs = 0
[space."optimizer.lr"]
low = 0.02
high = 0.5
log = true
[space."optimizer.momentum"]
low = 0.3
high = 0.9
step = 0.2
[space."augmentation.flip"]
choices = ["random", "none"]
"""


def space_text(trials: int, sampler: str = "tpe", pruner: str = "none", epochs: float = 2) -> str:
    return SPACE.format(trials=trials, sampler=sampler, pruner=pruner, epochs=epochs)


def job_for(out: Path, source: Source | None = None, **settings: Any) -> worker.Job:
    definition = spaces.parse(space_text(**settings), name="small")
    nowhere = Source("cifar10", None, "python")
    out.mkdir(parents=True, exist_ok=True)
    return worker.Job(definition, studies.sqlite_url(out / "study.db"), source or nowhere, out / "trials")


def accuracy_of(config: Config) -> float:
    """A made landscape: best at lr 0.1 and momentum 0.9."""
    return 0.9 - abs(config.optimizer.lr - 0.1) - 0.1 * (0.9 - config.optimizer.momentum)


def quick_fit(config: Config, source: Source, folder: RunFolder, *args: object, listeners: Any, **kwargs: Any) -> Any:
    """Tells its listeners what a training would, at once."""
    accuracy = accuracy_of(config)
    for listener in listeners:
        listener.started(config, folder)
    for epoch in range(1, int(config.train.epochs) + 1):
        for listener in listeners:
            listener.epoch({"dataset": "cifar10-small", "epoch": epoch, "validation_accuracy": accuracy})
    return SimpleNamespace(validation_accuracy=accuracy)


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk() -> Iterator[None]:
    """What a test's database holds need not outlive a power cut."""

    def relax(connection: Any, record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF").close()

    event.listen(Engine, "connect", relax)
    yield
    event.remove(Engine, "connect", relax)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "fit", quick_fit)
    monkeypatch.setattr(worker, "POLL_S", 0.05)


@contextmanager
def study_of(job: worker.Job) -> Iterator[optuna.Study]:
    with studies.opened(job.definition, job.url) as study:
        yield study


def finished(job: worker.Job) -> dict[int, tuple[dict[str, Any], float | None]]:
    """Settings and value of the trials that count, by number."""
    with study_of(job) as study:
        trials = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
        return {trial.number: (trial.params, trial.value) for trial in trials}


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_trial_is_a_run_that_does_not_look_at_the_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "set", num_test=40).path
    looked_at, honest = list[str](), Session.predictions

    def spy(self: Session, network: Any, part: str, *args: Any) -> Any:
        looked_at.append(part)
        return honest(self, network, part, *args)

    monkeypatch.setattr(Session, "predictions", spy)
    with Reporter() as reporter:
        source = find_data(DataConfig("cifar10", str(path)), Clock(), reporter)
        job = job_for(tmp_path / "sweep", source, trials=2)
        worker.work(job)
        assert looked_at == ["train"] * 4
        with study_of(job) as study:
            assert studies.tally(study) == studies.Tally(complete=2, pruned=0, given_up=0, running=0)
            outcome.write_recipe(study, job.definition, tmp_path / "best.toml")
            best = outcome.ranked(study)[0]
            assert "cifar10-small validation" in outcome.line(study, best)
            lines = (Path(best.user_attrs["run"]) / "metrics.jsonl").read_text().splitlines()
            assert best.value == json.loads(lines[-1])["validation_accuracy"]
        # The recipe is the trial: on a CPU it comes to the same accuracy.
        config = configs.load(str(tmp_path / "best.toml"), [f"data.path='{path}'"])
        assert "cifar10-small validation" in config.summary
        again = training.run(config, source, RunFolder.create(tmp_path / "again", config), Clock(), reporter)
        assert again.validation_accuracy == best.value


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_sweep_that_was_stopped_tries_what_it_would_have_tried(quick: None, tmp_path: Path, sampler: str) -> None:
    whole, stopped = (job_for(tmp_path / name, trials=9, sampler=sampler) for name in ("whole", "stopped"))
    worker.work(whole)
    for trials in (2, 3, 7, 9):
        space = replace(stopped.definition.space, trials=trials, startup_trials=3)
        worker.work(replace(stopped, definition=replace(stopped.definition, space=space)))
    space = replace(whole.definition.space, startup_trials=3)
    again = replace(whole, definition=replace(whole.definition, space=space), url=studies.sqlite_url(tmp_path / "a.db"))
    worker.work(replace(again, folder=tmp_path / "again"))
    assert finished(again) == finished(replace(stopped, definition=again.definition))
    assert len(finished(again)) == 9
    assert len({params["optimizer.lr"] for params, _ in finished(again).values()}) == 9


def test_a_grid_is_every_point_once(quick: None, tmp_path: Path) -> None:
    job = job_for(tmp_path, trials=1)
    text = space_text(trials=0, sampler="grid").replace("log = true", "step = 0.24")
    definition = spaces.parse(text, name="small")
    job = replace(job, definition=definition)
    worker.work(job)
    points = [tuple(params.values()) for params, _ in finished(job).values()]
    assert len(points) == len(set(points)) == 3 * 4 * 2


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_a_bad_trial_is_ended_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pruner: str) -> None:
    epochs_of: dict[str, int] = {}

    def fit(config: Config, source: Source, folder: RunFolder, *args: object, listeners: Any, **kwargs: Any) -> Any:
        number = int(folder.path.name)
        for epoch in range(1, 10):
            epochs_of[folder.path.name] = epoch
            for listener in listeners:
                entry = {"dataset": "cifar10-small", "epoch": epoch, "validation_accuracy": 0.5 - 0.01 * number}
                listener.epoch(entry)
        return SimpleNamespace(validation_accuracy=0.5 - 0.01 * number)

    monkeypatch.setattr(training, "fit", fit)
    job = job_for(tmp_path, trials=12, sampler="random", pruner=pruner, epochs=9)
    worker.work(job)
    with study_of(job) as study:
        counted = studies.tally(study)
        assert counted.complete + counted.pruned == 12
        assert counted.pruned >= 3
        pruned = study.get_trials(states=(TrialState.PRUNED,))
        assert all(epochs_of[f"{trial.number:04d}"] == trial.last_step for trial in pruned)
        assert any((trial.last_step or 9) < 9 for trial in pruned)
        assert "pruned after epoch" in outcome.line(study, pruned[0])
        plots.draw_history(study, tmp_path / "history.png")


@pytest.mark.parametrize("error", [NonFiniteLossError("the loss is nan at step 3", 3), ValueError("model: too large")])
def test_settings_that_cannot_be_trained_are_an_answer(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(config: Config, source: Source, folder: RunFolder, *args: object, **kwargs: Any) -> Any:
        if folder.path.name == "0001":
            raise error
        return quick_fit(config, source, folder, *args, **kwargs)

    monkeypatch.setattr(training, "fit", fit)
    job = job_for(tmp_path, trials=4)
    worker.work(job)
    with study_of(job) as study:
        assert studies.tally(study) == studies.Tally(complete=3, pruned=1, given_up=0, running=0)
        assert str(error) in outcome.line(study, study.trials[1])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")])
def test_an_interrupted_trial_is_taken_up_again_with_its_settings(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[dict[str, float]] = []

    def fit(config: Config, source: Source, folder: RunFolder, *args: object, **kwargs: Any) -> Any:
        tries.append({"optimizer.lr": config.optimizer.lr, "optimizer.momentum": config.optimizer.momentum})
        if len(tries) == 2:
            raise error
        return quick_fit(config, source, folder, *args, **kwargs)

    monkeypatch.setattr(training, "fit", fit)
    job = job_for(tmp_path, trials=3)
    with pytest.raises(type(error)):
        worker.work(job)
    before = finished(job)
    assert list(before) == [0]
    worker.work(job)
    assert tries[2] == tries[1]
    after = finished(job)
    assert list(after) == [0, 2, 3]
    assert after[0] == before[0]
    with study_of(job) as study:
        assert "taken up again as trial 2" in outcome.line(study, study.trials[1])


def test_a_trial_that_always_fails_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*args: object, **kwargs: Any) -> Any:
        raise OSError("disk full")

    monkeypatch.setattr(training, "fit", fit)
    job = job_for(tmp_path, trials=1)
    for _ in range(1 + studies.MAX_RETRIES):
        with pytest.raises(OSError, match="disk full"):
            worker.work(job)
    worker.work(job)
    with study_of(job) as study:
        assert studies.tally(study).given_up == 1
        assert "given up" in outcome.line(study, study.trials[-1])


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from fastcifar.training import run as training
from fastcifar.sweeps import worker
from test_sweeps import job_for, quick_fit

def fit(config, source, folder, *args, **kwargs):
    if folder.path.name == "0002":
        time.sleep(600)
    return quick_fit(config, source, folder, *args, **kwargs)

training.fit = fit
worker.work(job_for(Path({out!r}), trials=5))
"""


def test_a_worker_killed_half_way_loses_no_finished_trial(quick: None, tmp_path: Path) -> None:
    job = job_for(tmp_path, trials=5)
    with study_of(job) as study:
        code = KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path))
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
        try:
            wait_for(lambda: len(study.get_trials()) == 3 and "run" in study.trials[2].user_attrs)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        assert study.trials[2].state == TrialState.RUNNING
        dropped = study.trials[2].params
    before = finished(job)
    assert list(before) == [0, 1]
    worker.work(job)
    after = finished(job)
    assert len(after) == 5
    assert {number: after[number] for number in before} == before
    assert [params for number, (params, _) in after.items() if number > 2].count(dropped) == 1
    with study_of(job) as study:
        assert study.trials[2].state == TrialState.FAIL


def test_a_trial_killed_before_its_first_sign_of_life_is_found_too(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_for(tmp_path, trials=2)
    with study_of(job) as study:
        study._storage.create_new_trial(study._study_id)
        recovery = studies.Recovery(study, heartbeat_s=1)
        now_s = time.monotonic()
        for later_s, state in ((0, TrialState.RUNNING), (2, TrialState.RUNNING), (4, TrialState.FAIL)):
            monkeypatch.setattr(studies.time, "monotonic", lambda later_s=later_s: now_s + later_s)
            recovery.recover()
            assert study.trials[0].state == state
    monkeypatch.undo()
    monkeypatch.setattr(training, "fit", quick_fit)
    worker.work(job)
    assert list(finished(job)) == [1, 2]


def test_a_result_that_comes_after_another_worker_took_over_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_for(tmp_path, trials=2)

    def fit(config: Config, source: Source, folder: RunFolder, *args: object, **kwargs: Any) -> Any:
        if folder.path.name == "0000":
            with study_of(job) as study:
                studies.fail(study, 0)
        return quick_fit(config, source, folder, *args, **kwargs)

    monkeypatch.setattr(training, "fit", fit)
    worker.work(job)
    assert list(finished(job)) == [1, 2]
    with study_of(job) as study:
        assert study.trials[0].params == study.trials[1].params


def test_of_trials_begun_at_once_only_as_many_go_on_as_are_wanted(quick: None, tmp_path: Path) -> None:
    job = job_for(tmp_path, trials=1)
    with study_of(job) as study:
        worker.run_trial(study, job)
        worker.run_trial(study, job)
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.FAIL]
        assert [trial.number for trial in outcome.ended(study)] == [0]
        assert studies.taken_up_as(study, 1) is None


# Threads share one list of filters, and each of them sets it back.
@pytest.mark.filterwarnings("ignore")
def test_two_workers_share_one_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2, timeout=60)

    def fit(config: Config, source: Source, folder: RunFolder, *args: object, **kwargs: Any) -> Any:
        if folder.path.name in ("0000", "0001"):
            together.wait()
        return quick_fit(config, source, folder, *args, **kwargs)

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(worker, "POLL_S", 0.05)
    job = job_for(tmp_path, trials=7)
    with study_of(job):
        pass
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(worker.work, job) for _ in range(2)]:
            future.result()
    done = finished(job)
    assert len(done) == 7
    assert len({params["optimizer.lr"] for params, _ in done.values()}) == 7


def test_a_study_of_another_sweep_is_not_gone_on_with(quick: None, tmp_path: Path) -> None:
    worker.work(job_for(tmp_path, trials=1))
    with pytest.raises(ValueError, match=r"the study 'small' in sqlite.* is of another sweep: sampler differ"):
        worker.work(job_for(tmp_path, trials=1, sampler="random"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("study.db", "sweep.storage: got 'study.db', takes an SQL URL such as postgresql"),
        (
            "sqlite:////nowhere/at/all/study.db",
            "sweep.storage: cannot open sqlite:////nowhere/at/all/study.db: .*unable",
        ),
    ],
)
def test_a_database_that_is_not_there_is_one_line(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies.time, "sleep", lambda seconds: None)
    with pytest.raises(ValueError, match=message):
        worker.work(replace(job_for(tmp_path, trials=1), url=url))


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["fastcifar", "sweep", "--storage=postgresql://me:secret@host/base", "https://a/b"]
    )
    command = environment("cpu")["command"]
    assert command == ["fastcifar", "sweep", "--storage=postgresql://me:***@host/base", "https://a/b"]
    assert studies.shown("postgresql://me:secret@host/base") == "postgresql://me:***@host/base"


def test_importance_finds_what_matters_and_the_pictures_are_drawn(quick: None, tmp_path: Path) -> None:
    job = job_for(tmp_path, trials=25, sampler="random")
    worker.work(job)
    with study_of(job) as study:
        found = plots.importances(study)
        assert next(iter(found)) == "optimizer.lr"
        assert sum(found.values()) == pytest.approx(1)
        plots.draw_history(study, tmp_path / "history.png")
        plots.draw_importances(study, found, tmp_path / "importance.png")
    for name in ("history.png", "importance.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_command_shares_a_sweep_among_workers_and_goes_on_with_it(tmp_path: Path) -> None:
    make(tmp_path / "set", num_test=40)
    (tmp_path / "small.toml").write_text(space_text(trials=4, epochs=1))
    command = [sys.executable, "-m", "fastcifar.cli", "sweep", "small.toml", "--data", "set", "--workers", "2"]
    first, more = ([*command, "--trials", str(trials)] for trials in (4, 5))
    results = []
    for args in (first, more):
        done = subprocess.run(args, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        results.append((done.stdout.splitlines(), json.loads(done.stdout.splitlines()[-1])))
    (lines, result), (more_lines, more_result) = results
    assert (result["complete"], more_result["complete"]) == (4, 5)
    assert sum(line.startswith("trial ") for line in lines) == 4
    assert more_lines[0] == "going on after 4 of 5 trials"
    assert sum(line.startswith("trial ") for line in more_lines) == 1
    assert all("cifar10-small" in line for line in lines if "%" in line)
    assert result["best"]["dataset"] == "cifar10-small"
    sweep = tmp_path / "runs" / "sweep-small"
    assert configs.load(str(sweep / "best.toml")).name == "small-best"
