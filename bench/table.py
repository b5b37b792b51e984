"""A result as a table for a terminal or a pipe, with bars from zero."""

from typing import TYPE_CHECKING

from fastcifar.bench import figures
from fastcifar.bench.results import Result, Row

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

BAR_CELLS = 20
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_STYLES = {"ours": "bold green", "peer": "", "bound": "dim"}


def render(result: Result) -> "RenderableType":
    """One table, a section a task; the bars compare the headline value within a section."""
    from rich.table import Table

    title = f"{result.title}\n{about_line(result)}"
    table = Table(title=title, title_justify="left", title_style="", header_style="bold", pad_edge=False)
    table.add_column("", no_wrap=True)
    columns = [value for value in figures.shown(result.columns()) if value != result.headline]
    headline = figures.heading(result.headline)
    table.add_column(headline, justify="right", no_wrap=True)
    table.add_column("0" + " " * (BAR_CELLS - 1), no_wrap=True)
    for value in columns:
        table.add_column(figures.heading(value), justify="right")
    for task in result.tasks():
        rows = [row for row in result.rows if row.task == task]
        table.add_section()
        table.add_row(f"[bold]{task}[/bold]")
        _add_rows(table, rows, result.headline, columns)
    return table


def _add_rows(table: "Table", rows: list[Row], headline: str, columns: list[str]) -> None:
    most = max((row.values.get(headline, 0.0) for row in rows), default=0.0)
    for row in rows:
        amount = row.values.get(headline)
        cells = [f"  {row.contestant}"]
        cells.append("" if amount is None else figures.with_quartiles(headline, row.values))
        cells.append("" if amount is None else bar(amount, most))
        cells += ["" if value not in row.values else figures.number(value, row.values[value]) for value in columns]
        table.add_row(*cells, style=_STYLES[row.role])


def bar(amount: float, most: float, cells: int = BAR_CELLS) -> str:
    """A bar from zero, `cells` long for `most`, in eighths of a cell."""
    eighths = round(8 * cells * amount / most) if most > 0 else 0
    full, part = divmod(max(0, min(eighths, 8 * cells)), 8)
    return "█" * full + (_EIGHTHS[part] if part else "")


def about_line(result: Result) -> str:
    """Device, threads, data set, versions, date: what a table or picture must say to be believed."""
    about = result.about
    versions = dict(pair.split(" ") for pair in about["versions"].split("; ") if pair)
    used = [
        f"{name} {versions[name]}" for name in ("torch", "numba", "ffcv", "nvidia-dali-cuda120") if name in versions
    ]
    return f"{about['device']}; {about['dataset']}; {', '.join(used)}; {about['date']}"
