"""Ctrl-C, SIGTERM and SIGHUP: the first asks to stop at the next good moment, the second ends the process at once."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType

from fastcifar.kernels.signals import handled_by

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

    It does nothing for a signal that somebody handles or ignores already, and outside the main thread.
    """
    ordinary = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(_TERMINATION, signal.SIG_DFL)}
    before = {number: handler for number, handler in ordinary.items() if signal.getsignal(number) is handler}
    with handled_by(_interrupt, before):
        yield


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else TerminatedError(number)


class FailedError(Exception):
    """Nothing that was asked was wrong, and yet it failed: its message says how; the process ends with 1."""

    in_all_processes = False
    """Whether, where several train together, all raise it at once, and what the first says is enough."""


class StopRequest:
    """While entered, turns the first SIGINT, SIGTERM or SIGHUP into `signal_number`; the next one is the system's.

    Outside the main thread it does nothing.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._open = ExitStack()

    def __enter__(self) -> "StopRequest":
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_TERMINATION)}
        if before[signal.SIGHUP] is signal.SIG_IGN:
            # As under nohup: a hang-up is ignored still. Asked in one of the other ways, a run stops.
            del before[signal.SIGHUP]
        self._open.enter_context(handled_by(self._note, before))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def exit_code(self) -> int:
        """What a shell says of a process ended by the signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.signal_number

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal_number = number
