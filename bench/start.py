"""From the start of a process to its first batch: what a user waits for before anything happens."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

from fastcifar.bench.job import Job
from fastcifar.bench.measure import Opened, Released, RunnerError, Sample, interleave
from fastcifar.bench.results import Result, Row

BATCH_SIZE = 500
LIMIT_S = 300.0

# What a process runs; each says when it has its first batch.
_FIRST_BATCH = ("-m", "fastcifar.bench.first_batch")
_IMPORT_TORCH = ("-c", "import torch; print('first batch', flush=True)")


def measure(job: Job) -> Result:
    """Every pipeline from its artefact, `resident` from the data set too, and importing torch alone."""
    from fastcifar import pipelines

    batch_size = job.pick_batch_size(BATCH_SIZE)
    names = [name for name in pipelines.NAMES if pipelines.available(name) is None]
    tail = [job.place.device, str(batch_size)]
    processes = [
        Process(name, [*_FIRST_BATCH, name, str(job.artefact(pipelines.needs(name))), *tail])
        for name in (() if job.quick else names)
    ]
    path = "" if job.source.path is None else str(job.source.path)
    from_dataset = [*_FIRST_BATCH, "--from-dataset", job.source.dataset, path, *tail]
    processes.append(Process("resident_dataset", from_dataset))
    processes.append(Process("import_torch", _IMPORT_TORCH))

    def on_problem(key: str, error: RunnerError) -> None:
        job.failures.append(str(error))

    job.tell(f"start: {', '.join(process.key for process in processes)}")
    # Each process is a round; a budget of time makes no sense of it.
    measured = interleave(processes, "first_batch", rounds=job.rounds, round_s=0, on_problem=on_problem)
    rows = []
    for key, one in measured.items():
        seconds = [1 / rate for rate in (one.rate.median, one.rate.q3, one.rate.q1)]
        values = dict(zip(("seconds", "seconds_q1", "seconds_q3"), seconds, strict=True)) | {"rounds": one.rate.num}
        if key != "import_torch" and "import_torch" in measured:
            values["over_import_torch_s"] = values["seconds"] - 1 / measured["import_torch"].rate.median
        rows.append(Row(key, "first_batch", "bound" if key == "import_torch" else "ours", values))
    if not job.quick:
        rows += _without_caches(job, tail)
    title = f"From the start of a process to its first batch of {batch_size}, compiled code cached"
    return Result("start", title, "seconds", rows, notes=job.notes)


def _without_caches(job: Job, tail: list[str]) -> list[Row]:
    """`resident` once with nothing compiled before: what the first process on a machine waits for."""
    with tempfile.TemporaryDirectory() as empty:
        arguments = [*_FIRST_BATCH, "resident", str(job.artefact("npy")), *tail]
        process = Process("resident_uncached", arguments, {"NUMBA_CACHE_DIR": empty})
        job.tell("start: resident, compiling everything")
        try:
            opened = process.prepare("first_batch")
        except RunnerError as error:
            job.failures.append(str(error))
            return []
    values = {"seconds": opened.cold_s, "seconds_q1": opened.cold_s, "seconds_q3": opened.cold_s, "rounds": 1.0}
    return [Row("resident_uncached", "first_batch", "ours", values)]


class Process:
    """A Python process that says when it has its first batch; a `Runner`."""

    def __init__(self, key: str, arguments: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.key = key
        self._command = [sys.executable, *arguments]
        self._environment = {**os.environ, **(environment or {})}

    def prepare(self, task: str) -> Opened:
        """The first process, which fills the caches."""
        return Opened(self.run(task, 0).seconds)

    def run(self, task: str, seconds: float) -> Sample:
        """One process, from before it is started until it says so."""
        start_s = time.perf_counter()
        # Ready when the line is there, whatever leaving takes.
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=errors, env=self._environment, text=True
            )
            assert process.stdout is not None
            # Ended at the limit, its pipe closes, and the reading below with it.
            limit = threading.Timer(LIMIT_S, process.kill)
            limit.start()
            try:
                line = process.stdout.readline()
                took_s = time.perf_counter() - start_s
                process.communicate()
            finally:
                limit.cancel()
                process.kill()
                process.wait()
            if line.strip() != "first batch" or process.returncode != 0:
                errors.seek(0)
                said = " ".join(errors.read().split())[-300:]
                raise RunnerError(f"{self.key}: no first batch, exit code {process.returncode}: {said}")
        return Sample(1, took_s)

    def release(self, task: str) -> Released:
        """Nothing is left."""
        return Released(0.0, 0.0)
