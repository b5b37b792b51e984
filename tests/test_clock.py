"""The clock: its parts add up to what a user waits for."""

import itertools
import time
from collections.abc import Callable
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


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets so many seconds pass, and no time passes else."""
    now_s = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now_s[0])

    def passed(seconds: float) -> None:
        now_s[0] += seconds

    return passed


def test_the_parts_of_the_clock_add_up_and_nested_parts_count_once(passed: Callable[[float], None]) -> None:
    clock = Clock()
    with clock.part("train"):
        passed(1)
        with clock.part("evaluate"):
            passed(2)
        passed(4)
    passed(8)
    with clock.paused():
        passed(16)
    seconds = clock.seconds()
    assert seconds.pop("start") > 0
    assert seconds.pop("total") > 15
    assert {name: value for name, value in seconds.items() if value} == {"train": 5, "evaluate": 2, "other": 8}
    assert Clock(since_process_start=False).seconds()["total"] == 0


def test_what_a_part_gave_the_gpu_counts_to_it(
    passed: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: passed(3))
    clock = Clock(since_process_start=False)
    with clock.part("evaluate"):
        passed(1)
    seconds = clock.seconds()
    assert (seconds["evaluate"], seconds["other"]) == (4, 0)
    # Of a part within another, too: what the outer one gave is waited for first.
    with clock.part("train"):
        passed(10)
        with clock.part("evaluate"):
            passed(1)
    seconds = clock.seconds()
    assert (seconds["train"], seconds["evaluate"], seconds["other"]) == (16, 8, 0)


def test_a_part_ends_where_the_gpu_fails(passed: Callable[[float], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    clock = Clock(since_process_start=False)
    with pytest.raises(RuntimeError, match="illegal"), clock.part("train"):
        passed(1)
    passed(2)
    seconds = clock.seconds()
    assert (seconds["train"], seconds["other"]) == (1, 2)


def test_a_clock_that_jumps_changes_no_duration(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = itertools.cycle([0.0, -1e6, 3e7, -3e7])
    honest = time.time
    monkeypatch.setattr(time, "time", lambda: honest() + next(jumps))
    seconds = train(small_config(folder, "train.epochs=1"), tmp_path / "run").seconds
    # `start` is the age of this process, tests and all.
    seconds["total"] -= seconds.pop("start")
    assert all(0 <= value < 600 for value in seconds.values()), seconds
