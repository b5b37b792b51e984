"""What a data set in memory is made of, and what its sum covers."""

import numpy as np
import pytest

from fastcifar.data import DataError, Dataset, Split


def a_split(**changes: object) -> Split:
    fields: dict = {
        "images_nhwc": np.zeros((4, 2, 2, 3), np.uint8),
        "labels_n": np.array([0, 1, 1, 0]),
        "class_names": ("a", "b"),
        "dataset": "mine",
        "part": "train",
        "source": "memory",
    }
    return Split(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images_nhwc": np.zeros((4, 2, 2, 3))}, r"images are float64 \[4, 2, 2, 3\]; expected uint8"),
        ({"images_nhwc": np.zeros((4, 3, 2, 2), np.uint8)}, r"images are uint8 \[4, 3, 2, 2\]"),
        ({"images_nhwc": np.zeros((4, 2, 3), np.uint8)}, r"images are uint8 \[4, 2, 3\]"),
        ({"images_nhwc": np.zeros((4, 3, 2, 2), np.uint8).transpose(0, 2, 3, 1)}, "not C-contiguous"),
        ({"labels_n": np.zeros(3, np.int64)}, r"labels are int64 \[3\]; expected int64 \[4\]"),
        ({"labels_n": np.zeros(4, np.int32)}, r"labels are int32 \[4\]"),
        ({"labels_n": np.array([0, 2, 0, 0])}, "labels reach from 0 to 2; expected 0 to 1"),
        ({"labels_n": np.array([0, -1, 0, 0])}, "labels reach from -1 to 0; expected 0 to 1"),
    ],
)
def test_a_split_holds_what_it_says(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        a_split(**changes)


def test_a_splits_sum_changes_with_all_that_a_network_sees() -> None:
    whole = a_split()
    assert whole.sha256() == a_split(source="elsewhere", dataset="other", part="test").sha256()
    pixels = np.zeros((4, 2, 2, 3), np.uint8)
    pixels[3, 1, 1, 2] = 1
    others = [
        a_split(images_nhwc=pixels),
        a_split(images_nhwc=np.zeros((4, 1, 4, 3), np.uint8)),
        a_split(labels_n=np.array([0, 1, 1, 1])),
        a_split(class_names=("a", "c")),
        a_split(class_names=("a", "b", "c")),
    ]
    assert len({whole.sha256(), *(other.sha256() for other in others)}) == 6
    assert len(whole) == 4


def test_parts_of_different_classes_or_sizes_are_no_data_set() -> None:
    with pytest.raises(DataError, match="different class names"):
        Dataset("mine", a_split(), a_split(class_names=("b", "a")))
    with pytest.raises(DataError, match=r"training images are \[2, 2, 3\], test images \[1, 4, 3\]"):
        Dataset("mine", a_split(), a_split(images_nhwc=np.zeros((4, 1, 4, 3), np.uint8)))
