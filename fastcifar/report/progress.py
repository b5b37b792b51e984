"""What a person sees while a run goes: bars on a terminal, one line an epoch everywhere."""

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fastcifar.report.console import Console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fastcifar.training.tally import EpochReport

_PIPE_WIDTH = 240
_TELL_EVERY_S = 60.0


class Reporter:
    """Prints lines to stdout, and on a terminal draws bars below them. Use as a context manager."""

    def __init__(self) -> None:
        # Off a terminal a line must not be wrapped or cut: whatever reads it reads lines.
        self.console = Console(highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._told_s = time.monotonic()

    def __enter__(self) -> "Reporter":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def line(self, text: str) -> None:
        """One line of text, as it is."""
        self._told_s = time.monotonic()
        self.console.print(text, markup=False)

    def table(self, table: "RenderableType") -> None:
        """A table; off a terminal as wide as it needs to be, so that each of its rows is one line."""
        console = self.console if self.console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)
        console.print(table)

    def banner(self, text: str) -> None:
        """Something that nobody may overlook."""
        from rich.panel import Panel
        from rich.text import Text

        self.console.print(
            Panel(Text(text), border_style="yellow", width=min(self.console.width, 100)), soft_wrap=False
        )

    def advance(self, name: str, done: int, total: int, unit: str = "") -> None:
        """Draw `done` of `total` on the bar `name`, which goes away when full; off a terminal, a line a minute."""
        now_s = time.monotonic()
        if not self.console.is_terminal and done < total and now_s - self._told_s > _TELL_EVERY_S:
            self.line(f"{name}: {unit or f'{done:,} of {total:,}'}")
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, unit=unit)
        self._bars.update(self._tasks[name], completed=done, total=total, unit=unit)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(name))

    def epoch(self, report: "EpochReport", epochs: float, dataset: str, validation_accuracy: float | None) -> None:
        """The line of an epoch."""
        accuracy = f"accuracy {100 * report.accuracy:.2f} % ({dataset} train)"
        if validation_accuracy is not None:
            accuracy += f", {100 * validation_accuracy:.2f} % ({dataset} validation)"
        self.line(
            f"epoch {min(report.epoch, epochs):g}/{epochs:g}  loss {report.loss:.4f}  lr {report.lr:.4g}  {accuracy}"
            f"  {report.images_s:,.0f} images/s  {report.left_s:,.0f} s left"
        )
