"""The clock: its parts add up to what a user waits for."""

import time
from pathlib import Path

import pytest
import torch
from cifar_files import make
from training_runs import small_config, train

from fastcifar.training.clock import Clock


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CIFAR-10 folder of 500 training and 100 test images whose classes a small network can tell apart."""
    return make(tmp_path_factory.mktemp("small"), num_test=100).path


def test_the_parts_of_the_clock_add_up_and_nested_parts_count_once() -> None:
    import time

    clock = Clock()
    with clock.part("train"):
        time.sleep(0.05)
        with clock.part("evaluate"):
            time.sleep(0.1)
    seconds = clock.seconds()
    assert 0.05 <= seconds["train"] < 0.1 <= seconds["evaluate"] < 0.15
    assert seconds["start"] > 0
    assert seconds["total"] == pytest.approx(sum(value for name, value in seconds.items() if name != "total"))


def test_what_a_part_gave_the_gpu_counts_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: time.sleep(0.05))
    clock = Clock(since_process_start=False)
    with clock.part("evaluate"):
        pass
    seconds = clock.seconds()
    assert seconds["evaluate"] >= 0.05
    assert seconds["other"] < 0.05


def test_a_clock_that_jumps_changes_no_duration(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import itertools
    import time

    jumps = itertools.cycle([0.0, -1e6, 3e7, -3e7])
    honest = time.time
    monkeypatch.setattr(time, "time", lambda: honest() + next(jumps))
    seconds = train(small_config(folder, "train.epochs=1"), tmp_path / "run").seconds
    # `start` is the age of this process, tests and all.
    seconds["total"] -= seconds.pop("start")
    assert all(0 <= value < 600 for value in seconds.values()), seconds
