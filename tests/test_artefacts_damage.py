"""Damaged, cut off and forged artefacts: each is noticed, and said in one line that names the file."""

import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artefact_sets import FORMATS, made_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar import artefacts
from fastcifar.artefacts.index import dumps
from fastcifar.data import DataError, Dataset, Split

formats = pytest.mark.parametrize("to", FORMATS)
DATASET = made_dataset(40, 5, (6, 7), 200)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    return {to: artefacts.convert(DATASET, to, folder / to) for to in FORMATS}


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path, to: str) -> Path:
    """A copy to damage."""
    copy = tmp_path / "a"
    copy.mkdir()
    for path in made[to].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def failed(path: Path, against: Dataset | None = None) -> list[str]:
    return [finding.check for finding in artefacts.verify(path, against) if not finding.passed]


def change(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def assert_refused_or_read(folder: Path) -> None:
    """Whatever the damage, reading ends in a `DataError` or in a split; never in a crash."""
    for part in ("train", "test"):
        try:
            artefacts.check(folder, part)
            artefacts.read(folder, part)
        except DataError as error:
            assert str(folder) in str(error)
            assert "\n" not in str(error)


@formats
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.data(), flip=st.integers(1, 255))
def test_verify_finds_any_changed_byte(folder: Path, to: str, chosen: Any, flip: int) -> None:
    path = folder / chosen.draw(st.sampled_from(sorted(os.listdir(folder))))
    before = path.read_bytes()
    # Half of the positions where there is more to break than pixels and zeros.
    positions = st.one_of(st.integers(0, len(before) - 1), st.integers(0, min(len(before), 5000) - 1))
    offset = chosen.draw(positions)
    change(path, offset, bytes([before[offset] ^ flip]))
    try:
        assert failed(folder)
        assert_refused_or_read(folder)
    finally:
        change(path, offset, before[offset : offset + 1])
    assert not failed(folder)


def test_any_changed_byte_of_the_index_is_noticed(tmp_path: Path) -> None:
    path = artefacts.convert(made_dataset(9, 9, (2, 2), 3), "npy", tmp_path / "a") / "index.json"
    good = path.read_bytes()
    for offset in range(len(good)):
        flip = (0x01, 0x02, 0x10, 0x20, 0x80)[offset % 5]
        path.write_bytes(good[:offset] + bytes([good[offset] ^ flip]) + good[offset + 1 :])
        with pytest.raises(DataError, match=r"index.json: "):
            artefacts.read_index(path)


