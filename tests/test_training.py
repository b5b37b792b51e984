"""Training, from a CIFAR folder to the card: it learns, repeats its bits, and does what its settings say."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cifar_files import make
from safetensors.torch import load_file, save_file
from torch._dynamo.testing import CompileCounter
from training_runs import same_run, small_config, terminate_at, train

from fastcifar import artefacts, data, models
from fastcifar import config as configs
from fastcifar.data import stratified_rows
from fastcifar.interruption import InterruptedRunError
from fastcifar.models.speednet import SpeedNet
from fastcifar.pipelines import Batch
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.training import device, loop, losses, resolution, run, session
from fastcifar.training.clock import Clock
from fastcifar.training.device import pick_dtype, use_compile, without_compiler
from fastcifar.training.session import build_network, find_data, resolve


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CIFAR-10 folder of 500 training and 100 test images whose classes a small network can tell apart."""
    return make(tmp_path_factory.mktemp("small"), num_test=100).path


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
    labels_n = np.repeat(np.arange(10), 50)
    train_rows, held_rows = stratified_rows(labels_n, 0.2, seed=3)
    assert sorted([*train_rows, *held_rows]) == list(range(500))
    assert (np.bincount(labels_n[held_rows]) == 10).all()
    again = stratified_rows(labels_n, 100, seed=3)
    assert (again[1] == held_rows).all()
    assert (stratified_rows(labels_n, 0.2, seed=4)[1] != held_rows).any()


def test_a_long_run_says_early_and_once_how_long_it_takes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(folder, "train.epochs=2")
    train(config, tmp_path / "short")
    assert "at this pace" not in capsys.readouterr().out
    monkeypatch.setattr(run, "TELL_PACE_AFTER_S", 0.0)
    monkeypatch.setattr(run, "TELL_PACE_ABOVE_S", 0.0)
    train(config, tmp_path / "long")
    told = capsys.readouterr().out.splitlines()
    assert "speednet of" in told[0] and "2 epochs of" in told[0], "what is trained is said first"
    pace = r"at this pace training takes another \d+\.\d hours"
    assert [line for line in told if re.fullmatch(pace, line)] == told[1:2]


