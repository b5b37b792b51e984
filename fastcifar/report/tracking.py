"""Runs followed elsewhere: TensorBoard and Weights & Biases, as listeners that can fail without stopping a run."""

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from fastcifar.report.card import Card
    from fastcifar.report.run_folder import RunFolder
    from fastcifar.schema import Config
    from fastcifar.training.listeners import Listener

NAMES = ("tensorboard", "wandb")


def trackers(names: Sequence[str], warn: Callable[[str], None] | None = None) -> "list[Listener]":
    """Listeners for trackers of `NAMES`, each of which is switched off by the first error that it raises.

    `warn` is told of that, once a tracker; by default it is a line on stderr. Raises `ValueError` for a name that is
    no tracker, and for one whose package is not installed.
    """
    kinds: dict[str, Callable[[], Listener]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    listeners: list[Listener] = []
    for name in dict.fromkeys(names):
        if name not in kinds:
            raise ValueError(f"--track: got {name!r}, takes one of: {', '.join(NAMES)}")
        if not _installed(name):
            raise ValueError(f"--track: {name} is not installed: pip install -e '.[track]' in fastcifar's folder")
        listeners.append(Guarded(name, kinds[name](), warn or _to_stderr))
    return listeners


class Guarded:
    """A listener whose first error is told to `warn`, and which hears no more after it."""

    def __init__(self, name: str, listener: "Listener", warn: Callable[[str], None]) -> None:
        self._name, self._warn = name, warn
        self._listener: Listener | None = listener

    def started(self, config: "Config", folder: "RunFolder") -> None:
        """Pass a run's start on."""
        self._tell(lambda listener: listener.started(config, folder))

    def epoch(self, entry: dict[str, Any]) -> None:
        """Pass an epoch's line on."""
        self._tell(lambda listener: listener.epoch(entry))

    def finished(self, card: "Card") -> None:
        """Pass the card on."""
        self._tell(lambda listener: listener.finished(card))

    def ended(self) -> None:
        """Pass it on that nothing more comes."""
        self._tell(lambda listener: listener.ended())

    def _tell(self, call: "Callable[[Listener], None]") -> None:
        if self._listener is None:
            return
        try:
            call(self._listener)
        except Exception as error:  # whatever a tracker raises, the run is worth more
            self._listener = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._warn(f"tracking with {self._name} is off from here on: {reason}")


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder; `tensorboard --logdir runs` shows them."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._step = 0

    def started(self, config: "Config", folder: "RunFolder") -> None:
        """Open the event file and note the settings."""
        from torch.utils.tensorboard import SummaryWriter

        from fastcifar import config as configs

        self._writer = SummaryWriter(str(folder.path / "tensorboard"))
        self._writer.add_text("config", f"```toml\n{configs.dumps(config)}```")

    def epoch(self, entry: dict[str, Any]) -> None:
        """Write an epoch's numbers, by the step that it ended with."""
        assert self._writer is not None
        self._step = entry["step"]
        for name, value in _numbers(entry).items():
            self._writer.add_scalar(name, value, self._step)
        self._writer.flush()

    def finished(self, card: "Card") -> None:
        """Write the test scores."""
        assert self._writer is not None
        for name, value in _scores(card).items():
            self._writer.add_scalar(name, value, self._step)

    def ended(self) -> None:
        """Close the file, which is a thread as well."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class WeightsAndBiases:
    """A run of the project `fastcifar`: as $WANDB_MODE says, else offline unless the user has logged in."""

    def __init__(self) -> None:
        self._run: Any = None

    def started(self, config: "Config", folder: "RunFolder") -> None:
        """Begin a run that carries the settings."""
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fastcifar"),
            name=folder.path.name,
            dir=str(folder.path.absolute()),
            config=asdict(config),
            mode=mode,
            # One that an error switched off was never finished; what comes next in the process is another one.
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )

    def epoch(self, entry: dict[str, Any]) -> None:
        """Log an epoch's numbers, by the step that it ended with."""
        self._run.log(_numbers(entry), step=entry["step"])

    def finished(self, card: "Card") -> None:
        """Put the test scores into the run's summary."""
        self._run.summary.update(_scores(card))

    def ended(self) -> None:
        """End the run: what comes next in the process is another one."""
        if self._run is not None:
            self._run.finish()
        self._run = None


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, named by their data set."""
    plain = {key: value for key, value in entry.items() if isinstance(value, int | float)}
    return {f"{entry['dataset']}/{key}": value for key, value in plain.items() if key != "step"}


def _scores(card: "Card") -> dict[str, float]:
    prefix = f"{card.dataset}/test"
    return {
        f"{prefix}_accuracy": card.accuracy,
        f"{prefix}_accuracy_tta": card.tta_accuracy,
        f"{prefix}_loss": card.test_loss,
        "seconds": card.seconds["total"],
    }


def _to_stderr(text: str) -> None:
    print(f"fastcifar: {text}", file=sys.stderr)
