"""Readers of what a run is made from and leaves: recipes, the run folder, weights, checkpoints."""

from __future__ import annotations

import json
import re
import struct
import tomllib
from pathlib import Path
from typing import Any

from faults.edits import Choices, edited_bytes, edited_tree
from faults.targets.target import EDITS, Target


class Recipe(Target):
    """Recipes in TOML, and `--set`."""

    name = "recipe"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        from fastcifar import config

        self.config = config
        self.good = [config.dumps(config.load(name)) for name in config.recipe_names()]
        self.path = scratch / "recipe.toml"

    def seeds(self) -> list[bytes]:
        return [b"\0" + text.encode() for text in self.good] + super().seeds() + [b"\2seed=1", b"\2train.epochs=[1]"]

    def read(self, data: bytes) -> None:
        import tomli_w

        choices = Choices(data)
        match choices.below(256) % 3:
            case 0:
                self.path.write_bytes(choices.rest())
                self._check(self.config.load(str(self.path)))
            case 1:
                tree = edited_tree(tomllib.loads(self.good[choices.below(len(self.good))]), choices)
                try:
                    text = tomli_w.dumps(tree)
                except (TypeError, AttributeError, ValueError):
                    return  # no TOML says that
                self._check(self.config.parse(text, where=str(self.path)))
            case _:
                setting = choices.rest().decode("utf-8", "surrogateescape")
                self._check(self.config.load("speedrun", [setting]))

    def _check(self, read: Any) -> None:
        assert self.config.parse(self.config.dumps(read)) == read, "does not read back equal"

    def says_where(self, message: str) -> bool:
        # Python quotes a name that holds an apostrophe the other way.
        return bool(re.match(r"([\w.]*(['\"]).{1,60}\2?|[^:]{1,200}): ", message))


class Run(Target):
    """A run's folder: config.toml and metrics.jsonl, as `--resume` and `evaluate` read them."""

    name = "run-folder"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        from fastcifar import config
        from fastcifar.report import curves, run_folder

        self.run_folder, self.curves = run_folder, curves
        self.config = config.dumps(config.load("speedrun")).encode()
        self.metrics = b"".join(
            json.dumps(
                {"dataset": "cifar10", "epoch": e, "step": 10 * e, "loss": 1.0, "accuracy": 0.5, "lr": 0.1}
            ).encode()
            + b"\n"
            for e in (1, 2, 3)
        )

    def seeds(self) -> list[bytes]:
        return [b"\0" + self.config, b"\1" + self.metrics, *super().seeds()]

    def read(self, data: bytes) -> None:
        choices = Choices(data)
        mode = choices.below(256) % 4
        config, metrics = self.config, self.metrics
        if mode == 0:
            config = choices.rest()
        elif mode == 1:
            metrics = choices.rest()
        elif mode == 2:
            config = edited_bytes(config, choices)
        else:
            tree = edited_tree([json.loads(line) for line in metrics.splitlines()], choices)
            metrics = "".join(json.dumps(line) + "\n" for line in tree).encode() if isinstance(tree, list) else b"1"
        (self.scratch / "config.toml").write_bytes(config)
        (self.scratch / "metrics.jsonl").write_bytes(metrics)
        folder = self.run_folder.RunFolder.open(self.scratch)
        folder.read_config()
        folder.last_metrics()
        try:
            self.curves.Curves.of(folder)
        finally:
            folder.keep_metrics_until(20)

    def says_where(self, message: str) -> bool:
        return bool(re.match(r"\S+: ", message))


class Weights(Target):
    """Weights files: the safetensors header, its length, names, shapes, dtypes and values."""

    name = "weights"
    heavy = True

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        import torch

        from fastcifar.evaluation import finished
        from fastcifar.schema import Config, TrainConfig
        from fastcifar.training import checkpoints, loop

        torch.set_num_threads(1)
        self.torch, self.checkpoints, self.finished = torch, checkpoints, finished
        self.path = scratch / "weights.safetensors"
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 2))
        self.state = loop.new_state(self.network, Config(train=TrainConfig(averaging="ema")), torch.float32, None)
        for parameter in self.network.parameters():
            parameter.grad = torch.ones_like(parameter)
        for optimizer in self.state.optimizers:
            optimizer.step()
        self.write()
        self.good = self.path.read_bytes()

    def write(self) -> None:
        """A good file."""
        about = {"dataset": "cifar10", "class_names": ["cat", "dog"], "mean": [0.5] * 3, "std": [0.25] * 3}
        self.checkpoints.save_weights(self.path, self.network, {"model": {"name": "tiny"}, **about})

    def load(self) -> None:
        """What a user's command does."""
        self.finished.about_weights(self.path)
        self.checkpoints.load_weights(self.path, self.network)
        for name, value in self.network.state_dict().items():
            assert not value.is_floating_point() or bool(value.isfinite().all()), f"{name} is not finite"

    def read(self, data: bytes) -> None:
        choices = Choices(data)
        mode = choices.below(256) % 4
        if mode == 0:
            raw = choices.rest()
        elif mode == 1:
            raw = edited_bytes(self.good, choices)
        else:
            length = struct.unpack("<Q", self.good[:8])[0]
            header = json.loads(self.good[8 : 8 + length])
            about = json.loads(header["__metadata__"]["fastcifar"])
            if mode == 2:
                header = edited_tree(header, choices)
            else:
                header["__metadata__"]["fastcifar"] = json.dumps(edited_tree(about, choices))
            text = json.dumps(header).encode()
            raw = struct.pack("<Q", len(text)) + text + self.good[8 + length :]
        self.path.write_bytes(raw)
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        try:
            self.load()
        finally:
            self.network.load_state_dict(before)

    def seeds(self) -> list[bytes]:
        # A checkpoint's payload lies at the end: NaNs and infinities there.
        odd = [bytes([1, 6, *(len(self.good) - 4 * i).to_bytes(4, "little"), 4, 0, 0, 192, 127]) for i in range(1, 20)]
        edits = [bytes([mode, *edit]) for mode in (1, 2, 3) for edit in EDITS]
        return [b"\0" + self.good, *super().seeds(), *edits, *odd]


class Checkpoint(Weights):
    """Checkpoints: network, averages, optimiser and step."""

    name = "checkpoint"

    def write(self) -> None:
        self.checkpoints.save_checkpoint(self.path, self.state, "name = 'tiny'")

    def load(self) -> None:
        self.checkpoints.load_checkpoint(self.path, self.state)
        assert type(self.state.step) is int
        assert self.state.step >= 0
