"""The PNGs of a run folder.

curves.png        loss, accuracy and learning rate by epoch
confusion.png     which classes are taken for which
predictions.png   images of the test set with prediction and truth
mistakes.png      those told wrong with the most confidence
augmentation.png  what augmentation does to training images
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastcifar.report import canvas, curves, grids
from fastcifar.report.card import percent
from fastcifar.report.run_folder import RunFolder

NUM_COLUMNS, NUM_ROWS = 10, 4


@dataclass(frozen=True)
class Predicted:
    """What a network makes of labelled images, without TTA."""

    images_nhwc: np.ndarray
    """uint8 [n, h, w, 3]."""
    labels_n: np.ndarray
    """int64 [n]."""
    probabilities_nk: np.ndarray
    """float64 [n, classes]."""
    class_names: tuple[str, ...]
    network: str
    """In words: recipe and network."""
    title: str
    """The images in words, with the data set's name."""
    dataset: str
    mistakes_m: np.ndarray
    """int64 [m]: rows told wrong, the most confident first."""
    confusion_kk: np.ndarray
    """int64 [classes, classes]: rows are true classes, columns predicted ones."""

    @property
    def accuracy(self) -> float:
        """Top-1, a share."""
        return float((self.probabilities_nk.argmax(1) == self.labels_n).mean())


@dataclass(frozen=True)
class Augmented:
    """Training images beside what several epochs show of them."""

    rows: list[list[grids.Cell]]
    """A row an image: the original, then one cell an epoch."""
    title: str
    note: str


def draw_run(
    folder: RunFolder, *, predicted: Predicted | None = None, augmented: Augmented | None = None, suffix: str = ""
) -> list[Path]:
    """Draw what there is to draw of a run into its folder; the paths that were written.

    `suffix` goes into the names of the pictures of `predicted`, to tell other images from the test set.
    """
    written = []
    if folder.read_metrics():
        written.append(curves.draw_run(curves.Curves.of(folder), folder.path / "curves.png"))
    if predicted is not None:
        written += _draw_predicted(predicted, folder.path, suffix)
    if augmented is not None:
        written.append(draw_augmented(augmented, folder.path / "augmentation.png"))
    return written


def draw_augmented(augmented: Augmented, path: Path) -> Path:
    """A row an image: the original, then what each epoch shows of it."""
    heads = ["original", *(f"epoch {number}" for number in range(1, len(augmented.rows[0])))]
    return grids.draw_grid(augmented.rows, augmented.title, path, heads=heads, note=augmented.note)


def _draw_predicted(predicted: Predicted, folder: Path, suffix: str) -> list[Path]:
    accuracy = f"{percent(predicted.accuracy)} accuracy on {predicted.dataset}, without TTA"
    path = folder / f"confusion{suffix}.png"
    title = f"{predicted.network}\n{predicted.title}: {accuracy}"
    written = [grids.draw_confusion(predicted.confusion_kk, predicted.class_names, title, path)]
    most = NUM_COLUMNS * NUM_ROWS
    num = len(predicted.labels_n)
    few = np.arange(num) if num <= most else np.arange(most) * num // most
    note = f"{predicted.title}: {accuracy}. Blue frame: right; orange frame: wrong, with the true class below."
    for rows_m, name, what in (
        (few, "predictions", "images spread evenly"),
        (predicted.mistakes_m[:most], "mistakes", "the most confident mistakes"),
    ):
        if len(rows_m):
            cells = [_cell(predicted, row) for row in rows_m.tolist()]
            rows = [cells[start : start + NUM_COLUMNS] for start in range(0, len(cells), NUM_COLUMNS)]
            path = folder / f"{name}{suffix}.png"
            written.append(grids.draw_grid(rows, f"{predicted.network}: {what}", path, note=note))
    return written


def _cell(predicted: Predicted, row: int) -> grids.Cell:
    shares = predicted.probabilities_nk[row]
    guess, truth = int(shares.argmax()), int(predicted.labels_n[row])
    caption = f"{predicted.class_names[guess]} {100 * shares[guess]:.0f} %\n"
    if guess == truth:
        return grids.Cell(predicted.images_nhwc[row], caption, canvas.BLUE)
    return grids.Cell(predicted.images_nhwc[row], f"{caption}is {predicted.class_names[truth]}", canvas.VERMILION)
