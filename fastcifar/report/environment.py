"""Versions, device and code revision: what a result must say to be believed."""

import importlib.metadata
import platform
import re
import subprocess
import sys
from pathlib import Path

PACKAGES = (
    "fastcifar",
    "torch",
    "torchvision",
    "numpy",
    "numba",
    "ffcv",
    "nvidia-dali-cuda120",
    "numba-cuda",
    "triton",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


_CODE = ("--porcelain", "--untracked-files=no", "--", ".", ":!*.md", ":!bench/records", ":!bench/results")


def revision() -> str:
    """The git revision of this code, with `+changes` where code differs from it; empty outside a checkout.

    Tables and results are no code: a record writes them itself, and goes on.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*args: str) -> str:
        command = ["git", "-C", str(root), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root:
            return ""
        return git("rev-parse", "HEAD") + ("+changes" if git("status", *_CODE) else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def environment(device: str) -> dict[str, object]:
    """All of it, for the run folder."""
    return {
        "device": device,
        "platform": platform.platform(),
        "revision": revision(),
        "versions": versions(),
        # A database's URL may hold a password.
        "command": [re.sub(r"(://[^:/@\s]*):[^@\s]+@", r"\1:***@", word) for word in sys.argv],
    }
