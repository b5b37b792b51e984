"""Contestants for the tests of the bench: importable by the processes that they run in."""

import os
import time

from fastcifar.bench.measure import Sample
from fastcifar.bench.workers import Place
from fastcifar.kernels.errors import MissingLibraryError


class Sleeper:
    """Takes its time, and says in which process and on how many threads."""

    def __init__(self, *, place: Place, megabytes: int = 0) -> None:
        self._megabytes = megabytes
        self._threads = place.threads

    def prepare(self, task: str) -> None:
        self._kept = b"x" * (self._megabytes * 1_000_000)

    def run(self, task: str, seconds: float) -> Sample:
        import torch

        print("noise that must not get between the lines of the command")
        start_s = time.perf_counter()
        time.sleep(seconds)
        extra = {"process_id": float(os.getpid()), "threads": float(torch.get_num_threads())}
        return Sample(10, time.perf_counter() - start_s, extra)

    def release(self, task: str) -> None:
        self._kept = b""


class Breaks(Sleeper):
    """Raises in its first round."""

    def run(self, task: str, seconds: float) -> Sample:
        raise ArithmeticError("two and two\nare five")


class Dies(Sleeper):
    """Ends its process in its first round."""

    def run(self, task: str, seconds: float) -> Sample:
        os._exit(7)


class Lacks(Sleeper):
    """Needs what nobody has."""

    def prepare(self, task: str) -> None:
        raise MissingLibraryError("nosuchthing is not installed: pip install nosuchthing")


class Misspelt(Sleeper):
    """Imports what is not there."""

    def prepare(self, task: str) -> None:
        raise ImportError("cannot import name 'augmnt'")
