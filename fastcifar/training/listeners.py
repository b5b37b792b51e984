"""Who hears how a run goes: trackers, sweeps, the meter of a record."""

from typing import Any, Protocol

from fastcifar.report.card import Card
from fastcifar.report.run_folder import RunFolder
from fastcifar.schema import Config


class Listener(Protocol):
    """Told of a run's start, of each epoch and of its end; what it raises ends the run."""

    def started(self, config: Config, folder: RunFolder) -> None:
        """The run is about to take its first step, or goes on from a checkpoint."""

    def epoch(self, entry: dict[str, Any]) -> None:
        """An epoch is over; `entry` is its line of metrics.jsonl."""

    def finished(self, card: Card) -> None:
        """The run is trained, scored and written down."""

    def ended(self) -> None:
        """Nothing more comes of this run, however it went: let go of what was opened for it."""
