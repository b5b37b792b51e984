"""The killing part: SIGKILL at random moments, then the command again, and the same bits as of a run left alone.

A `fastcifar train` is killed while it converts, trains, writes a checkpoint or evaluates, on each pipeline by turns,
and gone on with by `--resume`; so are `convert` and `evaluate`, and typed again. Moments are drawn over a whole run's
time, and among its calls of the system.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
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


class Case(ABC):
    """One command in a home of its own: run whole once, then killed and run, or gone on with, again."""

    what: str
    shortest = 0.2
    """Share of the whole run's time before which nothing is killed: Python starts."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.whole_s = 0.0
        self.whole: dict[str, object] = {}

    @abstractmethod
    def command(self, out: Path, again: bool) -> list[str]:
        """What to type, or to type after a kill."""

    @abstractmethod
    def result(self, out: Path) -> dict[str, object]:
        """What must be the same bits."""

    def ready(self, out: Path) -> None:
        """Lay out what the command finds: by default nothing."""
        return

    def spoilt(self, out: Path) -> str:
        """What a kill must not leave, where it did, or nothing."""
        return ""

    def run(self, out: Path, cache: Path, again: bool, kill: tuple[str, float] | None = None) -> tuple[int, str]:
        """Exit code (negative: the signal) and the end of stderr."""
        name, number = kill if kill and kill[0] != "time" else ("time", 0)
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", VICTIM, name, str(int(number)), *self.command(out, again)]
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
        out = self.home / "whole" / "out"
        out.parent.mkdir(parents=True)
        self.ready(out)
        start_s = time.monotonic()
        code, said = self.run(out, self.home / "cache-whole", again=False)
        self.whole_s = time.monotonic() - start_s
        if code:
            return f"a run left alone ended with {code}: {said[-300:]}"
        self.whole = self.result(out)
        return ""

    def moment(self, rng: random.Random) -> tuple[str, float]:
        """A call of the system by its number, or "time" and seconds."""
        if rng.random() < 0.6:
            name = rng.choice(sorted(CALLS))
            return name, rng.randrange(1, CALLS[name])
        return "time", rng.uniform(self.shortest, 1.0) * self.whole_s

    def kill_and_go_on(self, number: int, kill: tuple[str, float]) -> tuple[str, str]:
        """What was killed where, and what went wrong, or nothing."""
        folder, cache = self.home / f"killed-{number}", self.home / f"cache-{number}"
        out = folder / "out"
        folder.mkdir()
        self.ready(out)
        before = {path.name for path in folder.iterdir()} | {"out"}
        where = f"after {kill[1]:.2f} s" if kill[0] == "time" else f"at call {kill[1]} of {kill[0]}"
        try:
            code, said = self.run(out, cache, again=False, kill=kill)
            if code not in (0, -signal.SIGKILL):
                return where, f"ended with {code} by itself: {said[-300:]}"
            where += ", which was after its end" * (code == 0)
            if spoilt := self.spoilt(out):
                return where, spoilt
            if code:
                code, said = self.run(out, cache, again=True)
            if code:
                return where, f"does not go on, exit code {code}: {said[-300:]}"
            found = self.result(out)
            wrong = [name for name, value in self.whole.items() if found[name] != value]
            if wrong:
                return where, f"differs from a run left alone in {', '.join(wrong)}"
            left = [path.name for path in out.rglob("*") if path.name.endswith(".tmp")]
            left += [path.name for path in folder.iterdir() if path.name not in before]
            return where, f"leaves {', '.join(left)} behind" if left else ""
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(cache, ignore_errors=True)


class TrainCase(Case):
    """`train` on a pipeline: loads, converts, trains, writes checkpoints, evaluates; gone on with by `--resume`."""

    def __init__(self, home: Path, pipeline: str, data: Path) -> None:
        super().__init__(home)
        self.what = f"training, {pipeline}"
        self.pipeline, self.data = pipeline, data

    def command(self, out: Path, again: bool) -> list[str]:
        if again and (out / "config.toml").exists():  # or it was killed before there was a run
            return ["train", "--resume", str(out)]
        told = [word for setting in SETTINGS for word in ("--set", setting)]
        return ["train", "--data", str(self.data), "--pipeline", self.pipeline, "--out", str(out), *told]

    def result(self, out: Path) -> dict[str, object]:
        return result_of(out)


