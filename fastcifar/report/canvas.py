"""Figures without a display and without state that others share, saved whole or not at all."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people of any colour vision, and in grey: Okabe and Ito (2008), jfly.uni-koeln.de/color.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9", "#000000")


def new_figure(width_in: float, height_in: float) -> "Figure":
    """An empty figure whose parts are laid out so that they do not overlap."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(width_in, height_in), dpi=110, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def style(axes: "Axes") -> None:
    """A light grid, and no frame where nothing is read off."""
    axes.grid(color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(figure: "Figure", path: Path) -> Path:
    """Write the figure as a PNG."""
    from fastcifar.atomic import write_atomically

    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, picture.getvalue())
    return path
