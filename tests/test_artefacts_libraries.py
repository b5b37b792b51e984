"""What is written is what FFCV and DALI read: each in a process of its own, by its own readers alone."""

import hashlib
import importlib.util
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from artefact_sets import made_dataset

from fastcifar import artefacts, data
from fastcifar.data import Dataset, Split

needs_ffcv = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed")
needs_dali = pytest.mark.skipif(importlib.util.find_spec("nvidia.dali") is None, reason="DALI is not installed")

FFCV = """
import hashlib
import sys
import numba.typed
import numpy as np
# At import FFCV compiles a typed dictionary, for seconds, to hold two constants: a plain one holds them as well.
numba.typed.Dict = dict
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from ffcv.writer import DatasetWriter

class Triples:
    def __init__(self, reader, path):
        image, memory = reader.metadata["f0"], np.fromfile(path, np.uint8)
        shape = (int(image["height"][0]), int(image["width"][0]), 3)
        size = int(np.prod(shape))
        self.images = np.stack([memory[at : at + size].reshape(shape) for at in image["data_ptr"].tolist()])
        self.labels = reader.metadata["f1"]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], int(self.labels[i]), i

def write(path, triples):
    fields = {"image": RGBImageField(), "label": IntField(), "index": IntField()}
    DatasetWriter(path, fields, page_size=1 << 21, num_workers=1).from_indexed_dataset(triples)

for path in sys.argv[1:]:
    reader = Reader(path)
    found = {"names": reader.field_names, "page_size": reader.page_size}
    found["kinds"] = [type(reader.handlers[name]).__name__ for name in reader.field_names]
    if path.endswith("usual/train.beton"):
        decoders = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()], "index": [IntDecoder()]}
        loader = Loader(path, batch_size=500, num_workers=1, order=OrderOption.SEQUENTIAL, os_cache=True,
                        drop_last=False, pipelines=decoders)
        batches = [[part.copy() for part in batch] for batch in loader]
        images, found["labels"], found["indices"] = (np.concatenate(parts) for parts in zip(*batches))
    else:
        triples = Triples(reader, path)
        images, found["labels"], found["indices"] = triples.images, triples.labels, reader.metadata["f2"]
        if "usual" not in path:
            write(path + ".ffcv", triples)
    np.savez(path + ".npz", images=hashlib.sha256(images).hexdigest(), shape=images.shape, **found)
"""

DALI = """
import hashlib
import sys
import numpy as np
from nvidia.dali import Pipeline, fn, tfrecord

for path in sys.argv[1:]:
    with Pipeline(batch_size=500, num_threads=2, device_id=None) as pipeline:
        number = tfrecord.FixedLenFeature([1], tfrecord.int64, -1)
        features = {
            "image": tfrecord.FixedLenFeature((), tfrecord.string, ""),
            "label": number,
            "index": number,
            "shape": tfrecord.FixedLenFeature([3], tfrecord.int64, -1),
        }
        read = fn.readers.tfrecord(
            path=[path], index_path=[path.replace(".tfrecord", ".idx")], features=features, name="reader"
        )
        image = fn.reshape(read["image"], shape=read["shape"], layout="HWC")
        pipeline.set_outputs(image, read["label"], read["index"], read["shape"])
    pipeline.build()
    count = pipeline.epoch_size("reader")
    batches = [[part.as_array().copy() for part in pipeline.run()] for _ in range(-(-count // 500))]
    images, labels, indices, shapes = (np.concatenate(parts)[:count] for parts in zip(*batches))
    np.savez(path + ".npz", images=hashlib.sha256(images).hexdigest(), shape=images.shape, labels=labels,
             indices=indices, shapes=shapes)
"""


@pytest.fixture(scope="module")
def sets(real_or_made: Dataset) -> dict[str, Dataset]:
    # Three pages of FFCV, the last not full, and one.
    return {"usual": real_or_made, "odd": made_dataset(1500, 30, (31, 33), 300)}


@pytest.fixture(scope="module")
def real_or_made(request: pytest.FixtureRequest) -> Dataset:
    """Real CIFAR-10 where it can be had; else noise in its shape."""
    try:
        return data.load("cifar10", request.getfixturevalue("real_cifar10"))
    except pytest.skip.Exception:
        return made_dataset(1500, 700)


