"""Records: the statistics, what is kept, and going on with one."""

import json
from pathlib import Path

import pytest
from cifar_files import make
from scipy import stats

from fastcifar.cli import main
from fastcifar.report import record


def card(accuracy: float, total_s: float = 10.0) -> dict[str, object]:
    seconds = {"load": 1.0, "train": total_s - 3, "evaluate": 2.0, "total": total_s}
    return {
        "recipe": "speedrun",
        "dataset": "cifar10",
        "device": "here",
        "tta": "mirror",
        "epochs": 8.0,
        "batch_size": 500,
        "accuracy": accuracy - 0.01,
        "tta_accuracy": accuracy,
        "seconds": seconds,
    }


def test_ten_runs_are_a_record_where_the_test_says_so() -> None:
    accuracies = [0.9405 + 0.0002 * i for i in range(10)]
    got = record.take_together([card(a) for a in accuracies], 0.94, [5.0] * 10)
    assert got.kind == "record"
    n, mean = len(accuracies), sum(accuracies) / len(accuracies)
    deviation = (sum((a - mean) ** 2 for a in accuracies) / (n - 1)) ** 0.5
    assert got.p_value == pytest.approx(float(stats.t.sf((mean - 0.94) / (deviation / n**0.5), n - 1)))
    assert got.energy_mean_j == 5.0
    assert got.counted_mean_s == 9.0


def test_a_mean_that_only_looks_met_is_missed_and_few_runs_are_a_trial() -> None:
    scattered = [0.92, 0.961] * 5
    assert record.take_together([card(a) for a in scattered], 0.94, [None] * 10).kind == "missed"
    few = record.take_together([card(0.95, 20.0), card(0.951), card(0.952)], 0.94, [1.0, None, 1.0])
    assert few.kind == "trial"
    assert (few.wall_first_s, few.wall_rest_s, few.energy_mean_j) == (20.0, 10.0, None)


def test_runs_of_different_recipes_are_no_record() -> None:
    with pytest.raises(ValueError, match="one recipe"):
        record.take_together([card(0.9), {**card(0.9), "recipe": "other"}], 0.9, [None, None])


def test_a_record_is_written_without_paths_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(tmp_path / "data here", num_test=100).path
    settings = ["model.widths=[8, 16, 16]", "train.epochs=1", "pipeline.batch_size=50", "evaluate.tta=mirror"]
    sets = [part for setting in settings for part in ("--set", setting)]
    command = ["record", "--data", str(data), "--target", "20", "--out", str(tmp_path / "out"), "--name", "one", *sets]
    assert main([*command, "--runs", "2"]) == 0
    capsys.readouterr()
    place = tmp_path / "out" / "one"
    first = (place / "seed0" / "card.json").read_bytes()
    assert main([*command, "--runs", "3"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["num_runs"], last["kind"], last["dataset"]) == (3, "trial", "cifar10-small")
    assert (place / "seed0" / "card.json").read_bytes() == first
    assert json.loads((place / "record.json").read_text())["num_runs"] == 3
    files = [path for path in place.rglob("*") if path.is_file()]
    assert len(files) == 3 * len(record.KEPT) + 1
    assert not any(str(tmp_path) in path.read_text() for path in files)
