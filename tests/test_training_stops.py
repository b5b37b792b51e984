"""Trainings that stop, or are stopped: what is said, what is kept, and that they go on as if they had not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cifar_files import make
from safetensors import safe_open
from safetensors.torch import load_file
from training_runs import same_run, small_config, terminate_at, train

from fastcifar import models, pipelines
from fastcifar.cli import main
from fastcifar.interruption import InterruptedRunError
from fastcifar.pipelines import Batch
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.training import checkpoints, device, loop
from fastcifar.training.session import Session
from fastcifar.training.tally import EpochReport, NonFiniteLossError, Taken, Tally


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CIFAR-10 folder of 500 training and 100 test images whose classes a small network can tell apart."""
    return make(tmp_path_factory.mktemp("small"), num_test=100).path


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["train.averaging=lookahead", "optimizer.name=nesterov", "optimizer.lr=0.05", "optimizer.momentum=0.9"],
        ["train.averaging=ema", "optimizer.name=adamw", "optimizer.lr=0.001", "augmentation.cutmix=1.0"],
        ["selection.keep=0.4", "selection.since=0.5", "augmentation.cutmix=1.0"],
        [
            "model.name=resnet18_dropout",
            "model.widths=[8, 8, 16, 16]",
            "optimizer.bias_lr=0.0002",
            "optimizer.head_lr=0.0005",
        ],
        # Wide enough for convolutions by tiles, and the pipelines that the rest leaves out.
        ["model.widths=[16, 24, 32]", "pipeline.name=dali", "train.epochs=2"],
        ["model.widths=[16, 24, 32]", "pipeline.name=ffcv", "train.epochs=2"],
        ["pipeline.name=ffcv", "pipeline.streaming=true", "train.epochs=2"],
        ["pipeline.name=dali", "pipeline.streaming=true", "train.epochs=2", "data.validation=100"],
        ["pipeline.name=torchvision", "train.epochs=2"],
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    config = small_config(folder, *settings)
    whole = train(config, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop_in_the_last(self: object, report: EpochReport, *_: object) -> None:
        if report.epoch == config.train.epochs:
            raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Reporter, "epoch", stop_in_the_last)
        train(config, tmp_path / "stopped")
    resumed = train(config, tmp_path / "stopped", resume=True)
    same_run(tmp_path / "whole", tmp_path / "stopped")
    assert (resumed.accuracy, resumed.tta_accuracy) == (whole.accuracy, whole.tta_accuracy)


def test_training_is_the_same_by_each_pipeline_that_feeds_the_kernel(folder: Path, tmp_path: Path) -> None:
    for name in ("resident", "ffcv", "dali"):
        train(small_config(folder, f"pipeline.name={name}", "train.epochs=1"), tmp_path / name)
    same_run(tmp_path / "resident", tmp_path / "ffcv")
    same_run(tmp_path / "resident", tmp_path / "dali")


