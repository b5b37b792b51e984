"""Images beside each other, with what is to be said of them below, and confusion matrices."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastcifar.report import canvas

_MOST_NUMBERED = 20
"""Classes up to which a confusion matrix shows its counts."""


@dataclass(frozen=True)
class Cell:
    """One image of a grid."""

    image_hwc: np.ndarray
    """uint8, or shares of full light, [h, w, 3]."""
    caption: str = ""
    """A line or two below it."""
    frame: str = ""
    """Colour of a frame; empty: none."""


def draw_grid(
    rows: Sequence[Sequence[Cell]], title: str, path: Path, *, heads: Sequence[str] = (), note: str = ""
) -> Path:
    """Rows of images, a caption below each, `heads` above the columns, `note` below the title."""
    from matplotlib.patches import Rectangle

    num_columns = max(map(len, rows))
    num_lines = max(cell.caption.count("\n") + bool(cell.caption) for row in rows for cell in row)
    pitch_x, pitch_y = 1.12, 1.1 + 0.15 * num_lines
    cell_in = 1.05
    width = max(num_columns * pitch_x * cell_in, 6.0)
    titles = textwrap.wrap(title, round(width * 9.5))
    notes = textwrap.wrap(note, round(width * 13))
    head_in = 0.22 * len(titles) + 0.17 * len(notes) + 0.2
    height = len(rows) * pitch_y * cell_in + head_in + 0.25 * bool(heads) + 0.05
    figure = canvas.new_figure(width, height)
    figure.set_layout_engine("none")
    figure.text(0.1 / width, 1 - 0.1 / height, "\n".join(titles), fontweight="bold", fontsize=11, va="top")
    below = 1 - (0.12 + 0.22 * len(titles)) / height
    figure.text(0.1 / width, below, "\n".join(notes), fontsize=8.5, color="#444444", va="top")
    axes = figure.add_axes((0, 0, 1, 1 - head_in / height))
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            left, top = x * pitch_x, y * pitch_y
            axes.imshow(cell.image_hwc, extent=(left, left + 1, top + 1, top), interpolation="nearest")
            if cell.frame:
                axes.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor=cell.frame, linewidth=2.5))
            axes.text(left + 0.5, top + 1.04, cell.caption, ha="center", va="top", fontsize=7, linespacing=1.05)
    for x, text in enumerate(heads):
        axes.text(x * pitch_x + 0.5, -0.06, text, ha="center", va="bottom", fontsize=8.5, fontweight="bold")
    axes.set_xlim(-0.09, width / cell_in - 0.09)
    axes.set_ylim((height - head_in) / cell_in - 0.04 - 0.25 * bool(heads), -0.04 - 0.25 * bool(heads))
    axes.set_aspect("equal", anchor="NW")
    axes.set_axis_off()
    return canvas.save(figure, path)


def draw_confusion(confusion_kk: np.ndarray, class_names: Sequence[str], title: str, path: Path) -> Path:
    """Which classes are taken for which: counts as numbers, shares of the true class as colours."""
    num = len(class_names)
    numbered = num <= _MOST_NUMBERED
    counts = confusion_kk.sum(1, keepdims=True)
    shares = 100 * confusion_kk / np.maximum(counts, 1)
    side = 3 + 0.55 * num if numbered else 13
    figure = canvas.new_figure(side + 1, side)
    axes = figure.subplots()
    axes.set_title(title, fontweight="bold", fontsize=11, pad=10)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(shown, ax=axes, label="share of the true class (%)", shrink=0.8)
    size = 9 if numbered else 5
    axes.set_xticks(range(num), class_names, rotation=45 if numbered else 90, fontsize=size)
    if numbered:
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    axes.set_yticks(range(num), class_names, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if numbered:
        for (truth, prediction), count in np.ndenumerate(confusion_kk):
            if count:
                colour = "white" if shares[truth, prediction] > 55 else "#333333"
                axes.text(prediction, truth, f"{count:,}", ha="center", va="center", fontsize=8, color=colour)
    return canvas.save(figure, path)
