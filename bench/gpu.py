"""Everything that a GPU should be asked once one can be had, in one bounded run: is it right, and how fast is it?"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TOTAL_S = 570.0
"""Within ten minutes, with room for what comes around it."""


@dataclass(frozen=True)
class Stage:
    """One command with a share of the time."""

    name: str
    command: tuple[str, ...]
    reserved_s: float
    """It may take this long, and what those before it left over."""
    none_code: int | None = None
    """Exit code that says that there was nothing to do, which is no failure."""


@dataclass
class Done:
    """How a stage went. `result` is the JSON of its last line, where there is any."""

    name: str
    command: list[str]
    seconds: float
    limit_s: float
    exit_code: int | None
    """None: ended at its limit."""
    passed: bool
    result: Any = None


@dataclass
class Check:
    """All of them, as far as they got."""

    environment: dict[str, object]
    stages: list[Done] = field(default_factory=list)


def stages(out: Path, scratch: Path, device: str, told: Sequence[str], quick: bool) -> list[Stage]:
    """The stages in order; `told` are the options that say which data set, `scratch` takes the speedrun's folder.

    Conversion and streaming are left to `bench convert` and `bench stream`: they measure the CPU and the disk.
    """
    python, module = sys.executable, ("-m", "fastcifar.cli")
    options = ("--out", str(out), "--device", device, "--no-plot", *told)
    images = ("--images", "2000") if quick else ()
    speedrun = ("--set", "train.epochs=0.02", "--set", "model.widths=[8,16,16]") if quick else ()
    check = (python, "-m", "fastcifar.bench.gpu_check", "--device", device, *told, *images)
    found = [Stage("check", check, 60)]
    if Path("tests").is_dir() and not quick:
        # By name: what another test module imports may not be there.
        files = ("tests/test_kernels_cuda.py", "tests/test_gpu.py")
        found.append(Stage("tests", (python, "-m", "pytest", "-m", "gpu", "-q", *files), 70, none_code=5))

    def bench(what: str, reserved_s: float, rounds: int = 3) -> Stage:
        short = ("--quick",) if quick else ("--seconds", "1", "--rounds", str(rounds))
        return Stage(what, (python, *module, "bench", what, *options, *short), reserved_s)

    found += [bench("kernels", 70), bench("step", 80), bench("loaders", 90)]
    run_folder = str(scratch / "run")
    found.append(Stage("speedrun", (python, *module, "speedrun", "--out", run_folder, *told, *speedrun), 120))
    return [*found, bench("start", 60, rounds=1)]


def run(
    found: Sequence[Stage],
    out: Path,
    environment: dict[str, object],
    tell: Callable[[str], None],
    total_s: float = TOTAL_S,
) -> Check:
    """Run the stages, each within its limit and all within `total_s`; `gpu.json` and `gpu.log` in `out` grow."""
    out.mkdir(parents=True, exist_ok=True)
    check = Check(environment)
    end_s = time.perf_counter() + total_s
    with (out / "gpu.log").open("w", encoding="utf-8") as log:
        for place, stage in enumerate(found):
            later_s = sum(other.reserved_s for other in found[place + 1 :])
            # A total that is smaller than the reserves still gives each stage its turn while there is time.
            left_s = end_s - time.perf_counter()
            limit_s = min(max(stage.reserved_s, left_s - later_s), left_s)
            done = _run_stage(stage, limit_s, log)
            check.stages.append(done)
            (out / "gpu.json").write_text(json.dumps(asdict(check), indent=1) + "\n", encoding="utf-8")
            verdict = "passed" if done.passed else "failed" if done.exit_code is not None else "ended at its limit"
            tell(f"{stage.name}: {verdict} ({done.seconds:.0f} s of {limit_s:.0f})")
    return check


def _run_stage(stage: Stage, limit_s: float, log: Any) -> Done:
    log.write(f"== {stage.name}: {' '.join(stage.command)}\n")
    log.flush()
    start_s = time.perf_counter()
    code: int | None = None
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        if limit_s > 0:
            code = _run_limited(stage.command, limit_s, output, log)
        output.seek(0)
        text = output.read()
    log.write(f"{text}\n== exit code {code}\n")
    log.flush()
    passed = code is not None and code in (0, stage.none_code)
    result = _last_json(text)
    return Done(stage.name, list(stage.command), time.perf_counter() - start_s, limit_s, code, passed, result)


def _run_limited(command: Sequence[str], limit_s: float, output: Any, log: Any) -> int | None:
    """Exit code, or None where the limit ended it: the command with all that it started, a group of their own."""
    process = subprocess.Popen(command, stdout=output, stderr=log, start_new_session=True)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_json(text: str) -> Any:
    lines = text.strip().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
