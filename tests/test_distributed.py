"""Several processes that train one network: the same weights in each, and one run to see from outside."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cifar_files import make
from safetensors.torch import load_file
from training_runs import SMALL, same_run

from fastcifar.cli import main
from fastcifar.interruption import FailedError, StopRequest
from fastcifar.training import distributed, run

STEPS = """
import sys
import torch
from safetensors.torch import save_file
from torch import nn
from fastcifar import config as configs
from fastcifar.pipelines import Batch
from fastcifar.training import distributed, loop

distributed.join()
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))
network.to(sys.argv[2])
settings = ["optimizer.name=nesterov", "optimizer.lr=0.1", "pipeline.batch_size=8", "augmentation.cutmix=1.0",
            "train.resolution=[]"]
config = configs.load("speedrun", settings)
state = loop.new_state(network, config, torch.float32)
for step in range(4):
    draws = torch.Generator().manual_seed(step)
    images, labels = torch.randn(8, 3, 12, 12, generator=draws), torch.randint(10, (8,), generator=draws)
    tensors = images, labels, labels.roll(-1), torch.rand(8, generator=draws), torch.arange(8)
    batch = Batch(*(tensor.to(sys.argv[2]) for tensor in tensors))
    state.tally.add(loop.take_step(state, network, batch, config, torch.float32, steps_per_epoch=4), step + 1)
    state.step += 1
report = state.tally.report(0, 0.0)
told = {"loss": torch.tensor(report.loss), "accuracy": torch.tensor(report.accuracy)}
rank = torch.distributed.get_rank() if distributed.num_processes() > 1 else 0
save_file({**network.state_dict(), **told}, f"{sys.argv[1]}{rank}")
"""

# Norms, Muon, and a loss that is not finite in the second process only, which then none of them takes.
SKIPS = """
import sys
import torch
from safetensors.torch import save_file
from fastcifar import config as configs
from fastcifar import models
from fastcifar.pipelines import Batch
from fastcifar.training import distributed, loop

distributed.join()
rank = torch.distributed.get_rank()
torch.manual_seed(rank)
network = models.build("speednet", num_classes=10, widths=(8, 16, 16)).train()
distributed.begin(network)
settings = ["pipeline.batch_size=8", "model.widths=[8,16,16]", "train.on_nonfinite=skip", "train.whiten_epochs=0.5"]
config = configs.load("speedrun", settings)
state = loop.new_state(network, config, torch.float32)
for step in range(4):
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(step))
    if step == 2:
        images[7] = float("nan")
    batch = Batch(images, torch.arange(8), None, None, torch.arange(8))
    loop.take_step(state, network, batch, config, torch.float32, steps_per_epoch=4)
    state.step += 1
save_file({**network.state_dict(), "skipped": torch.tensor(state.skipped_steps)}, f"{sys.argv[1]}{rank}")
"""

# The second process is asked to stop after the step that is named, or after none.
TRAIN = """
import os, signal, sys
from fastcifar.cli import main
from fastcifar.report.progress import Reporter

def advance(_, name, done, *__, **___):
    if name == "training" and str(done) == sys.argv[1] and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)

Reporter.advance = advance
sys.exit(main(sys.argv[2:]))
"""


def run_together(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes, by torchrun."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, *arguments]
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_two_processes_take_the_steps_that_one_takes(tmp_path: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("takes two GPUs")
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    result = run_together(script, tmp_path / "together", device)
    assert result.returncode == 0, result.stderr
    subprocess.run([sys.executable, script, tmp_path / "alone", device], check=True)
    alone, first, second = (load_file(tmp_path / name) for name in ("alone0", "together0", "together1"))
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        # A GPU's convolutions round to TF32.
        rtol, atol = (1e-5, 1e-6) if device == "cpu" else (1e-2, 1e-3)
        torch.testing.assert_close(first[name], value, rtol=rtol, atol=atol)


def test_processes_hold_the_same_network_after_each_step(tmp_path: Path) -> None:
    script = tmp_path / "skips.py"
    script.write_text(SKIPS)
    result = run_together(script, tmp_path / "rank")
    assert result.returncode == 0, result.stderr
    first, second = (load_file(tmp_path / f"rank{rank}") for rank in range(2))
    assert first["skipped"] == 1
    for name, value in first.items():
        assert value.isfinite().all(), name
        assert torch.equal(value, second[name]), name


def test_processes_that_found_different_things_do_not_train_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    monkeypatch.setattr(distributed, "largest", lambda number: max(number, 5))  # what the other one has
    with pytest.raises(FailedError, match="other settings or other images"):
        distributed.begin(torch.nn.Linear(1, 1), "cifar10")


def test_a_signal_that_comes_while_processes_ask_each_other_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    request = StopRequest()

    def interrupted(number: int) -> int:
        request.signal_number = signal.SIGTERM
        return number

    monkeypatch.setattr(distributed, "largest", interrupted)
    assert not run._asked_to_stop(request)
    assert run._asked_to_stop(request)


def test_a_run_of_two_processes_is_one_run_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data = make(tmp_path / "small", num_test=100).path
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    settings = [f"--set={one}" for one in (*SMALL, "augmentation.cutmix=1.0", "data.validation=100")]

    def train(stop_after: int, *options: object) -> subprocess.CompletedProcess[str]:
        return run_together(script, stop_after, "train", "--no-pictures", *options)

    whole = train(0, "--data", data, "--out", tmp_path / "whole", *settings)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("test accuracy") == 1
    card = json.loads(whole.stdout.splitlines()[-1])
    assert card["device"].startswith("2 x ")
    assert card["run"] == str(tmp_path / "whole")

    stopped = train(11, "--data", data, "--out", tmp_path / "stopped", *settings)
    assert stopped.returncode != 0
    assert stopped.stderr.count("stopped after step 11, ") == 1
    assert f"--nproc-per-node=2 -m fastcifar train --resume {tmp_path / 'stopped'}" in stopped.stderr
    assert not (tmp_path / "stopped" / "card.json").exists()
    assert main(["train", "--resume", str(tmp_path / "stopped")]) == 2
    assert "--resume: got 1 of torchrun's processes, takes the 2 that the run began with" in capsys.readouterr().err
    resumed = train(0, "--resume", tmp_path / "stopped")
    assert resumed.returncode == 0, resumed.stderr
    same_run(tmp_path / "whole", tmp_path / "stopped")
    assert list(scratch.glob("fastcifar-*")) == []


def test_a_batch_is_shared_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "num_processes", lambda: 3)
    with pytest.raises(ValueError, match=r"pipeline.batch_size: got 500, takes a multiple of the 3 processes"):
        distributed.check_batch_size(500)
    distributed.check_batch_size(600)


def test_other_commands_are_for_one_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(os.environ, "TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    assert main(["record"]) == 2
    assert "got several processes from torchrun, takes one; train and speedrun take more" in capsys.readouterr().err
