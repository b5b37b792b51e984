"""Loaders side by side: images a second over whole epochs, time to the first batch, memory."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcifar.bench import bounds, settings
from fastcifar.bench.job import Job
from fastcifar.bench.measure import Measured, Sample
from fastcifar.bench.results import ROLES, Result, Row, best_peer, spread_values, traffic_values
from fastcifar.bench.settings import Task
from fastcifar.bench.workers import Entry, Place

BATCH_SIZE = {"cpu": 500, "cuda": 2048}
LARGE_BATCH_SIZE = 16384
TASKS = ("crop_flip.bf16", "crop_flip_cutmix.bf16")
# What FFCV and DALI have no form of their own for is not asked of them.
NATIVE_TASKS = ("crop_flip.bf16",)
LARGE_TASKS = (f"crop_flip_cutmix.b{LARGE_BATCH_SIZE}.bf16",)


def measure(job: Job) -> Result:
    """Every loader, its peers, the widening gather and the copy, in turn."""
    batch_size = job.pick_batch_size(BATCH_SIZE["cuda" if job.on_gpu else "cpu"])
    entries = [*_ours(job, batch_size), *_bounds(job, batch_size)]
    if job.peers:
        entries += _peers(job, batch_size)
    tasks = {task: [entry.key for entry in entries if _takes(entry, task)] for task in _tasks(job)}
    measured = job.run(entries, tasks)
    roles = {entry.key: entry.role for entry in entries}
    pixels = job.image_pixels()
    rows = [
        row for task in tasks for row in _rows(task, measured[task], roles, pixels, is_first=task == next(iter(tasks)))
    ]
    rows.sort(key=lambda row: (tuple(tasks).index(row.task), ROLES.index(row.role)))
    if job.peers and any(key.endswith("_native") for key in roles):
        job.notes.append("ffcv_native and dali_native hand out float16, which is their own 16-bit form")
    if job.on_gpu:
        # Some 0.3 ms of Python a batch: figures of small batches say what that allows, and not what the kernel does.
        job.notes.append(f"with {batch_size} images, Python may take longer to launch a kernel than the kernel takes")
    title = f"Loaders: from the set to augmented 16-bit batches of {batch_size}"
    return Result("loaders", title, "images_s", rows, notes=job.notes)


def _tasks(job: Job) -> tuple[str, ...]:
    large = job.on_gpu and not job.quick and not job.batch_size
    return (*TASKS, *LARGE_TASKS) if large else TASKS


def _takes(entry: Entry, task: str) -> bool:
    if task in LARGE_TASKS:
        return entry.key in ("resident", "tensor_batch", "gather", "copy")
    return not entry.key.endswith("_native") or task in NATIVE_TASKS


def _ours(job: Job, batch_size: int) -> list[Entry]:
    from fastcifar import pipelines

    return [
        Entry(name, PipelineLoader, _arguments(job, name, batch_size), open_twice=True)
        for name in ("resident", "ffcv", "dali")
        if _here(job, pipelines.available(name), name)
    ]


def _peers(job: Job, batch_size: int) -> list[Entry]:
    from fastcifar import pipelines

    entries = []
    for key, name in (("torchvision", "torchvision"), ("ffcv_native", "ffcv"), ("dali_native", "dali")):
        if _here(job, pipelines.available(name), key):
            entries.append(
                Entry(key, PipelineLoader, _arguments(job, name, batch_size, key), role="peer", open_twice=True)
            )
    arguments = {"artefact": job.artefact("npy"), "batch_size": batch_size, "num_images": job.num_images}
    entries += [
        Entry(key, PeerLoader, {"kind": key, **arguments}, role="peer", open_twice=True)
        for key in ("kornia", "tensor", "tensor_batch")
    ]
    return entries


def _bounds(job: Job, batch_size: int) -> list[Entry]:
    gather = bounds.gather_entry(str(job.images_file()), batch_size, job.num_images)
    return [gather, bounds.copy_entry(32 << 20 if job.quick else 0)]


def _here(job: Job, trouble: str | None, key: str) -> bool:
    if trouble is not None and (note := f"{key} left out: {trouble}") not in job.notes:
        job.notes.append(note)
    return trouble is None


def _arguments(job: Job, name: str, batch_size: int, key: str = "") -> dict[str, Any]:
    from fastcifar import pipelines

    return {
        "name": name,
        "artefact": job.artefact(pipelines.needs(name)),
        "batch_size": batch_size,
        "num_images": job.num_images,
        "native": key.endswith("_native"),
    }


def _rows(task: str, measured: dict[str, Measured], roles: dict[str, str], pixels: int, *, is_first: bool) -> list[Row]:
    """A task's rows; `is_first` says that processes are new, which tells what opening in a new one takes."""
    cold_name = "cold_first_batch_s" if is_first else ""
    rows = []
    for key, one in measured.items():
        values = traffic_values(key, measured, task, pixels, cold_name)
        if "first_batch_ms" in one.extra_names():
            values |= spread_values("first_batch_ms", one.extra("first_batch_ms"))
        rows.append(Row(key, task, roles[key], values))
    peer = best_peer(rows, task, "images_s")
    if peer is not None:
        for row in rows:
            if row.role == "ours":
                row.values["over_best_peer"] = row.values["images_s"] / peer.values["images_s"]
    return rows


