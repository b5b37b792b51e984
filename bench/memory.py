"""How much memory a process has and had at most, from Linux's /proc; elsewhere what getrusage tells."""

import resource
import sys
from pathlib import Path

_KIB_PER_MB = 1e6 / 1024


def peak_mb(process: str = "self") -> float:
    """Largest resident memory since the process began, or since `reset_peak`, in MB (1e6 bytes)."""
    kib = _status_kib(process, "VmHWM")
    return kib / _KIB_PER_MB if kib is not None else _rusage_mb()


def resident_mb(process: str = "self") -> float:
    """Resident memory now, in MB."""
    kib = _status_kib(process, "VmRSS")
    return kib / _KIB_PER_MB if kib is not None else _rusage_mb()


def reset_peak() -> bool:
    """Let the peak begin anew at what is resident now; False where the system does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5)
    except OSError:
        return False
    return True


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


def _status_kib(process: str, field: str) -> int | None:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def _rusage_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else _KIB_PER_MB)
