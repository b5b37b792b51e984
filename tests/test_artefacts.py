"""Conversion: nothing is lost, the same bytes every time, flat memory, clear errors."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from artefact_sets import FORMATS, bytes_of, made_dataset, made_split
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar import artefacts
from fastcifar.artefacts import beton, npy, tfrecord
from fastcifar.data import DataError, Dataset, Split

formats = pytest.mark.parametrize("to", FORMATS)


def assert_same(found: Split, expected: Split) -> None:
    np.testing.assert_array_equal(found.images_nhwc, expected.images_nhwc)
    np.testing.assert_array_equal(found.labels_n, expected.labels_n)
    assert (found.class_names, found.part) == (expected.class_names, expected.part)


def assert_holds(folder: Path, dataset: Dataset) -> None:
    """The artefact is whole, and is this data set and nothing else."""
    index = artefacts.read_index(folder)
    assert (index.dataset, index.class_names, index.source) == ("noise", dataset.class_names, "made for a test")
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        assert_same(artefacts.read(folder, part), split)
        entry = artefacts.check(folder, part).part(part)
        assert (entry.count, entry.shape) == (len(split), split.images_nhwc.shape[1:])
        assert entry.pixel_sha256 == split.sha256()
        assert entry.label_counts == tuple(np.bincount(split.labels_n, minlength=len(split.class_names)))
        for file in entry.files:
            data = (folder / file.name).read_bytes()
            assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    pixels = dataset.train.images_nhwc / 255
    np.testing.assert_allclose(index.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(index.std, pixels.std(axis=(0, 1, 2)), rtol=1e-9)
    findings = artefacts.verify(folder, dataset)
    assert len(findings) > 8
    assert [finding for finding in findings if not finding.passed] == []


@formats
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_train=st.integers(1, 300),
    num_test=st.integers(1, 20),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    num_classes=st.sampled_from([1, 10, 100, 128, 129, 300, 20_000]),
    seed=st.integers(0, 9),
)
def test_nothing_is_lost(
    tmp_path: Path, to: str, num_train: int, num_test: int, size: tuple[int, int], num_classes: int, seed: int
) -> None:
    dataset = made_dataset(num_train, num_test, size, num_classes, seed)
    assert_holds(artefacts.convert(dataset, to, tmp_path / "a"), dataset)


@formats
@pytest.mark.parametrize(("count", "size"), [(1400, (32, 32)), (25, (256, 256)), (40_000, (2, 3))])
def test_many_chunks_and_pages(tmp_path: Path, to: str, count: int, size: tuple[int, int]) -> None:
    # 1400 of 32x32 are three pages of FFCV and three chunks of TFRecords; 40,000 have indices of one to three bytes.
    dataset = made_dataset(count, 11, size, 100)
    assert_holds(artefacts.convert(dataset, to, tmp_path / "a"), dataset)


@formats
def test_plain_numpy_reads_npy_and_read_takes_any_file_of_an_artefact(tmp_path: Path, to: str) -> None:
    dataset = made_dataset()
    folder = artefacts.convert(dataset, to, tmp_path / "a")
    for name in os.listdir(folder):
        assert_same(artefacts.read(folder / name, "test"), dataset.test)
    if to == "npy":
        images = np.load(folder / "train.images.npy", mmap_mode="r")
        assert isinstance(images, np.memmap)
        np.testing.assert_array_equal(images, dataset.train.images_nhwc)
        labels = np.load(folder / "train.labels.npy")
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(labels, dataset.train.labels_n)


GOLDEN = {
    "test.beton": "1cb0c41ce5e7c7c4",
    "test.idx": "cc1e824038f195ae",
    "test.images.npy": "18279a8950bc7d4d",
    "test.labels.npy": "4a2cf19bd6efd3de",
    "test.tfrecord": "1081b298c0d57cef",
    "train.beton": "0ea2087fe25776dd",
    "train.idx": "54186b1cf31f2b56",
    "train.images.npy": "383d89bf1cb4b0ca",
    "train.labels.npy": "b4fd80b9d6585190",
    "train.tfrecord": "094505ecc9e4ee3e",
}


def test_golden_bytes(tmp_path: Path) -> None:
    """Changed bytes are a changed format: raise `index.VERSION` with them."""
    found = {}
    for to in FORMATS:
        folder = artefacts.convert(made_dataset(300, 20, (5, 7), 200), to, tmp_path / to, fingerprint="f" * 64)
        found |= {name: hashlib.sha256(data).hexdigest()[:16] for name, data in bytes_of(folder).items()}
    del found["index.json"]
    assert found == GOLDEN


@formats
def test_the_same_bytes_every_time(tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = made_dataset(1500)
    first = bytes_of(artefacts.convert(dataset, to, tmp_path / "a"))
    assert bytes_of(artefacts.convert(dataset, to, tmp_path / "b")) == first
    for module in (npy, tfrecord, beton):
        monkeypatch.setattr(module, "CHUNK_BYTES", 12_345)
    assert bytes_of(artefacts.convert(dataset, to, tmp_path / "c")) == first
    assert_same(artefacts.read(tmp_path / "c", "train"), dataset.train)


def repeated(split: Split, copies: int) -> Split:
    images, labels = np.concatenate([split.images_nhwc] * copies), np.concatenate([split.labels_n] * copies)
    return Split(images, labels, split.class_names, split.dataset, split.part, split.source)


@formats
def test_copies_and_mapped_sources_give_the_same_bytes_as_one_large_set(tmp_path: Path, to: str) -> None:
    small = made_dataset(500, 30)
    large = Dataset("noise", repeated(small.train, 4), repeated(small.test, 4))
    expected = bytes_of(artefacts.convert(large, to, tmp_path / "large"))
    assert bytes_of(artefacts.convert(small, to, tmp_path / "copies", copies=4)) == expected
    mapped = artefacts.read(artefacts.convert(large, "npy", tmp_path / "npy"), "train")
    assert isinstance(mapped.images_nhwc, np.memmap)
    train = Split(mapped.images_nhwc, mapped.labels_n, mapped.class_names, "noise", "train", "made for a test")
    again = artefacts.convert(Dataset("noise", train, large.test), to, tmp_path / "mapped")
    assert bytes_of(again) == expected


MEMORY = """
import json, sys
from fastcifar import artefacts, data
def peak_mb():
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
small, large, dest = sys.argv[1:]
peaks = []
for path in (small, large):
    source = data.Dataset("noise", *(artefacts.read(path, part) for part in ("train", "test")))
    for to in ("npy", "ffcv", "dali"):
        folder = artefacts.convert(source, to, dest)
        assert all(finding.passed for finding in artefacts.verify(folder))
    peaks.append(peak_mb())