@formats
def test_lengths(folder: Path, to: str) -> None:
    for name in sorted(os.listdir(folder)):
        path = folder / name
        good = path.read_bytes()
        for data in (b"", good[: len(good) // 2], good[:-1], good + b"\0"):
            path.write_bytes(data)
            assert failed(folder)
            if name != "index.json":
                part = name.partition(".")[0]
                with pytest.raises(DataError, match=rf"{name}: .*; expected "):
                    artefacts.read(folder, part)
                with pytest.raises(DataError, match=rf"{name}: .*; expected "):
                    artefacts.check(folder, part)
        path.unlink()
        assert failed(folder)
        with pytest.raises(DataError, match=name):
            artefacts.read(folder, name.partition(".")[0] if name != "index.json" else "train")
        os.mkfifo(path)  # would block for ever if it were just opened
        with pytest.raises(DataError, match=rf"{name}: is no plain file"):
            artefacts.read(folder, name.partition(".")[0] if name != "index.json" else "train")
        path.unlink()
        path.write_bytes(good)
    assert not failed(folder)


HEADER_CHANGES = [
    (0, "<H", 3, "version is 3; expected 2"),
    (2, "<H", 4, "num_fields is 4; expected 3"),
    (2, "<H", 65535, "num_fields is 65535; expected 3"),
    (4, "<I", 0, "page_size is 0; expected 2097152"),
    (4, "<I", 4096, "page_size is 4096; expected 2097152"),
    (8, "<Q", 2**62, "num_samples is 4611686018427387904; expected 40"),
    (8, "<Q", 39, "num_samples is 39; expected 40"),
    (16, "<Q", 2**63, "alloc_table_ptr is 9223372036854775808; expected 4194304"),
    (24, "<B", 255, "field 0 is 'image' of type 255; expected 'image' of type 2"),
    (25, "<B", ord("I"), "field 0 is 'Image' of type 2; expected 'image' of type 2"),
    (24 + 1041 + 17, "<B", 1, "field 1 is 'label' of type 1; expected 'label' of type 1, without arguments"),
    (3147, "<B", 0, "mode of image 0 is 0; expected 1"),
    (3147 + 32 + 1, "<H", 900, "width of image 1 is 900; expected 7"),
    (3147 + 32 + 3, "<H", 900, "height of image 1 is 900; expected 6"),
    (3147 + 7 * 32 + 5, "<Q", 2**60, "data_ptr of image 7 is 1152921504606846976; expected 2098034"),
    (3147 + 7 * 32 + 16, "<q", -1, "image 7 has label -1; expected 0 to 199"),
    (3147 + 7 * 32 + 16, "<q", 200, "image 7 has label 200; expected 0 to 199"),
    (3147 + 7 * 32 + 24, "<q", 8, "index of image 7 is 8; expected 7"),
    (2**22, "<Q", 9, "sample_id of allocation 0 is 9; expected 0"),
    (2**22 + 24 + 8, "<Q", 0, "ptr of allocation 1 is 0; expected 2097278"),
    (2**22 + 24 + 16, "<Q", 2**40, "size of allocation 1 is 1099511627776; expected 126"),
]


@pytest.mark.parametrize("to", ["ffcv"])
@pytest.mark.parametrize(("offset", "kind", "value", "said"), HEADER_CHANGES)
def test_no_number_in_a_beton_is_trusted(folder: Path, to: str, offset: int, kind: str, value: int, said: str) -> None:
    change(folder / "train.beton", offset, struct.pack(kind, value))
    for call in (artefacts.read, artefacts.check):
        if call is artefacts.check and "label" in said and "field" not in said:
            continue
        with pytest.raises(DataError) as raised:
            call(folder, "train")
        assert str(raised.value).startswith(f"{folder / 'train.beton'}: {said}")


RECORD_CHANGES = [
    (0, struct.pack("<Q", 2**63), r"the record of image 0 has 9223372036854775808 bytes; expected "),
    (0, struct.pack("<Q", 5), r"the record of image 0 has 5 bytes; expected "),
    (8, b"\0\0\0\0", r"the record of image 0 begins in another form; expected our own"),
    (100, b"\x55\xaa\x55", r"the record of image 0 is damaged; expected its CRC-32C"),
]


@pytest.mark.parametrize("to", ["dali"])
@pytest.mark.parametrize(("offset", "data", "said"), RECORD_CHANGES)
def test_damaged_records(folder: Path, to: str, offset: int, data: bytes, said: str) -> None:
    change(folder / "train.tfrecord", offset, data)
    with pytest.raises(DataError, match=rf"train.tfrecord: {said}"):
        artefacts.read(folder, "train")


@pytest.mark.parametrize("to", ["dali"])
@pytest.mark.parametrize("line", ["-5 213", "0 9", "0 " + "9" * 5000, "0", "a b", "0  213", "\u0660 213"])
def test_an_index_that_names_other_bytes(folder: Path, to: str, line: str) -> None:
    lines = (folder / "train.idx").read_text().splitlines()
    text = "\n".join([line, *lines[1:]]) + "\n"
    (folder / "train.idx").write_text(text, encoding="utf-8")
    forge(folder, "train", 1, bytes=len(text.encode()))
    with pytest.raises(DataError, match=r"train.idx: line 1 is .*; expected 0 213 or 214"):
        artefacts.check(folder, "train")
    with pytest.raises(DataError, match=r"train.idx: "):
        artefacts.read(folder, "train")


def forge(folder: Path, part: str, file: int | None = None, **changes: Any) -> None:
    """Change what the index says of a part or of one of its files, and its digest with it."""
    index = artefacts.read_index(folder)
    entry = index.part(part)
    if file is not None:
        files = list(entry.files)
        files[file] = replace(files[file], **changes)
        changes = {"files": tuple(files)}
    (folder / "index.json").write_bytes(dumps(replace(index, **{part: replace(entry, **changes)})))


@formats
def test_a_forged_index_asks_for_no_memory(folder: Path, to: str) -> None:
    for count in (2**40, 41, 39):
        counts = np.array(artefacts.read_index(folder).train.label_counts)
        counts[counts.argmax()] += count - counts.sum()
        forge(folder, "train", count=count, label_counts=tuple(counts.tolist()))
        for call in (artefacts.read, artefacts.check):
            with pytest.raises(DataError, match=rf"{folder / 'train'}.*; expected "):
                call(folder, "train")
    index = artefacts.read_index(folder)
    large = {part: replace(index.part(part), shape=(60_000, 60_000, 3)) for part in ("train", "test")}
    (folder / "index.json").write_bytes(dumps(replace(index, **large)))
    for call in (artefacts.read, artefacts.check):
        with pytest.raises(DataError, match=rf"{folder / 'test'}.*; expected "):
            call(folder, "test")


@formats
def test_pixels_are_compared_with_the_source(folder: Path, to: str) -> None:
    # Hashes that fit do not help: the source has other pixels, or labels, or classes.
    images = DATASET.train.images_nhwc.copy()
    images[17, 0, 0, 0] ^= 1
    labels = DATASET.train.labels_n.copy()
    labels[20] = (labels[20] + 1) % 200
    for other in (replace(DATASET.train, images_nhwc=images), replace(DATASET.train, labels_n=labels)):
        assert failed(folder, Dataset("noise", other, DATASET.test)) == ["train against its source"]
    details = {
        finding.check: finding.detail for finding in artefacts.verify(folder, Dataset("noise", other, DATASET.test))
    }
    assert details["train against its source"].startswith("1 of 40 images or labels differ, the first at 20; expected")
    assert failed(folder, made_dataset(40, 6, (6, 7), 200)) == ["test against its source"]
    renamed = tuple(f"kind {label}" for label in range(200))
    parts = (replace(split, class_names=renamed) for split in (DATASET.train, DATASET.test))
    assert failed(folder, Dataset("noise", *parts)) == ["class names against their source"]


def test_what_is_no_artefact(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing: is not there; expected the folder of an artefact"):
        artefacts.read_index(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"holds no index.json; expected an artefact that `fastcifar convert` wrote"):
        artefacts.read_index(tmp_path)


INDEX_CHANGES = [
    ("format", "zip", "format is 'zip'; expected ffcv or dali or npy"),
    ("version", 2, "version is 2; expected 1; convert again"),
    ("class_names", [], "class_names is 0 values; expected a list"),
    ("class_names", [1], "class_names is 1; expected text"),
    ("mean", [0.1, 0.2], "mean is 2 values; expected a list of 3"),
    ("mean", [0.1, 0.2, float("nan")], "mean is not three numbers"),
    ("mean", [0, 0.2, 0.3], "mean is not three numbers"),
    ("source", None, "source is None; expected text"),
    ("train", [], "train is a list; expected an object"),
    ("train.count", -1, "train.count is -1; expected a whole number"),
    ("train.count", 10**30, "train.count is a huge number; expected a whole number"),
    ("train.count", 40.0, "train.count is a float; expected a whole number"),
    ("train.count", True, "train.count is True; expected a whole number"),
    ("train.count", 41, "train.label_counts add up to 40; expected 41"),
    ("train.shape", [6, 7, 4], "train.shape is 4; expected a whole number from 3 to 3"),
    ("train.shape", [5, 7, 3], "shape is [5, 7, 3] in train and [6, 7, 3] in test; expected the same in both"),
    ("train.pixel_sha256", "0" * 63, "train.pixel_sha256 is '0000"),
    ("train.label_counts", [1] * 3, "label_counts is 3 values; expected a list of 200"),
    ("train.files", [{"name": "../x", "bytes": 1, "sha256": "0" * 64}] * 2, "train.files are '../x, ../x'; expected"),
    ("extra", 1, "it holds 'extra'"),
    ("tool", ..., "it lacks 'tool'"),
]


@pytest.mark.parametrize(("key", "value", "said"), INDEX_CHANGES)
def test_every_entry_of_the_index_is_checked(
    made: dict[str, Path], tmp_path: Path, key: str, value: Any, said: str
) -> None:
    content = json.loads((made["npy"] / "index.json").read_bytes())
    *path, last = key.split(".")
    place = content
    for name in path:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as raised:
        artefacts.read_index(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / 'index.json'}: {said}")


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff", b"null", b"1" * 10_000, b"{}"])
def test_an_index_that_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "index.json").write_bytes(data)
    with pytest.raises(DataError, match=r"index.json: .*; expected "):
        artefacts.read_index(tmp_path)


def test_labels_are_checked_against_the_classes(tmp_path: Path) -> None:
    wide = made_dataset(40, 5, (6, 7), 100)
    names = wide.class_names[:10]
    for to in FORMATS:
        folder = artefacts.convert(wide, to, tmp_path / to)
        index = artefacts.read_index(folder)
        parts = {
            name: replace(index.part(name), label_counts=(index.part(name).count, *[0] * 9))
            for name in ("train", "test")
        }
        (folder / "index.json").write_bytes(dumps(replace(index, class_names=names, **parts)))
        with pytest.raises(DataError, match=r"image \d+ has label \d+; expected 0 to 9"):
            artefacts.read(folder, "train")


def test_a_split_read_back_is_one_like_any_other(made: dict[str, Path]) -> None:
    split = artefacts.read(made["npy"], "train")
    assert isinstance(split, Split)
    assert split.sha256() == DATASET.train.sha256()
    assert not split.images_nhwc.flags.writeable
