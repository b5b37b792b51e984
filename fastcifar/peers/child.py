"""A record script in a process of its own: `python -m fastcifar.peers.child SCRIPT`, in a folder with its data.

Scripts of airbench's kind print a table: a row for each epoch, and one named "eval" at the end of each run. That one is
told to the parent as a line of JSON, and nothing goes on until the parent says so; the script's own clock stands then.
"""

import io
import json
import runpy
import sys
from typing import IO

COLUMNS = {"tta_val_acc": "accuracy", "time_seconds": "seconds"}


class Table(io.TextIOBase):
    """In the place of stdout: reads what the script prints, and passes it on to `log`."""

    def __init__(self, parent: IO[str], answers: IO[str], log: IO[str]) -> None:
        self._parent, self._answers, self._log = parent, answers, log
        self._line, self._names = "", list[str]()

    def write(self, text: str) -> int:
        """Look at each line once it is whole."""
        self._log.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._look_at(line)
        return len(text)

    def flush(self) -> None:
        """Pass on."""
        self._log.flush()

    def _look_at(self, line: str) -> None:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if {"epoch", *COLUMNS} <= set(cells):
            self._names = cells
        row = dict(zip(self._names, cells, strict=False))
        if len(cells) != len(self._names) or row["epoch"] != "eval":
            return
        print(json.dumps({ours: float(row[theirs]) for theirs, ours in COLUMNS.items()}), file=self._parent, flush=True)
        if self._answers.readline().strip() != "go":
            raise SystemExit(0)


def main(script: str) -> None:
    """Run the script as it would be run by hand."""
    import torch

    if not torch.cuda.is_available():
        from fastcifar.config import TrainConfig
        from fastcifar.peers import shim
        from fastcifar.training.device import keep_freed_memory, pick_dtype

        # What our own runs have on a CPU, the peer has too.
        keep_freed_memory()
        shim.install(pick_dtype(TrainConfig(), torch.device("cpu")))
    sys.argv = [script]
    sys.stdout = Table(sys.__stdout__, sys.__stdin__, sys.__stderr__)  # type: ignore[arg-type]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
