"""Opening pipelines: on one's own arrays, with wrong settings, on wrong artefacts, without a library."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipeline_sets import RAW, Sets, pixels, random_split

from fastcifar import pipelines
from fastcifar.data import DataError, Dataset
from fastcifar.kernels import Augmentation
from fastcifar.pipelines import libraries, opening, order

FOR_ARRAYS = ("resident", "torchvision")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    dataset = Dataset("noise", random_split(40, 0), random_split(20, 1, "test"))
    return Sets(tmp_path_factory.mktemp("sets"), dataset)


@pytest.mark.parametrize("name", FOR_ARRAYS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (96, 64), (256, 256)])
@pytest.mark.parametrize("as_tensors", [False, True])
def test_arrays_of_any_size_up_to_256(name: str, height: int, width: int, as_tensors: bool) -> None:
    generator = np.random.default_rng(0)
    images: Any = generator.integers(0, 256, (9, height, width, 3), dtype=np.uint8)
    labels: Any = generator.integers(0, 1000, 9).astype(np.uint16)
    given = (torch.from_numpy(images), torch.from_numpy(labels.astype(np.int32))) if as_tensors else (images, labels)
    with pipelines.open(given, name, batch_size=4, drop_last=False, normalisation=RAW, num_threads=1) as pipeline:
        assert pipeline.num_classes == labels.max() + 1
        batches = [(pixels(b.images), b.labels.clone(), b.indices.clone()) for b in pipeline.epoch(0)]
    assert sorted(torch.cat([indices for *_, indices in batches]).tolist()) == list(range(9))
    for shown, of, indices in batches:
        np.testing.assert_array_equal(shown, images[indices.numpy()])
        np.testing.assert_array_equal(of, labels[indices.numpy()])


def test_the_documented_example_runs() -> None:
    (example,) = re.findall(r"\n\n((?:    .*\n)*?    from fastcifar import (?:.|\n)*?)\n\n", pipelines.__doc__ or "")
    shapes = []
    names = {
        "images_nhwc": np.zeros((600, 40, 48, 3), np.uint8),
        "labels_n": np.arange(600) % 3,
        "train_step": lambda images, labels: shapes.append((tuple(images.shape), images.dtype, tuple(labels.shape))),
    }
    assert len(example.splitlines()) == 5
    exec(textwrap.dedent(example), names)
    assert shapes == [((256, 3, 40, 48), torch.float32, (256,))] * 2


@pytest.mark.parametrize("name", FOR_ARRAYS)
def test_there_may_be_more_classes_than_labels_show(name: str) -> None:
    given = (np.zeros((3, 4, 4, 3), np.uint8), np.array([0, 2, 1]))
    for num_classes in (3, 10):
        with pipelines.open(given, name, batch_size=1, num_classes=num_classes) as pipeline:
            assert pipeline.num_classes == num_classes


@pytest.mark.parametrize(
    ("num_classes", "says"),
    [(2, "labels: got 2, takes classes, 0 to 1"), (0, "num_classes: got 0, takes an integer of at least 1")],
)
def test_classes_that_do_not_fit_are_named(num_classes: int, says: str) -> None:
    with pytest.raises(ValueError) as error:
        pipelines.open((np.zeros((3, 4, 4, 3), np.uint8), np.array([0, 2, 1])), batch_size=1, num_classes=num_classes)
    assert str(error.value) == says


def test_a_split_is_taken_as_it_is_and_normalised_by_itself() -> None:
    split = random_split(50, 2)
    with pipelines.open(split, batch_size=50, shuffle=False) as pipeline:
        (batch,) = pipeline.epoch(0)
        assert pipeline.num_classes == len(split.class_names)
        torch.testing.assert_close(batch.images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.images.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_images_of_one_colour_can_be_normalised() -> None:
    images = np.full((4, 8, 8, 3), 51, dtype=np.uint8)
    with pipelines.open((images, np.zeros(4, dtype=int)), batch_size=4) as pipeline:
        (batch,) = pipeline.epoch(0)
        assert batch.images.abs().max() < 1e-6


def test_images_that_cannot_be_written_to_are_read() -> None:
    split = random_split(10, 3)
    split.images_nhwc.flags.writeable = False
    split.labels_n.flags.writeable = False
    for name in FOR_ARRAYS:
        with pipelines.open(split, name, batch_size=10, normalisation=RAW) as pipeline:
            (batch,) = pipeline.epoch(0)
            np.testing.assert_array_equal(pixels(batch.images), split.images_nhwc[batch.indices.numpy()])


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"name": "webdataset"}, "pipeline: got 'webdataset', takes one of resident, ffcv, dali, torchvision"),
        ({"part": "val"}, "part: got 'val', takes one of train, test"),
        ({"batch_size": 0}, "batch_size: got 0, takes an integer of at least 1"),
        ({"batch_size": 41}, "batch_size: got 41, takes at most the 40 images that there are, or drop_last=False"),
        ({"dtype": "int8"}, "dtype: got 'int8', takes float32, bfloat16, float16"),
        ({"device": "warp"}, "device: got 'warp', takes cpu or cuda"),
        ({"seed": -1}, "seed: got -1, takes an integer from 0 to"),
        ({"num_threads": 0}, "num_threads: got 0, takes an integer of at least 1"),
        ({"rows": [0, 40]}, "rows: got 40, takes 0 to 39"),
        ({"rows": [-1]}, "rows: got -1, takes 0 to 39"),
        ({"rows": []}, "rows: got float64 [0], takes integers [m], one at least"),
        ({"rows": [0.5]}, "rows: got float64 [1], takes integers"),
        ({"num_classes": 7}, "num_classes: got 7, takes None for what names its classes: an artefact, a Split"),
        ({"native": True}, "native: got True, takes False for resident"),
        ({"streaming": True}, "streaming: got True, takes False for resident"),
        ({"augmentation": Augmentation(crop_padding=12)}, "crop_padding: got 12, takes less than the smaller side"),
    ],
)
def test_wrong_settings_are_named(sets: Sets, told: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as error:
        pipelines.open(sets.artefact("resident"), **{"batch_size": 10, **told})
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_the_current_gpu_is_taken_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    found = [opening._device(name) for name in ("cuda", torch.device("cuda"), "cuda:0", "cpu")]
    assert [str(device) for device in found] == ["cuda:1", "cuda:1", "cuda:0", "cpu"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_named(sets: Sets) -> None:
    with pytest.raises(ValueError, match="device: got 'cuda', takes cpu: there is no GPU"):
        pipelines.open(sets.artefact("resident"), batch_size=10, device="cuda")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (7, "artefact: got int, takes"),
        ((np.zeros((2, 4, 4, 3)), np.zeros(2, int)), "images: got float64 [2, 4, 4, 3], takes uint8"),
        (
            (np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, int)),
            "images: got uint8 [2, 3, 4, 4], takes uint8 [n, height",
        ),
        ((np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, int)), "images: got none"),
        ((np.zeros((2, 257, 4, 3), np.uint8), np.zeros(2, int)), "height: got 257"),
        ((np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, int)), "labels: got int64 [3], takes integers [2]"),
        ((np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2)), "labels: got float64 [2], takes integers [2]"),
        ((np.zeros((2, 4, 4, 3), np.uint8), np.array([0, -1])), "labels: got -1, takes classes"),
        ((np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 2**63 + 3], np.uint64)), "labels: got 9223372036854775811, "),
    ],
)
def test_arrays_that_do_not_fit_are_named(given: Any, says: str) -> None:
    with pytest.raises(ValueError) as error:
        pipelines.open(given, batch_size=1)
    assert str(error.value).startswith(says)


@pytest.mark.parametrize("name", ["ffcv", "dali"])
def test_arrays_are_not_for_pipelines_that_read_files(name: str) -> None:
    if pipelines.available(name) is not None:
        pytest.skip(str(pipelines.available(name)))
    with pytest.raises(ValueError, match=f"artefact: got arrays, takes for {name} the folder that `fastcifar convert"):
        pipelines.open(random_split(10, 0), name, batch_size=5)


@pytest.mark.parametrize("name", ["ffcv", "dali"])
def test_an_artefact_of_another_format_is_named(sets: Sets, name: str) -> None:
    if pipelines.available(name) is not None:
        pytest.skip(str(pipelines.available(name)))
    with pytest.raises(DataError) as error:
        pipelines.open(sets.artefact("resident"), name, batch_size=5)
    assert "is an artefact of format npy; expected what `fastcifar convert --to " + pipelines.needs(name) in str(
        error.value
    )


@pytest.mark.parametrize("written_for", pipelines.NAMES)
def test_what_is_held_in_memory_is_read_from_any_format(sets: Sets, written_for: str) -> None:
    with pipelines.open(sets.artefact(written_for), batch_size=40, shuffle=False, normalisation=RAW) as pipeline:
        (batch,) = pipeline.epoch(0)
        np.testing.assert_array_equal(pixels(batch.images), sets.dataset.train.images_nhwc)
        np.testing.assert_array_equal(batch.labels, sets.dataset.train.labels_n)


@pytest.mark.parametrize("name", ["ffcv", "dali", "torchvision"])
def test_a_file_that_was_cut_off_is_named(sets: Sets, tmp_path: Path, name: str) -> None:
    if pipelines.available(name) is not None:
        pytest.skip(str(pipelines.available(name)))
    folder = tmp_path / "cut"
    shutil.copytree(sets.artefact(name), folder)
    path = max(folder.glob("train.*"), key=lambda file: file.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=path.name):
        pipelines.open(folder, name, batch_size=5)


@pytest.mark.parametrize(
    ("name", "library"), [("ffcv", "ffcv"), ("dali", "nvidia.dali"), ("torchvision", "torchvision")]
)
def test_a_missing_library_is_one_sentence(
    sets: Sets, monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    def without_it(package: str) -> ModuleSpec | None:
        return None if package == library else find_spec(package)

    monkeypatch.setattr(libraries, "find_spec", without_it)
    sentence = pipelines.available(name)
    assert sentence is not None
    assert f"needs {library}, which is not installed: " in sentence
    assert "pip install" in sentence
    assert "\n" not in sentence
    with pytest.raises(libraries.MissingLibraryError) as error:
        pipelines.open(sets.artefact(name), name, batch_size=5)
    assert str(error.value) == sentence
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(("name", "module"), [("ffcv", "fastcifar.pipelines.ffcv_parts"), ("dali", "nvidia.dali.fn")])
def test_a_library_that_does_not_import_is_one_sentence(
    sets: Sets, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    if pipelines.available(name) is not None:
        pytest.skip(str(pipelines.available(name)))
    monkeypatch.setitem(sys.modules, module, None)
    if name == "ffcv":
        monkeypatch.delattr(pipelines, "ffcv_parts", raising=False)
    with pytest.raises(libraries.MissingLibraryError, match=r"does not import here .*: .*pip install"):
        sets.open(name)


def test_libraries_that_are_here_are_available() -> None:
    assert pipelines.available("resident") is None
    with pytest.raises(ValueError, match="pipeline: got 'x'"):
        pipelines.available("x")
    assert [pipelines.needs(name) for name in pipelines.NAMES] == ["npy", "ffcv", "dali", "npy"]


def test_nothing_heavy_is_imported_to_ask_what_there_is() -> None:
    code = (
        "import json, sys; from fastcifar import pipelines;"
        "found = {n: (pipelines.available(n), pipelines.needs(n)) for n in pipelines.NAMES};"
        "print(json.dumps(sorted({'torch', 'numpy', 'numba', 'ffcv', 'nvidia.dali', 'cv2'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@given(
    num=st.integers(1, 3000),
    image_bytes=st.sampled_from([3 * 32 * 32 * 32, 196_608]),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 50),
    subset=st.booleans(),
)
def test_a_streamed_order_shows_all_rows_once_and_stays_in_its_window(
    num: int, image_bytes: int, seed: int, epoch: int, subset: bool
) -> None:
    rows = np.arange(num)[:: 3 if subset else 1]
    shown = order.streamed(rows, image_bytes, seed, epoch)
    np.testing.assert_array_equal(np.sort(shown), rows)
    np.testing.assert_array_equal(order.streamed(rows, image_bytes, seed, epoch), shown)
    blocks = (shown // (order.BLOCK_BYTES // image_bytes)).tolist()
    first = {block: blocks.index(block) for block in set(blocks)}
    last = {block: len(blocks) - 1 - blocks[::-1].index(block) for block in set(blocks)}
    for position in set(first.values()):
        assert sum(first[b] <= position <= last[b] for b in first) <= order.WINDOW_BLOCKS
