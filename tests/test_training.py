"""Training, from a CIFAR folder to the card: repeatable, resumable, and it says when it goes wrong."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from cifar_files import make
from safetensors import safe_open
from safetensors.torch import load_file

from fastcifar import config as configs
from fastcifar.config import Config
from fastcifar.data import stratified_rows
from fastcifar.interruption import InterruptedRunError, StopRequest
from fastcifar.pipelines import Batch
from fastcifar.report.card import Card
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.training import checkpoints, loop, losses, resolution
from fastcifar.training.clock import Clock
from fastcifar.training.device import pick_dtype
from fastcifar.training.run import run
from fastcifar.training.session import Session, find_data
from fastcifar.training.tally import EpochReport, NonFiniteLossError, Taken, Tally

SMALL = ["pipeline.batch_size=50", "model.widths=[8, 16, 16]", "train.epochs=3", "train.whiten_epochs=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CIFAR-10 folder of 500 training and 100 test images whose classes a small network can tell apart."""
    return make(tmp_path_factory.mktemp("small"), num_test=100).path


def small_config(folder: Path, *settings: str) -> Config:
    return configs.load("speedrun", [f"data.path='{folder}'", *SMALL, *settings])


def train(config: Config, out: Path, *, resume: bool = False) -> Card:
    with Reporter() as reporter:
        folder = RunFolder.open(out) if resume else RunFolder.create(out, config)
        source = find_data(config.data, Clock(), reporter)
        return run(config, source, folder, Clock(), reporter, resume=resume)


