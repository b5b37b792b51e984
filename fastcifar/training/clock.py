"""A clock whose parts add up to the wall clock that a user waits for, from the start of the process."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTS = ("start", "load", "convert", "compile", "warm-up", "train", "evaluate", "other")


class Clock:
    """Seconds by part. A part entered within another one interrupts it, so no second counts twice.

    What a part has given the GPU to do is waited for at its end, and where another interrupts it, and counts to it.

    `start` is what passed before the clock was made: the interpreter, imports, reading settings. `other` is what no
    part claims, such as writing the run folder.
    """

    def __init__(self, *, since_process_start: bool = True) -> None:
        self._seconds_s = dict.fromkeys(PARTS, 0.0)
        self._stack: list[str] = []
        if since_process_start:
            self._seconds_s["start"] = _process_age_s()
        self._since_s = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the body's time to part `name`, one of PARTS."""
        assert name in PARTS, name
        if self._stack:
            _await_gpu()
        self._settle()
        self._stack.append(name)
        try:
            yield
        finally:
            try:
                _await_gpu()
            finally:  # a GPU tells here of what went wrong on it earlier
                self._settle()
                self._stack.pop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The body's time counts to no part, as if it had not passed; not within a part."""
        assert not self._stack
        self._settle()
        try:
            yield
        finally:
            self._since_s = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Seconds of every part so far, and their sum as `total`."""
        self._settle()
        return {**self._seconds_s, "total": sum(self._seconds_s.values())}

    def _settle(self) -> None:
        now_s = time.perf_counter()
        self._seconds_s[self._stack[-1] if self._stack else "other"] += now_s - self._since_s
        self._since_s = now_s


def _await_gpu() -> None:
    # Looked up, not imported: the clock starts before torch does.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _process_age_s() -> float:
    """Seconds since this process was started, as Linux tells it (to 10 ms); elsewhere the time it used so far."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return time.process_time()
    return max(0.0, uptime_s - ticks / os.sysconf("SC_CLK_TCK"))
