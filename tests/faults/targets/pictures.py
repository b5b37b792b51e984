"""Readers of images from elsewhere: CIFAR's files, the archives that they come in, what `predict` takes."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from cifar_files import files, pickled

from faults.edits import Choices, edited_bytes
from faults.targets.target import Target

# Each asks for something to be run, to be fetched, or for more memory than the file is long.
HOSTILE_PICKLES = (
    b"cos\nsystem\n(S'touch outside'\ntR.",
    b"\x80\x02cos\nsystem\nX\x0d\x00\x00\x00touch outside\x85R.",
    b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
    b"\x80\x02cbuiltins\ngetattr\ncbuiltins\n__import__\nX\x04\x00\x00\x00load\x86R.",
    b"\x80\x02\x82\x01.", b"\x80\x02\x83\x01\x00.", b"\x80\x02\x84\x01\x00\x00\x00.", b"\x80\x02Pid\n.",
    b"\x80\x02K\x01Q.",
    b"\x80\x02}r\xff\xff\xff\x7f.", b"\x80\x02T\xff\xff\xff\x7f.", b"\x80\x04\x8e" + b"\xff" * 8 + b".",
    b"\x80\x02]q\x00h\x00a.", b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", b"\x80\x02" + b"(" * 2000 + b".",
    b"\x80\x02]q\x00" + b"(h\x00h\x00h\x00h\x00tq\x00" * 40 + b".", b"\x80\x05\x97.", b"\x80\x05}\x98.",
    b"\x80\x02(i__main__\nX\n.", b"\x80\x02(cos\nsystem\no.", b"\x80\x02ccopyreg\n_reconstructor\n.",
)  # fmt: skip


class Unpickle(Target):
    """CIFAR's pickles, by the restricted unpickler."""

    name = "pickle"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        from fastcifar.data.unpickle import unpickle

        self.unpickle = unpickle
        rows = np.arange(2 * 30, dtype=np.uint8).reshape(2, 30)
        content: dict[str, object] = {"batch_label": "training batch 1 of 5", "labels": [3, 9], "data": rows}
        content["filenames"] = ["a.png", "b.png"]
        self.good = [pickled(content), *(pickle.dumps(content, protocol) for protocol in (2, 3, 4, 5))]

    def seeds(self) -> list[bytes]:
        return [b"\0" + data for data in (*self.good, *HOSTILE_PICKLES)] + super().seeds()

    def read(self, data: bytes) -> None:
        choices = Choices(data)
        mode = choices.below(256) % 8
        raw = choices.rest() if mode == 0 else edited_bytes(self.good[mode % len(self.good)], choices)
        got = self.unpickle(raw, f"{self.scratch}/batch")
        assert type(got) is dict
        _check_plain(got, len(raw))