def test_a_run_learns_and_leaves_all_that_was_promised(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = small_config(folder, "data.validation=0.2")
    card = train(config, tmp_path / "run")
    assert card.tta_accuracy > 0.5
    assert card.num_train == 400
    assert card.validation_accuracy is not None
    assert card.seconds["total"] == pytest.approx(sum(s for name, s in card.seconds.items() if name != "total"))
    out = RunFolder(tmp_path / "run")
    assert out.read_config() == config
    lines = [json.loads(line) for line in out.metrics.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert {"loss", "lr", "accuracy", "images_s", "left_s", "validation_accuracy", "dataset"} <= lines[0].keys()
    environment = json.loads(out.environment.read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert json.loads(out.card.read_text())["tta_accuracy"] == card.tta_accuracy
    printed = capsys.readouterr().out
    for line in printed.splitlines():
        assert "%" not in line or "cifar10" in line


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(small_config(folder, f"seed={seed}", "train.epochs=1"), tmp_path / name)
    a, b, c = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


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
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    config = small_config(folder, *settings)
    whole = train(config, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop_after_epoch_2(self: object, report: EpochReport, *_: object) -> None:
        if report.epoch == 3:
            raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Reporter, "epoch", stop_after_epoch_2)
        train(config, tmp_path / "stopped")
    resumed = train(config, tmp_path / "stopped", resume=True)
    same_run(tmp_path / "whole", tmp_path / "stopped")
    assert (resumed.accuracy, resumed.tta_accuracy) == (whole.accuracy, whole.tta_accuracy)


def same_run(whole: Path, stopped: Path) -> None:
    """The same weights, and the same metrics but for the time they took."""
    expected, found = (load_file(path / "weights.safetensors") for path in (whole, stopped))
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    timed = ("images_s", "seconds", "left_s")
    lines = [
        [
            {key: value for key, value in json.loads(line).items() if key not in timed}
            for line in (path / "metrics.jsonl").read_text().splitlines()
        ]
        for path in (whole, stopped)
    ]
    assert lines[0] == lines[1]


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


def test_mixed_labels_are_weighted_by_what_is_shown() -> None:
    logits = torch.randn(4, 10)
    labels, others = torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8])
    weights = torch.tensor([0.0, 0.25, 0.5, 1.0])
    batch = Batch(torch.randn(4, 3, 8, 8), labels, others, weights, torch.arange(4))
    loss, _ = loop.loss_and_logits(lambda _: logits, batch, batch.images, 0.1, torch.float32)
    smooth = torch.full((4, 10), 0.01)
    for i in range(4):
        smooth[i, labels[i]] += 0.9 * weights[i]
        smooth[i, others[i]] += 0.9 * (1 - weights[i])
    torch.testing.assert_close(loss, -(smooth * logits.log_softmax(1)).sum(1).mean())


def test_progressive_resolution_takes_each_stage_in_its_share_of_the_run() -> None:
    stages = "train.resolution=[{until=0.5, pixels=16}, {until=0.75, pixels=24}, {until=1, pixels=32}]"
    config = configs.load("speedrun", [stages])
    assert [resolution.pixels_at(config, p) for p in (0, 0.49, 0.5, 0.74, 0.75, 0.99)] == [16, 16, 24, 24, 32, 32]
    assert resolution.resize(torch.zeros(2, 3, 32, 32), 24).shape == (2, 3, 24, 24)


def test_validation_rows_are_stratified_and_leave_the_rest() -> None:
    import numpy as np

    labels_n = np.repeat(np.arange(10), 50)
    train_rows, held_rows = stratified_rows(labels_n, 0.2, seed=3)
    assert sorted([*train_rows, *held_rows]) == list(range(500))
    assert (np.bincount(labels_n[held_rows]) == 10).all()
    again = stratified_rows(labels_n, 100, seed=3)
    assert (again[1] == held_rows).all()
    assert (stratified_rows(labels_n, 0.2, seed=4)[1] != held_rows).any()


def test_a_run_folder_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    config = small_config(folder, "train.epochs=0.1")
    train(config, tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run already"):
        train(config, tmp_path / "run")


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


def test_a_small_network_learns_real_cifar10_in_one_epoch(real_cifar10: Path, tmp_path: Path) -> None:
    """70 % was measured; 65 % leaves room for another machine's rounding, and none for a broken step."""
    stages = "train.resolution=[{until=0.7, pixels=20}, {until=1, pixels=32}]"
    settings = ["model.widths=[32, 64, 64]", "train.epochs=1", "train.whiten_epochs=0.3", "evaluate.tta=none", stages]
    card = train(configs.load("speedrun", [f"data.path='{real_cifar10}'", *settings]), tmp_path / "run")
    assert (card.dataset, card.num_train, card.num_test) == ("cifar10", 50_000, 10_000)
    assert card.accuracy > 0.65


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
    train(config, tmp_path / "stopped", resume=True)
    same_run(tmp_path / "whole", tmp_path / "stopped")


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


def test_a_compiled_run_takes_the_steps_of_one_that_is_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that compiling adds to a run, but for the compiler: the warm-up must leave nothing behind."""
    stages = "train.resolution=[{until=0.5, pixels=24}, {until=1, pixels=32}]"
    plain = train(small_config(folder, stages), tmp_path / "plain")
    monkeypatch.setattr(loop, "compiled", lambda network: network)
    card = train(small_config(folder, stages, "train.compile=on"), tmp_path / "compiled")
    assert (plain.compiled, card.compiled) == (False, True)
    same_run(tmp_path / "plain", tmp_path / "compiled")


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
        Tally.from_tensors(tally.to_tensors()).check()

    def keep_only(self: Tally, taken: Taken, step: int) -> None:
        self.losses.append(taken.loss)
        self._last_step = step

    with pytest.MonkeyPatch.context() as patch:
        honest = loop.loss_and_logits
        patch.setattr(Tally, "add", keep_only)
        patch.setattr(loop, "loss_and_logits", lambda *args: (honest(*args)[0] * float("nan"), honest(*args)[1]))
        patch.setattr(Reporter, "advance", lambda self, *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(NonFiniteLossError):
            train(small_config(folder), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


@pytest.mark.parametrize(("has_units", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_units_for_bfloat16_takes_float16(
    folder: Path, monkeypatch: pytest.MonkeyPatch, has_units: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_units)
    assert pick_dtype(small_config(folder, "train.dtype=auto").train, torch.device("cuda")) is dtype


def test_fractions_of_an_epoch_are_whole_steps() -> None:
    assert [loop.steps_in(epochs, 200) for epochs in (0.55, 0.551, 1, 0.0049)] == [110, 111, 200, 1]


def test_a_target_goes_from_the_settings_to_the_card(folder: Path, tmp_path: Path) -> None:
    card = train(small_config(folder, "train.epochs=0.2", "target=96"), tmp_path / "run")
    assert card.target == 0.96
    assert "target 96 %: missed by" in card.target_sentence


def test_running_out_of_memory_names_a_batch_size_that_fits(folder: Path, tmp_path: Path) -> None:
    honest = loop.loss_and_logits

    def full_above_20(network: object, batch: Batch, images: torch.Tensor, *rest: object) -> object:
        if len(images) > 20:
            raise torch.OutOfMemoryError("out of memory")
        return honest(network, batch, images, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="batch_size 50; 12 fits"):
        patch.setattr(loop, "loss_and_logits", full_above_20)
        train(small_config(folder), tmp_path / "run")


def test_a_plateau_and_early_stopping_look_at_the_validation_split(folder: Path, tmp_path: Path) -> None:
    settings = ["data.validation=0.2", "train.epochs=6", "schedule.name=plateau", "schedule.patience=0"]
    never = ["schedule.watch=accuracy", "train.early_stop_epochs=2", "optimizer.lr=1e-9", "optimizer.bias_lr=1e-9"]
    train(small_config(folder, *settings, *never, "optimizer.head_lr=1e-9"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) < 6
    assert lines[-1]["lr"] < lines[0]["lr"]
    with pytest.raises(ValueError, match=r"plateau.*data.validation"):
        small_config(folder, "schedule.name=plateau")


def test_a_student_learns_from_its_teacher_and_a_run_starts_from_another(folder: Path, tmp_path: Path) -> None:
    train(small_config(folder), tmp_path / "teacher")
    told = [f"distill.teacher='{tmp_path / 'teacher'}'", "distill.weight=1.0", "train.label_smoothing=0"]
    student = train(small_config(folder, *told, "model.widths=[8, 8, 8]"), tmp_path / "student")
    assert student.tta_accuracy > 0.3
    start = [f"train.start_from='{tmp_path / 'teacher'}'", "train.epochs=0.1", "optimizer.lr=1e-9"]
    tuned = train(small_config(folder, *start, "optimizer.bias_lr=1e-9", "optimizer.head_lr=1e-9"), tmp_path / "tuned")
    assert tuned.train_accuracy is not None
    assert tuned.train_accuracy > 0.8


def test_the_distance_to_a_teacher_is_the_softened_divergence() -> None:
    logits, taught = torch.randn(4, 10), torch.randn(4, 10)
    found = losses.distance_to_teacher(lambda _: taught, torch.zeros(4, 3, 8, 8), logits, 2.0, torch.float32)  # type: ignore[arg-type]
    p, q = (taught / 2).softmax(1), (logits / 2).softmax(1)
    torch.testing.assert_close(found, 4 * (p * (p / q).log()).sum(1).mean())


def test_resuming_with_another_configuration_names_each_difference(folder: Path, tmp_path: Path) -> None:
    from fastcifar.commands.train import Args
    from fastcifar.commands.train import run as command

    train(small_config(folder, "train.epochs=1"), tmp_path / "run")
    changes = ("optimizer.lr=0.5", "train.epochs=2", "train.threads=1")
    with pytest.raises(ValueError, match=r"optimizer.lr is 0.12, got 0.5; train.epochs is 1.0, got 2.0$"):
        command(Args(resume=tmp_path / "run", set=changes))
    assert command(Args(resume=tmp_path / "run", set=("train.threads=1",))) == 0


def test_the_first_signal_asks_and_the_second_is_the_systems() -> None:
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.exit_code == 130
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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


@pytest.mark.parametrize(
    "settings", [["train.resolution=[{until=1, pixels=8}]"], ["selection.keep=0.5", "selection.pixels=8"]]
)
def test_images_made_too_small_are_a_wrong_setting(folder: Path, tmp_path: Path, settings: list[str]) -> None:
    name = settings[-1].split("=", maxsplit=1)[0]
    with pytest.raises(ValueError, match=f"{name}: 8 pixels are too few for this network"):
        train(small_config(folder, *settings), tmp_path / "run")


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
