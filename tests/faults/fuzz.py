"""The fuzzing part: a process for each reader, started again after a crash, killed when it hangs."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults.report import Finding, Report, Row
from faults.shard import Board
from faults.targets import TARGETS, Target

HANG_S = 30.0
START_S = 240.0
MAX_CRASHES = 10
HEAVY_SHARE = 0.5
"""Readers that need torch or a loader are this much of a share of the time that others get."""


def engine() -> str:
    """`atheris`, which is guided by coverage, or `blind`."""
    return "atheris" if importlib.util.find_spec("atheris") else "blind"


def run(
    report: Report,
    seconds: float,
    out: Path,
    tell: Callable[[str], None],
    names: tuple[str, ...],
    max_inputs: int,
    jobs: int,
) -> None:
    """Fuzz the readers of these names for `seconds` in all, `jobs` at a time."""
    chosen = [target for target in TARGETS if target.name in names]
    if "pipeline-ffcv" in names and not importlib.util.find_spec("ffcv"):
        chosen = [target for target in chosen if target.name != "pipeline-ffcv"]
        report.skipped.append("fuzz pipeline-ffcv: ffcv is not installed")
    if "pipeline-dali" in names and not importlib.util.find_spec("nvidia.dali"):
        chosen = [target for target in chosen if target.name != "pipeline-dali"]
        report.skipped.append("fuzz pipeline-dali: DALI is not installed")
    weights = [HEAVY_SHARE if target.heavy else 1.0 for target in chosen]
    shares = [seconds * jobs * weight / sum(weights) for weight in weights]

    def one(number: int) -> tuple[Row, list[Finding]]:
        target = chosen[number]
        row, findings = fuzz(target, report.seed + 1000 * number, shares[number], out, max_inputs)
        tell(f"fuzz {row.what}: {row.tried:,} inputs, {row.findings} findings")
        return row, findings

    with ThreadPoolExecutor(jobs) as pool:
        for row, findings in pool.map(one, range(len(chosen))):
            report.rows.append(row)
            report.findings += findings


def fuzz(target: type[Target], seed: int, seconds: float, out: Path, max_inputs: int) -> tuple[Row, list[Finding]]:
    """Fuzz one reader until the time or the inputs are used up."""
    row, findings = Row("fuzz", target.name), {}
    slowest_us, end_s, round_number = 0, time.monotonic() + seconds, 0
    while round_number == 0 or (time.monotonic() < end_s and row.tried < max_inputs and round_number < MAX_CRASHES):
        home = Path(tempfile.mkdtemp(prefix="fastcifar-faults-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        try:
            board = Board.create(home / "board")
            left_s = max(1.0, end_s - time.monotonic())
            ended = _shard(target.name, seed + round_number, left_s, max_inputs - row.tried, home, board)
            row.tried, row.right, row.refused = (
                total + board[name]
                for total, name in ((row.tried, "inputs"), (row.right, "right"), (row.refused, "refused"))
            )
            slowest_us = max(slowest_us, board["slowest_us"])
            for note in sorted(home.glob("finding-*.json")):
                content = json.loads(note.read_text())
                key = content["what"].partition(":")[0] + content["place"]
                if key not in findings:
                    findings[key] = _keep(out, content, note.with_suffix(".input").read_bytes())
            if ended:
                content = {"target": target.name, "what": ended, "trace": (home / "log").read_text()[-3000:]}
                findings.setdefault(ended.partition(" in ")[0], _keep(out, content, board.current))
        finally:
            shutil.rmtree(home, ignore_errors=True)
        round_number += 1
    row.findings = len(findings)
    row.note = f"slowest input {slowest_us / 1e6:.2f} s of CPU"
    return row, list(findings.values())


def _shard(name: str, seed: int, seconds: float, max_inputs: int, home: Path, board: Board) -> str:
    """Run one shard to its end; what was wrong with the end, or nothing."""
    told = [name, engine(), str(seed), f"{seconds:.1f}", str(max_inputs), str(home)]
    tests = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": str(tests)}
    with open(home / "log", "wb") as log:
        command = [sys.executable, "-m", "faults.shard", *told]
        shard = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        begun_s = moved_s = time.monotonic()
        inputs = 0
        while shard.poll() is None:
            time.sleep(0.1)
            now_s = time.monotonic()
            if board["inputs"] != inputs:
                inputs, moved_s = board["inputs"], now_s
            under_way = board["started"] != 0
            if under_way and now_s - moved_s > HANG_S and now_s - begun_s > START_S * (inputs == 0):
                shard.kill()
                shard.wait()
                return f"hang: no answer in {HANG_S:.0f} s"
            if now_s - begun_s > seconds + START_S:
                shard.kill()
                shard.wait()
                break
    if shard.returncode not in (0, -signal.SIGKILL):
        how = signal.Signals(-shard.returncode).name if shard.returncode < 0 else f"exit code {shard.returncode}"
        return f"crash of the interpreter: {how}"
    return ""


def _keep(out: Path, content: dict[str, str], data: bytes) -> Finding:
    """Save an input, and what it did, for replay."""
    import hashlib

    stem = out / f"{content['target']}-{hashlib.sha256(data).hexdigest()[:12]}"
    stem.with_suffix(".input").write_bytes(data)
    stem.with_suffix(".txt").write_text(f"{content['what']}\n\n{content['trace']}")
    return Finding("fuzz", content["target"], content["what"], str(stem.with_suffix(".input")))


def replay(path: Path) -> int:
    """Read one saved input again, and show what happens; 0 where it is answered as it should be."""
    from faults.shard import Guard, judge

    name = path.name.rpartition("-")[0]
    with tempfile.TemporaryDirectory() as home:
        os.environ["XDG_CACHE_HOME"] = home
        scratch = Path(home) / "scratch"
        scratch.mkdir()
        target = next(target for target in TARGETS if target.name == name)(scratch)
        outcome, what, trace = judge(target, Guard([Path(tempfile.gettempdir())]), path.read_bytes())
    print(f"{name}: {outcome} {what}\n{trace}")
    return outcome == "found"