def test_two_threads_repeat_the_same_bits_at_full_width(folder: Path, tmp_path: Path) -> None:
    """In processes of their own: OpenMP takes its number of threads once, and the tests' is one."""
    code = """
import sys
from pathlib import Path
from training_runs import small_config, train
out, resume, *settings = sys.argv[2:]
config = small_config(Path(sys.argv[1]), "model.widths=[64, 256, 256]", "train.threads=2", *settings)
train(config, Path(out), resume=resume == "resume")
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parent)}
    for out in ("one", "other"):
        command = [sys.executable, "-c", code, str(folder), str(tmp_path / out), "new", "train.epochs=0.5"]
        subprocess.run(command, check=True, capture_output=True, env=environment, timeout=300)
    same_run(tmp_path / "one", tmp_path / "other")


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step_and_the_last_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = loop.loss_and_logits
    calls = []

    def break_at_14(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        loss, logits = honest(*args)  # type: ignore[arg-type]
        calls.append(loss)
        return (loss * float("nan") if len(calls) == 14 else loss), logits

    monkeypatch.setattr(loop, "loss_and_logits", break_at_14)
    with pytest.raises(
        NonFiniteLossError, match=r"nan at step 14; .* last good checkpoint: .*step000000010.safetensors"
    ):
        train(small_config(folder), tmp_path / "run")


def test_a_stopped_signal_is_taken_after_the_step_and_nothing_is_lost(folder: Path, tmp_path: Path) -> None:
    """SIGTERM within an epoch: a checkpoint, how to go on, exit code 143; then the same bits and metrics."""
    config = small_config(folder)
    train(config, tmp_path / "whole")

    def stop_within_epoch_2(self: object, name: str, done: int, *_: object, **__: object) -> None:
        if name == "training" and done == 14:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "advance", stop_within_epoch_2)
        with pytest.raises(InterruptedRunError, match=r"after step 14, .*--resume") as stopped:
            train(config, tmp_path / "stopped")
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    out = RunFolder(tmp_path / "stopped")
    first_s = json.loads(out.spent.read_text())["seconds"]
    card = train(config, out.path, resume=True)
    same_run(tmp_path / "whole", out.path)
    assert card.seconds["train"] > first_s["train"] > 0
    assert card.seconds["total"] == pytest.approx(sum(s for name, s in card.seconds.items() if name != "total"))
    about = json.loads(out.environment.read_text())
    (before_it,) = about.pop("before")
    assert before_it == about


def test_a_signal_in_the_last_step_is_not_lost(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test set is left alone until the run goes on, which it does as if it had not stopped."""
    config = small_config(folder, "train.averaging=ema")
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "advance", terminate_at(30))
        with pytest.raises(InterruptedRunError, match=r"after step 30, .*--resume"):
            train(config, tmp_path / "stopped")
    assert not RunFolder(tmp_path / "stopped").card.exists()
    train(config, tmp_path / "stopped", resume=True)
    same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "got list, expected a JSON object"),
        ("{}", "holds no 'seconds'"),
        ('{"seconds": {"train": null}, "energy_j": 1}', "seconds: 'train' is None, expected a number"),
        ('{"seconds": {}, "energy_j": "much"}', "'energy_j' is 'much', expected a number or null"),
    ],
)
def test_what_was_spent_is_read_or_refused_by_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setattr(Reporter, "advance", terminate_at(2))
    with pytest.raises(InterruptedRunError):
        train(small_config(folder), tmp_path / "run")
    (tmp_path / "run" / "spent.json").write_text(text)
    with pytest.raises(ValueError, match=rf"spent.json: {message}"):
        train(small_config(folder), tmp_path / "run", resume=True)


def test_an_epoch_of_skipped_steps_is_gone_on_with() -> None:
    tally = Tally()
    loss, logits, labels = torch.tensor(0.0), torch.zeros(5, 10), torch.zeros(5, dtype=torch.int64)
    for step in (1, 2):
        tally.add(Taken.of(loss, logits, labels, 0.1, skipped=True), step)
    again = Tally.from_tensors(tally.to_tensors(), torch.device("cpu"))
    assert (again.num_steps, again.num_images, again.losses) == (2, 0, [])
    assert again.seconds_s == tally.seconds_s


def test_other_images_are_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    train(small_config(folder, "train.epochs=1"), tmp_path / "run")
    others = make(tmp_path / "others", num_test=90).path
    with pytest.raises(ValueError, match="the run began with other images or labels than those found now"):
        train(small_config(others, "train.epochs=1"), tmp_path / "run", resume=True)


def test_weights_that_are_not_finite_are_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    """The loss is finite in the step that spoils them; what stops the run then is the attempt to keep them."""
    honest = loop.take_step

    def spoil_step_20(state: loop.State, *args: Any) -> Any:
        taken = honest(state, *args)
        if state.step == 19:
            next(weight for weight in state.network.parameters() if weight.requires_grad).data[0] = torch.nan
        return taken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", spoil_step_20)
        with pytest.raises(NonFiniteLossError, match=r"is not finite after step 20; .*step000000010.safetensors"):
            train(small_config(folder), tmp_path / "run")
    assert len(checkpoints.checkpoint_paths(tmp_path / "run" / "checkpoints")) == 1


def test_steps_that_were_skipped_and_larger_images_count_for_the_time_that_is_left(folder: Path) -> None:
    config = small_config(folder, "train.resolution=[{until=0.5,pixels=16},{until=1.0,pixels=32}]")
    state = loop.new_state(models.build("speednet", num_classes=10, widths=(8, 8, 8)), config, torch.float32)
    tally = state.tally
    for step in range(1, 11):
        logits, labels = torch.zeros(5, 10), torch.zeros(5, dtype=torch.int64)
        tally.add(Taken.of(torch.zeros(()), logits, labels, 0.1, skipped=step > 1), step)
    tally.seconds_s, state.step = 10.0, 10
    assert tally.report(0, loop.work_left(state, config, 20, 32)).left_s == pytest.approx(40, rel=0.1)
    assert tally.report(0, loop.work_left(state, config, 40, 32)).left_s == pytest.approx(10 + 80, rel=0.1)


