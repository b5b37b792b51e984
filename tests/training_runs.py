"""Trainings of a network so small that a test can wait for them."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from fastcifar import config as configs
from fastcifar.report.card import Card
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.schema import Config
from fastcifar.training.clock import Clock
from fastcifar.training.run import run
from fastcifar.training.session import find_data

SMALL = [
    "pipeline.batch_size=50",
    "model.widths=[8, 16, 16]",
    "train.epochs=3",
    "train.whiten_epochs=1",
    "train.dtype=float32",
]


def small_config(folder: Path, *settings: str) -> Config:
    return configs.load("speedrun", [f"data.path='{folder}'", *SMALL, *settings])


def train(config: Config, out: Path, *, resume: bool = False) -> Card:
    with Reporter() as reporter:
        folder = RunFolder.open(out) if resume else RunFolder.create(out, config)
        source = find_data(config.data, Clock(), reporter)
        return run(config, source, folder, Clock(), reporter, resume=resume)


def terminate_at(step: int) -> Callable[..., None]:
    """To take the place of `Reporter.advance`: SIGTERM to this process when a training step is done."""

    def advance(_: Reporter, name: str, done: int, *__: object, **___: object) -> None:
        if name == "training" and done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return advance


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
