"""A record script in a process of its own: `python -m fastcifar.peers.child SCRIPT`, in a folder with its data.

Scripts of airbench's kind print a table: a row for each epoch, and one named "eval" at the end of each run. That one is
told to the parent as a line of JSON, and nothing goes on until the parent says so; the script's own clock stands then.
Between the rows a script may write what a terminal writes over, which ends in a carriage return. Before any row the
child tells the parent whether the script's first run only warms up.
"""

import ast
import contextlib
import ctypes
import io
import json
import os
import re
import signal
import sys
from pathlib import Path
from types import ModuleType
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


class WithoutWarmUp(ast.NodeTransformer):
    """Takes `main("warmup", ...)`, as a line of its own, out of a script: a whole run on labels that mean nothing."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        """Nothing in the place of such a line."""
        match node.value:
            case ast.Call(func=ast.Name(id="main"), args=args) if any(map(_names_warm_up, args)):
                return ast.copy_location(ast.Pass(), node)
        return node


def warms_up(tree: ast.AST) -> bool:
    """Whether a script names a warm-up other than to ask whether a run is one."""
    asked = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Compare) for part in ast.walk(node)}
    return any(_names_warm_up(node) and id(node) not in asked for node in ast.walk(tree))


def _names_warm_up(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value == "warmup"


def main(script: str) -> None:
    """Run the script as it would be run by hand; without a GPU, but for the run that warms up what is compiled."""
    # The pipe to the parent is ours alone: what writes to stdout past Python, as C libraries do, goes to the log.
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # A parent that is killed cannot end it any more, and a run is long.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    import torch

    tree, discards = ast.parse(Path(script).read_bytes(), script), True
    if not torch.cuda.is_available():
        from fastcifar.peers import shim
        from fastcifar.schema import TrainConfig
        from fastcifar.training.device import keep_freed_memory, pick_dtype

        # What our own runs have on a CPU, the peer has too.
        keep_freed_memory()
        shim.install(pick_dtype(TrainConfig(), torch.device("cpu")))
        # Nothing is compiled there, and a run takes as long as one that counts.
        tree = ast.fix_missing_locations(WithoutWarmUp().visit(tree))
        discards = warms_up(tree)
    sys.argv, sys.path[0] = [script], str(Path(script).parent)
    print(json.dumps({"discards_first": discards}), file=told, flush=True)
    sys.stdout = Table(told, sys.__stdin__, sys.__stderr__)  # type: ignore[arg-type]
    module = sys.modules["__main__"] = ModuleType("__main__")
    module.__file__ = script
    exec(compile(tree, script, "exec"), vars(module))


if __name__ == "__main__":
    main(sys.argv[1])
