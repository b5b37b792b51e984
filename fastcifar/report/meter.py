"""What a run takes, over all the processes that it goes on in."""

import json
from typing import TYPE_CHECKING, Any

from fastcifar.atomic import write_atomically
from fastcifar.report import energy
from fastcifar.report.run_folder import RunFolder

if TYPE_CHECKING:
    from fastcifar.training.clock import Clock


class Meter:
    """Seconds and joules of a run; those of earlier processes are read from the folder of a run that goes on."""

    def __init__(self, folder: RunFolder, clock: "Clock", *, goes_on: bool) -> None:
        self._path, self._clock = folder.spent, clock
        self._before: dict[str, Any] = {"seconds": {}, "energy_j": 0.0}
        if goes_on and self._path.is_file():
            self._before = folder.read_spent()
        self._begin_j = energy.used_j()

    def note(self) -> None:
        """Write down what the run took so far: beside each checkpoint, so that what is done anew counts once."""
        spent = {"seconds": self.seconds(), "energy_j": self.energy_j()}
        write_atomically(self._path, (json.dumps(spent, indent=2) + "\n").encode())

    def seconds(self) -> dict[str, float]:
        """By the clock's parts, with their sum as `total`."""
        return {name: self._before["seconds"].get(name, 0.0) + here_s for name, here_s in self._clock.seconds().items()}

    def energy_j(self) -> float | None:
        """None where the device does not tell, or did not."""
        before_j, begin_j, now_j = self._before["energy_j"], self._begin_j, energy.used_j()
        if before_j is None or begin_j is None or now_j is None or now_j < begin_j:
            return None
        return float(before_j + now_j - begin_j)
