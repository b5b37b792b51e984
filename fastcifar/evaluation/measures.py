"""What predictions are worth: confusion, accuracy by class, calibration, the most confident mistakes. NumPy alone."""

from dataclasses import dataclass

import numpy as np

NUM_BINS = 15
"""Of the calibration error, as in Guo et al. 2017."""


def probabilities(logits_nk: np.ndarray) -> np.ndarray:
    """Softmax of logits [n, classes]: float64 [n, classes], rows that sum to 1."""
    shifted = logits_nk.astype(np.float64) - logits_nk.max(1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(1, keepdims=True)


def confusion(labels_n: np.ndarray, predicted_n: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts int64 [classes, classes]: row is the true class, column the predicted one."""
    cells = np.bincount(labels_n * num_classes + predicted_n, minlength=num_classes * num_classes)
    return cells.reshape(num_classes, num_classes)


def class_accuracies(confusion_kk: np.ndarray) -> list[float | None]:
    """Share of each class's images that are told right; None for a class without images."""
    counts = confusion_kk.sum(1)
    return [
        float(right / count) if count else None for right, count in zip(confusion_kk.diagonal(), counts, strict=True)
    ]


@dataclass(frozen=True)
class Calibration:
    """How far confidence is from accuracy."""

    error: float
    """Expected calibration error: mean of |accuracy - confidence| over bins, weighted by their images."""
    counts: tuple[int, ...]
    """Images in each bin."""
    confidences: tuple[float | None, ...]
    """Mean confidence of each bin; None where it is empty."""
    accuracies: tuple[float | None, ...]
    """Share told right in each bin; None where it is empty."""


def calibration(probabilities_nk: np.ndarray, labels_n: np.ndarray, num_bins: int = NUM_BINS) -> Calibration:
    """Expected calibration error of top-1, over bins of equal width in confidence: (0, 1/b], (1/b, 2/b] ... (.., 1].

    Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599.
    """
    confidence_n = probabilities_nk.max(1)
    right_n = probabilities_nk.argmax(1) == labels_n
    bins_n = np.clip(np.ceil(confidence_n * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    counts = np.bincount(bins_n, minlength=num_bins)
    confidence_sums = np.bincount(bins_n, confidence_n, num_bins)
    right_sums = np.bincount(bins_n, right_n, num_bins)
    return Calibration(
        float(np.abs(right_sums - confidence_sums).sum() / len(labels_n)),
        tuple(counts.tolist()),
        tuple(float(s / n) if n else None for s, n in zip(confidence_sums, counts, strict=True)),
        tuple(float(s / n) if n else None for s, n in zip(right_sums, counts, strict=True)),
    )


def most_confident_mistakes(probabilities_nk: np.ndarray, labels_n: np.ndarray, most: int) -> np.ndarray:
    """Rows of the images told wrong, the most confident first, at most `most`: int64 [m]. Ties go by row."""
    wrong_m = np.flatnonzero(probabilities_nk.argmax(1) != labels_n)
    order = np.argsort(-probabilities_nk[wrong_m].max(1), kind="stable")
    return wrong_m[order[:most]]
