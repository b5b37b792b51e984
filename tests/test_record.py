"""Records: the statistics, what is kept, and going on with one."""

import itertools
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cifar_files import make
from scipy import stats
from training_runs import terminate_at

from fastcifar.bench import readme
from fastcifar.cli import main
from fastcifar.report import record
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.training.session import Session

SMALL = ["model.widths=[8, 16, 16]", "train.epochs=2", "pipeline.batch_size=50", "evaluate.tta=mirror"]


def command(data: Path, out: Path, name: str, *settings: str) -> list[str]:
    sets = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
    aim = ["--recipe", "speedrun", "--target", "20"]
    return ["record", "--data", str(data), *aim, "--out", str(out), "--name", name, *sets]


def files_in(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def card(accuracy: float, total_s: float = 10.0, energy_j: float | None = None) -> dict[str, object]:
    seconds = {"load": 1.0, "train": total_s - 3, "evaluate": 2.0, "total": total_s}
    return {
        "recipe": "speedrun",
        "dataset": "cifar10",
        "device": "here",
        "dtype": "float32",
        "tta": "mirror",
        "epochs": 8.0,
        "batch_size": 500,
        "seed": 3,
        "accuracy": accuracy - 0.01,
        "tta_accuracy": accuracy,
        "seconds": seconds,
        "energy_j": energy_j,
    }


def test_ten_runs_are_a_record_where_the_test_says_so() -> None:
    accuracies = [0.9405 + 0.0002 * i for i in range(10)]
    got = record.take_together([card(a, energy_j=5.0) for a in accuracies], 0.94, [{}] * 10)
    assert got.kind == "record"
    n, mean = len(accuracies), sum(accuracies) / len(accuracies)
    deviation = (sum((a - mean) ** 2 for a in accuracies) / (n - 1)) ** 0.5
    assert got.p_value == pytest.approx(float(stats.t.sf((mean - 0.94) / (deviation / n**0.5), n - 1)))
    assert got.energy_mean_j == 5.0
    assert got.counted_mean_s == 9.0


def test_a_mean_that_only_looks_met_is_missed_and_few_runs_are_a_trial() -> None:
    scattered = [0.92, 0.961] * 5
    assert record.take_together([card(a) for a in scattered], 0.94, [{}] * 10).kind == "missed"
    few = record.take_together([card(0.95, 20.0, energy_j=1.0), card(0.951), card(0.952, energy_j=1.0)], 0.94, [{}] * 3)
    assert few.kind == "trial"
    assert (few.wall_first_s, few.wall_rest_s, few.energy_mean_j) == (20.0, 10.0, None)


@pytest.mark.parametrize(
    ("words", "about"),
    [(["--target", "95"], "95"), (["--target", "60", "--recipe", "resnet4m-fast"], "60_resnet4m-fast")],
)
def test_a_record_is_named_by_date_target_recipe_and_device(
    words: list[str], about: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastcifar.commands.record._record", lambda *_: {})
    assert main(["record", *words, "--out", "kept"]) == 0
    assert re.fullmatch(rf"kept/[0-9]{{8}}_{about}_[a-z0-9-]+", json.loads(capsys.readouterr().out)["folder"])


def test_a_cold_first_run_is_told_apart_from_the_warm_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process with the tests, where Numba's code is there already: the artefacts show whose cache was used."""
    data, mine = make(tmp_path / "small", num_test=100).path, tmp_path / "mine"
    monkeypatch.setenv("XDG_CACHE_HOME", str(mine))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    told = command(data, tmp_path / "records", "one", "train.epochs=1")
    assert main([*told, "--runs", "2", "--cold"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["first_is_cold"]
    cards = [json.loads((tmp_path / "records" / "one" / f"seed{seed}" / "card.json").read_text()) for seed in (0, 1)]
    assert cards[0]["seconds"]["convert"] > cards[1]["seconds"]["convert"]
    assert not list(mine.rglob("*"))
    assert os.environ["XDG_CACHE_HOME"] == str(mine)
    assert "NUMBA_CACHE_DIR" not in os.environ
    cells = readme.protocol(tmp_path / "records").splitlines()[-1]
    assert f"| cold {result['wall_first_s']:,.1f} s, warm {result['wall_rest_s']:,.1f} s |" in cells
    # Gone on with, the first run still is the cold one, and none of the others begins with empty caches.
    assert not (tmp_path / "records" / "one" / ".caches").exists()
    assert main([*told, "--runs", "3", "--cold"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["first_is_cold"]
    assert list(mine.rglob("*.npy"))


def test_a_cold_record_that_was_stopped_goes_on_with_its_own_caches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, mine = make(tmp_path / "small", num_test=100).path, tmp_path / "mine"
    monkeypatch.setenv("XDG_CACHE_HOME", str(mine))
    caches = tmp_path / "records" / "one" / ".caches"
    told = [*command(data, tmp_path / "records", "one"), "--runs", "2", "--cold"]
    (caches / "stale").mkdir(parents=True)

    with monkeypatch.context() as patched:
        patched.setattr(Reporter, "advance", terminate_at(14))
        assert main(told) == 143
    assert "--cold" in capsys.readouterr().err
    kept = sorted(caches.rglob("*.npy"))
    assert kept and not (caches / "stale").exists()
    written_ns = kept[0].stat().st_mtime_ns
    found = []
    monkeypatch.setattr(Reporter, "advance", lambda *_, **__: found.append(kept[0].stat().st_mtime_ns))
    assert main(told) == 0
    assert set(found) == {written_ns}
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["first_is_cold"]
    assert not caches.exists() and not mine.exists()


def test_runs_of_different_recipes_are_no_record() -> None:
    with pytest.raises(ValueError, match="one recipe"):
        record.take_together([card(0.9), {**card(0.9), "recipe": "other"}], 0.9, [{}, {}])


def test_what_a_record_writes_is_no_change_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcifar.report import environment

    def git(*args: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@t")
        command = ["git", "-C", str(tmp_path), *who, *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    for name in ("README.md", "bench/records/README.md", "bench/results/a.csv", "fastcifar/report/environment.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    head = git("rev-parse", "HEAD")
    code = tmp_path / "fastcifar/report/environment.py"
    monkeypatch.setattr(environment, "__file__", str(code))
    for name in ("README.md", "bench/records/README.md", "bench/results/a.csv"):
        (tmp_path / name).write_text("after")
        assert environment.revision() == head
    code.write_text("after")
    assert environment.revision() == f"{head}+changes"


def test_a_record_names_the_revisions_of_the_code_that_it_is_of() -> None:
    """Those of the processes that a run went on from as well."""
    environments: list[dict[str, Any]] = [{"revision": "b"}, {"revision": "b", "before": [{"revision": "a"}]}]
    got = record.take_together([card(0.9), card(0.91)], 0.9, environments)
    assert got.revisions == ("a", "b")
    assert got.sentence.endswith("; by 2 revisions of the code")
    assert "revisions" not in record.take_together([card(0.9)], 0.9, environments[:1]).sentence


def test_a_record_is_written_without_paths_and_goes_on_with_the_same_settings_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make(tmp_path / "data here", num_test=100).path
    out = tmp_path / "bench" / "records"
    small = command(data, out, "one", "train.epochs=1")
    assert main([*small, "--runs", "2"]) == 0
    capsys.readouterr()
    place = out / "one"
    first = (place / "seed0" / "card.json").read_bytes()
    for other in ("optimizer.lr=0.1", "selection.keep=0.5"):
        assert main([*small, "--runs", "3", "--set", other]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"{other.partition('=')[0]} is " in said and "seed is" not in said
    assert main([*small, "--set", "seed=1"]) == 2
    assert "takes the first run's by --seed" in capsys.readouterr().err
    assert not (place / "seed2").exists()
    # A checkout's tables are refreshed, whether or not anything was trained.
    (tmp_path / "bench" / "results").mkdir()
    (tmp_path / "README.md").write_text("<!-- results --><!-- /results --><!-- measurements --><!-- /measurements -->")
    (out / "README.md").write_text("<!-- records --><!-- /records -->")
    moved = data.rename(tmp_path / data.name)
    assert main([*small, "--data", str(moved), "--runs", "3"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["num_runs"], last["kind"], last["dataset"], last["seeds"]) == (3, "trial", "cifar10-small", [0, 1, 2])
    assert (place / "seed0" / "card.json").read_bytes() == first
    assert json.loads((place / "record.json").read_text())["num_runs"] == 3
    kept = [f"seed{seed}/{name}" for seed in range(3) for name in record.KEPT]
    assert files_in(place) == sorted([*kept, "record.json"])
    assert not any(str(tmp_path) in (place / name).read_text() for name in files_in(place))
    assert "| cifar10-small | [speedrun](bench/records/one) |" in (tmp_path / "README.md").read_text()
    assert "| [one](one) | cifar10-small | trial | 3 |" in (out / "README.md").read_text()


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped by SIGTERM within an epoch, then by Ctrl-C within the evaluation, where no checkpoint is written."""
    data = make(tmp_path / "data here", num_test=100).path
    assert main([*command(data, tmp_path, "whole"), "--runs", "1"]) == 0
    whole = json.loads((tmp_path / "whole" / "seed0" / "card.json").read_text())
    place, part = tmp_path / "stopped", tmp_path / "stopped" / ".seed0.part"

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    capsys.readouterr()
    words = [*command(data, tmp_path, "stopped"), "--runs", "1"]
    taken_s = [0.0]
    stops = ((Reporter, "advance", terminate_at(14), 143), (Session, "predictions", interrupt, 130))
    for patched, name, by, code in stops:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(patched, name, by)
            assert main(words) == code
        assert not list(place.rglob("*.lock"))
        advice = capsys.readouterr().err.partition("go on with: ")[2]
        program, *words = shlex.split(advice)
        assert program == "fastcifar" and words[:1] == ["record"]
        taken_s.append(json.loads((part / "spent.json").read_text())["seconds"]["train"])
        # Settings that it did not begin with are refused here too.
        assert main([*words, "--set", "optimizer.lr=0.1"]) == 2
        assert "optimizer.lr is " in capsys.readouterr().err
    assert main(words) == 0
    assert "going on from" in capsys.readouterr().out
    card = json.loads((place / "seed0" / "card.json").read_text())
    told = ("accuracy", "tta_accuracy", "test_loss", "train_accuracy")
    assert [card[name] for name in told] == [whole[name] for name in told]
    assert all(earlier < later for earlier, later in itertools.pairwise([*taken_s, card["seconds"]["train"]]))
    seconds = card["seconds"]
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
    assert len((place / "seed0" / "metrics.jsonl").read_text().splitlines()) == 2
    assert files_in(place) == sorted([*(f"seed0/{name}" for name in record.KEPT), "record.json"])


def test_a_run_that_is_finished_and_not_yet_kept_reads_the_test_set_no_second_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a checkpoint, which would be one more reason to go on."""
    data = make(tmp_path / "data", num_test=100).path
    told = [*command(data, tmp_path, "one", "train.epochs=1", "train.checkpoint_epochs=0"), "--runs", "1"]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(record, "keep", interrupt)
        assert main(told) == 130
    card = json.loads((tmp_path / "one" / ".seed0.part" / "card.json").read_text())
    monkeypatch.setattr(Session, "predictions", lambda *_: pytest.fail("the test set is read again"))
    assert main([*told, "--set", "optimizer.lr=0.1"]) == 2
    assert "optimizer.lr is " in capsys.readouterr().err
    assert main(told) == 0
    assert json.loads((tmp_path / "one" / "seed0" / "card.json").read_text())["seconds"] == card["seconds"]
    assert not (tmp_path / "one" / ".seed0.part").exists()


def test_a_run_that_left_no_checkpoint_begins_anew_by_any_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that was killed at its first step."""
    data = make(tmp_path / "data", num_test=100).path
    small = [*command(data, tmp_path, "one", "train.epochs=1"), "--runs", "1"]
    with pytest.MonkeyPatch.context() as patch:

        def fail(self: object, name: str, *_: object, **__: object) -> None:
            if name == "training":
                raise ValueError("killed")

        patch.setattr(Reporter, "advance", fail)
        patch.setattr(RunFolder, "remove_unless_begun", lambda self: None)
        assert main([*small, "--set", "pipeline.batch_size=100"]) == 2
    assert (tmp_path / "one" / ".seed0.part" / "config.toml").is_file()
    assert main(small) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_runs"] == 1
    assert "batch_size = 50\n" in (tmp_path / "one" / "seed0" / "config.toml").read_text()
    assert not (tmp_path / "one" / ".seed0.part").exists()


def test_a_peers_runs_count_where_ours_beside_them_do(tmp_path: Path) -> None:
    runs = {str(seed): {"accuracy": 0.9 + seed / 100, "seconds": 1.0 + seed} for seed in range(4)}
    peers = record.Peers("other.py", "", "cifar10", runs)
    some = peers.of(range(1, 3))
    assert list(some.runs) == ["1", "2"]
    assert (some.accuracy_mean, some.mean_s) == (pytest.approx(0.915), 2.5)
    taken = record.take_together([card(0.95)], 0.94, [{}])
    assert taken.seeds == (3,)
    for path in ("seed0", "seed3"):
        (tmp_path / "one" / path).mkdir(parents=True)
        told = {**card(0.95), "dtype": "float32", "num_parameters": 1}
        (tmp_path / "one" / path / "card.json").write_text(json.dumps(told))
    record.write(tmp_path / "one", taken)
    record.write_peers(tmp_path / "one", peers)
    assert readme.protocol(tmp_path).endswith("| 9.0 s | 10.0 s |  | 2.25 of other.py's 4.0 s |")
