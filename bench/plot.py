"""A result as a picture: horizontal bars from zero, a panel a task, quartiles as whiskers, bounds in grey."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar.bench import figures
from fastcifar.bench.results import Result, Row
from fastcifar.bench.table import about_line
from fastcifar.report import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"ours": canvas.BLUE, "peer": canvas.ORANGE, "bound": "#BBBBBB"}
LABELS = {"ours": "fastcifar", "peer": "peers", "bound": "bounds of this machine"}
ROW_INCHES, PANEL_INCHES, HEAD_INCHES, FOOT_INCHES = 0.27, 0.62, 0.9, 0.85


def draw(result: Result, path: Path) -> Path:
    """Write the picture as a PNG to `path`."""
    panels = [(task, _rows(result, task)) for task in result.tasks()]
    panels = [(task, rows) for task, rows in panels if rows]
    heights = [ROW_INCHES * len(rows) + PANEL_INCHES for _, rows in panels]
    height = HEAD_INCHES + sum(heights) + FOOT_INCHES
    figure = canvas.new_figure(10, height)
    figure.set_layout_engine("none")  # panels are as high as their rows
    most = max(_top(row, result.headline) for _, rows in panels for row in rows)
    used = HEAD_INCHES
    axes: Any = None
    for (task, rows), inches in zip(panels, heights, strict=True):
        bottom = 1 - (used + inches - PANEL_INCHES * 0.3) / height
        axes = figure.add_axes((0.17, bottom, 0.79, (inches - PANEL_INCHES * 0.75) / height), sharex=axes)
        _draw_panel(axes, task, rows, result.headline, most)
        used += inches
        axes.tick_params(labelbottom=used >= HEAD_INCHES + sum(heights) - 1e-6)
    axes.set_xlabel(f"{figures.heading(result.headline)}  (median, whiskers from first to third quartile)")
    figure.text(0.012, 1 - 0.32 / height, result.title, fontsize=13, fontweight="bold", va="center")
    figure.text(0.012, 1 - 0.60 / height, about_line(result), fontsize=8.5, color="#444444", va="center")
    _draw_legend(figure, {row.role for _, rows in panels for row in rows}, height)
    return canvas.save(figure, path)


def _rows(result: Result, task: str) -> list[Row]:
    return [row for row in result.rows if row.task == task and result.headline in row.values]


def _top(row: Row, headline: str) -> float:
    return row.values.get(f"{headline}_q3", row.values[headline])


def _draw_panel(axes: "Axes", task: str, rows: list[Row], headline: str, most: float) -> None:
    for place, row in enumerate(rows):
        amount = row.values[headline]
        axes.barh(place, amount, color=COLOURS[row.role], height=0.72)
        low, high = row.values.get(f"{headline}_q1", amount), _top(row, headline)
        if high > low:
            reach = [[max(0.0, amount - low)], [max(0.0, high - amount)]]
            axes.errorbar(amount, place, xerr=reach, color="black", capsize=2.5, linewidth=1)
        text = figures.number(headline, amount)
        axes.annotate(text, (max(high, amount), place), (5, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks(range(len(rows)), [row.contestant for row in rows], fontsize=9)
    axes.invert_yaxis()
    # One scale from zero for all panels, with room for the longest bar's number.
    axes.set_xlim(0, most * 1.14)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.set_title(task, loc="left", fontsize=9.5, fontweight="bold", pad=3)
    canvas.style(axes)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _draw_legend(figure: Any, roles: set[str], height: float) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=COLOURS[role], label=LABELS[role]) for role in LABELS if role in roles]
    figure.legend(
        handles=patches,
        loc="lower left",
        bbox_to_anchor=(0.002, 0.02 / height),
        ncol=len(patches),
        frameon=False,
        fontsize=9,
    )
