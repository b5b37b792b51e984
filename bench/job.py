"""What a measurement is told: data, place, time, and whom to tell how it goes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fastcifar.bench.measure import Measured, RunnerError, RunnerMissingError, interleave
from fastcifar.bench.workers import Entry, Place, Worker

if TYPE_CHECKING:
    from fastcifar.artefacts import Source

QUICK_IMAGES = 2000


@dataclass(frozen=True)
class Job:
    """One measurement's settings. `notes` and `failures` fill while it goes."""

    source: "Source"
    place: Place
    seconds: float
    """Measured time for a contestant on a task, in all its rounds together."""
    rounds: int
    batch_size: int
    """0: as the measurement takes by itself."""
    peers: bool
    quick: bool
    """Few images and short rounds: to see that it runs."""
    recipe: str
    tell: Callable[[str], None] = lambda line: None
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""
    failures: list[str] = field(default_factory=list)
    """Contestants that broke."""
    _artefacts: dict[str, Path] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is measured."""
        return self.place.device != "cpu"

    @property
    def num_images(self) -> int:
        """How many images of the training part are measured with; 0: all."""
        return min(QUICK_IMAGES, self._shape()[0]) if self.quick else 0

    def pick_batch_size(self, default: int, quick: int = 100) -> int:
        """Images a batch: as asked, else `default`; no more than `quick` where few images are measured with."""
        batch_size = self.batch_size or default
        return min(batch_size, quick) if self.quick else batch_size

    def artefact(self, to: str) -> Path:
        """The data set as an artefact, converted where it is not there yet."""
        from fastcifar import artefacts

        if to not in self._artefacts:
            self._artefacts[to] = artefacts.cached(self.source, to)
        return self._artefacts[to]

    def images_file(self) -> Path:
        """uint8 [n, h, w, 3] of the training part."""
        return self.artefact("npy") / "train.images.npy"

    def image_pixels(self) -> int:
        """Pixels of an image."""
        _, height, width, _ = self._shape()
        return height * width

    def _shape(self) -> tuple[int, ...]:
        import numpy as np

        return np.load(self.images_file(), mmap_mode="r").shape

    def run(
        self,
        entries: Sequence[Entry],
        tasks: Mapping[str, Sequence[str]],
        *,
        place: Place | None = None,
        rounds: int | None = None,
    ) -> dict[str, dict[str, Measured]]:
        """Measure `entries` on every task, {task: keys of those that take part}, each in a process of its own.

        `place` and `rounds` take the place of the job's own.

        Returns {task: {key: measured}}; what broke is in `failures`, what is not installed in `notes`.
        """
        gone: set[str] = set()

        def on_problem(key: str, error: RunnerError) -> None:
            gone.add(key)
            missing = isinstance(error, RunnerMissingError)
            (self.notes if missing else self.failures).append(f"{key} left out: {error}" if missing else str(error))

        results: dict[str, dict[str, Measured]] = {}
        with ExitStack() as stack:
            workers = {entry.key: stack.enter_context(Worker(entry, place or self.place)) for entry in entries}
            for task, keys in tasks.items():
                self.tell(f"{task}: {', '.join(key for key in keys if key not in gone)}")
                results[task] = interleave(
                    [workers[key] for key in keys if key not in gone],
                    task,
                    rounds=rounds or self.rounds,
                    round_s=self.seconds / (rounds or self.rounds),
                    on_problem=on_problem,
                )
        return results
