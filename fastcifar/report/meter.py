"""What a run takes, over all the processes that it goes on in."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar.atomic import write_atomically
from fastcifar.report import energy
from fastcifar.report.card import Card
from fastcifar.report.run_folder import RunFolder
from fastcifar.schema import Config

if TYPE_CHECKING:
    from fastcifar.training.clock import Clock

SPENT = "spent.json"
"""In the folder of a run that goes on: what it took so far."""


class Meter:
    """A listener that notes what the run takes in the run's folder.

    With each epoch, when the checkpoint has just been written, so that what is done anew after a crash counts once.
    """

    def __init__(self, run: Path, clock: "Clock") -> None:
        self._path, self._clock = run / SPENT, clock
        self._before: dict[str, Any] = {"seconds": {}, "energy_j": 0.0}
        if self._path.is_file():
            self._before = json.loads(self._path.read_text(encoding="utf-8"))
        self._begin_j = energy.used_j()

    def started(self, config: Config, folder: RunFolder) -> None:
        """Nothing was taken yet."""

    def epoch(self, entry: dict[str, Any]) -> None:
        """An epoch is over."""
        self.note()

    def finished(self, card: Card) -> None:
        """What is taken from now on belongs to no run."""

    def note(self) -> None:
        """Write down what the run took so far."""
        spent = {"seconds": self.seconds(self._clock.seconds()), "energy_j": self.energy_j()}
        write_atomically(self._path, (json.dumps(spent, indent=2) + "\n").encode())

    def seconds(self, here: Mapping[str, float]) -> dict[str, float]:
        """Those of this process, by the clock's parts and with their sum as `total`, and those of the ones before."""
        return {name: self._before["seconds"].get(name, 0.0) + here_s for name, here_s in here.items()}

    def energy_j(self) -> float | None:
        """None where the device does not tell, or did not."""
        before_j, begin_j, now_j = self._before["energy_j"], self._begin_j, energy.used_j()
        if before_j is None or begin_j is None or now_j is None or now_j < begin_j:
            return None
        return float(before_j + now_j - begin_j)
