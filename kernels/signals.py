"""Who handles signals, and when: for what must not be left half-way, and for what is to be ended in order."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handled_by(
    handler: Callable[[int, FrameType | None], object], before: Mapping[signal.Signals, Any]
) -> Iterator[None]:
    """Have `handler` called for the first of these signals that comes; a second one ends the process at once.

    `before`: who handles each of them, and does again in the end. Outside the main thread, where Python lets nobody
    handle signals, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        # The system's own handlers act even while a long step keeps Python from running its own.
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        handler(number, frame)

    for number in before:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number, its_handler in before.items():
            signal.signal(number, its_handler)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Run the handler of the first signal that comes when the body is over; a second one ends the process at once.

    For LLVM, as llvmlite calls it: Python runs a handler between a call that takes a module over and the line that
    notes it, so that an exception there frees the module twice; one within a callback of LLVM's is printed and lost.
    """
    before = {number: handler for number in _NUMBERS if callable(handler := signal.getsignal(number))}
    came: list[tuple[int, FrameType | None]] = []
    try:
        with handled_by(lambda *told: came.append(told), before):
            yield
    finally:
        for number, frame in came:
            before[signal.Signals(number)](number, frame)
