"""Ctrl-C and SIGTERM: the first asks to stop at the next good moment, the second ends the process at once."""

import signal
import threading
from types import FrameType, TracebackType


class InterruptedRunError(Exception):
    """A run that was asked to stop and did: its message says how to go on, `exit_code` what the process ends with."""

    in_all_processes = True
    """Where several train together, all raise it at once, and what the first says is enough."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class FailedError(Exception):
    """Nothing that was asked was wrong, and yet it failed: its message says how; the process ends with 1."""

    in_all_processes = False
    """Whether, where several train together, all raise it at once, and what the first says is enough."""


class StopRequest:
    """While entered, turns the first SIGINT or SIGTERM into `signal_number`, and leaves the next one to the system.

    Outside the main thread, where Python lets nobody handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def exit_code(self) -> int:
        """What a shell says of a process ended by the signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal_number

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.signal_number = number
        # The system's own handlers act even while a long step keeps Python from running its own.
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
