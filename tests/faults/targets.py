"""What is fuzzed: every reader of a file that may come from elsewhere, each with good files to start from.

A target turns an input's bytes into files in its own scratch folder, reads them, and raises whatever the reader raises;
`AssertionError` where an answer is wrong. The first byte of an input says how the rest is meant: as the file itself, or
as edits of a good one (see `edits`), with checksums made right again so that the code behind them is reached.
A new reader is fuzzed when its class stands in `TARGETS`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import re
import struct
import tarfile
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from cifar_files import files, pickled

from faults.edits import Choices, edited_bytes, edited_tree


class Target:
    """One reader. `read` returns when the answer is right."""

    name = ""
    errors: tuple[type[Exception], ...] = (ValueError, OSError)
    heavy = False
    """Whether torch or a loader is needed: slower, and given less time."""
    instrumented: tuple[str, ...] = ("fastcifar",)
    """Packages whose coverage guides the fuzzer; none where Numba compiles them."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def seeds(self) -> list[bytes]:
        """Inputs to start from."""
        edits = [bytes([mode, 7 * i % 251, i, 3 * i % 256, i * i % 256, 255 - i]) for i in range(24) for mode in (0, 1)]
        return [b"\0", *edits]

    def read(self, data: bytes) -> None:
        """Read what the input says; raise what the reader raises."""
        raise NotImplementedError

    def says_where(self, message: str) -> bool:
        """Whether an error names what it is about."""
        return str(self.scratch) in message


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


