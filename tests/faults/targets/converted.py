"""Readers of artefacts: `index.json`, `.npy`, `.beton`, TFRecords, and the loaders that run on them."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from faults.edits import Choices, edited_bytes, edited_tree
from faults.targets.target import EDITS, Target


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
        return _sealed(content) if isinstance(content, dict) else json.dumps(content).encode()


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
            _put(self.folder / "index.json", _sealed(content))
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
        more = [bytes([4 * i + mode, *edit]) for i in range(4) for mode in (0, 1, 2, 3) for edit in EDITS]
        return super().seeds() + more


class ArtefactNpy(Artefact):
    """`.npy` pairs."""

    name = "npy"
    to = "npy"


class ArtefactFfcv(Artefact):
    """`.beton`, as it is checked before FFCV maps it."""

    name = "beton"
    to = "ffcv"


class ArtefactDali(Artefact):
    """TFRecords and their index."""

    name = "tfrecord"
    to = "dali"


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


def _artefact(dest: Path, to: str) -> Path:
    from artefact_sets import made_dataset

    from fastcifar import artefacts

    return artefacts.convert(made_dataset(6, 3, (8, 8)), to, dest, fingerprint="f" * 64)


def _sealed(content: dict[str, Any]) -> bytes:
    """An index's text, its digest among it."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1).encode() + b"\n"


def _put(path: Path, data: bytes) -> None:
    """Put a file in the place of another, as artefacts are written: one that is still mapped must not shrink."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


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
