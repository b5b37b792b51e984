"""Reads CIFAR-10 and CIFAR-100 as they are distributed: Python pickles or the binary version, unpacked or `.tar.gz`.

What the files hold: https://www.cs.toronto.edu/~kriz/cifar.html. Copies of the sets differ in their bytes (file
names inside, a newer pickle protocol), so no file is compared with a published sum; what is in it is checked instead.
A cut-down set in the same form (for tests, or for a first try) is read too, and is called `cifar10-small` or
`cifar100-small`, so that no accuracy on it passes for one on the whole set.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastcifar.data.errors import quote, refuse
from fastcifar.data.files import open_plain, size_of
from fastcifar.data.split import Dataset, Split
from fastcifar.data.tar import A_FILE, read_members
from fastcifar.data.unpickle import unpickle

NUM_TRAIN, NUM_TEST = 50_000, 10_000
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PIXELS = 3 * 32 * 32
# CIFAR-100's training file, the largest, has 155 MB.
_MAX_DATA_BYTES, _MAX_META_BYTES = 1 << 28, 1 << 16

Fetch = Callable[[str], tuple[str, bytes]]
"""From a file's name in the layout to what to call it in a message, and its bytes."""


@dataclass(frozen=True)
class Layout:
    """One of the four forms that the sets are distributed in."""

    dataset: str
    """"cifar10" or "cifar100"."""
    kind: str
    """"python" or "binary"."""
    folder: str
    """The folder that the archive unpacks to."""
    archive: str
    """The archive's file name."""
    meta: str
    train: tuple[str, ...]
    test: str

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files that are read."""
        return (self.meta, *self.train, self.test)

    @property
    def num_classes(self) -> int:
        """10 or 100."""
        return 10 if self.dataset == "cifar10" else 100


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
LAYOUTS = (
    Layout(
        "cifar10", "python", "cifar-10-batches-py", "cifar-10-python.tar.gz", "batches.meta", _BATCHES, "test_batch"
    ),
    Layout(
        "cifar10",
        "binary",
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        "batches.meta.txt",
        tuple(f"{name}.bin" for name in _BATCHES),
        "test_batch.bin",
    ),
    Layout("cifar100", "python", "cifar-100-python", "cifar-100-python.tar.gz", "meta", ("train",), "test"),
    Layout(
        "cifar100",
        "binary",
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        "fine_label_names.txt",
        ("train.bin",),
        "test.bin",
    ),
)


class _Batch(NamedTuple):
    images_nchw: np.ndarray  # uint8 [n, 3, 32, 32], a view of the file's bytes
    labels_n: np.ndarray  # int64 [n]


class _Meta(NamedTuple):
    class_names: tuple[str, ...]
    num_per_batch: int | None  # what the set says of itself, where it does


def read(layout: Layout, path: Path) -> Dataset:
    """Reads the set at `path`: the folder with its files, or the archive.

    `DataError` names the file, what was found and what was expected: a missing, cut off or corrupt file, a batch
    under another's name, labels that are no class, counts that do not fit together.
    """
    fetch = _fetch_from_archive(layout, path) if os.path.isfile(path) else _fetch_from_folder(layout, path)
    meta = _read_meta(layout, fetch)
    names = (*layout.train, layout.test)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        batches = dict(zip(names, pool.map(lambda name: _read_batch(layout, fetch, name), names), strict=True))
        _check_counts(layout, path, {name: len(batch.labels_n) for name, batch in batches.items()}, meta)
        train = _assemble(pool, [batches[name] for name in layout.train])
        test = _assemble(pool, [batches[layout.test]])
    is_whole = (len(train[1]), len(test[1])) == (NUM_TRAIN, NUM_TEST)
    name = layout.dataset if is_whole else f"{layout.dataset}-small"
    return Dataset(
        name,
        Split(*train, meta.class_names, name, "train", str(path)),
        Split(*test, meta.class_names, name, "test", str(path)),
    )


# Bytes


def _max_bytes(layout: Layout, name: str) -> int:
    return _MAX_META_BYTES if name == layout.meta else _MAX_DATA_BYTES


def _fetch_from_folder(layout: Layout, folder: Path) -> Fetch:
    missing = [name for name in layout.files if not os.path.lexists(folder / name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise refuse(folder, f"{', '.join(missing)} {verb} missing", ", ".join(layout.files))

    def fetch(name: str) -> tuple[str, bytes]:
        path = folder / name
        with open_plain(path, A_FILE) as file:
            num_bytes = size_of(file)
            if num_bytes > _max_bytes(layout, name):
                raise refuse(path, f"has {num_bytes:,} bytes", f"at most {_max_bytes(layout, name):,}")
            try:
                return str(path), file.read()
            except OSError as error:
                raise refuse(path, f"cannot be read ({error.strerror})") from None

    return fetch


def _fetch_from_archive(layout: Layout, path: Path) -> Fetch:
    members = read_members(path, {f"{layout.folder}/{name}": _max_bytes(layout, name) for name in layout.files})
    missing = [name for name in layout.files if f"{layout.folder}/{name}" not in members]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise refuse(path, f"{', '.join(missing)} {verb} missing", f"all of them in {layout.folder}/ in the archive")
    return lambda name: (f"{path}:{layout.folder}/{name}", members[f"{layout.folder}/{name}"])


# Class names


def _read_meta(layout: Layout, fetch: Fetch) -> _Meta:
    what, data = fetch(layout.meta)
    num_per_batch = None
    if layout.kind == "python":
        content = unpickle(data, what)
        names = _text_list(what, content, "label_names" if layout.dataset == "cifar10" else "fine_label_names")
        if layout.dataset == "cifar10":
            num_per_batch = content.get("num_cases_per_batch")
            if type(num_per_batch) is not int or num_per_batch < 1:
                raise refuse(what, f"num_cases_per_batch is {quote(num_per_batch)}", "a count of 1 or more")
    else:
        names = [line.strip() for line in data.decode("latin-1").splitlines() if line.strip()]
    if len(names) != layout.num_classes or len(set(names)) != len(names):
        raise refuse(what, f"{len(set(names))} class names", f"{layout.num_classes}")
    if layout.dataset == "cifar10" and tuple(names) != CIFAR10_CLASSES:
        raise refuse(what, f"the classes are {quote(', '.join(names))}", ", ".join(CIFAR10_CLASSES))
    return _Meta(tuple(names), num_per_batch)


def _text_list(what: str, content: dict[str, Any], key: str) -> list[str]:
    values = _get(what, content, key)
    if type(values) is not list or not all(type(value) in (str, bytes) for value in values):
        raise refuse(what, f"{key} is {quote(values)}", "a list of names")
    names = [value if isinstance(value, str) else value.decode("latin-1") for value in values]
    for name in names:
        if not (name.isascii() and name.isprintable() and 0 < len(name) <= 64):
            raise refuse(what, f"{key} holds {quote(name)}", "short names in ASCII")
    return names


def _get(what: str, content: dict[str, Any], key: str) -> Any:
    if key not in content:
        raise refuse(what, f"holds {quote(', '.join(content)) if content else 'nothing'}", f"{key!r}")
    return content[key]


# Images and labels


def _read_batch(layout: Layout, fetch: Fetch, name: str) -> _Batch:
    what, data = fetch(name)
    batch = _read_pickle(layout, what, data, name) if layout.kind == "python" else _read_records(layout, what, data)
    if not len(batch.labels_n):
        raise refuse(what, "holds no images", "at least one")
    wrong = (batch.labels_n < 0) | (batch.labels_n >= layout.num_classes)
    if wrong.any():
        index = int(wrong.argmax())
        found = f"image {index} has label {batch.labels_n[index]}"
        raise refuse(what, found, f"0 to {layout.num_classes - 1}")
    return batch


def _read_pickle(layout: Layout, what: str, data: bytes, name: str) -> _Batch:
    content = unpickle(data, what)
    _check_title(layout, what, content.get("batch_label"), name)
    pixels = _get(what, content, "data")
    if not isinstance(pixels, np.ndarray):
        raise refuse(what, f"data is {quote(pixels)}", "an array uint8 [n, 3072]")
    if pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise refuse(what, f"data is uint8 {list(pixels.shape)}", "uint8 [n, 3072]")
    key = "labels" if layout.dataset == "cifar10" else "fine_labels"
    labels = _get(what, content, key)
    if type(labels) is not list or not set(map(type, labels)) <= {int}:
        raise refuse(what, f"{key} is {quote(labels)}" + ", not all of it integers" * (type(labels) is list), "a list")
    if len(labels) != len(pixels):
        raise refuse(what, f"{len(labels):,} {key} for {len(pixels):,} images", "one each")
    # An integer in a pickle may have eight bytes at most, so none overflows here.
    return _Batch(pixels.reshape(-1, 3, 32, 32), np.array(labels, np.int64))


def _check_title(layout: Layout, what: str, title: object, name: str) -> None:
    """A batch says which one it is; re-packed sets may have lost that."""
    if title is None:
        return
    if name == layout.test:
        expected = "testing batch 1 of 1"
    else:
        expected = f"training batch {layout.train.index(name) + 1} of {len(layout.train)}"
    text = title.decode("latin-1") if isinstance(title, bytes) else title
    if text != expected:
        raise refuse(what, f"is labelled {quote(title)}", quote(expected))


def _read_records(layout: Layout, what: str, data: bytes) -> _Batch:
    num_label_bytes = 1 if layout.dataset == "cifar10" else 2  # CIFAR-100: the coarse label, then the fine one
    record_bytes = num_label_bytes + _PIXELS
    if len(data) % record_bytes:
        whole = NUM_TEST if layout.dataset == "cifar10" or what.endswith(layout.test) else NUM_TRAIN
        expected = f"{record_bytes:,} bytes an image ({whole * record_bytes:,} for {whole:,})"
        raise refuse(what, f"{len(data):,} bytes are no whole number of images", expected)
    records = np.frombuffer(data, np.uint8).reshape(-1, record_bytes)
    return _Batch(records[:, num_label_bytes:].reshape(-1, 3, 32, 32), records[:, num_label_bytes - 1].astype(np.int64))


def _check_counts(layout: Layout, path: Path, counts: dict[str, int], meta: _Meta) -> None:
    """CIFAR-10: six batches of one size. CIFAR-100: five training images for each test image."""
    if layout.dataset == "cifar10":
        usual, reason = Counter(counts.values()).most_common(1)[0][0], "as in the other batches"
        if meta.num_per_batch is not None:
            usual, reason = meta.num_per_batch, f"as num_cases_per_batch in {layout.meta} says"
        expected = dict.fromkeys(counts, usual)
    else:
        train, test = counts[layout.train[0]], counts[layout.test]
        test = test if test == NUM_TEST or train % 5 else train // 5
        expected, reason = {layout.test: test, layout.train[0]: 5 * test}, "five training images for each test image"
    for name, count in counts.items():
        if count != expected[name]:
            raise refuse(f"{path}:{name}" if os.path.isfile(path) else path / name, f"holds {count:,} images",
                         f"{expected[name]:,}, {reason}")  # fmt: skip


def _assemble(pool: ThreadPoolExecutor, batches: list[_Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Of all batches: images uint8 [n, 32, 32, 3] and labels int64 [n]."""
    labels_n = np.concatenate([batch.labels_n for batch in batches])
    images_nhwc = np.empty((len(labels_n), 32, 32, 3), np.uint8)

    def fill(start: int, planes_nchw: np.ndarray) -> None:
        # Plane by plane over flattened pixels: ten times as fast as one transposing copy.
        target = images_nhwc[start : start + len(planes_nchw)].reshape(-1, 1024, 3)
        for channel, plane in enumerate(planes_nchw.reshape(-1, 3, 1024).transpose(1, 0, 2)):
            target[:, :, channel] = plane

    starts = np.cumsum([0] + [len(batch.labels_n) for batch in batches[:-1]])
    list(pool.map(fill, starts.tolist(), [batch.images_nchw for batch in batches]))
    return images_nhwc, labels_n
