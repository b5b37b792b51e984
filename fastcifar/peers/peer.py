"""The parent's side: a record script that runs when it is told to."""

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar import artefacts


@dataclass(frozen=True)
class PeerRun:
    """What a script says of one run."""

    accuracy: float
    """Share of the test set, with TTA, as the script evaluates."""
    seconds: float
    """By the script's own clock: training and final evaluation."""


class Peer:
    """A record script of airbench's kind, given as a path: CUDA as it is, elsewhere on the CPU by a shim.

    On a GPU its first run warms up and does not count. A context manager; `ValueError` where it ends without a run.
    """

    def __init__(self, script: Path) -> None:
        if not script.is_file():
            raise ValueError(f"--peer: got {script}, takes the path of a script")
        self._script = script.resolve()
        self._folder = tempfile.TemporaryDirectory(prefix="fastcifar-peer-")
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.kill()
            with suppress(BrokenPipeError), self._child:  # closes its pipes and waits
                pass
        self._folder.cleanup()

    def lay_out(self, artefact: Path) -> None:
        """Lay a data set's two parts where scripts of this kind look before they download it; from an npy artefact."""
        import torch

        place = Path(self._folder.name) / "cifar10"
        place.mkdir(exist_ok=True)
        classes = list(artefacts.read_index(artefact).class_names)
        for part in ("train", "test"):
            split = artefacts.read(artefact, part)
            images, labels = torch.tensor(split.images_nhwc), torch.tensor(split.labels_n, dtype=torch.int64)
            torch.save({"images": images, "labels": labels, "classes": classes}, place / f"{part}.pt")

    def run(self) -> PeerRun:
        """The next run."""
        if self._child is None:
            if not self._start():
                return self._row()
            self._row()
        assert self._child is not None and self._child.stdin is not None
        with suppress(BrokenPipeError):  # where it has ended, the row that does not come says so
            self._child.stdin.write("go\n")
            self._child.stdin.flush()
        return self._row()

    def _start(self) -> bool:
        """Start the script; whether its first run does not count."""
        folder = Path(self._folder.name)
        with (folder / "log").open("w") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "fastcifar.peers.child", str(self._script)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder,
            )  # fmt: skip
        return bool(self._told()["discards_first"])

    def _row(self) -> PeerRun:
        return PeerRun(**self._told())

    def _told(self) -> dict[str, Any]:
        """What the script's process says next."""
        assert self._child is not None and self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            said = (Path(self._folder.name) / "log").read_text(errors="replace").split("\n")
            last = next((line for line in reversed(said) if line.strip()), "nothing was printed")
            raise ValueError(
                f"--peer: {self._script.name} ended before a run did, exit code {self._child.wait()}: {last}"
            )
        told: dict[str, Any] = json.loads(line)
        return told
