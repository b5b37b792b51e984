"""The killing part: SIGKILL at random moments, then the command again, and the same bits as of a run left alone.

A `fastcifar train` is killed while it converts, trains, writes a checkpoint or evaluates, on each pipeline by turns,
and gone on with by `--resume`. Moments are drawn over a whole run's time, and among its calls of the system.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cifar_files import make

from faults.report import Finding, Report, Row

SETTINGS = (
    "pipeline.batch_size=50", "model.widths=[8, 16, 16]", "train.epochs=3", "train.whiten_epochs=1", "train.threads=1",
    "train.dtype=float32", "train.averaging=ema", "data.validation=0.2",
)  # fmt: skip
LIMIT_S = 300.0
# A run is stopped when it comes to the nth call of these, or at a moment drawn over its whole time.
CALLS = {"os.rename": 12, "open": 60, "os.mkdir": 6, "os.remove": 8, "os.utime": 4}
VICTIM = """
import os, sys
name, number = sys.argv[1], int(sys.argv[2])
left = [number]

def hook(event, arguments):
    writes = event != "open" or (isinstance(arguments[1], str) and set(arguments[1]) & set("wax"))
    if event == name and writes:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), 9)

if name != "time":
    sys.addaudithook(hook)
from fastcifar.cli import main
sys.exit(main(sys.argv[3:]))
"""


def pipelines_here() -> list[str]:
    """The pipelines that work on this machine and repeat to the bit."""
    from fastcifar import pipelines

    return [name for name in pipelines.NAMES if pipelines.available(name) is None]


class Case:
    """One command over one data set in a home of its own: run whole once, then killed and gone on with."""

    def __init__(self, home: Path, pipeline: str, folder: Path) -> None:
        self.home, self.pipeline, self.folder = home, pipeline, folder
        self.whole_s = 0.0
        self.whole: dict[str, object] = {}

    def command(self, out: Path, resume: bool) -> list[str]:
        if resume:
            return ["train", "--resume", str(out)]
        told = [word for setting in SETTINGS for word in ("--set", setting)]
        return ["train", "--data", str(self.folder), "--pipeline", self.pipeline, "--out", str(out), *told]

    def run(self, out: Path, cache: Path, resume: bool, kill: tuple[str, float] | None = None) -> tuple[int, str]:
        """Exit code (negative: the signal) and the end of stderr."""
        name, number = kill if kill and kill[0] != "time" else ("time", 0)
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", VICTIM, name, str(int(number)), *self.command(out, resume)]
        with open(self.home / "stderr", "w+b") as log:
            victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=environment,
                                      start_new_session=True)  # fmt: skip
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    victim.wait(kill[1] if kill and kill[0] == "time" else LIMIT_S)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(victim.pid, signal.SIGKILL)  # its workers too
                victim.wait()
            log.seek(0)
            return victim.returncode, log.read().decode(errors="replace")[-2000:]

    def prepare(self) -> str:
        """Run it whole; what went wrong, or nothing."""
        start_s = time.monotonic()
        code, said = self.run(self.home / "whole", self.home / "cache-whole", resume=False)
        self.whole_s = time.monotonic() - start_s
        if code:
            return f"a run left alone ended with {code}: {said[-300:]}"
        self.whole = result_of(self.home / "whole")
        return ""

    def kill_and_go_on(self, rng: random.Random, number: int) -> tuple[str, str]:
        """What was killed where, and what went wrong, or nothing."""
        out, cache = self.home / f"run-{number}", self.home / f"cache-{number}"
        kill = ("time", rng.uniform(0.2, 1.0) * self.whole_s)
        if rng.random() < 0.6:
            name = rng.choice(sorted(CALLS))
            kill = (name, rng.randrange(1, CALLS[name]))
        moment = f"after {kill[1]:.2f} s" if kill[0] == "time" else f"at call {kill[1]} of {kill[0]}"
        where = f"{self.pipeline}, {moment}"
        try:
            code, said = self.run(out, cache, resume=False, kill=kill)
            if code not in (0, -signal.SIGKILL):
                return where, f"ended with {code} by itself: {said[-300:]}"
            where += ", which was after its end" * (code == 0)
            if not (out / "config.toml").exists():  # killed before there was a run
                code, said = self.run(out, cache, resume=False)
            elif code:
                code, said = self.run(out, cache, resume=True)
            if code:
                return where, f"does not go on, exit code {code}: {said[-300:]}"
            found = result_of(out)
            wrong = [name for name, value in self.whole.items() if found[name] != value]
            if wrong:
                return where, f"differs from a run left alone in {', '.join(wrong)}"
            left = [path.name for path in out.iterdir() if path.name.endswith(".tmp")]
            return where, f"leaves {', '.join(left)} behind" if left else ""
        finally:
            shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(cache, ignore_errors=True)


def result_of(out: Path) -> dict[str, object]:
    """What must be the same bits: weights, metrics but for times, and the card's numbers but for times."""
    card = json.loads((out / "card.json").read_text())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    times = {"images_s", "seconds", "left_s"}
    return {
        "weights": hashlib.sha256((out / "weights.safetensors").read_bytes()).hexdigest(),
        "metrics": [{key: value for key, value in line.items() if key not in times} for line in lines],
        **{name: card[name] for name in ("accuracy", "tta_accuracy", "test_loss", "validation_accuracy")},
        **{name: card[name] for name in ("train_accuracy", "num_train", "num_test")},
    }


def run(report: Report, seconds: float, out: Path, tell: Callable[[str], None], count: int) -> None:
    """Kill `count` times, pipelines by turns, as far as the time goes."""
    rng = random.Random(report.seed)
    end_s = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="fastcifar-faults-") as home:
        folder = make(Path(home) / "data", num_test=60).path
        cases, rows = [], {}
        for name in pipelines_here():
            (Path(home) / name).mkdir()
            case, row = Case(Path(home) / name, name, folder), Row("kill", f"training, {name}")
            rows[name] = row
            report.rows.append(row)
            wrong = case.prepare()
            if wrong:
                row.findings += 1
                report.findings.append(Finding("kill", row.what, wrong))
            else:
                cases.append(case)
        done = 0
        while cases and done < count and (time.monotonic() < end_s or done < len(cases)):
            case = cases[done % len(cases)]
            where, wrong = case.kill_and_go_on(rng, done)
            row = rows[case.pipeline]
            row.tried += 1
            row.right += not wrong
            if wrong:
                row.findings += 1
                report.findings.append(Finding("kill", row.what, f"{where}: {wrong}"))
            tell(f"kill {done + 1}: {where}: {wrong or 'the same bits'}")
            done += 1
        if done < count:
            report.skipped.append(f"kill: {count - done} of {count} moments, for want of time (--minutes)")
