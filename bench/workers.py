"""Contestants in processes of their own: each has its own memory, threads and compiled code, and may die alone.

They are told what to do one at a time, which lets rounds of different processes take turns. A process is forked from a
server that has imported torch and nothing else: what a contestant imports and compiles counts as its own.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol

from fastcifar.bench import memory
from fastcifar.bench.measure import Opened, Released, RunnerError, RunnerMissingError, Sample
from fastcifar.kernels.errors import MissingLibraryError

ANSWER_LIMIT_S = 900.0
"""A contestant that says nothing for so long is ended."""


class Contestant(Protocol):
    """What runs inside the process. Made by a module-level function or class of plain arguments."""

    def prepare(self, task: str) -> None:
        """Get going on a task, up to its first result."""
        ...

    def run(self, task: str, seconds: float) -> Sample:
        """Work for about so many seconds."""
        ...

    def release(self, task: str) -> None:
        """Let go of what the task needed."""
        ...


@dataclass(frozen=True)
class Entry:
    """One contestant: its name, what makes it, with which arguments."""

    key: str
    factory: Callable[..., Contestant]
    arguments: dict[str, Any] = field(default_factory=dict)
    role: str = "ours"
    """"ours", "peer" or "bound"."""
    open_twice: bool = False
    """Get going twice, to tell what the first time in a process costs."""


@dataclass(frozen=True)
class Place:
    """Where contestants run: the device's name for torch, and threads (0: as torch takes)."""

    device: str = "cpu"
    threads: int = 0
    keep_freed_memory: bool = True
    """Have the allocator keep what is freed, as training does; off where memory itself is the figure."""


class Worker:
    """The near side of a contestant's process; a `Runner`. Use as a context manager."""

    def __init__(self, entry: Entry, place: Place) -> None:
        self.key = entry.key
        self._entry, self._place = entry, place
        self._process: Any = None
        self._connection: Connection | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def prepare(self, task: str) -> Opened:
        """Start the process where it does not run yet, and get going on a task."""
        if self._process is None:
            self._start()
        return self._ask("prepare", task)

    def run(self, task: str, seconds: float) -> Sample:
        """One round."""
        return self._ask("run", task, seconds)

    def release(self, task: str) -> Released:
        """Let go of a task; the process stays."""
        return self._ask("release", task)

    def close(self) -> None:
        """End the process: asked first, then made to."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(("stop",))
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.join(10)
            if self._process.is_alive():
                self._process.terminate()
                self._process.join(5)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process = None

    def _kill(self) -> None:
        assert self._connection is not None
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._connection = None

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch"])
        self._connection, far = context.Pipe()
        method = multiprocessing.get_start_method(allow_none=True)
        arguments = (far, self._entry, self._place, dict(os.environ), os.getcwd(), method)
        self._process = context.Process(target=_serve, args=arguments, name=f"bench-{self.key}")
        self._process.start()
        far.close()

    def _ask(self, *request: Any) -> Any:
        if self._connection is None:
            raise RunnerError(f"{self.key}: its process has ended")
        try:
            self._connection.send(request)
            if not self._connection.poll(ANSWER_LIMIT_S):
                self._kill()  # or it would go on beside the others, and spoil their figures
                raise RunnerError(f"{self.key}: no answer to {request[0]} in {ANSWER_LIMIT_S:g} s")
            outcome, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise RunnerError(f"{self.key}: its process ended with exit code {self._process.exitcode}") from None
        if outcome == "missing":
            raise RunnerMissingError(answer)
        if outcome == "failed":
            raise RunnerError(f"{self.key}: {answer}")
        return answer


def _serve(
    connection: Connection,
    entry: Entry,
    place: Place,
    environment: dict[str, str],
    folder: str,
    start_method: str | None,
) -> None:
    """The far side: do what is asked until told to stop, or until the near side is gone."""
    # The server that this was forked from may have been started elsewhere, in another environment.
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # Its own workers start as they would anywhere: here they would inherit our way, and be sent the whole data set.
    multiprocessing.set_start_method(start_method, force=True)
    # What libraries print must not get between the lines of the command's own output.
    os.dup2(2, 1)
    _settle(place)
    serving = _Serving(entry, place)
    while True:
        try:
            verb, *arguments = connection.recv()
        except (EOFError, OSError):
            return
        if verb == "stop":
            return
        try:
            reply: tuple[str, Any] = ("done", getattr(serving, verb)(*arguments))
        except Exception as error:  # whatever it is, it is said, and the others go on
            # Ours says by an error of its own what is not installed; any other import that fails is a mistake in it.
            missing = MissingLibraryError if entry.role == "ours" else ImportError
            if isinstance(error, missing):
                reply = ("missing", _line(error))
            else:
                reply = ("failed", f"{type(error).__name__}: {_line(error)}")
            if os.environ.get("FASTCIFAR_TRACEBACK"):
                import traceback

                traceback.print_exc()
        connection.send(reply)


def _settle(place: Place) -> None:
    import torch

    if place.threads:
        torch.set_num_threads(place.threads)
    if place.keep_freed_memory:
        from fastcifar.training.device import keep_freed_memory

        keep_freed_memory()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


class _Serving:
    """The contestant with its clock and its memory."""

    def __init__(self, entry: Entry, place: Place) -> None:
        self._entry, self._place = entry, place
        self._contestant: Contestant | None = None
        self._before_mb = 0.0

    def prepare(self, task: str) -> Opened:
        start_s = time.perf_counter()
        if self._contestant is None:
            self._before_mb = memory.resident_mb()
            self._contestant = self._entry.factory(place=self._place, **self._entry.arguments)
        # What making it took for a moment, such as reading a data set, is not what its work takes.
        memory.reset_peak()
        self._reset_gpu()
        self._contestant.prepare(task)
        cold_s = time.perf_counter() - start_s
        if not self._entry.open_twice:
            return Opened(cold_s)
        self._contestant.release(task)
        start_s = time.perf_counter()
        self._contestant.prepare(task)
        return Opened(cold_s, time.perf_counter() - start_s)

    def run(self, task: str, seconds: float) -> Sample:
        assert self._contestant is not None
        return self._contestant.run(task, seconds)

    def release(self, task: str) -> Released:
        assert self._contestant is not None
        peak_mb = memory.peak_mb() + memory.children_mb()
        gpu_mb = self._gpu_mb()
        self._contestant.release(task)
        return Released(peak_mb, max(0.0, peak_mb - self._before_mb), gpu_mb)

    def _reset_gpu(self) -> None:
        if self._place.device.startswith("cuda"):
            import torch

            # Starting CUDA is part of what it takes to get going, and would be hidden by starting it here.
            if torch.cuda.is_initialized():
                torch.cuda.reset_peak_memory_stats()

    def _gpu_mb(self) -> float:
        if not self._place.device.startswith("cuda"):
            return 0.0
        import torch

        return torch.cuda.max_memory_reserved() / 1e6