class Index(Target):
    """`index.json` of an artefact."""

    name = "index"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        from fastcifar.artefacts import index

        self.index = index
        self.path = scratch / index.NAME
        self.good = [(_artefact(scratch / to, to) / index.NAME).read_bytes() for to in ("npy", "ffcv", "dali")]

    def seeds(self) -> list[bytes]:
        return [b"\0" + data for data in self.good] + super().seeds()

    def read(self, data: bytes) -> None:
        choices = Choices(data)
        mode = choices.below(256)
        raw = choices.rest() if mode % 4 == 0 else self._forged(self.good[mode // 4 % 3], choices)
        self.path.write_bytes(raw)
        read = self.index.read_index(self.path)
        assert self.index.dumps(read) == raw
        assert all("/" not in file.name for file in read.files)

    def _forged(self, good: bytes, choices: Choices) -> bytes:
        """Edits of what the index says, with its digest made right again."""
        content = json.loads(good)
        del content["sha256"]
        content = edited_tree(content, choices)
        if not isinstance(content, dict):
            return json.dumps(content).encode()
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return json.dumps({**content, "sha256": digest}, indent=1).encode() + b"\n"


class Artefact(Target):
    """The files of an artefact, read by NumPy: as `read`, `check`, `verify` and the cache do."""

    to = "npy"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        from fastcifar import artefacts

        self.artefacts = artefacts
        self.folder = _artefact(scratch / "good", self.to)
        self.good = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.names = sorted(name for name in self.good if name != "index.json")
        self.index = artefacts.read_index(self.folder)

    def forged(self, data: bytes) -> Choices:
        """Write a file of the artefact anew as the input says, and perhaps an index to match it; what is left over."""
        choices = Choices(data)
        mode = choices.below(256)
        name = self.names[mode // 4 % len(self.names)]
        raw = edited_bytes(self.good[name], choices) if mode % 2 == 0 else choices.rest()
        if name.endswith(".tfrecord") and mode % 4 < 2:
            raw = _with_crcs(raw)
        _put(self.folder / name, raw)
        if mode % 4 >= 1:
            content = json.loads(self.good["index.json"])
            del content["sha256"]
            for part in ("train", "test"):
                for file in content[part]["files"]:
                    if file["name"] == name:
                        file |= {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
            digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
            text = json.dumps({**content, "sha256": digest}, indent=1).encode() + b"\n"
            _put(self.folder / "index.json", text)
        return choices

    def restore(self) -> None:
        """Put the good files back."""
        for name, data in self.good.items():
            path = self.folder / name
            if path.stat().st_size != len(data) or path.read_bytes() != data:
                _put(path, data)

    def read(self, data: bytes) -> None:
        try:
            self.forged(data)
            self.artefacts.is_current(self.folder, self.to, self.index.fingerprint)
            findings = self.artefacts.verify(self.folder)
            for part in ("train", "test"):
                split = self.artefacts.read(self.folder, part)
                assert split.images_nhwc.shape == (self.index.part(part).count, 8, 8, 3)
                changed = split.sha256() != self.index.part(part).pixel_sha256
                assert not (changed and all(finding.passed for finding in findings)), "verify saw no change of pixels"
                del split
                self.artefacts.check(self.folder, part)
        finally:
            self.restore()

    def seeds(self) -> list[bytes]:
        more = [bytes([4 * i + mode, *edit]) for i in range(4) for mode in (0, 1, 2, 3) for edit in _EDITS]
        return super().seeds() + more


def _put(path: Path, data: bytes) -> None:
    """Put a file in the place of another, as artefacts are written: one that is still mapped must not shrink."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


class ArtefactFfcv(Artefact):
    """`.beton`, as it is checked before FFCV maps it."""

    name = "beton"
    to = "ffcv"


class ArtefactDali(Artefact):
    """TFRecords and their index."""

    name = "tfrecord"
    to = "dali"


class ArtefactNpy(Artefact):
    """`.npy` pairs."""

    name = "npy"
    to = "npy"


class PipelineFfcv(Artefact):
    """FFCV's own code over a `.beton` that passed the checks."""

    name = "pipeline-ffcv"
    to = "ffcv"
    pipeline = "ffcv"
    heavy = True
    instrumented = ()

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        # What is compiled, and cached outside, is so before anything is watched.
        self._epoch()

    def read(self, data: bytes) -> None:
        try:
            self.forged(data)
            self._epoch()
        finally:
            self.restore()

    def _epoch(self) -> None:
        from fastcifar import pipelines

        with pipelines.open(self.folder, self.pipeline, batch_size=3, drop_last=False, num_threads=1) as pipeline:
            for batch in pipeline.epoch(0):
                assert batch.images.shape[1:] == (3, 8, 8)
                assert bool(((batch.labels >= 0) & (batch.labels < 10)).all()), "a label that is no class"
                assert bool(((batch.indices >= 0) & (batch.indices < 6)).all()), "an index that is no image's"


class PipelineDali(PipelineFfcv):
    """DALI's own code over TFRecords whose index passed the checks."""

    name = "pipeline-dali"
    to = "dali"
    pipeline = "dali"


class Weights(Target):
    """Weights files: the safetensors header, its length, names, shapes, dtypes and values."""

    name = "weights"
    heavy = True

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        import torch

        from fastcifar.config import Config, TrainConfig
        from fastcifar.training import checkpoints, loop

        torch.set_num_threads(1)
        self.torch, self.checkpoints = torch, checkpoints
        self.path = scratch / "weights.safetensors"
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 2))
        self.state = loop.new_state(self.network, Config(train=TrainConfig(averaging="ema")), torch.float32, None)
        for parameter in self.network.parameters():
            parameter.grad = torch.ones_like(parameter)
        for optimizer in self.state.optimizers:
            optimizer.step()
        self.write()
        self.good = self.path.read_bytes()

    def write(self) -> None:
        """A good file."""
        self.checkpoints.save_weights(self.path, self.network, {"model": {"name": "tiny"}, "dataset": "cifar10"})

    def load(self) -> None:
        """What a user's command does."""
        self.checkpoints.load_weights(self.path, self.network)
        for name, value in self.network.state_dict().items():
            assert not value.is_floating_point() or bool(value.isfinite().all()), f"{name} is not finite"

    def read(self, data: bytes) -> None:
        choices = Choices(data)
        mode = choices.below(256) % 4
        if mode == 0:
            raw = choices.rest()
        elif mode == 1:
            raw = edited_bytes(self.good, choices)
        else:
            length = struct.unpack("<Q", self.good[:8])[0]
            header = json.loads(self.good[8 : 8 + length])
            about = json.loads(header["__metadata__"]["fastcifar"])
            if mode == 2:
                header = edited_tree(header, choices)
            else:
                header["__metadata__"]["fastcifar"] = json.dumps(edited_tree(about, choices))
            text = json.dumps(header).encode()
            raw = struct.pack("<Q", len(text)) + text + self.good[8 + length :]
        self.path.write_bytes(raw)
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        try:
            self.load()
        finally:
            self.network.load_state_dict(before)

    def seeds(self) -> list[bytes]:
        # A checkpoint's payload lies at the end: NaNs and infinities there.
        odd = [bytes([1, 6, *(len(self.good) - 4 * i).to_bytes(4, "little"), 4, 0, 0, 192, 127]) for i in range(1, 20)]
        edits = [bytes([mode, *edit]) for mode in (1, 2, 3) for edit in _EDITS]
        return [b"\0" + self.good, *super().seeds(), *edits, *odd]


class Checkpoint(Weights):
    """Checkpoints: network, averages, optimiser and step."""

    name = "checkpoint"

    def write(self) -> None:
        self.checkpoints.save_checkpoint(self.path, self.state, "name = 'tiny'")

    def load(self) -> None:
        self.checkpoints.load_checkpoint(self.path, self.state)
        assert type(self.state.step) is int
        assert self.state.step >= 0


class Recipe(Target):
    """Recipes in TOML, and `--set`."""

    name = "recipe"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        from fastcifar import config

        self.config = config
        self.good = [config.dumps(config.load(name)) for name in config.recipe_names()]
        self.path = scratch / "recipe.toml"

    def seeds(self) -> list[bytes]:
        return [b"\0" + text.encode() for text in self.good] + super().seeds() + [b"\2seed=1", b"\2train.epochs=[1]"]

    def read(self, data: bytes) -> None:
        import tomli_w

        choices = Choices(data)
        match choices.below(256) % 3:
            case 0:
                self.path.write_bytes(choices.rest())
                self._check(self.config.load(str(self.path)))
            case 1:
                tree = edited_tree(tomllib.loads(self.good[choices.below(len(self.good))]), choices)
                try:
                    text = tomli_w.dumps(tree)
                except (TypeError, AttributeError, ValueError):
                    return  # no TOML says that
                self._check(self.config.parse(text, where=str(self.path)))
            case _:
                setting = choices.rest().decode("utf-8", "surrogateescape")
                self._check(self.config.load("speedrun", [setting]))

    def _check(self, read: Any) -> None:
        assert self.config.parse(self.config.dumps(read)) == read, "does not read back equal"

    def says_where(self, message: str) -> bool:
        return bool(re.match(r"([\w.]*'.{1,60}'?|[^:]{1,200}): ", message))


class Run(Target):
    """A run's folder: config.toml and metrics.jsonl, as `--resume` and `evaluate` read them."""

    name = "run-folder"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        from fastcifar import config
        from fastcifar.report import run_folder

        self.run_folder = run_folder
        self.config = config.dumps(config.load("speedrun")).encode()
        self.metrics = b"".join(
            json.dumps({"epoch": e, "step": 10 * e, "loss": 1.0}).encode() + b"\n" for e in (1, 2, 3)
        )

    def seeds(self) -> list[bytes]:
        return [b"\0" + self.config, b"\1" + self.metrics, *super().seeds()]

    def read(self, data: bytes) -> None:
        choices = Choices(data)
        mode = choices.below(256) % 4
        config, metrics = self.config, self.metrics
        if mode == 0:
            config = choices.rest()
        elif mode == 1:
            metrics = choices.rest()
        elif mode == 2:
            config = edited_bytes(config, choices)
        else:
            tree = edited_tree([json.loads(line) for line in metrics.splitlines()], choices)
            metrics = "".join(json.dumps(line) + "\n" for line in tree).encode() if isinstance(tree, list) else b"1"
        (self.scratch / "config.toml").write_bytes(config)
        (self.scratch / "metrics.jsonl").write_bytes(metrics)
        folder = self.run_folder.RunFolder.open(self.scratch)
        folder.read_config()
        folder.keep_metrics_until(20)

    def says_where(self, message: str) -> bool:
        return bool(re.match(r"\S+: ", message))


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


TARGETS: tuple[type[Target], ...] = (
    Unpickle, CifarPython, CifarBinary, Cifar100, Tar, Index, ArtefactNpy, ArtefactFfcv, ArtefactDali, Recipe, Run,
    Submission, Weights, Checkpoint, PipelineFfcv, PipelineDali,
)  # fmt: skip

_EDITS = [bytes([7 * i % 256, 11 * i % 256, 0, 0, 0, i, 255 - i, 128, i]) for i in range(8)]

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


def _artefact(dest: Path, to: str) -> Path:
    from artefact_sets import made_dataset

    from fastcifar import artefacts

    return artefacts.convert(made_dataset(6, 3, (8, 8)), to, dest, fingerprint="f" * 64)


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


def _with_crcs(records: bytes) -> bytes:
    """The same TFRecords, both CRCs of each made right."""
    from crc32c import crc32c

    def masked(data: bytes) -> bytes:
        crc = crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    data, at = bytearray(records), 0
    while at + 16 <= len(data):
        size = struct.unpack_from("<Q", data, at)[0]
        data[at + 8 : at + 12] = masked(bytes(data[at : at + 8]))
        end = at + 12 + size
        if end + 4 > len(data):
            break
        data[end : end + 4] = masked(bytes(data[at + 12 : end]))
        at = end + 4
    return bytes(data)
