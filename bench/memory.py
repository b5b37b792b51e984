"""How much memory a process has and had at most, from Linux's /proc; elsewhere what getrusage tells."""

import contextlib
import resource
import sys
from pathlib import Path

_KIB_PER_MB = 1e6 / 1024


def peak_mb() -> float:
    """Largest resident memory since this process began, or since `reset_peak`, in MB (1e6 bytes)."""
    kib = _status_kib("VmHWM")
    return kib / _KIB_PER_MB if kib is not None else _rusage_mb()


def resident_mb() -> float:
    """Resident memory of this process now, in MB."""
    kib = _status_kib("VmRSS")
    return kib / _KIB_PER_MB if kib is not None else _rusage_mb()


def reset_peak() -> None:
    """Let the peak begin anew at what is resident now, where the system lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5)


def children_mb() -> float:
    """Memory that this process's children have each for themselves now, in MB; shared pages are left out."""
    return sum(_private_mb(child) for child in _children())


def _children() -> list[str]:
    found: list[str] = []
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            found += task.read_text().split()
        except OSError:
            continue
    return found


def _private_mb(process: str) -> float:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / _KIB_PER_MB


def _status_kib(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def _rusage_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else _KIB_PER_MB)