def test_the_last_checkpoints_are_kept_and_a_damaged_one_is_passed_over(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = small_config(folder, "train.epochs=4", "data.validation=0.2")
    train(config, tmp_path / "run")
    out = RunFolder(tmp_path / "run")
    paths = checkpoints.checkpoint_paths(out.checkpoints)
    assert [path.name for path in paths] == ["step000000024.safetensors", "step000000032.safetensors"]
    lines = [json.loads(line) for line in out.metrics.read_text().splitlines()]
    best = max(lines, key=lambda line: line["validation_accuracy"])
    with safe_open(out.best, "pt") as file:
        assert json.loads(file.metadata()["fastcifar"])["epoch"] == best["epoch"]
    weights = out.weights.read_bytes()
    paths[-1].write_bytes(paths[-1].read_bytes()[:-100])
    train(config, tmp_path / "run", resume=True)
    assert "passed over" in capsys.readouterr().out
    assert out.weights.read_bytes() == weights


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_batch_that_gives_no_number_is_kept_or_skipped_and_counted(folder: Path, tmp_path: Path, policy: str) -> None:
    config = small_config(folder, f"train.on_nonfinite={policy}")
    honest, calls = loop.loss_and_logits, []

    def break_at_14(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        loss, logits = honest(*args)  # type: ignore[arg-type]
        calls.append(loss)
        return (loss * float("inf") if len(calls) == 14 else loss), logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "loss_and_logits", break_at_14)
        if policy == "skip":
            card = train(config, tmp_path / "run")
            assert card.skipped_steps == 1
            assert all(torch.isfinite(v).all() for v in load_file(tmp_path / "run" / "weights.safetensors").values())
            return
        with pytest.raises(NonFiniteLossError, match="step 14; the batch is kept in"):
            train(config, tmp_path / "run")
    kept = load_file(tmp_path / "run" / "nonfinite.safetensors")
    assert kept["images"].shape == (50, 3, 32, 32)
    assert len(set(kept["indices"].tolist())) == 50


def test_an_image_that_gives_no_number_does_not_stay_in_the_norms(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = loop.resize, []

    def break_at_14(images: torch.Tensor, pixels: int) -> torch.Tensor:
        calls.append(pixels)
        return honest(images * float("inf") if len(calls) == 14 else images, pixels)

    monkeypatch.setattr(loop, "resize", break_at_14)
    card = train(small_config(folder, "train.on_nonfinite=skip"), tmp_path / "run")
    assert card.skipped_steps == 1
    assert all(torch.isfinite(v).all() for v in load_file(tmp_path / "run" / "weights.safetensors").values())
    assert card.accuracy > 0.2


def test_a_run_killed_after_ending_early_does_not_train_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = [f"optimizer.{name}=1e-9" for name in ("lr", "bias_lr", "head_lr")]
    early = ["data.validation=0.2", "train.epochs=9", "train.early_stop_epochs=2", *rates]
    config = small_config(folder, *early)
    honest = Session.predictions

    def killed(self: Session, network: torch.nn.Module, part: str, *rest: object) -> object:
        if part == "test":
            raise KeyboardInterrupt
        return honest(self, network, part, *rest)  # type: ignore[arg-type]

    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Session, "predictions", killed)
        train(config, tmp_path / "stopped")
    assert len((tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()) < 9
    train(config, tmp_path / "stopped", resume=True)
    same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_loss_read_late_is_found_before_it_is_kept(folder: Path, tmp_path: Path) -> None:
    """On a GPU losses are read once an epoch; what a checkpoint brings back is looked at again."""
    tally = Tally()
    tally.losses, tally.correct, tally.num_images = (
        [torch.tensor(1.0), torch.tensor(float("nan"))],
        [torch.tensor(3)],
        9,
    )
    with pytest.raises(NonFiniteLossError):
        Tally.from_tensors(tally.to_tensors(), torch.device("cpu")).check()

    def keep_only(self: Tally, taken: Taken, step: int) -> None:
        self.losses.append(taken.loss)
        self._last_step = step

    with pytest.MonkeyPatch.context() as patch:
        honest = loop.loss_and_logits
        patch.setattr(Tally, "add", keep_only)
        patch.setattr(loop, "loss_and_logits", lambda *args: (honest(*args)[0] * float("nan"), honest(*args)[1]))
        patch.setattr(Reporter, "advance", terminate_at(1))
        with pytest.raises(NonFiniteLossError):
            train(small_config(folder), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


@pytest.mark.parametrize("compiles", ["off", "on"])
def test_running_out_of_memory_names_a_batch_size_that_fits(folder: Path, tmp_path: Path, compiles: str) -> None:
    """Where steps are compiled, the first ones are those of the warm-up."""
    honest = loop.loss_and_logits

    def full_above_20(network: object, batch: Batch, images: torch.Tensor, *rest: object) -> object:
        if len(images) > 20:
            raise torch.OutOfMemoryError("out of memory")
        return honest(network, batch, images, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="batch_size 50; 12 fits"):
        patch.setattr(device, "without_compiler", lambda _: None)
        patch.setattr(loop, "compiled", lambda network: network)
        patch.setattr(loop, "loss_and_logits", full_above_20)
        train(small_config(folder, f"train.compile={compiles}"), tmp_path / "run")


@pytest.mark.parametrize("settings", [[], ["data.validation=100"]])
def test_running_out_of_memory_while_evaluating_names_that_batch_size(
    folder: Path, tmp_path: Path, settings: list[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=r"evaluate\.batch_size 60; less takes"):
        patch.setattr("fastcifar.training.session.predict", full)
        train(small_config(folder, "evaluate.batch_size=60", "train.epochs=1", *settings), tmp_path / "run")


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("wording", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling this"])
def test_running_out_of_memory_as_a_pipeline_opens_names_what_takes_less(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, wording: str
) -> None:
    honest = pipelines.open

    def full(*args: Any, **told: Any) -> object:
        if told["part"] == part:
            raise RuntimeError(wording)
        return honest(*args, **told)

    monkeypatch.setattr(pipelines, "open", full)
    says = {
        "train": r"as the resident pipeline opens with pipeline\.batch_size 50; .*=25, or --set pipeline\.name=ffcv",
        "test": r"with evaluate\.batch_size 60; less takes",
    }
    with pytest.raises(ValueError, match=f"^out of memory on .* {says[part]}"):
        train(small_config(folder, "evaluate.batch_size=60", "train.epochs=0.1"), tmp_path / "run")


def test_a_fine_tuned_run_goes_on_without_the_run_that_it_began_from(folder: Path, tmp_path: Path) -> None:
    train(small_config(folder, "train.epochs=1"), tmp_path / "parent")
    config = small_config(folder, "train.epochs=1", f"train.start_from='{tmp_path / 'parent'}'")
    first = train(config, tmp_path / "run")
    (tmp_path / "parent").rename(tmp_path / "elsewhere")
    assert train(config, tmp_path / "run", resume=True).accuracy == first.accuracy


def test_resuming_with_another_configuration_names_each_difference(folder: Path, tmp_path: Path) -> None:
    from fastcifar.commands.train import Args
    from fastcifar.commands.train import run as command

    train(small_config(folder, "train.epochs=1"), tmp_path / "run")
    changes = ("optimizer.lr=0.5", "train.epochs=2", "train.threads=1")
    with pytest.raises(ValueError, match=r"optimizer.lr is 0.12, got 0.5; train.epochs is 1.0, got 2.0$"):
        command(Args(resume=tmp_path / "run", set=changes))
    assert command(Args(resume=tmp_path / "run", set=("train.threads=1",))) == 0


def test_resuming_a_finished_run_shows_its_card_and_changes_no_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    card = train(small_config(folder, "train.epochs=1", "data.validation=100"), run)
    capsys.readouterr()
    # Nor does it look for the data: the test set is read once.
    monkeypatch.setattr("fastcifar.data.locate", lambda *_, **__: pytest.fail("looks for the data"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(run)]) == 0
    said = capsys.readouterr().out
    assert "is finished" in said and "test accuracy" in said
    assert json.loads(said.splitlines()[-1]) == card.to_json()
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}
    assert after == before
    for name, value in (("seed", "one"), ("seconds", {**card.seconds, "load": None}), ("epochs", None)):
        (run / "card.json").write_text(json.dumps({**card.to_json(), name: value}))
        assert main(["train", "--resume", str(run)]) == 2
        assert f"card.json: '{name}' is " in capsys.readouterr().err
    (run / "card.json").write_text(json.dumps({k: v for k, v in card.to_json().items() if k != "tta"}))
    assert main(["train", "--resume", str(run)]) == 2
    assert "card.json: holds no 'tta'" in capsys.readouterr().err


def test_resuming_with_other_threads_says_that_bits_may_differ(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = torch.get_num_threads()
    try:
        train(small_config(folder, "train.epochs=1", "train.threads=1"), tmp_path / "run")
        assert "bits may differ" not in capsys.readouterr().out
        train(small_config(folder, "train.epochs=1", "train.threads=2"), tmp_path / "run", resume=True)
        assert "its last bits may differ" in capsys.readouterr().out
    finally:
        torch.set_num_threads(before)