class EpochLoader:
    """A loader as a contestant: rounds of whole epochs, so that what an epoch costs before its first batch counts."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._epoch = 0

    def epoch(self, number: int) -> Iterator[int]:
        """How many images each batch of an epoch has, said when it is made."""
        raise NotImplementedError

    def open(self, task: Task) -> None:
        """Open the loader."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it."""
        raise NotImplementedError

    def prepare(self, task: str) -> None:
        """Open, and one batch."""
        self.open(Task.parse(task))
        next(self.epoch(self._next()))
        bounds.synchronise(self.place.device)

    def run(self, task: str, seconds: float) -> Sample:
        """Units are images. The first batch of the round's first epoch is waited for, and its latency kept."""
        device = self.place.device
        bounds.synchronise(device)
        num_images, first_s = 0, 0.0
        start_s = time.perf_counter()
        while time.perf_counter() - start_s < seconds or not num_images:
            for count in self.epoch(self._next()):
                if not num_images:
                    bounds.synchronise(device)
                    first_s = time.perf_counter() - start_s
                num_images += count
        bounds.synchronise(device)
        return Sample(num_images, time.perf_counter() - start_s, {"first_batch_ms": first_s * 1e3})

    def release(self, task: str) -> None:
        """Close."""
        self.close()

    def _next(self) -> int:
        self._epoch += 1
        return self._epoch - 1


class PipelineLoader(EpochLoader):
    """One of fastcifar's pipelines, with the fused kernel or in its library's own form."""

    def __init__(
        self,
        place: Place,
        *,
        name: str,
        artefact: Path,
        batch_size: int,
        num_images: int,
        native: bool = False,
        streaming: bool = False,
    ) -> None:
        super().__init__(place)
        self._name, self._artefact, self._native, self._streaming = name, artefact, native, streaming
        self._batch_size, self._num_images = batch_size, num_images

    def open(self, task: Task) -> None:
        """Through the public interface."""
        from fastcifar import pipelines

        self._pipeline = pipelines.open(
            self._artefact,
            self._name,
            batch_size=task.batch_size or self._batch_size,
            augmentation=settings.augmentation(task.setting),
            dtype="float16" if self._native else settings.DTYPES[task.dtype],
            device=self.place.device,
            num_threads=self.place.threads or None,
            rows=range(self._num_images) if self._num_images else None,
            native=self._native,
            streaming=self._streaming,
        )

    def epoch(self, number: int) -> Iterator[int]:
        """Batch by batch."""
        for batch in self._pipeline.epoch(number):
            yield len(batch.images)

    def close(self) -> None:
        """Let go of files and threads."""
        self._pipeline.close()


class PeerLoader(EpochLoader):
    """One of `fastcifar.bench.peers`."""

    def __init__(self, place: Place, *, kind: str, artefact: Path, batch_size: int, num_images: int) -> None:
        super().__init__(place)
        self._kind, self._artefact = kind, artefact
        self._batch_size, self._num_images = batch_size, num_images

    def open(self, task: Task) -> None:
        """With the mean and the deviation that our own loaders normalise by."""
        from fastcifar import artefacts
        from fastcifar.bench import peers

        kinds = {"kornia": peers.KorniaLoader, "tensor": peers.TensorLoader, "tensor_batch": peers.BatchTensorLoader}
        index, split = artefacts.read_index(self._artefact), artefacts.read(self._artefact, "train")
        part = slice(self._num_images or None)
        self._peer = kinds[self._kind](
            split.images_nhwc[part],
            split.labels_n[part],
            settings.augmentation(task.setting),
            (index.mean, index.std),
            batch_size=task.batch_size or self._batch_size,
            dtype=task.dtype,
            device=self.place.device,
        )

    def epoch(self, number: int) -> Iterator[int]:
        """Batch by batch."""
        for images, _labels in self._peer.epoch():
            yield len(images)

    def close(self) -> None:
        """Let go of the set."""
        del self._peer
