"""One process that feeds inputs to one reader, under limits; its parent sees how far it came even if it dies.

    python -m faults.shard TARGET ENGINE SEED SECONDS MAX_INPUTS FOLDER

Counts and the input under way lie in a file mapped to memory, so that a crash of the interpreter loses neither. What
the reader does to the system is watched by an audit hook: a file opened for writing outside the scratch folder, a
process started or a connection made is a finding.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from fastcifar.cli import one_line
from faults.edits import Mutator
from faults.targets import TARGETS, Target

MAX_INPUT_BYTES = 1 << 16
MORE_MEMORY_BYTES = 2 << 30
SLOW_CPU_S = 5.0
FIELDS = ("inputs", "right", "refused", "found", "slowest_us", "length", "started")
_HEAD_BYTES = 8 * len(FIELDS)
MAP_BYTES = _HEAD_BYTES + MAX_INPUT_BYTES


class Board:
    """What parent and shard both see."""

    def __init__(self, path: Path) -> None:
        with open(path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), MAP_BYTES)
        self.numbers = memoryview(self.map)[:_HEAD_BYTES].cast("Q")

    @classmethod
    def create(cls, path: Path) -> Board:
        path.write_bytes(bytes(MAP_BYTES))
        return cls(path)

    def __getitem__(self, name: str) -> int:
        return self.numbers[FIELDS.index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self.numbers[FIELDS.index(name)] = value

    @property
    def current(self) -> bytes:
        return bytes(self.map[_HEAD_BYTES : _HEAD_BYTES + self["length"]])

    @current.setter
    def current(self, data: bytes) -> None:
        data = data[:MAX_INPUT_BYTES]
        self.map[_HEAD_BYTES : _HEAD_BYTES + len(data)] = data
        self["length"] = len(data)


class OutsideError(BaseException):
    """The reader touched what it has no business with; no `except Exception` swallows it."""


class Guard:
    """Watches what is written, started and called while an input is read."""

    def __init__(self, inside: list[Path], *, pickles: bool = True) -> None:
        self.inside = [os.path.realpath(path) for path in inside]
        self.pickles = pickles  # Numba reads its cache by pickle
        self.on = False
        self.seen = ""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        path: Any = None
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            if not writes:
                return
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"):
            path = arguments[0]
        elif event in ("os.rename", "os.link", "os.symlink"):
            path = arguments[1]
        elif event == "pickle.find_class":
            if not self.pickles:
                return
        elif event not in ("os.system", "subprocess.Popen", "os.exec", "os.fork", "os.posix_spawn", "socket.connect"):
            return
        if isinstance(path, int):
            return
        if path is not None:
            real = os.path.realpath(os.fsdecode(path))
            if any(real == folder or real.startswith(folder + os.sep) for folder in self.inside):
                return
            if event == "open" and real.startswith(("/dev/", "/proc/", "/sys/")):
                return
        self.seen = f"{event} {arguments!r}"[:300]
        raise OutsideError(self.seen)


def judge(target: Target, guard: Guard, data: bytes) -> tuple[str, str, str]:
    """("right" | "refused" | "found", what, traceback) of one input."""
    guard.seen, guard.on = "", True
    what = trace = ""
    try:
        target.read(data)
        outcome = "right"
    except target.errors as error:
        guard.on = False
        outcome, message = "refused", one_line(str(error))
        if not message.strip() or not target.says_where(message):
            outcome, what = "found", f"unclear error: {type(error).__name__}: {message[:200]!r}"
            trace = traceback.format_exc()
    except BaseException as error:
        guard.on = False
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome, what = "found", f"{type(error).__name__}: {str(error)[:300]}"
        trace = traceback.format_exc()
    guard.on = False
    if guard.seen:
        outcome, what = "found", f"outside: {guard.seen}"
    return outcome, what, trace


def place_of(trace: str) -> str:
    """The innermost line of ours in a traceback: findings of one place are one finding."""
    ours = [line.strip() for line in trace.splitlines() if "/fastcifar/" in line or "/pipelines/" in line]
    frames = [line for line in ours if line.startswith("File ")]
    return frames[-1] if frames else trace[-200:]


class Shard:
    """Feeds a target and keeps the books."""

    def __init__(self, name: str, folder: Path) -> None:
        scratch = folder / "scratch"
        scratch.mkdir(parents=True)
        self.folder, self.board = folder, Board(folder / "board")
        cache = folder / "cache"
        os.environ["XDG_CACHE_HOME"] = str(cache)
        import tempfile

        import fastcifar.data.tar

        fastcifar.data.tar.MAX_EXPANDED_BYTES = 1 << 22  # a bomb is told in milliseconds
        self.target = next(target for target in TARGETS if target.name == name)(scratch)
        self.guard = Guard([scratch, cache, Path(tempfile.gettempdir()), *_own_caches()],
                           pickles=bool(self.target.instrumented))  # fmt: skip
        self.places: set[str] = set()
        self.warm = False
        for data in self.target.seeds():  # imports and first calls take time and memory of their own
            self.feed(data)
        self.warm = True
        self.baseline_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + MORE_MEMORY_BYTES,) * 2)

    def feed(self, data: bytes) -> None:
        board = self.board
        data = data[:MAX_INPUT_BYTES]
        board.current = data
        board["started"] = time.monotonic_ns()
        start_s = time.process_time()
        outcome, what, trace = judge(self.target, self.guard, data)
        took_s = time.process_time() - start_s
        if self.warm:
            board["slowest_us"] = max(board["slowest_us"], int(took_s * 1e6))
        if self.warm and took_s > SLOW_CPU_S:
            outcome, what = "found", f"took {took_s:.1f} s of CPU"
        board["inputs"] += 1
        board[outcome] += 1
        board["started"] = 0
        if outcome == "found":
            self.keep(data, what, trace)

    def keep(self, data: bytes, what: str, trace: str) -> None:
        place = place_of(trace) if trace else what[:40]
        kind = what.partition(":")[0]
        if f"{kind} {place}" in self.places or len(self.places) > 50:
            return
        self.places.add(f"{kind} {place}")
        stem = self.folder / f"finding-{len(self.places)}"
        stem.with_suffix(".input").write_bytes(data)
        note = {"target": self.target.name, "what": what, "place": place, "trace": trace}
        stem.with_suffix(".json").write_text(json.dumps(note))


def _own_caches() -> list[Path]:
    """Where compilers of the loaders keep what they made."""
    return [Path.home() / ".cache", Path(__file__).resolve().parents[2]]


def main(argv: list[str]) -> None:
    """Feed until the time is up or all inputs are through."""
    name, engine, seed, seconds, max_inputs, folder = argv
    out = Path(folder)
    instrumented = next(target for target in TARGETS if target.name == name).instrumented
    if engine == "atheris" and instrumented:
        import atheris

        with atheris.instrument_imports(include=list(instrumented), enable_loader_override=False):
            shard = Shard(name, out)
        corpus = out / "corpus"
        corpus.mkdir()
        for number, data in enumerate(shard.target.seeds()):
            (corpus / f"seed-{number}").write_bytes(data)
        # Who started this process watches for hangs.
        flags = [f"-seed={int(seed) + 1}", f"-max_total_time={max(1, int(float(seconds)))}", f"-runs={max_inputs}",
                 f"-max_len={MAX_INPUT_BYTES}", "-timeout=0", "-rss_limit_mb=0", "-verbosity=0",
                 "-len_control=20", f"-artifact_prefix={out}/", str(corpus)]  # fmt: skip
        atheris.Setup(["faults", *flags], shard.feed)
        atheris.Fuzz()
        return
    shard = Shard(name, out)
    mutator = Mutator(shard.target.seeds(), int(seed))
    end_s = time.monotonic() + float(seconds)
    for _ in range(int(max_inputs)):
        if time.monotonic() > end_s:
            break
        shard.feed(mutator.next())


if __name__ == "__main__":
    main(sys.argv[1:])