class ConvertCase(Case):
    """`convert --force` over an artefact of other data: what a kill leaves is the old one, or the new one, whole.

    Between two renames the old one lies beside its place, from where the next conversion takes it back.
    """

    shortest = 0.3

    def __init__(self, home: Path, to: str, data: Path, other: Path) -> None:
        super().__init__(home)
        self.what = f"converting, {to}"
        self.to, self.data, self.other = to, data, other

    def command(self, out: Path, again: bool) -> list[str]:
        return ["convert", str(self.data), "--to", self.to, "--out", str(out), "--force"]

    def ready(self, out: Path) -> None:
        from fastcifar.cli import main

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(["convert", str(self.other), "--to", self.to, "--out", str(out)])
        self.old = self.result(out)

    def result(self, out: Path) -> dict[str, object]:
        paths = sorted(path for path in out.rglob("*") if path.is_file())
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def spoilt(self, out: Path) -> str:
        place = out if out.exists() else out.with_name(f".{out.name}.old")
        return "" if self.result(place) in (self.old, self.whole) else "leaves no whole artefact"


class EvaluateCase(Case):
    """`evaluate` of a finished run, which is the same run afterwards."""

    shortest = 0.3

    def __init__(self, home: Path, finished: Path) -> None:
        super().__init__(home)
        self.what = "evaluating"
        self.finished = finished

    def command(self, out: Path, again: bool) -> list[str]:
        return ["evaluate", str(out)]

    def ready(self, out: Path) -> None:
        shutil.copytree(self.finished, out)

    def result(self, out: Path) -> dict[str, object]:
        times = {"seconds", "wall_s", "total_s", "run"}
        evaluation = json.loads((out / "evaluation.json").read_text())
        return {**result_of(out), "evaluation": {key: evaluation[key] for key in evaluation if key not in times}}

    def spoilt(self, out: Path) -> str:
        try:
            if (out / "evaluation.json").exists():
                json.loads((out / "evaluation.json").read_text())
            result_of(out)
        except (ValueError, OSError) as error:
            return f"leaves the run in parts: {error}"
        return ""


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


def cases_of(home: Path) -> list[Case]:
    """Training on every pipeline that is here, converting to every format that is, and evaluating."""
    from fastcifar.artefacts import FORMATS

    data, other = make(home / "data", num_test=60).path, make(home / "other", num_test=30, seed=1).path
    trained: list[Case] = [TrainCase(home / name, name, data) for name in pipelines_here()]
    cases = [*trained]
    formats = {"npy": "resident", "ffcv": "ffcv", "dali": "dali"}
    here = pipelines_here()
    cases += [ConvertCase(home / f"to-{to}", to, data, other) for to in FORMATS if formats[to] in here]
    cases.append(EvaluateCase(home / "evaluate", trained[0].home / "whole" / "out"))
    return cases


def run(report: Report, seconds: float, out: Path, tell: Callable[[str], None], count: int) -> None:
    """Kill `count` times, cases by turns, as far as the time goes."""
    rng = random.Random(report.seed)
    end_s = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="fastcifar-faults-") as home:
        cases, rows = [], {}
        for case in cases_of(Path(home)):
            row = rows[case.what] = Row("kill", case.what)
            report.rows.append(row)
            try:
                wrong = case.prepare()
            except OSError as error:  # what it is made from is missing: another case went wrong
                wrong = f"cannot be prepared: {error}"
            if wrong:
                row.findings += 1
                report.findings.append(Finding("kill", row.what, wrong))
            else:
                cases.append(case)
        done = 0
        while cases and done < count and (time.monotonic() < end_s or done < len(cases)):
            case = cases[done % len(cases)]
            where, wrong = case.kill_and_go_on(done, case.moment(rng))
            row = rows[case.what]
            row.tried += 1
            row.right += not wrong
            if wrong:
                row.findings += 1
                report.findings.append(Finding("kill", row.what, f"{where}: {wrong}"))
            tell(f"kill {done + 1}: {case.what} {where}: {wrong or 'the same bits'}")
            done += 1
        if done < count:
            report.skipped.append(f"kill: {count - done} of {count} moments, for want of time (--minutes)")
