"""Writes small CIFAR sets for tests, in every form that CIFAR is distributed in.

The pickles are byte for byte what Python 2's cPickle makes of the same content at protocol 2, memo operations
included, as the original files are.
"""

import gzip
import io
import struct
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDERS = {
    ("cifar10", "python"): ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    ("cifar10", "binary"): ("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
    ("cifar100", "python"): ("cifar-100-python", "cifar-100-python.tar.gz"),
    ("cifar100", "binary"): ("cifar-100-binary", "cifar-100-binary.tar.gz"),
}


class Made(NamedTuple):
    """A small set on disk and what must be read from it."""

    path: Path
    train_images: np.ndarray  # uint8 [5 * num_test, 32, 32, 3]
    train_labels: np.ndarray  # int64 [5 * num_test]
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


class Python2Pickle:
    """cPickle's protocol 2: the operations that CIFAR's files are made of, with a memo entry for each value."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")
        self.num_memo = 0
        self.known: dict[bytes, int] = {}

    def put(self) -> None:
        self.num_memo += 1
        small = self.num_memo < 256
        self.out += b"q" + bytes([self.num_memo]) if small else b"r" + struct.pack("<I", self.num_memo)

    def get(self, index: int) -> None:
        self.out += b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)

    def integer(self, value: int) -> None:
        if 0 <= value < 256:
            self.out += b"K" + bytes([value])
        elif 0 <= value < 65536:
            self.out += b"M" + struct.pack("<H", value)
        else:
            self.out += b"J" + struct.pack("<i", value)

    def string(self, text: bytes) -> None:
        short = len(text) < 256
        self.out += (b"U" + bytes([len(text)]) if short else b"T" + struct.pack("<I", len(text))) + text
        self.put()

    def global_name(self, module: bytes, name: bytes) -> None:
        self.out += b"c" + module + b"\n" + name + b"\n"
        self.put()

    def list_of(self, values: list, write) -> None:
        self.out += b"]"
        self.put()
        for start in range(0, len(values), 1000):
            self.out += b"("
            for value in values[start : start + 1000]:
                write(value)
            self.out += b"e"

    def array(self, array: np.ndarray) -> None:
        self.global_name(b"numpy.core.multiarray", b"_reconstruct")
        self.global_name(b"numpy", b"ndarray")
        self.out += b"K\x00\x85"
        self.put()
        self.string(b"b")
        self.out += b"\x87"
        self.put()
        self.out += b"R"
        self.put()
        self.out += b"(K\x01"
        for length in array.shape:
            self.integer(length)
        self.out += {1: b"\x85", 2: b"\x86", 3: b"\x87"}[array.ndim]
        self.put()
        self.global_name(b"numpy", b"dtype")
        self.string(array.dtype.str[1:].encode())
        self.out += b"K\x00K\x01\x87"
        self.put()
        self.out += b"R"
        self.put()
        self.out += b"(K\x03"
        self.string(array.dtype.str[:1].encode())
        self.out += b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00t"
        self.put()
        self.out += b"b\x89"
        self.string(array.tobytes())
        self.out += b"t"
        self.put()
        self.out += b"b"

    def value(self, value: object) -> None:
        if isinstance(value, np.ndarray):
            self.array(value)
        elif isinstance(value, list):
            self.list_of(value, self.value)
        elif isinstance(value, str):
            self.string(value.encode())
        else:
            self.integer(int(value))  # type: ignore[call-overload]

    def dump(self, content: dict[str, object]) -> bytes:
        self.out += b"}"
        self.put()
        self.out += b"("
        for key, value in content.items():
            self.value(key)
            self.value(value)
        self.out += b"u."
        return bytes(self.out)


def pickled(content: dict[str, object]) -> bytes:
    """The file that Python 2 makes of a dictionary of integers, strings, lists and arrays."""
    return Python2Pickle().dump(content)


def draw(num_images: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a tint by class, so that a network can learn it: uint8 [n, 32, 32, 3] and int64 [n]."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_images) % num_classes).astype(np.int64)
    noise = rng.integers(0, 128, (num_images, 32, 32, 3), dtype=np.uint8)
    tint = np.random.default_rng(0).integers(0, 128, (num_classes, 1, 1, 3), dtype=np.uint8)
    return noise + tint[labels], labels


def files(dataset: str, kind: str, num_test: int, seed: int) -> tuple[dict[str, bytes], Made]:
    """What each file of the set holds, by name; five training images for each test image."""
    num_classes = 10 if dataset == "cifar10" else 100
    names = CIFAR10_CLASSES if dataset == "cifar10" else tuple(f"class_{number:02d}" for number in range(100))
    train = draw(5 * num_test, num_classes, seed)
    test = draw(num_test, num_classes, seed + 1)
    contents: dict[str, bytes] = {}
    if dataset == "cifar10":
        parts = [(f"data_batch_{i + 1}", i * num_test, f"training batch {i + 1} of 5") for i in range(5)]
        test_name, key = "test_batch", "labels"
    else:
        parts = [("train", 0, "training batch 1 of 1")]
        test_name, key = "test", "fine_labels"
    num_part = 5 * num_test // len(parts)
    batches = [
        (name, title, train[0][start : start + num_part], train[1][start : start + num_part])
        for name, start, title in parts
    ]
    batches.append((test_name, "testing batch 1 of 1", *test))
    for name, title, images, labels in batches:
        rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), 3072)
        if kind == "python":
            content: dict[str, object] = {"batch_label": title, key: labels.tolist(), "data": rows}
            if dataset == "cifar100":
                content["coarse_labels"] = (labels // 5).tolist()
            content["filenames"] = [f"{names[label]}_s_{i:06d}.png" for i, label in enumerate(labels)]
            contents[name] = pickled(content)
        else:
            head = [labels[:, None]] if dataset == "cifar10" else [labels[:, None] // 5, labels[:, None]]
            contents[f"{name}.bin"] = np.hstack([*(column.astype(np.uint8) for column in head), rows]).tobytes()
    if kind == "binary":
        meta_name = "batches.meta.txt" if dataset == "cifar10" else "fine_label_names.txt"
        contents[meta_name] = "".join(f"{name}\n" for name in names).encode() + b"\n"
    elif dataset == "cifar10":
        meta = {"num_cases_per_batch": num_test, "label_names": list(names), "num_vis": 3072}
        contents["batches.meta"] = pickled(meta)
    else:
        coarse = [f"coarse_{number:02d}" for number in range(20)]
        contents["meta"] = pickled({"fine_label_names": list(names), "coarse_label_names": coarse})
    return contents, Made(Path(), *train, *test, names)


def make(dest: Path, dataset: str = "cifar10", kind: str = "python", num_test: int = 20, seed: int = 0) -> Made:
    """Writes the set's own folder into `dest`: 5 * num_test training and num_test test images."""
    contents, made = files(dataset, kind, num_test, seed)
    folder = dest / FOLDERS[dataset, kind][0]
    folder.mkdir(parents=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return made._replace(path=folder)


def make_archive(dest: Path, dataset: str = "cifar10", kind: str = "python", num_test: int = 20, seed: int = 0) -> Made:
    """Writes the same as `.tar.gz` into `dest`, with a file that is not read among the others."""
    contents, made = files(dataset, kind, num_test, seed)
    folder, archive = FOLDERS[dataset, kind]
    members = [(f"{folder}/{name}", data) for name, data in contents.items()]
    members.insert(1, (f"{folder}/readme.html", b"<html>not read</html>"))
    dest.mkdir(parents=True, exist_ok=True)
    (dest / archive).write_bytes(tar_gz(members, folder))
    return made._replace(path=dest / archive)


def tar_gz(members: list[tuple[str, bytes] | tuple[tarfile.TarInfo, bytes]], folder: str = "") -> bytes:
    """A `.tar.gz` of members, given by name or by a whole header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        if folder:
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0, compresslevel=1)