def test_a_run_folder_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    config = small_config(folder, "train.epochs=0.1")
    train(config, tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run already"):
        train(config, tmp_path / "run")


def test_a_small_network_learns_real_cifar10_in_one_epoch(real_cifar10: Path, tmp_path: Path) -> None:
    """70 % was measured; 65 % leaves room for another machine's rounding, and none for a broken step."""
    stages = "train.resolution=[{until=0.7, pixels=20}, {until=1, pixels=32}]"
    settings = ["model.widths=[32, 64, 64]", "train.epochs=1", "train.whiten_epochs=0.3", "evaluate.tta=none", stages]
    card = train(configs.load("speedrun", [f"data.path='{real_cifar10}'", *settings]), tmp_path / "run")
    assert (card.dataset, card.num_train, card.num_test) == ("cifar10", 50_000, 10_000)
    assert card.accuracy > 0.65


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_run_in_16_bits_goes_on_as_if_it_had_not_stopped(folder: Path, tmp_path: Path, dtype: str) -> None:
    """Two steps: without units for it 16 bits are slow on a CPU."""
    config = small_config(folder, f"train.dtype={dtype}", "train.epochs=0.2")
    whole = train(config, tmp_path / "whole")
    assert whole.dtype == dtype
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(Reporter, "advance", terminate_at(1))
        train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped", resume=True)
    same_run(tmp_path / "whole", tmp_path / "stopped")


def test_the_stem_whitens_and_its_bias_is_trained_for_its_epochs_only(folder: Path, tmp_path: Path) -> None:
    train(small_config(folder, "train.epochs=1", "train.whiten_epochs=0"), tmp_path / "fixed")
    train(small_config(folder, "train.epochs=1", "train.whiten_epochs=1"), tmp_path / "trained")
    fixed, trained = (load_file(tmp_path / name / "weights.safetensors") for name in ("fixed", "trained"))
    assert torch.equal(fixed["whiten.weight"], trained["whiten.weight"])
    assert torch.equal(fixed["whiten.weight"][:12], -fixed["whiten.weight"][12:])
    torch.manual_seed(0)
    begun = build_network(small_config(folder).model, 10).state_dict()["whiten.bias"]
    assert torch.equal(fixed["whiten.bias"], begun)
    assert not torch.equal(trained["whiten.bias"], begun)


def test_a_compiled_run_takes_the_steps_of_one_that_is_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that compiling adds to a run, but for the compiler: the warm-up must leave nothing behind."""
    stages = "train.resolution=[{until=0.5, pixels=24}, {until=1, pixels=32}]"
    plain = train(small_config(folder, stages), tmp_path / "plain")
    monkeypatch.setattr(device, "without_compiler", lambda _: None)
    monkeypatch.setattr(loop, "compiled", lambda network: network)
    card = train(small_config(folder, stages, "train.compile=on"), tmp_path / "compiled")
    assert (plain.compiled, card.compiled) == (False, True)
    same_run(tmp_path / "plain", tmp_path / "compiled")


def test_a_step_is_compiled_whole_and_anew_at_its_turns_alone(folder: Path) -> None:
    """Nothing of the network is left to Python, and no step between the turns waits for a compiler."""
    stages = "train.resolution=[{until=0.4, pixels=16}, {until=0.7, pixels=24}, {until=1, pixels=32}]"
    config = small_config(folder, stages, "train.epochs=5", "train.whiten_epochs=1.2")
    torch.compiler.reset()  # what other tests have compiled counts to the same limit
    network = build_network(config.model, 10).to(memory_format=torch.channels_last).train()
    state = loop.new_state(network, config, torch.float32)
    seen = CompileCounter()
    forward = torch.compile(network, backend=seen, fullgraph=True, dynamic=False)
    images = torch.rand(50, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(50) % 10
    batch = Batch(images, labels, labels.roll(-1), torch.rand(50), torch.arange(50))
    steps_per_epoch = 4
    turns = loop.turning_steps(config, steps_per_epoch)
    assert turns == [0, 5, 8, 14]
    for state.step in range(20):
        loop.take_step(state, forward, batch, config, torch.float32, steps_per_epoch)
        assert seen.frame_count == sum(turn <= state.step for turn in turns), state.step


@pytest.mark.skipif(without_compiler(torch.device("cpu")) is not None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch's own compiler, by itself
def test_a_compiled_step_in_16_bits_has_the_gradients_of_one_that_is_not() -> None:
    """By torch's own compiler, which makes values anew without rounding them: none may be looked for by its bits."""
    torch.manual_seed(0)
    network = models.build("speednet", num_classes=10, widths=(8, 8, 8)).to(memory_format=torch.channels_last)
    images = torch.randn(32, 3, 24, 24).contiguous(memory_format=torch.channels_last)
    gradients = []
    for forward in (network, loop.compiled(network)):
        network.zero_grad()
        with losses.autocast(images, torch.bfloat16):
            logits = forward(images)
        F.cross_entropy(logits.float(), torch.arange(32) % 10).backward()
        gradients.append([weight.grad for weight in network.parameters() if weight.grad is not None])
    for plain, compiled in zip(*gradients, strict=True):
        assert compiled.isfinite().all()
        # Another of two nearly equal pixels may be a map's largest. Biases before a norm have next to no gradient.
        assert plain.ndim == 1 or (plain - compiled).norm() < 0.3 * plain.norm()


def test_what_a_run_compiled_is_let_go_of(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it comes to its end or not: of many runs in a process, each would hold a step's memory on a GPU."""
    forgotten = []
    monkeypatch.setattr(loop, "forget_compiled", lambda: forgotten.append(True))
    train(small_config(folder, "train.epochs=0.1"), tmp_path / "run")
    assert len(forgotten) == 1
    with pytest.raises(ValueError, match="batch_size"):
        train(small_config(folder, "pipeline.batch_size=501"), tmp_path / "fails")
    assert len(forgotten) == 2


def test_a_gpus_compiled_step_says_where_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu(torch.nn.Identity):
        def parameters(self, recurse: bool = True):
            return iter([SimpleNamespace(is_cuda=True)])

    told = []
    monkeypatch.setattr(torch, "compile", lambda network, **_: lambda x: told.append("forward") or network(x))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: told.append("step"))
    forward = loop.compiled(OnGpu())
    for _ in range(2):
        forward(torch.zeros(1))
    assert told == ["step", "forward"] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere compilers are not looked for")
@pytest.mark.parametrize(("on", "compiler"), [("cuda", "gcc"), ("cpu", "g++")])
def test_steps_are_compiled_where_there_is_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: str, compiler: str
) -> None:
    auto, told = (configs.load("speedrun", [f"train.compile={how}"]).train for how in ("auto", "on"))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    assert not use_compile(auto, torch.device(on))
    says = rf"got 'on', takes 'auto' or 'off' here: .*{re.escape(compiler)}.*Python\.h: apt-get install"
    with pytest.raises(ValueError, match=rf"^train\.compile: {says}"):
        use_compile(told, torch.device(on))
    (tmp_path / "Python.h").touch()
    assert "Python.h" not in str(without_compiler(torch.device(on)))
    (tmp_path / compiler).touch(mode=0o755)
    assert use_compile(told, torch.device(on))
    assert use_compile(auto, torch.device(on)) == (on == "cuda")
    (tmp_path / compiler).rename(tmp_path / "another")
    assert without_compiler(torch.device(on))
    monkeypatch.setenv("CC" if on == "cuda" else "CXX", str(tmp_path / "another"))
    assert without_compiler(torch.device(on)) is None


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
    # Another teacher takes each class for its neighbour: who learns from it alone is always wrong.
    shutil.copytree(tmp_path / "teacher", tmp_path / "liar")
    weights = load_file(tmp_path / "liar" / "weights.safetensors")
    weights["head.weight"] = weights["head.weight"].roll(1, 0)
    save_file(weights, tmp_path / "liar" / "weights.safetensors")
    lies = [f"distill.teacher='{tmp_path / 'liar'}'", "distill.weight=1.0", "train.label_smoothing=0"]
    assert train(small_config(folder, *lies), tmp_path / "misled").tta_accuracy < 0.1
    told = [f"distill.teacher='{tmp_path / 'teacher'}'", "distill.weight=1.0", "train.label_smoothing=0"]
    student = train(small_config(folder, *told, "model.widths=[8, 8, 8]"), tmp_path / "student")
    assert student.tta_accuracy > 0.3
    others = make(tmp_path / "others", "cifar100", num_test=100).path
    with pytest.raises(ValueError, match=r"distill.teacher: .*teacher tells 10 classes apart, takes one of 100, as he"):
        train(small_config(others, "data.dataset=cifar100", told[0]), tmp_path / "never")
    for setting in ("distill.teacher", "train.start_from"):
        with pytest.raises(ValueError, match=rf"{setting}: nowhere: not a run folder"):
            train(small_config(folder, f"{setting}='nowhere'"), tmp_path / "never")
    start = [f"train.start_from='{tmp_path / 'teacher'}'", "train.epochs=0.1", "optimizer.lr=1e-9"]
    tuned = train(small_config(folder, *start, "optimizer.bias_lr=1e-9", "optimizer.head_lr=1e-9"), tmp_path / "tuned")
    assert tuned.train_accuracy is not None
    assert tuned.train_accuracy > 0.8


