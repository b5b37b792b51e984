"""Signals that wait for code which must not be left half-way."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Run the handler of the first signal that comes when the body is over; a second one ends the process at once.

    For LLVM, as llvmlite calls it: Python runs a handler between a call that takes a module over and the line that
    notes it, so that an exception there frees the module twice; one within a callback of LLVM's is printed and lost.
    Outside the main thread, where no handler runs, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: handler for number in _NUMBERS if callable(handler := signal.getsignal(number))}
    came: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))
        for each in handlers:
            signal.signal(each, signal.SIG_DFL)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for which, frame in came:
            handlers[signal.Signals(which)](which, frame)
