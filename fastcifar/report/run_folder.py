"""The folder that a run leaves behind.

config.toml          the resolved configuration
environment.json     versions, device, code revision, command
metrics.jsonl        one line an epoch
weights.safetensors  the network as evaluated
best.safetensors     the network of the best validated epoch, where there is a validation split
checkpoints/         the last few states of the whole run, for --resume
nonfinite.safetensors    the batch whose loss was not finite, where that stopped the run
predictions.safetensors  logits, labels and indices of the test set
card.json            the result
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcifar import config as configs
from fastcifar.atomic import write_atomically
from fastcifar.config import Config


class RunFolder:
    """Paths and writers of one run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.weights = path / "weights.safetensors"
        self.best = path / "best.safetensors"
        self.checkpoints = path / "checkpoints"
        self.nonfinite = path / "nonfinite.safetensors"
        self.predictions = path / "predictions.safetensors"
        self.card = path / "card.json"

    @classmethod
    def create(cls, path: Path | None, config: Config) -> "RunFolder":
        """A new folder at `path`, or under ./runs with a name that says when and what. `ValueError` where a run is."""
        if path is None:
            stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.name}-seed{config.seed}"
            path = next(p for i in range(1000) if not (p := Path("runs") / (f"{stem}-{i}" if i else stem)).exists())
        folder = cls(path)
        if folder.config.exists():
            raise ValueError(f"--out: {path} holds a run already; go on with --resume {path}, or name another folder")
        path.mkdir(parents=True, exist_ok=True)
        folder.config.write_text(configs.dumps(config), encoding="utf-8")
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of an earlier run. `ValueError` where there is none."""
        folder = cls(path)
        if not folder.config.is_file():
            raise ValueError(f"{path}: not a run folder (no {folder.config.name} in it)")
        return folder

    def read_config(self, settings: Sequence[str] = ()) -> Config:
        """The run's resolved configuration, with `section.key=value` settings on top."""
        return configs.parse(self.config.read_text(encoding="utf-8"), settings, where=str(self.config))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch; none where there is no such file. `ValueError` names a bad line."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        return [_object(f"{self.metrics}:{number}", line) for number, line in enumerate(lines, start=1)]

    def read_card(self) -> dict[str, Any] | None:
        """The result card as plain values; None where the run is not finished."""
        return _object(str(self.card), self.card.read_text(encoding="utf-8")) if self.card.is_file() else None

    def append_metrics(self, entry: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def keep_metrics_until(self, step: int) -> None:
        """Drop the lines of epochs that ended after `step`, and what is no line: a resumed run writes them again."""
        if self.metrics.exists():
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step(line) <= step]
            write_atomically(self.metrics, "".join(line + "\n" for line in kept).encode())


def _object(where: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: got {type(value).__name__}, expected a JSON object")
    return value


def _step(line: str) -> float:
    """The step that a line of metrics.jsonl is of; infinity for what is no such line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
