"""What holds of ffcv, dali and torchvision each: streaming, native forms, caching, no traces in the process."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_sets import RAW, Sets, assert_same, pixels, random_split, values

from fastcifar import pipelines
from fastcifar.data import DataError, Dataset
from fastcifar.kernels import Augmentation, Normalisation

PADDING = 2
CROP_FLIP = Augmentation(crop_padding=PADDING, padding_mode="constant", flip="random")
# FFCV compiles for each normalisation and number of threads: the tests share one of each.
NORMALISATION = Normalisation((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
NATIVE = {"native": True, "num_threads": 1, "normalisation": NORMALISATION}
streamers = pytest.mark.parametrize("name", ["ffcv", "dali"])


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    dataset = Dataset("noise", random_split(107, 0), random_split(33, 1, "test"))
    return Sets(tmp_path_factory.mktemp("sets"), dataset)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """Images of 48 KB, 43 a page of FFCV: 21 pages, more than are shuffled at once."""
    dataset = Dataset("large", random_split(900, 2, size=(128, 128)), random_split(2, 3, "test", size=(128, 128)))
    return Sets(tmp_path_factory.mktemp("large"), dataset)


@streamers
def test_streaming_shows_every_image_once(large: Sets, name: str) -> None:
    images = large.dataset.train.images_nhwc
    orders = []
    with large.open(name, streaming=True, batch_size=64, drop_last=False) as pipeline:
        for epoch in (0, 1):
            seen = []
            for batch in pipeline.epoch(epoch):
                np.testing.assert_array_equal(pixels(batch.images), images[batch.indices.numpy()])
                seen.append(batch.indices.numpy().copy())
            orders.append(np.concatenate(seen))
            np.testing.assert_array_equal(np.sort(orders[-1]), np.arange(len(images)))
        assert not np.array_equal(*orders)
        rest = [batch.indices.numpy().copy() for batch in pipeline.epoch(1, first_step=9)]
        np.testing.assert_array_equal(np.concatenate(rest), orders[1][9 * 64 :])


def test_streaming_is_the_same_from_both(large: Sets) -> None:
    told = {"streaming": True, "batch_size": 64, "augmentation": Augmentation(crop_padding=4, cutmix=1.0), "seed": 5}
    batches = []
    for name in ("ffcv", "dali"):
        with large.open(name, **told) as pipeline:
            batches.append([values(batch) for batch in pipeline.epoch(3)])
    assert_same(*batches)


def test_streaming_by_ffcv_holds_a_few_pages(large: Sets) -> None:
    rows = np.arange(0, 900, 2)
    with large.open("ffcv", streaming=True, batch_size=10, rows=rows) as pipeline:
        reading = pipeline._loader.epoch(pipeline.order(0))
        try:
            assert reading.memory_context.memory.shape[0] <= 2 * 16 + 1
        finally:
            reading.stop()
    with large.open("ffcv", streaming=True, batch_size=10, shuffle=False) as pipeline:
        reading = pipeline._loader.epoch(pipeline.order(0))
        try:
            assert reading.memory_context.memory.shape[0] <= 4
        finally:
            reading.stop()


@streamers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_native_forms_normalise_as_the_kernel_does(sets: Sets, name: str, dtype: torch.dtype) -> None:
    told = {"normalisation": NORMALISATION, "dtype": dtype, "drop_last": False, "shuffle": False}
    with sets.open("resident", **told) as pipeline:
        expected = [(batch.images.clone(), batch.labels.clone()) for batch in pipeline.epoch(0)]
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    with sets.open(name, **told | NATIVE) as pipeline:
        batches = pipeline.epoch(0)
        for (images, labels), batch in zip(expected, batches, strict=True):
            assert batch.images.dtype == dtype
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(batch.images, images, atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(batch.labels, labels)


@pytest.mark.parametrize("name", ["ffcv", "dali", "torchvision"])
def test_their_own_crop_and_flip_give_a_crop_and_a_flip(sets: Sets, name: str) -> None:
    told = {"normalisation": NORMALISATION} if name == "torchvision" else NATIVE
    mean, std = (torch.tensor(channels)[:, None, None] for channels in (NORMALISATION.mean, NORMALISATION.std))
    found = set()
    with sets.open(name, augmentation=CROP_FLIP, **told) as pipeline:
        for batch in pipeline.epoch(0):
            for image, index in zip(pixels(batch.images * std + mean), batch.indices.tolist(), strict=True):
                found.add(_crop_of(image, sets.dataset.train.images_nhwc[index]))
    assert None not in found
    # Of 50 crops and flips, 100 images show most.
    assert len(found) > 25
    assert {flipped for *_, flipped in found} == {False, True}


def _crop_of(image: np.ndarray, source: np.ndarray) -> tuple[int, int, bool] | None:
    """(y, x, flipped) of the crop of the padded source that an image is; None where it is none."""
    padded = np.pad(source, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    height, width = source.shape[:2]
    for y in range(2 * PADDING + 1):
        for x in range(2 * PADDING + 1):
            crop = padded[y : y + height, x : x + width]
            for flipped in (False, True):
                if np.array_equal(crop[:, ::-1] if flipped else crop, image):
                    return y, x, flipped
    return None


def test_native_dali_is_a_function_of_the_seed(sets: Sets) -> None:
    epochs = []
    for seed in (0, 0, 1):
        with sets.open("dali", augmentation=CROP_FLIP, seed=seed, shuffle=False, **NATIVE) as pipeline:
            epochs.append([values(batch) for batch in pipeline.epoch(1)])
    assert_same(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0][0][0], epochs[2][0][0])


@streamers
@pytest.mark.parametrize(
    ("augmentation", "says"),
    [
        (Augmentation(crop_padding=1), "padding_mode: got 'reflect', takes 'constant' with native=True"),
        (Augmentation(flip="alternating"), "flip: got 'alternating'"),
        (Augmentation(cutmix=1.0), "cutmix: got 1.0, takes 0.0 with native=True"),
        (Augmentation(hue=0.1), "hue: got 0.1, takes 0.0 with native=True"),
    ],
)
def test_native_forms_refuse_what_they_cannot(sets: Sets, name: str, augmentation: Augmentation, says: str) -> None:
    with pytest.raises(ValueError) as error:
        sets.open(name, native=True, augmentation=augmentation)
    assert str(error.value).startswith(says)


def test_ffcv_leaves_torch_its_threads(sets: Sets) -> None:
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    torch.set_num_threads(other)
    try:
        with sets.open("ffcv", num_threads=2) as pipeline:
            for _ in pipeline.epoch(0):
                assert torch.get_num_threads() == other
        assert torch.get_num_threads() == other
    finally:
        torch.set_num_threads(before)


def test_ffcv_leaves_numba_its_types(sets: Sets) -> None:
    with sets.open("ffcv") as pipeline:
        next(pipeline.epoch(0))
    import numba

    assert numba.uint8[::1].mutable
    assert numba.uint64[::1].mutable


def test_an_error_in_ffcvs_thread_is_raised_here(sets: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    with sets.open("ffcv") as pipeline:
        expected = [values(batch) for batch in pipeline.epoch(1)]

        def fail(*_: object) -> None:
            raise OSError("the disk is gone")

        monkeypatch.setattr("ffcv.loader.epoch_iterator.EpochIterator.run_pipeline", fail)
        with pytest.raises(DataError, match=r"FFCV could not read .*train\.beton: the disk is gone"):
            list(pipeline.epoch(0))
        monkeypatch.undo()
        assert_same([values(batch) for batch in pipeline.epoch(1)], expected)


def test_a_file_that_shrinks_while_it_is_streamed_is_noticed(large: Sets, tmp_path: Path) -> None:
    if (why := pipelines.available("ffcv")) is not None:
        pytest.skip(why)
    folder = tmp_path / "ffcv"
    shutil.copytree(large.artefact("ffcv"), folder)
    with pipelines.open(folder, "ffcv", batch_size=64, streaming=True) as pipeline:
        os.truncate(folder / "train.beton", 5 << 20)
        with pytest.raises(DataError, match="the file ends at byte 5,242,880, in the middle of a page"):
            list(pipeline.epoch(0))
        (folder / "train.beton").unlink()
        with pytest.raises(FileNotFoundError):
            list(pipeline.epoch(1))


_SECOND_PROCESS = """
import sys
from fastcifar import kernels, pipelines
augmentation = kernels.Augmentation(crop_padding=2, padding_mode="constant", flip="random")
normalisation = kernels.Normalisation((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
told = {"augmentation": augmentation, "normalisation": normalisation, "native": True, "num_threads": 1}
with pipelines.open(sys.argv[1], "ffcv", batch_size=20, **told) as pipeline:
    next(pipeline.epoch(0))
    from fastcifar.pipelines import ffcv_gather
    import numba.extending
    (stage, _), = pipeline._loader.code[0]
    compiled = [f for f in stage.__globals__.values() if numba.extending.is_jitted(f)] + [ffcv_gather.gather_mapped]
    hits, misses = (sum(len(getattr(f.stats, which)) for f in compiled) for which in ("cache_hits", "cache_misses"))
    print(len(compiled), hits, misses)
"""


def test_ffcv_compiles_once_a_machine_not_once_a_process(sets: Sets) -> None:
    with sets.open("ffcv", augmentation=CROP_FLIP, **NATIVE) as pipeline:
        next(pipeline.epoch(0))
    command = [sys.executable, "-c", _SECOND_PROCESS, str(sets.artefact("ffcv"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    num_functions, hits, misses = map(int, done.stdout.split())
    assert num_functions == 4  # crop, flip, normalise, and our gather
    assert (hits, misses) == (4, 0)


@pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed")
def test_ffcv_does_not_bring_numba_threads_that_a_process_may_wait_for_at_its_end() -> None:
    """OpenCV brings TBB, which Numba would choose, and whose threads it waits for even where one core has none."""
    code = """
import fastcifar.pipelines.ffcv_parts, numba, numpy
numba.njit(parallel=True)(lambda x: x + 1)(numpy.ones(9))
print(numba.threading_layer())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_THREADING")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "omp\n"


def test_torchvision_padding_is_the_kernels(sets: Sets) -> None:
    """A reflected crop of torchvision's is a reflected crop of the source."""
    with sets.open("torchvision", augmentation=Augmentation(crop_padding=1), normalisation=RAW) as pipeline:
        for batch in pipeline.epoch(0):
            for image, index in zip(pixels(batch.images), batch.indices.tolist(), strict=True):
                source = sets.dataset.train.images_nhwc[index]
                padded = np.pad(source, ((1, 1), (1, 1), (0, 0)), mode="reflect")
                height, width = source.shape[:2]
                crops = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
                assert any(np.array_equal(crop, image) for crop in crops)
