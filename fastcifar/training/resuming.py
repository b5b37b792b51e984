"""Going on from a checkpoint: what the run's folder must say, and putting the state back."""

import json
from collections.abc import Mapping
from typing import Any

from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder
from fastcifar.training import checkpoints, loop


def processes_before(folder: RunFolder, now: Mapping[str, Any], reporter: Reporter) -> list[dict[str, Any]]:
    """The surroundings of the processes that a run goes on from, oldest first.

    Says where its bits may not be those of a run that never stopped. `ValueError` where the images are others.
    """
    try:
        last = json.loads(folder.environment.read_text(encoding="utf-8"))
        before = [*last.pop("before", []), last]
    except (OSError, ValueError, AttributeError, TypeError):
        return []
    if last.get("pixels_sha256", now["pixels_sha256"]) != now["pixels_sha256"]:
        raise ValueError(f"{folder.path}: the run began with other images or labels than those found now")
    if last.get("processes", 1) != now["processes"]:
        began = f"the {last.get('processes', 1)} that the run began with"
        raise ValueError(f"--resume: got {now['processes']} of torchrun's processes, takes {began}")
    for what, name in (("on", "device"), ("at revision", "revision"), ("with", "versions")):
        if name in last and last[name] != now[name]:
            reporter.line(f"the run began {what} {last[name]}, goes on {what} {now[name]}: its last bits may differ")
    return before


def restore(state: loop.State, folder: RunFolder, reporter: Reporter, *, goes_on: bool) -> None:
    """Put the last whole checkpoint back, where the run has one to go on from, and the metrics as they were then."""
    if goes_on:
        used, wrong = checkpoints.load_latest(folder.checkpoints, state)
        for sentence in wrong:
            reporter.line(f"passed over: {sentence}")
        reporter.line(f"going on from {used}")
    else:
        reporter.line("beginning anew: the run stopped before its first checkpoint")
    folder.keep_metrics_until(state.step)
