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
spent.json           seconds and energy so far, over all processes of the run
"""

import contextlib
import json
import math
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastcifar import config as configs
from fastcifar.atomic import clear_away, write_atomically
from fastcifar.claims import claimed
from fastcifar.report.reading import check_held, json_object
from fastcifar.schema import Config

# What whoever reads these files relies on.
_METRICS_HOLD = {"dataset": "text", **dict.fromkeys(("epoch", "step", "loss", "accuracy", "lr"), "a number")}
_CARD_HOLDS = {"dataset": "text", "accuracy": "a number", "tta_accuracy": "a number", "seconds": "a JSON object"}
_SECONDS_HOLD = dict.fromkeys(("train", "evaluate", "total"), "a number")
_SPENT_HOLDS = {"seconds": "a JSON object", "energy_j": "a number or null"}


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
        self.spent = path / "spent.json"
        self.release: Callable[[], object] = lambda: None
        """Ends a claim; does nothing where there is none."""

    @classmethod
    def create(cls, path: Path | None, config: Config) -> "RunFolder":
        """A new folder at `path`, or under ./runs with a name that says when and what; claimed, as by `claim`.

        `ValueError` where a run is.
        """
        folder = cls(_new_folder(config) if path is None else path)
        path = folder.path
        folder.claim()
        if folder.config.exists():
            folder.release()
            raise ValueError(f"--out: {path} holds a run already; go on with --resume {path}, or name another folder")
        path.mkdir(parents=True, exist_ok=True)
        clear_away(path)
        write_atomically(folder.config, configs.dumps(config).encode())
        return folder

    @classmethod
    def open(cls, path: Path, *, claim: bool = False) -> "RunFolder":
        """The folder of an earlier run; `claim` it to go on with the run. `ValueError` where there is none."""
        folder = cls(path)
        if not folder.config.is_file():
            raise ValueError(f"{path}: not a run folder (no {folder.config.name} in it)")
        if claim:
            folder.claim()
            clear_away(path)
            clear_away(folder.checkpoints)
        return folder

    def remove_unless_begun(self) -> None:
        """Take the folder away again where nothing has been trained, so that its name is free for a better try."""
        if any(path.exists() for path in (self.metrics, self.checkpoints, self.nonfinite, self.card)):
            return
        for path in (self.config, self.environment, self.spent):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody's own files are in it
            self.path.rmdir()

    def claim(self) -> None:
        """Keep other processes from writing here; `ValueError` says which one does.

        Held until `release`, or until this object or its process is gone.
        """
        stack = contextlib.ExitStack()
        stack.enter_context(claimed(self.path.absolute(), wait=False))
        self.release = weakref.finalize(self, stack.close)

    def read_config(self, settings: Sequence[str] = ()) -> Config:
        """The run's resolved configuration, with `section.key=value` settings on top."""
        try:
            text = self.config.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{self.config}: not UTF-8 text, expected a run's settings as TOML") from None
        return configs.parse(text, settings, where=str(self.config))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch; none where there is no such file. `ValueError` names a bad line."""
        if not self.metrics.is_file():
            return []
        numbered = enumerate(self._metrics_lines(), start=1)
        return [json_object(f"{self.metrics}:{number}", line, _METRICS_HOLD) for number, line in numbered]

    def read_card(self) -> dict[str, Any] | None:
        """The result card as plain values; None where the run is not finished. `ValueError` where it is damaged."""
        if not self.card.is_file():
            return None
        text = self.card.read_text(encoding="utf-8", errors="replace")
        card = json_object(str(self.card), text, _CARD_HOLDS)
        check_held(f"{self.card}: seconds", card["seconds"], _SECONDS_HOLD)
        return card

    def read_spent(self) -> dict[str, Any]:
        """Seconds by the clock's parts and joules so far, as plain values. `ValueError` where the file is damaged."""
        text = self.spent.read_text(encoding="utf-8", errors="replace")
        spent = json_object(str(self.spent), text, _SPENT_HOLDS)
        check_held(f"{self.spent}: seconds", spent["seconds"], dict.fromkeys(spent["seconds"], "a number"))
        return spent

    def append_metrics(self, entry: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl. `OSError` names the file."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.metrics)) from None

    def keep_metrics_until(self, step: int) -> None:
        """Drop the lines of epochs that ended after `step`, and what is no line: a resumed run writes them again."""
        if self.metrics.exists():
            kept = [line for line in self._metrics_lines() if _step(line) <= step]
            write_atomically(self.metrics, "".join(line + "\n" for line in kept).encode())

    def last_metrics(self) -> dict[str, Any]:
        """The last epoch's line of metrics.jsonl; empty where there is none."""
        lines = self._metrics_lines() if self.metrics.exists() else []
        return next((json.loads(line) for line in reversed(lines) if math.isfinite(_step(line))), {})

    def _metrics_lines(self) -> list[str]:
        """The lines of metrics.jsonl; one without its line feed was being written when its process died."""
        return self.metrics.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _step(line: str) -> float:
    """The step that a line of metrics.jsonl is of; infinity for what is no such line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf


def _new_folder(config: Config) -> Path:
    """An empty folder under ./runs, made here: of two runs that start at once, each gets its own."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.name}-seed{config.seed}"
    for number in range(1000):
        path = Path("runs") / (f"{stem}-{number}" if number else stem)
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise ValueError(f"--out: runs/{stem} and 999 more are taken, name another folder")
