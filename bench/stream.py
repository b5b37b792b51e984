"""Sets larger than memory: the same epochs over 1, 4 and 16 copies, streamed; rate and memory should not change."""

import shutil
from dataclasses import replace

from fastcifar.bench.convert import COPIES, load, work_folder
from fastcifar.bench.job import Job
from fastcifar.bench.loaders import BATCH_SIZE, PipelineLoader
from fastcifar.bench.measure import Measured
from fastcifar.bench.results import Result, Row, add_memory_growth, memory_values, spread_values
from fastcifar.bench.workers import Entry

NAMES = ("ffcv", "dali")
TASK = "crop_flip_cutmix.bf16"


def measure(job: Job) -> Result:
    """`ffcv` and `dali`, streaming, each number of copies in a process of its own, all in turn."""
    from fastcifar import artefacts, pipelines

    batch_size = job.pick_batch_size(BATCH_SIZE["cuda" if job.on_gpu else "cpu"])
    copies = COPIES[:2] if job.quick else COPIES
    names = [name for name in NAMES if pipelines.available(name) is None]
    job.notes.extend(f"{name} left out: {pipelines.available(name)}" for name in NAMES if name not in names)
    folder = work_folder()
    try:
        dataset = load(job.source, job.num_images)
        entries = []
        for name in names:
            for count in copies:
                job.tell(f"writing {count} copies for {name}")
                to = pipelines.needs(name)
                artefact = artefacts.convert(dataset, to, folder / f"{to}-{count}", copies=count)
                told = {"name": name, "artefact": artefact, "batch_size": batch_size, "num_images": 0}
                entries.append(Entry(f"{name}_{count}", PipelineLoader, {**told, "streaming": True}))
        del dataset
        place = replace(job.place, keep_freed_memory=False)
        measured = job.run(entries, {TASK: [entry.key for entry in entries]}, place=place)[TASK]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [
        Row(name, f"copies{count}", "ours", _values(measured[f"{name}_{count}"], measured.get(f"{name}_{copies[0]}")))
        for count in copies
        for name in names
        if f"{name}_{count}" in measured
    ]
    add_memory_growth(rows)
    title = (
        f"Streaming 1 to {copies[-1]} copies of the training images: crop, flip, CutMix, bf16, batches of {batch_size}"
    )
    return Result("stream", title, "images_s", rows, notes=job.notes)


def _values(one: Measured, once: Measured | None) -> dict[str, float]:
    values = spread_values("images_s", one.rate) | {"rounds": one.rate.num}
    values |= {"first_batch_ms": one.extra("first_batch_ms").median} | memory_values(one)
    if once is not None and once is not one:
        values["rate_over_one"] = one.rate.median / once.rate.median
        if once.released is not None and one.released is not None:
            values["memory_over_one"] = one.released.peak_memory_mb / once.released.peak_memory_mb
    return values
