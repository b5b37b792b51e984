"""Data sets at the edges, through the real command: odd labels, constant images, sets smaller than a batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_files import make

from fastcifar import artefacts, pipelines
from fastcifar.cli import main
from fastcifar.data import DataError, Dataset, Split

SMALL = ["train.epochs=1", "model.widths=[8, 16, 16]", "train.whiten_epochs=1"]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(folder: Path, out: Path, *settings: str) -> int:
    told = [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
    return main(["train", "--data", str(folder), "--out", str(out), *told])


def card(out: Path) -> dict:
    return json.loads((out / "card.json").read_text())


def test_a_last_batch_that_is_short_and_a_batch_of_one(tmp_path: Path) -> None:
    folder = make(tmp_path, num_test=7).path  # 35 training images
    assert train(folder, tmp_path / "a", "pipeline.batch_size=10", "evaluate.batch_size=4") == 0
    assert card(tmp_path / "a")["num_test"] == 7


def test_a_set_smaller_than_a_batch_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path, num_test=2).path
    assert train(folder, tmp_path / "a", "pipeline.batch_size=500") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "pipeline.batch_size: got 500, takes at most the 10 images to train on" in said


def test_a_batch_of_one_trains(tmp_path: Path) -> None:
    folder = make(tmp_path, num_test=2).path
    assert train(folder, tmp_path / "a", "pipeline.batch_size=1") == 0
    told = card(tmp_path / "a")
    assert (told["num_train"], told["batch_size"], told["skipped_steps"]) == (10, 1, 0)


def test_a_hundred_classes(tmp_path: Path) -> None:
    folder = make(tmp_path, "cifar100", num_test=20).path  # of most classes, no test image
    assert train(folder, tmp_path / "a", "pipeline.batch_size=50", "data.dataset=cifar100") == 0
    assert card(tmp_path / "a")["dataset"] == "cifar100-small"


def sets(images_nhwc: np.ndarray, num_classes: int = 2) -> Dataset:
    labels_n = np.arange(len(images_nhwc)) % num_classes
    names = tuple(f"class {label}" for label in range(num_classes + 1))  # the last one is empty
    return Dataset("odd", *(Split(images_nhwc, labels_n, names, "odd", part, "made") for part in ("train", "test")))


@pytest.mark.parametrize("name", pipelines.NAMES)
def test_constant_images_and_an_empty_class_give_finite_batches(tmp_path: Path, name: str) -> None:
    if pipelines.available(name) is not None:
        pytest.skip(str(pipelines.available(name)))
    images_nhwc = np.full((12, 8, 8, 3), 77, np.uint8)
    images_nhwc[..., 1] = np.arange(12)[:, None, None]  # red and blue do not vary at all
    path = artefacts.convert(sets(images_nhwc), pipelines.needs(name), tmp_path / "a")
    with pipelines.open(path, name, batch_size=5, drop_last=False, num_threads=1) as pipeline:
        batches = [(batch.images.clone(), batch.labels.clone()) for batch in pipeline.epoch(0)]
    assert [len(labels) for _, labels in batches] == [5, 5, 2]
    assert all(bool(images.isfinite().all()) for images, _ in batches)


def test_what_dali_reads_is_checked(tmp_path: Path) -> None:
    """Its records are read by nobody before it: labels, order and that they are records at all."""
    if (why := pipelines.available("dali")) is not None:
        pytest.skip(why)
    images_nhwc = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    path = artefacts.convert(sets(images_nhwc), "dali", tmp_path / "dali")
    records = path / "train.tfrecord"
    good = records.read_bytes()
    num_bytes = len(good) // 12
    label = good.index(b"\n\x01", good.index(b"label")) + 2
    assert good[label] == 0
    for damaged, message in (
        (good[:label] + b"\x09" + good[label + 1 :], "labels reach from 0 to 9; expected 0 to 2"),
        (good[num_bytes : 2 * num_bytes] + good[:num_bytes] + good[2 * num_bytes :], "records in another order"),
        (good[:12] + b"\xff" * 8 + good[20:], "holds records that DALI cannot read"),
    ):
        records.write_bytes(damaged)
        with (
            pipelines.open(path, "dali", batch_size=4, num_threads=1) as pipeline,
            pytest.raises(DataError, match=rf"train\.tfrecord: .*{message}"),
        ):
            list(pipeline.epoch(0))


def test_a_label_out_of_range_in_a_beton_is_refused(tmp_path: Path) -> None:
    images_nhwc = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    path = artefacts.convert(sets(images_nhwc), "ffcv", tmp_path / "ffcv")
    beton = path / "train.beton"
    data = bytearray(beton.read_bytes())
    at = 24 + 3 * 1041 + 16  # the first sample's label
    data[at : at + 8] = (3).to_bytes(8, "little")
    beton.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"train\.beton: image 0 has label 3; expected 0 to 2"):
        artefacts.check(path, "train")
