"""Trackers: what they write can be read back, and none of them can stop a run."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastcifar import config as configs
from fastcifar.report import tracking
from fastcifar.report.card import Card
from fastcifar.report.run_folder import RunFolder
from fastcifar.schema import Config

ENTRY = {"dataset": "cifar10", "epoch": 1, "step": 96, "loss": 1.5, "accuracy": 0.5, "validation_accuracy": None}
SCORES: Any = SimpleNamespace(dataset="cifar10", accuracy=0.9, tta_accuracy=0.91, test_loss=0.3, seconds={"total": 7.0})


class Failing:
    """Raises at the named call, and counts the calls that reach it."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.heard: list[str] = []

    def _hear(self, name: str) -> None:
        self.heard.append(name)
        if name == self.where:
            raise RuntimeError(f"no connection\nat {name}")

    def started(self, config: Config, folder: RunFolder) -> None:
        self._hear("started")

    def epoch(self, entry: dict[str, Any]) -> None:
        self._hear("epoch")

    def finished(self, card: Card) -> None:
        self._hear("finished")

    def ended(self) -> None:
        self._hear("ended")


def follow(listener: Any, folder: RunFolder) -> None:
    """What a run of two epochs tells."""
    listener.started(Config(), folder)
    listener.epoch(ENTRY)
    listener.epoch({**ENTRY, "epoch": 2, "step": 192, "loss": 1.25, "validation_accuracy": 0.625})
    listener.finished(SCORES)
    listener.ended()


@pytest.mark.parametrize(
    ("where", "heard"),
    [
        ("started", ["started"]),
        ("epoch", ["started", "epoch"]),
        ("finished", ["started", "epoch", "epoch", "finished"]),
        ("ended", ["started", "epoch", "epoch", "finished", "ended"]),
        ("nowhere", ["started", "epoch", "epoch", "finished", "ended"]),
    ],
)
def test_a_tracker_that_fails_is_switched_off_and_told_of_once(where: str, heard: list[str], tmp_path: Path) -> None:
    failing, told = Failing(where), list[str]()
    guarded = tracking.Guarded("fake", failing, told.append)
    follow(guarded, RunFolder(tmp_path))
    follow(guarded, RunFolder(tmp_path))
    if where == "nowhere":
        assert failing.heard == 2 * heard
        assert told == []
    else:
        assert failing.heard == heard
        assert told == [f"tracking with fake is off from here on: RuntimeError: no connection at {where}"]


def test_an_interrupt_is_no_failure_of_the_tracker(tmp_path: Path) -> None:
    class Interrupted(Failing):
        def epoch(self, entry: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    guarded = tracking.Guarded("fake", Interrupted("nowhere"), lambda text: None)
    with pytest.raises(KeyboardInterrupt):
        follow(guarded, RunFolder(tmp_path))


def test_a_run_outlives_its_trackers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from cifar_files import make

    from fastcifar.report.progress import Reporter
    from fastcifar.training.clock import Clock
    from fastcifar.training.run import run
    from fastcifar.training.session import find_data

    small = ["model.widths=[8, 16, 16]", "pipeline.batch_size=50", "train.epochs=1"]
    config = configs.load("speedrun", [f"data.path='{make(tmp_path / 'set', num_test=20).path}'", *small])
    with Reporter() as reporter:
        source = find_data(config.data, Clock(), reporter)
        folder = RunFolder.create(tmp_path / "run", config)
        calls = ("started", "epoch", "finished")
        listeners = [tracking.Guarded(call, Failing(call), reporter.line) for call in calls]
        run(config, source, folder, Clock(), reporter, listeners=listeners)
    assert folder.card.exists()
    assert len(folder.metrics.read_text().splitlines()) == 1
    printed = capsys.readouterr().out
    for call in calls:
        assert printed.count(f"tracking with {call} is off from here on") == 1


def test_a_tracker_that_is_not_there_is_one_sentence_with_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--track: got 'mlflow', takes one of: tensorboard, wandb"):
        tracking.trackers(["mlflow"])
    monkeypatch.setattr(tracking, "_installed", lambda name: False)
    for name in tracking.NAMES:
        with pytest.raises(ValueError, match=rf"{name} is not installed: pip install -e '.\[track\]' in fastcifar's"):
            tracking.trackers([name])


def test_naming_the_trackers_imports_none_of_them() -> None:
    code = (
        "import sys; from fastcifar.report import tracking; tracking.trackers([]);"
        "heavy = {'torch', 'tensorboard', 'wandb'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def installed(name: str) -> Callable[[Any], Any]:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


# The trackers' own libraries warn of things that are theirs to mend.
@pytest.mark.filterwarnings("ignore")
@installed("tensorboard")
def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told: list[str] = []
    follow(tracking.trackers(["tensorboard"], told.append)[0], RunFolder(tmp_path))
    assert told == []
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars["cifar10/loss"] == [(96, 1.5), (192, 1.25)]
    assert scalars["cifar10/validation_accuracy"] == [(192, 0.625)]
    assert scalars["cifar10/test_accuracy"] == [(192, pytest.approx(0.9))]
    assert all("/" in tag for tag in scalars if "accuracy" in tag)


@installed("wandb")
def test_wandb_is_offline_for_who_has_not_logged_in(tmp_path: Path) -> None:
    """In a process of its own: wandb keeps a server and state of its own beside whoever imports it."""
    code = """
import sys
from pathlib import Path
from fastcifar.report import tracking
from fastcifar.report.run_folder import RunFolder
from test_tracking import follow
told = []
follow(tracking.trackers(["wandb"], told.append)[0], RunFolder(Path(sys.argv[1])))
assert told == [], told
"""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    # An empty home: this machine's user may have logged in.
    env = {**kept, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent), "NETRC": str(tmp_path / "netrc")}
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    offline = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(offline) == 1
    (written,) = offline[0].glob("*.wandb")
    content = written.read_bytes()
    for name in ("cifar10/loss", "cifar10/validation_accuracy", "cifar10/test_accuracy_tta"):
        assert json.dumps(name).strip('"').encode() in content
