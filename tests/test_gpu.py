"""What only a GPU can show, beside the kernels' own tests: pipelines, operators and training on it."""

from pathlib import Path

import cifar_files
import pytest
import torch
from kernel_cases import CIFAR, pictures
from pipeline_sets import FUSED, Sets, random_split
from training_runs import terminate_at

from fastcifar import config as configs
from fastcifar.data import Dataset
from fastcifar.interruption import InterruptedRunError
from fastcifar.kernels import Augmentation, draw_plan, ops
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.training.clock import Clock
from fastcifar.training.run import run
from fastcifar.training.session import find_data

pytestmark = pytest.mark.gpu

AUGMENTATION = Augmentation(crop_padding=2, flip="random", cutmix=1.0, mix_per="image")


@pytest.mark.parametrize("name", FUSED)
def test_a_pipeline_hands_out_on_a_gpu_what_it_does_on_a_cpu(tmp_path: Path, name: str) -> None:
    sets = Sets(tmp_path, Dataset("noise", random_split(70, 0), random_split(9, 1, "test")))
    told = {"batch_size": 16, "augmentation": AUGMENTATION, "dtype": torch.bfloat16, "seed": 3, "drop_last": False}
    with sets.open(name, device="cpu", **told) as cpu, sets.open(name, device="cuda", **told) as gpu:
        for epoch in (0, 1):
            for expected, got in zip(cpu.epoch(epoch), gpu.epoch(epoch), strict=True):
                for part in ("images", "labels", "mix_labels", "mix_weights", "indices"):
                    one, other = getattr(expected, part), getattr(got, part)
                    assert other.is_cuda
                    assert torch.equal(one, other.cpu()), (epoch, part)


def test_operators_on_a_gpu() -> None:
    images, rows = torch.from_numpy(pictures(9, 8, 6)).cuda(), torch.tensor([3, 1, 8, 0], device="cuda")
    plan = draw_plan(AUGMENTATION, seed=1, epoch=2, indices_n=rows.cpu(), height=8, width=6)
    ints, floats = (torch.from_numpy(array).cuda() for array in (plan.ints_nk, plan.floats_nk))
    scales = ([0.5] * 3, [0.2] * 3)
    torch.library.opcheck(
        torch.ops.fastcifar.augment, (images, rows, ints, floats, "reflect", *scales, torch.bfloat16, "cuda")
    )
    amounts = [1.0, 0.0, 1.0, 0.5, 0.0, 0.0, 10.0, 0.0, 0.0]
    torch.library.opcheck(
        torch.ops.fastcifar.augment_batch,
        (images, rows, rows, [2, 0], "reflect", "random", "image", amounts, *scales, 1, 2, torch.float16, "cuda"),
    )

    @torch.compile(fullgraph=True)
    def batch(epoch: int) -> torch.Tensor:
        return ops.augment_batch(images, rows, AUGMENTATION, CIFAR, seed=1, epoch=epoch, dtype=torch.float32)[0].relu()

    for epoch in (2, 3):
        expected = ops.augment_batch(images, rows, AUGMENTATION, CIFAR, seed=1, epoch=epoch, dtype=torch.float32)[0]
        assert torch.equal(batch(epoch), expected.relu())


def test_a_run_that_was_stopped_within_an_epoch_goes_on(tmp_path: Path) -> None:
    folder = cifar_files.make(tmp_path / "small", num_test=100).path
    small = ["pipeline.batch_size=50", "model.widths=[16, 16, 16]", "train.epochs=2", "train.compile=off"]
    config = configs.load("speedrun", [f"data.path='{folder}'", *small])
    with Reporter() as reporter:
        source = find_data(config.data, Clock(), reporter)
        place = RunFolder.create(tmp_path / "run", config)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedRunError):
            patch.setattr(Reporter, "advance", terminate_at(3))
            run(config, source, place, Clock(), reporter)
        run(config, source, place, Clock(), reporter, resume=True)
    assert [line["epoch"] for line in place.read_metrics()] == [1, 2]


@pytest.mark.parametrize("settings", [["train.compile=on"], ["train.compile=off", "selection.keep=0.5"]])
def test_a_network_learns_on_a_gpu(settings: list[str], tmp_path: Path) -> None:
    """Small images first, a stem that is frozen half-way: each a compiled step of its own."""
    folder = cifar_files.make(tmp_path / "small", num_test=100).path
    small = ["pipeline.batch_size=50", "model.widths=[16, 16, 16]", "train.epochs=3", "train.whiten_epochs=1"]
    config = configs.load("speedrun", [f"data.path='{folder}'", *small, *settings])
    with Reporter() as reporter:
        source = find_data(config.data, Clock(), reporter)
        card = run(config, source, RunFolder.create(tmp_path / "run", config), Clock(), reporter)
    assert card.tta_accuracy > 0.5
    assert card.compiled == (settings[0] == "train.compile=on")
