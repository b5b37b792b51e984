"""The fused kernel's forms side by side: images a second, bytes a second, and the shares of what the machine allows."""

from typing import Any

import numpy as np

from fastcifar.bench import bounds, settings
from fastcifar.bench.job import Job
from fastcifar.bench.measure import Sample
from fastcifar.bench.results import Result, Row, traffic_values
from fastcifar.bench.settings import Task
from fastcifar.bench.workers import Entry, Place

BATCH_SIZE = {"cpu": 500, "cuda": 50_000}
DTYPES = ("bf16", "fp32")


def measure(job: Job) -> Result:
    """Every form that the device has, every setting, both dtypes, with the widening gather and the copy in turn."""
    batch_size = job.pick_batch_size(BATCH_SIZE["cuda" if job.on_gpu else "cpu"])
    forms = ("cuda",) if job.on_gpu else ("numba", "reference")
    told: dict[str, Any] = {
        "images_file": str(job.images_file()),
        "batch_size": batch_size,
        "num_images": job.num_images,
    }
    entries = [Entry(form, Kernel, {"form": form, **told}, open_twice=True) for form in forms]
    entries.append(bounds.gather_entry(**told))
    entries.append(bounds.copy_entry(32 << 20 if job.quick else 0))
    names = [Task(setting, dtype).name for setting in settings.NAMES for dtype in (DTYPES[:1] if job.quick else DTYPES)]
    keys = [entry.key for entry in entries]
    measured = job.run(entries, {name: keys for name in names})
    roles = {entry.key: entry.role for entry in entries}
    pixels = job.image_pixels()
    rows = [
        Row(key, name, roles[key], traffic_values(key, measured[name], name, pixels, "first_call_s"))
        for name in names
        for key in measured[name]
    ]
    title = f"Kernels: gather, augment, normalise, cast; batches of {batch_size}"
    if not job.on_gpu:
        job.notes.append(
            "the copy goes through main memory, a batch's buffer may stay in the cache: shares of it can exceed 100 %"
        )
    return Result("kernels", title, "images_s", rows, notes=job.notes)


class Kernel:
    """One form of the fused kernel, drawing and augmenting one batch after the other of a shuffled set."""

    def __init__(self, *, place: Place, form: str, images_file: str, batch_size: int, num_images: int) -> None:
        import torch

        self._place, self._form = place, form
        images = torch.from_numpy(np.array(np.load(images_file, mmap_mode="r")[: num_images or None]))
        self._images = images.to(place.device)
        order = np.random.default_rng(0).permutation(len(images))
        self._order = order if place.device == "cpu" else torch.from_numpy(order).to(place.device)
        self._batch_size = min(batch_size, len(images))
        self._at = self._epoch = 0

    def prepare(self, task: str) -> None:
        """Make the buffer and call once: what is not compiled or read from the cache yet, is then."""
        import torch

        from fastcifar.kernels import Augmenter, Normalisation

        told = Task.parse(task)
        options: dict[str, Any] = {} if self._place.device != "cpu" else {"num_threads": self._place.threads or None}
        self._augmenter = Augmenter(
            settings.augmentation(told.setting),
            # CIFAR-10's; any other would be as fast.
            Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
            seed=0,
            dtype=getattr(torch, settings.DTYPES[told.dtype]),
            form=self._form,
            **options,
        )
        self._once()
        bounds.synchronise(self._place.device)

    def run(self, task: str, seconds: float) -> Sample:
        """Units are images."""
        return bounds.repeat(self._once, seconds, self._place.device)

    def release(self, task: str) -> None:
        """The next task makes its own buffer."""
        del self._augmenter

    def _once(self) -> float:
        if self._at + self._batch_size > len(self._order):
            self._at, self._epoch = 0, self._epoch + 1
        rows = self._order[self._at : self._at + self._batch_size]
        self._at += self._batch_size
        self._augmenter(self._images, rows, epoch=self._epoch)
        return float(self._batch_size)
