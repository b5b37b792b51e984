"""Conversion: seconds for the whole data set, for several copies of it, and the memory that takes."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from fastcifar.bench.job import Job
from fastcifar.bench.measure import Measured, Sample, Spread, share
from fastcifar.bench.results import Result, Row, memory_values, spread_values
from fastcifar.bench.workers import Entry, Place

if TYPE_CHECKING:
    from fastcifar.artefacts import Source
    from fastcifar.data import Dataset

FORMATS = ("npy", "ffcv", "dali")
COPIES = (1, 4, 16)
# What takes 16 times as long is done less often.
ROUNDS = {1: 5, 4: 3, 16: 2}
WRITE_BYTES = 1 << 20


def measure(job: Job) -> Result:
    """The three formats in turn, beside reading the source and writing as many bytes of pixels to a file."""
    entries = [Entry(to, Conversion, {"source": job.source, "to": to, "num_images": job.num_images}) for to in FORMATS]
    entries.append(Entry("read", Reading, {"source": job.source}))
    entries.append(Entry("write", Writing, {"source": job.source, "num_images": job.num_images}, role="bound"))
    copies = COPIES[:1] if job.quick else COPIES
    # Memory is a figure here, so nothing may keep what is freed.
    place = replace(job.place, keep_freed_memory=False)
    measured: dict[str, dict[str, Measured]] = {}
    for count in copies:
        keys = [entry.key for entry in entries if entry.key != "read" or count == 1]
        rounds = min(job.rounds, ROUNDS[count])
        measured |= job.run(entries, {f"copies{count}": keys}, place=place, rounds=rounds)
    roles = {entry.key: entry.role for entry in entries}
    rows = [
        Row(key, f"copies{count}", roles[key], _values(key, count, measured))
        for count in copies
        for key in measured[f"copies{count}"]
    ]
    return Result(
        "convert", "Conversion of training and test images, from memory to disk", "images_s", rows, notes=job.notes
    )


def _values(key: str, count: int, measured: dict[str, dict[str, Measured]]) -> dict[str, float]:
    task = measured[f"copies{count}"]
    one, once = task[key], measured["copies1"].get(key)
    values = spread_values("seconds", Spread.of([sample.seconds for sample in one.samples]))
    values |= {"images_s": one.rate.median, "rounds": one.rate.num, "gb_s": one.extra("gb").median / values["seconds"]}
    if "write" in task and key in FORMATS:
        values["share_of_write"] = share(one, task["write"])
    values |= memory_values(one)
    if count > 1 and once is not None:
        base = Spread.of([sample.seconds for sample in once.samples]).median
        values["over_linear"] = values["seconds"] / (count * base)
        if once.released is not None and one.released is not None:
            values["memory_over_one"] = one.released.peak_memory_mb / once.released.peak_memory_mb
    return values


def load(source: "Source", num_images: int = 0) -> "Dataset":
    """The data set, or the first `num_images` of each part."""
    dataset = source.load()
    if not num_images:
        return dataset
    parts = (
        replace(part, images_nhwc=part.images_nhwc[:num_images], labels_n=part.labels_n[:num_images])
        for part in (dataset.train, dataset.test)
    )
    train, test = parts
    return replace(dataset, train=train, test=test)


def work_folder() -> Path:
    """A new folder on the disk that the cache is on, for whoever makes it to remove."""
    from fastcifar.data import cache_dir

    cache_dir().mkdir(parents=True, exist_ok=True)
    return Path(mkdtemp(prefix="bench-", dir=cache_dir()))


class Conversion:
    """One format, over and over into the same place; units are images."""

    def __init__(self, *, place: Place, source: "Source", to: str, num_images: int) -> None:
        self._to = to
        self._dataset = load(source, num_images)

    def prepare(self, task: str) -> None:
        """Once, unmeasured."""
        self._copies = int(task.removeprefix("copies"))
        self._folder = work_folder()
        self._once()

    def run(self, task: str, seconds: float) -> Sample:
        """One conversion at least; what it wrote is removed outside the clock."""
        taken = [self._once()]
        while sum(taken) < seconds:
            taken.append(self._once())
        num_images = len(self._dataset.train) + len(self._dataset.test)
        return Sample(num_images * self._copies, Spread.of(taken).median, {"gb": self._bytes / 1e9})

    def release(self, task: str) -> None:
        """Remove what is left."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _once(self) -> float:
        from fastcifar import artefacts

        start_s = time.perf_counter()
        folder = artefacts.convert(self._dataset, self._to, self._folder / self._to, copies=self._copies)
        seconds = time.perf_counter() - start_s
        self._bytes = sum(file.stat().st_size for file in folder.iterdir())
        shutil.rmtree(folder)
        return seconds


class Reading:
    """Reading and checking the source, which conversion from memory leaves out; units are images."""

    def __init__(self, *, place: Place, source: "Source") -> None:
        self._source = source

    def prepare(self, task: str) -> None:
        """Once, unmeasured."""
        self._source.load()

    def run(self, task: str, seconds: float) -> Sample:
        """One reading."""
        start_s = time.perf_counter()
        dataset = self._source.load()
        seconds = time.perf_counter() - start_s
        num_bytes = dataset.train.images_nhwc.nbytes + dataset.test.images_nhwc.nbytes
        return Sample(len(dataset.train) + len(dataset.test), seconds, {"gb": num_bytes / 1e9})

    def release(self, task: str) -> None:
        """Nothing is kept."""


class Writing:
    """Both parts' pixels written to a file and settled on the disk, which no conversion can save; units are images."""

    def __init__(self, *, place: Place, source: "Source", num_images: int) -> None:
        dataset = load(source, num_images)
        self._parts = [part.images_nhwc.reshape(-1) for part in (dataset.train, dataset.test)]
        self._num_images = len(dataset.train) + len(dataset.test)

    def prepare(self, task: str) -> None:
        """Once, unmeasured."""
        self._copies = int(task.removeprefix("copies"))
        self._folder = work_folder()
        self.run(task, 0)

    def run(self, task: str, seconds: float) -> Sample:
        """One writing."""
        path = self._folder / "pixels"
        start_s = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for _ in range(self._copies):
                for part in self._parts:
                    for first in range(0, len(part), WRITE_BYTES):
                        file.write(part[first : first + WRITE_BYTES].data)
            os.fsync(file.fileno())
        seconds = time.perf_counter() - start_s
        num_bytes = path.stat().st_size
        path.unlink()
        return Sample(self._num_images * self._copies, seconds, {"gb": num_bytes / 1e9})

    def release(self, task: str) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
