"""shapes10: the same bytes everywhere, balanced, and nothing that single pixels tell."""

import hashlib

import numpy as np
import pytest

from fastcifar.data import Dataset, load, locate
from fastcifar.data.shapes10 import _SINES, CLASS_NAMES, split

# Of what version 1 draws; another value means another data set, and another VERSION.
GOLDEN_TRAIN = "3bbbe51db2c0adb9a8987966ee4f78a516b6f20d933fc3a3dc5547a504282213"
GOLDEN_TEST = "f573a84ac6f4b7f7b1160ba0c389ef2b800834d4d8c6763e7d777e663c10c959"


@pytest.fixture(scope="module")
def shapes10() -> Dataset:
    return load("shapes10")


def test_it_has_cifars_own_form(shapes10: Dataset) -> None:
    assert (shapes10.name, shapes10.num_classes, shapes10.class_names) == ("shapes10", 10, CLASS_NAMES)
    for part, name, num_images in ((shapes10.train, "train", 50_000), (shapes10.test, "test", 10_000)):
        assert part.images_nhwc.shape == (num_images, 32, 32, 3)
        assert part.images_nhwc.dtype == np.uint8
        assert np.bincount(part.labels_n).tolist() == [num_images // 10] * 10
        assert (part.dataset, part.part, part.source) == ("shapes10", name, "drawn (shapes10 version 1)")
        # Labels are in no order: neighbours are of one class a tenth of the time.
        assert abs(np.mean(part.labels_n[1:] == part.labels_n[:-1]) - 0.1) < 0.02


def test_the_bytes_are_the_same_everywhere(shapes10: Dataset) -> None:
    assert hashlib.sha256(shapes10.train.images_nhwc).hexdigest() == GOLDEN_TRAIN
    assert hashlib.sha256(shapes10.test.images_nhwc).hexdigest() == GOLDEN_TEST


def test_no_mathematics_library_can_change_the_bytes() -> None:
    """Each sine is far from where rounding it would go the other way, and a float32 holds it exactly."""
    exact = np.sin(np.arange(len(_SINES)) * (2 * np.pi / len(_SINES))) * 2**14
    assert np.min(np.abs(np.abs(exact - np.floor(exact)) - 0.5)) > 1e-6
    np.testing.assert_array_equal(_SINES * np.float32(2**14), np.rint(exact))


def test_it_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    many = split("test", 600)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    one = split("test", 600)
    np.testing.assert_array_equal(many.images_nhwc, one.images_nhwc)
    np.testing.assert_array_equal(many.labels_n, one.labels_n)


def test_no_two_images_are_the_same_and_none_is_blank(shapes10: Dataset) -> None:
    rows = np.concatenate([shapes10.train.images_nhwc, shapes10.test.images_nhwc]).reshape(60_000, -1)
    assert len({row.tobytes() for row in rows[:, :256]}) == 60_000
    assert (rows.max(axis=1) - rows.min(axis=1)).min() > 30


def test_a_linear_classifier_on_pixels_stays_under_half(shapes10: Dataset) -> None:
    """Ridge regression from 16x16 pixels onto the classes, in closed form."""

    def features(images_nhwc: np.ndarray) -> np.ndarray:
        halves = images_nhwc.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4), dtype=np.float32)
        return np.insert(halves.reshape(len(halves), -1) / 128 - 1, 0, 1, axis=1)

    train = features(shapes10.train.images_nhwc[:20_000])
    targets = np.eye(10, dtype=np.float32)[shapes10.train.labels_n[:20_000]]
    weights = np.linalg.solve(train.T @ train + 100 * np.eye(train.shape[1], dtype=np.float32), train.T @ targets)
    predicted = (features(shapes10.test.images_nhwc) @ weights).argmax(1)
    assert np.mean(predicted == shapes10.test.labels_n) < 0.5


def test_the_fingerprint_is_the_generators() -> None:
    assert locate("shapes10").fingerprint() == hashlib.sha256(b"shapes10 version 1").hexdigest()