class CifarPython(Target):
    """A folder of CIFAR-10's Python version in which one file is odd."""

    name = "cifar-python"
    kind = "python"
    dataset = "cifar10"
    num_test = 2

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self.locate = import_module("fastcifar.data.locate")
        self.contents, self.made = files(self.dataset, self.kind, self.num_test, 0)
        self.names = sorted(self.contents)
        for name, data in self.contents.items():
            (scratch / name).write_bytes(data)

    def seeds(self) -> list[bytes]:
        return super().seeds() + [bytes([2 * i]) + self.contents[name] for i, name in enumerate(self.names)]

    def read(self, data: bytes) -> None:
        choices = Choices(data)
        mode = choices.below(256)
        name = self.names[mode // 2 % len(self.names)]
        raw = edited_bytes(self.contents[name], choices) if mode % 2 else choices.rest()
        path = self.scratch / name
        path.write_bytes(raw)
        try:
            source = self.locate.locate(self.dataset, self.scratch)
            _check_dataset(source.load())
        finally:
            path.write_bytes(self.contents[name])


class CifarBinary(CifarPython):
    """The same of the binary version."""

    name = "cifar-binary"
    kind = "binary"


class Cifar100(CifarPython):
    """CIFAR-100's Python version."""

    name = "cifar100-python"
    dataset = "cifar100"


class Tar(Target):
    """`.tar.gz`: the gzip stream, the tar in it, and members under odd names, links, devices and bombs."""

    name = "tar"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self.locate = import_module("fastcifar.data.locate")
        self.path = scratch / "cifar-10-python.tar.gz"
        contents, _ = files("cifar10", "python", 2, 0)
        self.members = [(f"cifar-10-batches-py/{name}", data) for name, data in sorted(contents.items())]
        self.tar = _tar(self.members)
        self.packed = gzip.compress(self.tar, 1, mtime=0)
        self.bomb = gzip.compress(bytes(1 << 23), 9, mtime=0)

    def seeds(self) -> list[bytes]:
        raw = [b"\0" + self.packed[:2000], b"\0" + self.bomb[:4000], b"\2" + self.tar[:3000]]
        return super().seeds() + raw + [bytes([3, i, i % 9, i * 5 % 256, i]) for i in range(60)]

    def read(self, data: bytes) -> None:
        choices = Choices(data)
        match choices.below(256) % 5:
            case 0:
                packed = choices.rest()
            case 1:
                packed = edited_bytes(self.packed, choices)
            case 2:
                packed = gzip.compress(choices.rest(), 0, mtime=0)
            case 3:
                packed = gzip.compress(_tar(self._odd_members(choices)), 0, mtime=0)
            case _:
                packed = gzip.compress(_with_checksums(edited_bytes(self.tar, choices)), 0, mtime=0)
        self.path.write_bytes(packed)
        found = self.locate.find(self.path, ("cifar10", "cifar100"))
        if found is not None:
            _check_dataset(found.load())

    def _odd_members(self, choices: Choices) -> list[tuple[Any, bytes]]:
        members: list[tuple[Any, bytes]] = list(self.members)
        for _ in range(6):
            if not choices:
                break
            info = tarfile.TarInfo(
                (
                    "../../outside", "/etc/outside", "cifar-10-batches-py/../../outside",
                    "cifar-10-batches-py/test_batch",
                    "cifar-10-batches-py", "./cifar-10-batches-py/batches.meta", "a" * 99, "cifar-10-batches-py//x",
                    "\n\x1b[2J",
                )[choices.below(9)]
            )  # fmt: skip
            kinds = (
                tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE,
                tarfile.FIFOTYPE, tarfile.CONTTYPE, b"S", b"x", b"g", b"L", b"K", b"\xff",
            )  # fmt: skip
            info.type = kinds[choices.below(len(kinds))]
            info.linkname = ("../../../etc/passwd", "/etc/passwd", "test_batch", "")[choices.below(4)]
            body = choices.take(choices.below(64)) if choices.below(4) else bytes(1 << 16)
            info.size = len(body)
            at = choices.below(len(members) + 1)
            if choices.below(3) == 0 and members:
                members[min(at, len(members) - 1)] = (info, body)
            else:
                members.insert(at, (info, body))
        return members


class Submission(Target):
    """Unlabelled images as `predict` takes them: a pickle with or without ids, a .npy, a folder with one odd PNG."""

    name = "submission"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        from PIL import Image

        self.inputs = import_module("fastcifar.submission.inputs")
        planar = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
        images = planar.reshape(2, 3, 32, 32).transpose(0, 2, 3, 1).copy()
        contents: list[dict[str, object]] = [
            {"data": planar, "ids": np.array([7, 3])},
            {"data": images, "ids": [0, 1]},
            {"data": planar},
        ]
        self.pickles = [pickle.dumps(content, protocol) for content in contents for protocol in (2, 4)]
        file = io.BytesIO()
        np.save(file, images)
        self.npy = file.getvalue()
        file = io.BytesIO()
        Image.fromarray(images[0]).save(file, "png")
        self.png = file.getvalue()
        self.folder = scratch / "images"
        self.folder.mkdir(exist_ok=True)
        (self.folder / "1.png").write_bytes(self.png)

    def seeds(self) -> list[bytes]:
        whole = [b"\0" + data for data in (*self.pickles, *HOSTILE_PICKLES)]
        return [*whole, b"\2" + self.npy, b"\4" + self.png, *super().seeds()]

    def read(self, data: bytes) -> None:
        choices = Choices(data)
        mode = choices.below(256) % 6
        path, good = (
            (self.scratch / "input.pickle", self.pickles[choices.below(len(self.pickles))] if mode % 2 else b""),
            (self.scratch / "input.npy", self.npy),
            (self.folder / "2.png", self.png),
        )[mode // 2]
        path.write_bytes(edited_bytes(good, choices) if mode % 2 else choices.rest())
        read = self.inputs.read(self.folder if mode // 2 == 2 else path)
        assert read.images_nhwc.dtype == np.uint8
        assert read.images_nhwc.shape[1:] == (32, 32, 3)
        if read.ids_n is not None:
            assert read.ids_n.dtype == np.int64
            assert len(set(read.ids_n.tolist())) == len(read.images_nhwc)
            assert read.ids_n.min(initial=0) >= 0


def _check_dataset(dataset: Any) -> None:
    for split in (dataset.train, dataset.test):
        assert split.images_nhwc.dtype == np.uint8
        assert split.images_nhwc.shape == (len(split.labels_n), 32, 32, 3)
        assert 0 <= split.labels_n.min() <= split.labels_n.max() < len(split.class_names)


def _check_plain(value: Any, num_bytes: int) -> None:
    """Nothing but plain values, and no array larger than the file."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, np.ndarray):
            assert item.nbytes <= num_bytes
            assert item.dtype == np.uint8
        else:
            assert type(item).__name__ in ("NoneType", "bool", "int", "str", "bytes", "memoryview", "_Known", "_Dtype",
                                           "_Array"), type(item)  # fmt: skip


def _tar(members: list[tuple[Any, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _with_checksums(tar: bytes) -> bytes:
    """The same archive, the checksum of each header made right."""
    data, at = bytearray(tar), 0
    while at + 512 <= len(data) and any(data[at : at + 512]):
        header = data[at : at + 512]
        total = sum(header[:148]) + 8 * 32 + sum(header[156:])
        data[at + 148 : at + 156] = b"%06o\0 " % (total % 0o1000000)
        try:
            size = int(bytes(header[124:136]).strip(b" \0") or b"0", 8)
        except ValueError:
            break
        at += 512 + -(-max(0, size) // 512) * 512
    return bytes(data)
