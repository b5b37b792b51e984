"""Artefacts back into memory, whatever their format, without the libraries that they are for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastcifar.artefacts.formats import module_of
from fastcifar.artefacts.index import Index, read_index
from fastcifar.data import Split
from fastcifar.data.errors import refuse


def read(path: str | Path, part: str) -> Split:
    """The part "train" or "test" of the artefact at `path` (its folder, or any file in it).

    Of npy, the images are mapped to memory, read-only; of ffcv and dali they are copied into it. Sizes, headers, tables
    and labels are checked, and TFRecords' checksums; `verify` checks hashes. `DataError` names the file, what was found
    and what was expected.
    """
    index = read_index(path)
    wanted = index.part(part)
    if index.format == "npy":
        from fastcifar.artefacts import npy

        images_nhwc = npy.map_images(index.path, wanted)
        labels_n = _checked_labels(index, part, npy.read_labels(index.path, wanted), 0)
    else:
        module_of(index.format).check(index.path, wanted)  # before memory is asked for
        images_nhwc = np.empty((wanted.count, *wanted.shape), np.uint8)
        labels_n = np.empty(wanted.count, np.int64)
        first = 0
        for pixels_nb, labels in chunks(index, part):
            last = first + len(labels)
            images_nhwc[first:last] = pixels_nb.reshape(-1, *wanted.shape)
            labels_n[first:last] = labels
            first = last
    return Split(images_nhwc, labels_n, index.class_names, index.dataset, part, str(index.path))


def read_first(path: str | Path, part: str, num: int) -> np.ndarray:
    """The first `num` images of a part, or all where there are fewer: uint8 [num, h, w, 3]. `DataError` as `read`."""
    index = read_index(path)
    shape, found, count = index.part(part).shape, [], 0
    for pixels_nb, _ in chunks(index, part):
        found.append(pixels_nb[: num - count].reshape(-1, *shape))
        count += len(found[-1])
        if count == num:
            break
    return np.concatenate(found)


def read_labels(path: str | Path, part: str) -> np.ndarray:
    """The labels of a part, int64 [n], with no more than a few MB of pixels beside them. `DataError` as `read`."""
    if read_index(path).format == "npy":
        return read(path, part).labels_n
    return np.concatenate([labels_n for _, labels_n in chunks(read_index(path), part)])


def chunks(index: Index, part: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images, uint8 [m, bytes an image], and labels, int64 [m], of a part in order: a few MB at a time."""
    first = 0
    for pixels_nb, labels_n in module_of(index.format).chunks(index.path, index.part(part)):
        yield pixels_nb, _checked_labels(index, part, labels_n, first)
        first += len(labels_n)


def check(path: str | Path, part: str) -> Index:
    """The index of an artefact whose part has the right sizes, headers and tables, so that a library may map it.

    Reads no pixel and takes milliseconds; `verify` checks everything. `DataError` as from `read`.
    """
    index = read_index(path)
    labels_n = module_of(index.format).check(index.path, index.part(part))
    if labels_n is not None:  # of ffcv, whose tables hold them
        _checked_labels(index, part, labels_n, 0)
    return index


def _checked_labels(index: Index, part: str, labels_n: np.ndarray, first: int) -> np.ndarray:
    wrong_n = (labels_n < 0) | (labels_n >= len(index.class_names))
    if wrong_n.any():
        row = int(wrong_n.argmax())
        name = index.part(part).files[-1 if index.format == "npy" else 0].name
        found = f"image {first + row} has label {labels_n[row]}"
        raise refuse(index.path / name, found, f"0 to {len(index.class_names) - 1}")
    return labels_n
