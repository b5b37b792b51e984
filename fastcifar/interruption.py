"""Ctrl-C, SIGTERM and SIGHUP: the first asks to stop at the next good moment, the second ends the process at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

_TERMINATION = (signal.SIGTERM, signal.SIGHUP)


class InterruptedRunError(Exception):
    """A run that was asked to stop and did: its message says how to go on, `exit_code` what the process ends with."""

    in_all_processes = True
    """Where several train together, all raise it at once, and what the first says is enough."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class TerminatedError(KeyboardInterrupt):
    """SIGTERM or SIGHUP came where Ctrl-C would have interrupted."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"ended by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """While open, the first SIGTERM or SIGHUP interrupts as Ctrl-C does; a second signal ends the process at once.

    Outside the main thread it does nothing, and so it does for a signal that somebody handles or ignores already.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ordinary = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(_TERMINATION, signal.SIG_DFL)}
    taken = {number: handler for number, handler in ordinary.items() if signal.getsignal(number) is handler}

    def interrupt(number: int, _: FrameType | None) -> None:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt if number == signal.SIGINT else TerminatedError(number)

    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


class FailedError(Exception):
    """Nothing that was asked was wrong, and yet it failed: its message says how; the process ends with 1."""

    in_all_processes = False
    """Whether, where several train together, all raise it at once, and what the first says is enough."""


class StopRequest:
    """While entered, turns the first SIGINT, SIGTERM or SIGHUP into `signal_number`; the next one is the system's.

    Outside the main thread, where Python lets nobody handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *_TERMINATION):
                # A hang-up that is ignored, as under nohup, stays so; asked in one of the other ways, a run stops.
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def exit_code(self) -> int:
        """What a shell says of a process ended by the signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.signal_number

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.signal_number = number
        # The system's own handlers act even while a long step keeps Python from running its own.
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