def run(code: str, *paths: Path) -> dict[Path, dict[str, np.ndarray]]:
    # Numba's TBB, which FFCV's OpenCV brings, may not let a process of one core end.
    environment = {**os.environ, "NUMBA_THREADING_LAYER": "omp"}
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return {path: dict(np.load(f"{path}.npz")) for path in paths}


def assert_holds(found: dict[str, np.ndarray], split: Split) -> None:
    assert tuple(found["shape"]) == split.images_nhwc.shape
    assert str(found["images"]) == hashlib.sha256(split.images_nhwc).hexdigest()
    np.testing.assert_array_equal(found["labels"].reshape(-1), split.labels_n)
    np.testing.assert_array_equal(found["indices"].reshape(-1), np.arange(len(split)))


@needs_ffcv
def test_ffcv_reads_every_pixel_and_would_have_written_the_same_bytes(tmp_path: Path, sets: dict[str, Dataset]) -> None:
    splits = {}
    for name, dataset in sets.items():
        folder = artefacts.convert(dataset, "ffcv", tmp_path / name)
        splits |= {folder / "train.beton": dataset.train, folder / "test.beton": dataset.test}
    for path, found in run(FFCV, *splits).items():  # the usual training part by its Loader, the rest by its Reader
        assert_holds(found, splits[path])
        assert found["names"].tolist() == ["image", "label", "index"]
        assert found["kinds"].tolist() == ["RGBImageField", "IntField", "IntField"]
        assert found["page_size"] == 1 << 21
        if path.parent.name == "odd":
            assert Path(f"{path}.ffcv").read_bytes() == path.read_bytes()


@needs_dali
def test_dali_reads_every_pixel(tmp_path: Path, sets: dict[str, Dataset]) -> None:
    splits = {}
    for name, dataset in sets.items():
        folder = artefacts.convert(dataset, "dali", tmp_path / name)
        splits |= {folder / "train.tfrecord": dataset.train, folder / "test.tfrecord": dataset.test}
    for path, found in run(DALI, *splits).items():
        assert_holds(found, splits[path])
        np.testing.assert_array_equal(found["shapes"], [splits[path].images_nhwc.shape[1:]] * len(splits[path]))


def plain_crc32c(message: bytes) -> int:
    """CRC-32C bit by bit, as RFC 3720 (appendix B.4) has it, masked as TensorFlow's record_writer does."""
    crc = 0xFFFFFFFF
    for byte in message:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def plain_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not data[at - 1] & 0x80:
            return value, at


def plain_fields(data: bytes) -> list[tuple[int, bytes]]:
    """Numbers and contents of a message whose fields are all length-delimited."""
    fields, at = [], 0
    while at < len(data):
        tag, at = plain_varint(data, at)
        assert tag & 7 == 2
        length, at = plain_varint(data, at)
        fields.append((tag >> 3, data[at : at + length]))
        at += length
    assert at == len(data)
    return fields


def plain_numbers(data: bytes) -> list[int]:
    numbers, at = [], 0
    while at < len(data):
        number, at = plain_varint(data, at)
        numbers.append(number)
    return numbers


def test_records_are_framed_examples_with_an_index_as_tfrecord2idx_writes_it(tmp_path: Path) -> None:
    dataset = made_dataset(140, 3, (3, 5), 300)
    folder = artefacts.convert(dataset, "dali", tmp_path / "a")
    content = (folder / "train.tfrecord").read_bytes()
    lines, at = [], 0
    for index, (image, label) in enumerate(zip(dataset.train.images_nhwc, dataset.train.labels_n, strict=True)):
        frame, (length,) = content[at : at + 8], struct.unpack_from("<Q", content, at)
        payload = content[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", content, at + 8)[0] == plain_crc32c(frame)
        assert struct.unpack_from("<I", content, at + 12 + length)[0] == plain_crc32c(payload)
        ((features_number, features),) = plain_fields(payload)
        assert features_number == 1
        found = {}
        for number, entry in plain_fields(features):
            (_, name), (_, feature) = plain_fields(entry)
            ((kind, values),) = plain_fields(feature)
            ((_, value),) = plain_fields(values)
            assert number == 1
            found[name] = value if kind == 1 else plain_numbers(value)
        assert found == {b"image": image.tobytes(), b"index": [index], b"label": [label], b"shape": [3, 5, 3]}
        lines.append(f"{at} {length + 16}\n")
        at += length + 16
    assert at == len(content)
    assert (folder / "train.idx").read_text() == "".join(lines)
