"""A record script in a process of its own: `python -m fastcifar.peers.child SCRIPT`, in a folder with its data.

Scripts of airbench's kind print a table: a row for each epoch, and one named "eval" at the end of each run. That one is
told to the parent as a line of JSON, and nothing goes on until the parent says so; the script's own clock stands then.
Between the rows a script may write what a terminal writes over, which ends in a carriage return.
"""

import contextlib
import ctypes
import io
import json
import re
import runpy
import signal
import sys
from typing import IO

COLUMNS = {"accuracy": ("tta_val_acc",), "seconds": ("time_seconds", "total_time_seconds")}
_PR_SET_PDEATHSIG = 1


class Table(io.TextIOBase):
    """In the place of stdout: reads what the script prints, and passes it on to `log`."""

    def __init__(self, parent: IO[str], answers: IO[str], log: IO[str]) -> None:
        self._parent, self._answers, self._log = parent, answers, log
        self._line, self._names = "", dict[str, int]()

    def write(self, text: str) -> int:
        """Look at each line once it is whole."""
        self._log.write(text)
        *lines, self._line = re.split("[\r\n]", self._line + text)
        for line in lines:
            self._look_at(line)
        return len(text)

    def flush(self) -> None:
        """Pass on."""
        self._log.flush()

    def _look_at(self, line: str) -> None:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "epoch" in cells:
            self._names = {
                ours: cells.index(name) for ours, names in COLUMNS.items() for name in names if name in cells
            }
            if set(self._names) != set(COLUMNS):
                raise SystemExit(f"its table has the columns {', '.join(cells)}: takes tta_val_acc and time_seconds")
            self._names["epoch"] = cells.index("epoch")
        if not self._names or len(cells) <= max(self._names.values()) or cells[self._names["epoch"]] != "eval":
            return
        print(json.dumps({ours: float(cells[self._names[ours]]) for ours in COLUMNS}), file=self._parent, flush=True)
        if self._answers.readline().strip() != "go":
            raise SystemExit(0)


def main(script: str) -> None:
    """Run the script as it would be run by hand."""
    # A parent that is killed cannot end it any more, and a run is long.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    import torch

    if not torch.cuda.is_available():
        from fastcifar.peers import shim
        from fastcifar.schema import TrainConfig
        from fastcifar.training.device import keep_freed_memory, pick_dtype

        # What our own runs have on a CPU, the peer has too.
        keep_freed_memory()
        shim.install(pick_dtype(TrainConfig(), torch.device("cpu")))
    sys.argv = [script]
    sys.stdout = Table(sys.__stdout__, sys.__stdin__, sys.__stderr__)  # type: ignore[arg-type]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