def test_a_run_for_other_classes_starts_with_another_head(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train(small_config(folder, "train.epochs=0.2"), tmp_path / "first")
    others = make(tmp_path / "others", "cifar100", num_test=100).path
    told = ["data.dataset=cifar100", f"train.start_from='{tmp_path / 'first'}'", "train.epochs=0.2", "seed=1"]
    still = [f"optimizer.{rate}=1e-9" for rate in ("lr", "bias_lr", "head_lr")]
    train(small_config(others, *told, *still), tmp_path / "second")
    assert "first tells other classes apart, so the last layer begins anew" in " ".join(capsys.readouterr().out.split())
    first, second = (load_file(tmp_path / run / "weights.safetensors") for run in ("first", "second"))
    assert first.keys() == second.keys()
    assert (len(first["head.weight"]), len(second["head.weight"])) == (10, 100)
    kept = [name for name in first if "head" not in name and "running" not in name and "num_batches" not in name]
    assert len(kept) > 10
    for name in kept:
        # Muon scales weights to their norm at whatever rate.
        assert (second[name] - first[name]).norm() <= 0.01 * first[name].norm(), name


def test_a_student_of_small_images_has_a_teacher_that_takes_whole_ones(folder: Path, tmp_path: Path) -> None:
    train(small_config(folder, "train.epochs=0.1"), tmp_path / "teacher")
    small = ["model.name=resnet4m", "model.widths=[8, 8, 8, 8]", "train.resolution=[{until=1, pixels=8}]"]
    small.append("train.epochs=0.1")
    card = train(small_config(folder, *small, f"distill.teacher='{tmp_path / 'teacher'}'"), tmp_path / "student")
    assert card.network == "resnet4m"


def test_the_stem_is_set_by_no_image_that_is_held_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(folder, "data.validation=100")
    with Reporter() as reporter:
        prepared = session.Session.prepare(config, find_data(config.data, Clock(), reporter), Clock(), reporter)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(SpeedNet, "init_whiten", lambda _, images: seen.append(images))
    monkeypatch.setattr(session, "WHITENING_IMAGES", 30)
    rows_n, _ = prepared.split_rows()
    assert rows_n is not None and not np.array_equal(rows_n[:30], np.arange(30))
    prepared.network(rows_n)
    prepared.network()
    images_nhwc = artefacts.read(prepared.artefact, "train").images_nhwc
    mean, std = (np.array(of, np.float32) for of in (prepared.index.mean, prepared.index.std))
    for found, expected_n in zip(seen, (rows_n[:30], np.arange(30)), strict=True):
        found_nhwc = found.numpy().transpose(0, 2, 3, 1) * std + mean
        np.testing.assert_allclose(found_nhwc, images_nhwc[expected_n] / 255, atol=1e-5)


def test_the_distance_to_a_teacher_is_the_softened_divergence() -> None:
    logits, taught = torch.randn(4, 10), torch.randn(4, 10)
    found = losses.distance_to_teacher(lambda _: taught, torch.zeros(4, 3, 8, 8), logits, 2.0, torch.float32)  # type: ignore[arg-type]
    p, q = (taught / 2).softmax(1), (logits / 2).softmax(1)
    torch.testing.assert_close(found, 4 * (p * (p / q).log()).sum(1).mean())


@pytest.mark.parametrize(
    "settings", [["train.resolution=[{until=1, pixels=8}]"], ["selection.keep=0.5", "selection.pixels=8"]]
)
def test_images_made_too_small_are_a_wrong_setting(folder: Path, tmp_path: Path, settings: list[str]) -> None:
    name = settings[-1].split("=", maxsplit=1)[0]
    with pytest.raises(ValueError, match=f"{name}: 8 pixels are too few for this network"):
        train(small_config(folder, *settings), tmp_path / "run")


def test_training_reads_what_convert_wrote(folder: Path, tmp_path: Path) -> None:
    """In any format, by the pipeline of any."""
    plain = train(small_config(folder), tmp_path / "plain")
    artefact = artefacts.convert(data.load("cifar10", folder), "dali", tmp_path / "artefact")
    config = small_config(artefact)
    with Reporter() as reporter:
        config = resolve(config, find_data(config.data, Clock(), reporter))
    assert train(config, tmp_path / "converted").tta_accuracy == plain.tta_accuracy
    assert RunFolder(tmp_path / "converted").read_config() == config
    same_run(tmp_path / "plain", tmp_path / "converted")
    with pytest.raises(ValueError, match="is an artefact of cifar10"):
        train(small_config(artefact, "data.dataset=cifar100"), tmp_path / "other")
