"""Finished runs for tests, seconds to make."""

from pathlib import Path

from fastcifar import config as configs
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.training.clock import Clock
from fastcifar.training.run import run
from fastcifar.training.session import find_data, resolve

SMALL = (
    "pipeline.batch_size=50",
    "model.widths=[8, 16, 16]",
    "train.epochs=2",
    "train.whiten_epochs=1",
    "train.dtype=float32",
)


def make_run(out: Path, data: Path, *settings: str) -> Path:
    """The folder of a tiny speednet, trained on the small CIFAR set at `data`."""
    config = configs.load("speedrun", [f"data.path='{data}'", "data.dataset=auto", *SMALL, *settings])
    with Reporter() as reporter:
        source = find_data(config.data, Clock(), reporter)
        config = resolve(config, source)
        folder = RunFolder.create(out, config)
        run(config, source, folder, Clock(), reporter)
    return folder.path
