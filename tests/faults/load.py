"""The load part: many short runs in one process, and epochs left early; memory, threads and files stay flat."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from cifar_files import make

from faults.report import Finding, Report, Row

SETTINGS = ("pipeline.batch_size=50", "model.widths=[8, 8, 8]", "train.epochs=1", "train.threads=1",
            "train.checkpoint_epochs=0", "evaluate.tta=none", "train.dtype=float32")  # fmt: skip
# What an allocator keeps for itself goes up and down by so much.
SLACK_KIB = 64 << 10


def shared_memory() -> int:
    """Pieces of shared memory that this process has mapped."""
    return sum("/dev/shm/" in line for line in Path("/proc/self/maps").read_text().splitlines())


def usage() -> dict[str, int]:
    """What this process holds: KiB of memory, threads, open files, and pieces of shared memory."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
    return {
        "memory_kib": int(resident),
        "threads": threading.active_count(),
        "tasks": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
        "shared": shared_memory(),
    }


def grown(before: dict[str, int], after: dict[str, int]) -> str:
    """What grew by more than it may; empty where all is flat."""
    limits = {"memory_kib": SLACK_KIB, "threads": 0, "tasks": 1, "files": 1, "shared": 0}
    return ", ".join(
        f"{name} {before[name]:,} -> {after[name]:,}"
        for name, limit in limits.items()
        if after[name] - before[name] > limit
    )


def short_runs(count: int, end_s: float = float("inf")) -> tuple[int, str, dict[str, int], dict[str, int]]:
    """Runs from configuration to card in this process: how many, what grew, usage after the warm-up and at the end."""
    from fastcifar import config as configs
    from fastcifar.report.progress import Reporter
    from fastcifar.report.run_folder import RunFolder
    from fastcifar.training.clock import Clock
    from fastcifar.training.run import run
    from fastcifar.training.session import find_data

    done, warm_up = 0, max(2, min(20, count // 5))
    before: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as home:
        data = make(Path(home) / "data", num_test=10).path
        config = configs.load("speedrun", [f"data.path={str(data)!r}", *SETTINGS])
        while done < count and (time.monotonic() < end_s or done <= warm_up):
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), Reporter() as reporter:
                folder = RunFolder.create(Path(home) / "run", config)
                run(config, find_data(config.data, Clock(), reporter), folder, Clock(), reporter)
                folder.release()
            del folder
            shutil.rmtree(Path(home) / "run")
            done += 1
            if done == warm_up:
                before = usage()
        after = usage()
    return done, grown(before, after), before, after


def epochs_left_early(name: str, count: int, end_s: float = float("inf")) -> tuple[int, str]:
    """Epochs of a pipeline of which one batch is taken: how many, what grew."""
    from artefact_sets import made_dataset

    from fastcifar import artefacts, pipelines

    done, warm_up = 0, max(2, min(10, count // 5))
    before: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as home:
        path = artefacts.convert(made_dataset(64, 8), pipelines.needs(name), Path(home) / "a")
        with pipelines.open(path, name, batch_size=8, num_threads=1) as pipeline:
            while done < count and (time.monotonic() < end_s or done <= warm_up):
                epoch = pipeline.epoch(done)
                next(iter(epoch))
                del epoch
                done += 1
                if done == warm_up:
                    before = usage()
            after = usage()
    return done, grown(before, after)


def runs_at_once(names: Sequence[str]) -> str:
    """Runs that start together on an empty cache, one for each of the pipelines named: what is wrong, or nothing.

    They have one seed, so the pipelines over the fused kernel give one set of weights, and each file that they left in
    the cache they share must verify.
    """
    from fastcifar import artefacts

    with tempfile.TemporaryDirectory() as home:
        data = make(Path(home) / "data", num_test=10).path
        environment = {**os.environ, "XDG_CACHE_HOME": f"{home}/cache", "OMP_NUM_THREADS": "1"}
        sets = [part for setting in SETTINGS for part in ("--set", setting)]
        common = ["train", "--data", str(data), "--no-pictures", *sets]
        folders = [Path(home) / f"run{number}" for number in range(len(names))]
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "fastcifar.cli", *common, "--pipeline", name, "--out", str(folder)],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name, folder in zip(names, folders, strict=True)
        ]
        for process in started:
            said = process.communicate()[1]
            if process.returncode:
                return f"exit code {process.returncode}: {said[-300:]}"
        if len({(folder / "weights.safetensors").read_bytes() for folder in folders}) != 1:
            return "the same seed gave different weights"
        indices = list(Path(home, "cache").rglob("index.json"))
        if not indices:
            return "no artefact in the cache"
        for index in indices:
            if not all(finding.passed for finding in artefacts.verify(index.parent)):
                return f"{index.parent.name}: does not verify"
    return ""


def run(report: Report, seconds: float, tell: Callable[[str], None], runs: int, epochs: int) -> None:
    """Both, as far as the time goes."""
    from faults.kill import pipelines_here

    begun_s = time.monotonic()
    names = pipelines_here()
    with tempfile.TemporaryDirectory() as cache:
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = cache
        try:
            for number, name in enumerate(names):
                end_s = begun_s + 0.4 * seconds * (number + 1) / len(names)
                done, wrong = epochs_left_early(name, epochs, end_s)
                _note(report, Row("load", f"epochs left early, {name}", done, done), wrong, epochs)
                tell(f"load {name}: {done} epochs left early: {wrong or 'flat'}")
            fused = [name for name in names if name != "torchvision"]
            wrong = runs_at_once([fused[number % len(fused)] for number in range(4)])
            row = Row("load", "runs at once, one cache", 4, 0 if wrong else 4, findings=int(bool(wrong)))
            report.rows.append(row)
            if wrong:
                report.findings.append(Finding("load", row.what, wrong))
            tell(f"load: four runs at once: {wrong or 'the same bits, and every artefact whole'}")
            done, wrong, first, last = short_runs(runs, begun_s + seconds)
            row = Row("load", "runs in one process", done, done)
            row.note = f"{first['memory_kib'] >> 10} -> {last['memory_kib'] >> 10} MiB, {last['files']} files"
            _note(report, row, wrong, runs)
            tell(f"load: {done} runs in one process: {wrong or 'flat'}")
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def _note(report: Report, row: Row, wrong: str, wanted: int) -> None:
    if wrong:
        row.findings, row.right = 1, 0
        report.findings.append(Finding("load", row.what, f"grew: {wrong}"))
    if row.tried < wanted:
        report.skipped.append(f"load: {wanted - row.tried} of {wanted} {row.what}, for want of time (--minutes)")
    report.rows.append(row)