print(json.dumps(peaks))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc, which is not here")
def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    # 8 MB and 83 MB, both mapped. Up to nine blocks of 2 MB are in memory at a time.
    small = artefacts.convert(made_dataset(150, 20, (128, 128)), "npy", tmp_path / "small")
    large = artefacts.convert(made_dataset(150, 20, (128, 128)), "npy", tmp_path / "large", copies=10)
    command = [sys.executable, "-c", MEMORY, str(small), str(large), str(tmp_path / "a")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    once, ten_times = map(int, done.stdout.strip("[]\n").split(","))
    assert ten_times < once + 48


@formats
def test_progress_rises_to_the_whole_once(tmp_path: Path, to: str) -> None:
    calls: list[tuple[int, int]] = []
    artefacts.convert(made_dataset(3000, 100), to, tmp_path / "a", on_progress=lambda *told: calls.append(told))
    done = [call[0] for call in calls]
    assert len(done) > 2
    assert done == sorted(set(done))
    assert {call[1] for call in calls} == {3100}
    assert done[-1] == 3100


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format: got 'zip', takes one of ffcv, dali, npy"):
        artefacts.convert(made_dataset(), "zip", tmp_path / "a")
    for copies in (0, 1.5, True):
        with pytest.raises(ValueError, match=r"copies: got .*, takes a whole number above 0"):
            artefacts.convert(made_dataset(), "npy", tmp_path / "a", copies=copies)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="part: got 'valid', takes one of train, test"):
        artefacts.read(artefacts.convert(made_dataset(), "npy", tmp_path / "b"), "valid")
    with pytest.raises(ValueError, match="image size: got 900x900, takes for ffcv at most 2,097,152 bytes"):
        artefacts.convert(made_dataset(1, 1, (900, 900)), "ffcv", tmp_path / "a")
    empty = Split(np.empty((0, 4, 4, 3), np.uint8), np.empty(0, np.int64), ("class 0",), "noise", "test", "nowhere")
    with pytest.raises(DataError, match=r"nowhere \(test\): holds no pixels; expected at least one image"):
        artefacts.convert(Dataset("noise", made_split("train", 3, (4, 4), 1), empty), "npy", tmp_path / "a")
    assert os.listdir(tmp_path) == ["b"]


@formats
def test_only_an_artefact_is_replaced(tmp_path: Path, to: str) -> None:
    one, other = made_dataset(seed=1), made_dataset(seed=2)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        assert_holds(artefacts.convert(one, to, tmp_path / name), one)
    assert_holds(artefacts.convert(other, to, tmp_path / "new"), other)
    (tmp_path / "new" / "notes.txt").write_text("mine")
    before = bytes_of(tmp_path / "new")
    with pytest.raises(DataError, match=r"new: holds 'notes.txt'; expected an artefact to replace"):
        artefacts.convert(one, to, tmp_path / "new")
    assert bytes_of(tmp_path / "new") == before
    with pytest.raises(DataError, match=r"notes.txt: is a file; expected a folder"):
        artefacts.convert(one, to, tmp_path / "new" / "notes.txt")
    with pytest.raises(DataError, match=r"notes.txt/.*cannot be written"):
        artefacts.convert(one, to, tmp_path / "new" / "notes.txt" / "a")
    assert sorted(os.listdir(tmp_path)) == ["empty", "new"]


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert artefacts.convert(made_dataset(), "npy", tmp_path / "link") == tmp_path / "real"
    assert (tmp_path / "link").is_symlink()


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"a: 1 MB are free on its disk; expected 1\d MB"):
        artefacts.convert(made_dataset(), "npy", tmp_path / "a")
    assert os.listdir(tmp_path) == []
