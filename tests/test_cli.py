"""The commands as a user meets them: in a process of their own, on a pipe."""

import importlib
import inspect
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cifar_files import make

from fastcifar import kernels
from fastcifar.cli import COMMANDS, main
from fastcifar.commands import doctor
from fastcifar.commands.speedrun import RECIPES
from fastcifar.data import shapes10
from fastcifar.data.download import ARCHIVES
from fastcifar.kernels.errors import MissingLibraryError
from fastcifar.report.progress import Reporter
from fastcifar.schema import Config
from fastcifar.training import device


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("small"), num_test=100).path


def fastcifar(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastcifar.cli", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, "COLUMNS": "200"}
    )


def test_speedrun_goes_from_the_folder_to_the_card(folder: Path, tmp_path: Path) -> None:
    small = ["--set", "model.widths=[8, 16, 16]", "--set", "pipeline.batch_size=50", "--set", "train.epochs=2"]
    done = fastcifar("speedrun", "--data", folder, "--out", "run", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    card = json.loads(lines[-1])
    assert card["dataset"] == "cifar10-small"
    assert card["target"] == 0.94
    parts = {name: value for name, value in card["seconds"].items() if name != "total"}
    assert card["seconds"]["total"] == pytest.approx(sum(parts.values()))
    assert any("test accuracy" in line and "cifar10-small" in line for line in lines)
    again = fastcifar("evaluate", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["tta_accuracy"] == card["tta_accuracy"]


@pytest.mark.parametrize(("own", "told", "target"), [("target = 50\n", [], 0.5), ("", [], None), ("", [94], 0.94)])
def test_a_recipe_that_is_named_keeps_its_own_target(
    folder: Path, tmp_path: Path, own: str, told: list[int], target: float | None, capsys: pytest.CaptureFixture
) -> None:
    small = "[model]\nwidths = [8, 8, 8]\n[pipeline]\nbatch_size = 50\n[train]\nepochs = 0.2\n"
    (tmp_path / "mine.toml").write_text(f'name = "mine"\n{own}{small}')
    aims = [word for aim in told for word in ("--target", str(aim))]
    words = ["speedrun", "--recipe", str(tmp_path / "mine.toml"), "--data", str(folder), "--out", str(tmp_path / "run")]
    assert main([*words, "--no-pictures", *aims]) == 0
    card = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert card["target"] == target


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pipeline.batch_size=501", "pipeline.batch_size: got 501, takes at most the 500 images to train on"),
        (
            "augmentation.crop_padding=32",
            "augmentation.crop_padding: got 32, takes less than the smaller side",
        ),
    ],
)
def test_a_setting_that_the_data_does_not_allow_is_told_by_its_full_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, setting: str, message: str
) -> None:
    assert main(["train", "--data", str(folder), "--set", setting, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_a_log_hears_of_a_long_epoch_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    now_s = [0.0]
    monkeypatch.setattr("fastcifar.report.progress.time.monotonic", lambda: now_s[0])
    with Reporter() as reporter:
        for step in range(1, 101):
            now_s[0] = 2.0 * step
            reporter.advance("training", step, 100, unit=f"step {step}/100")
            if step == 45:
                reporter.line("epoch 1/2")
    told = capsys.readouterr().out.splitlines()
    assert told == ["training: step 31/100", "epoch 1/2", "training: step 76/100"]


def test_several_runs_end_with_their_mean(folder: Path, tmp_path: Path) -> None:
    small = ["--set", "model.widths=[8, 8, 8]", "--set", "pipeline.batch_size=50", "--set", "train.epochs=1"]
    done = fastcifar("speedrun", "--data", folder, "--out", "runs", "--runs", 2, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    accuracies = [card["tta_accuracy"] for card in summary["cards"]]
    assert summary["tta_accuracy_mean"] == pytest.approx(sum(accuracies) / 2)
    assert [card["seed"] for card in summary["cards"]] == [0, 1]


@pytest.mark.parametrize("command", ["speedrun", "train"])
def test_a_failure_while_drawing_takes_no_result_and_no_run_away(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no\nfont")

    monkeypatch.setattr("fastcifar.evaluation.results.draw_finished", fail)
    small = ["model.widths=[8, 8, 8]", "pipeline.batch_size=50", "train.epochs=0.2"]
    sets = [word for setting in small for word in ("--set", setting)]
    runs = ["--runs", "2"] if command == "speedrun" else []
    assert main([command, "--data", str(folder), "--out", str(tmp_path / "run"), *runs, *sets]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("no pictures: no font") == (2 if runs else 1)
    assert len(json.loads(lines[-1]).get("cards", [])) == (2 if runs else 0)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without data, on a machine that no data set can be downloaded to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(ARCHIVES, "cifar10", replace(ARCHIVES["cifar10"], url="http://127.0.0.1:9/cifar.tar.gz"))
    return tmp_path


def test_a_missing_cifar10_is_an_error_with_the_three_ways_to_supply_it(
    nowhere: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["speedrun", "--dataset", "cifar10"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert all(way in said.err for way in ("(1) --data PATH", "(2) put one of these into ./data", "(3) fetch http://"))
    assert main(["speedrun", "--dataset", "cifar10", "--data", str(nowhere / "elsewhere")]) == 2
    assert "is not there" in capsys.readouterr().err


def test_without_cifar10_the_whole_job_is_shown_on_the_stand_in(
    nowhere: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes10, "NUM_TRAIN", 500)
    monkeypatch.setattr(shapes10, "NUM_TEST", 100)
    small = ["model.widths=[8, 8, 8]", "pipeline.batch_size=50", "train.epochs=1"]
    sets = [word for setting in small for word in ("--set", setting)]
    assert main(["speedrun", "--target", "95", "--no-pictures", "--out", str(nowhere / "run"), *sets]) == 0
    out = capsys.readouterr().out
    assert "--target 95 is for cifar10; shapes10 has its own, 90 %\n" in out
    assert "No CIFAR-10: " in out and "not downloaded: " in out
    card = json.loads(out.splitlines()[-1])
    assert (card["dataset"], card["recipe"], card["target"]) == ("shapes10", "speedrun-shapes10", 0.9)
    quoted = [line for line in out.splitlines() if "accuracy" in line and "%" in line]
    assert quoted and all("shapes10" in line for line in quoted)


@pytest.mark.parametrize(("target", "recipe"), RECIPES.items())
def test_a_target_picks_its_recipe(
    folder: Path, target: int, recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class ChosenError(Exception):
        pass

    def chosen(config: Config, *_: object, **__: object) -> None:
        assert (config.name, config.target) == (recipe, target)
        raise ChosenError

    monkeypatch.setattr("fastcifar.training.run.run", chosen)
    with pytest.raises(ChosenError):
        main(["speedrun", "--target", str(target), "--data", str(folder), "--out", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["traine"], "no command 'traine' (did you mean train?); it takes one of: speedrun, "),
        (["xyz"], "no command 'xyz'; it takes one of: speedrun, "),
        (["train", "--set", "optimizer.lr=fast"], "optimizer.lr: got 'fast', takes a number"),
        (["train", "nope"], "recipe: got 'nope'"),
        (["train", "speedrun-95", "--set", "augmentation.hue=9"], "augmentation.hue: got 9.0, takes a number from 0"),
        (["preview", "--set", "augmentation.flip=up"], "augmentation.flip: got 'up', takes none, random, alternating"),
        (["train", "--pipeline", "petastorm"], "pipeline.name: got 'petastorm'"),
        (["train", "--dataset", "mnist"], "data.dataset: got 'mnist'"),
        (["train", "--dataset", "shapes10", "--data", "."], "--data: got ., takes nothing with --dataset shapes10"),
        (["convert", "--to", "npy", "--dataset", "mnist"], "dataset: got 'mnist', takes one of auto, cifar10"),
        (["speedrun", "--runs", "0"], "--runs: got 0"),
        (["speedrun", "--target", "93"], "--target: got 93, takes one of 94, 95, 96, 97"),
        (["record", "--target", "98"], "--target: got 98, takes one of 94, 95, 96, 97, or any with --recipe"),
        (["record", "--target", "94.5"], "--target: got 94.5, takes one of 94, 95, 96, 97, or any with --recipe"),
        (["compare"], "runs: got none"),
        (["speedrun", "--set", "data.path=here"], "--set data.path: speedrun takes it by --data"),
        (["speedrun", "--set", "data.dataset=cifar10"], "--set data.dataset: speedrun takes it by --dataset"),
        (["speedrun", "--runs", "3", "--set", "seed =5"], "--set seed: speedrun takes it by --seed"),
        (["bench", "table", "--assert-min", "a=1"], "--assert-min, --assert-max: got table"),
        (["evaluate", "."], "not a run folder"),
        (["train", "--resume", "."], "not a run folder"),
        (["recipes", "nope"], "recipe: got 'nope'"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_help_is_the_same_by_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastcifar", "--help"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == fastcifar("--help", cwd=tmp_path).stdout


def test_every_command_has_a_module_and_says_what_it_takes(tmp_path: Path) -> None:
    for name in COMMANDS:
        command = importlib.import_module(f"fastcifar.commands.{name}")
        assert command.Args.__dataclass_fields__ is not None
        assert callable(command.run)
        # The help shows a line break as it is.
        assert all(line.count('"""') in (0, 2) for line in inspect.getsource(command.Args).splitlines())


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("evaluate", " RUN\n"),
        ("compare", " RUN [RUN ...] "),
        ("predict", " RUN [RUN ...] INPUT\n"),
        ("recipes", " [NAME]\n"),
        ("sweep", " SPACE\n"),
        ("convert", " [SRC] "),
        ("inspect", " ARTEFACT "),
        ("verify", " ARTEFACT "),
        ("summary", " NETWORK "),
        ("train", "\n"),
        ("speedrun", "\n"),
        ("record", "\n"),
    ],
)
def test_a_commands_help_names_what_it_takes_and_no_none(
    command: str, usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    out = capsys.readouterr().out
    assert usage in out.splitlines(keepends=True)[0]
    assert not any(odd in out for odd in ("None", "(default: )", "(default: '')"))


def test_help_comes_in_half_a_second(tmp_path: Path) -> None:
    def once() -> float:
        start_s = time.perf_counter()
        assert fastcifar("--help", cwd=tmp_path).returncode == 0
        return time.perf_counter() - start_s

    assert min(once() for _ in range(5)) < 0.5


def test_doctor_names_every_pipeline(tmp_path: Path) -> None:
    done = fastcifar("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report["pipelines"]) == {"resident", "ffcv", "dali", "torchvision"}
    assert report["pipelines"]["resident"] is None


def test_doctor_says_that_a_gpu_lacks_what_compiles_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def without(_: object) -> None:
        raise MissingLibraryError("Images on a GPU need numba-cuda: pip install 'numba-cuda[cu13]'")

    monkeypatch.setattr(device, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(device, "describe", lambda _: "a GPU")
    monkeypatch.setattr(device, "pick_dtype", lambda *_: torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "prepare", without)
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["kernels"].endswith("pip install 'numba-cuda[cu13]'")
    monkeypatch.setattr(kernels, "prepare", lambda _: None)
    assert main(["doctor"]) == 0
    assert "work on the GPU" in capsys.readouterr().out


def test_doctor_says_what_is_missing_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(doctor.OPTIONAL, "not-there", ("sweep", "nothing"))
    assert main(["doctor", "--json"]) == 0
    missing = json.loads(capsys.readouterr().out)["missing"]
    assert missing["not-there"] == "nothing: pip install -e '.[sweep]' in fastcifar's folder"
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "without not-there" in said and "[sweep]" in said


def test_recipes_are_listed_one_a_line_and_shown_whole(capsys: pytest.CaptureFixture) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("speedrun ") for line in lines)
    assert main(["recipes", "speedrun"]) == 0
    assert "[optimizer]" in capsys.readouterr().out


@pytest.mark.parametrize("args", [["--help"], ["recipes"], ["recipes", "speedrun"], ["doctor"]])
def test_where_the_reader_goes_away_a_command_ends_as_others_do(args: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fastcifar.cli", *args]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_pipe_that_breaks_elsewhere_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def broken(*_: object) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("fastcifar.cli._run", broken)
    assert main(["record"]) == 2
    assert capsys.readouterr().err == "fastcifar record: [Errno 32] Broken pipe\n"
