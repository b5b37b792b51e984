"""What holds for every pipeline, through real artefacts and the real libraries."""

import gc
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.load import shared_memory
from pipeline_sets import EVERYTHING, FUSED, HEIGHT, NUM_CLASSES, WIDTH, Sets, assert_same, flat_split, pixels, values
from pipeline_sets import random_split as noise

from fastcifar import pipelines
from fastcifar.data import Dataset
from fastcifar.kernels import Augmentation, Normalisation

NUM_TRAIN = 107  # 5 batches of 20 and a rest
every_pipeline = pytest.mark.parametrize("name", pipelines.NAMES)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    dataset = Dataset("noise", noise(NUM_TRAIN, 0), noise(33, 1, "test"))
    return Sets(tmp_path_factory.mktemp("sets"), dataset)


@every_pipeline
@pytest.mark.parametrize("part", ["train", "test"])
def test_every_image_comes_once_with_its_pixels_and_label(sets: Sets, name: str, part: str) -> None:
    split = getattr(sets.dataset, part)
    with sets.open(name, part=part, drop_last=False) as pipeline:
        assert pipeline.num_images == len(split)
        assert pipeline.num_classes == NUM_CLASSES
        for epoch in (0, 1):
            seen = []
            for batch in pipeline.epoch(epoch):
                indices = batch.indices.numpy()
                assert batch.images.dtype == torch.float32
                assert batch.images.shape[1:] == (3, HEIGHT, WIDTH)
                assert batch.images.is_contiguous(memory_format=torch.channels_last)
                assert batch.labels.dtype == batch.indices.dtype == torch.int64
                np.testing.assert_array_equal(pixels(batch.images), split.images_nhwc[indices])
                np.testing.assert_array_equal(batch.labels.numpy(), split.labels_n[indices])
                assert batch.mix_labels is None
                assert batch.mix_weights is None
                seen.append(indices.copy())
            assert [len(part) for part in seen[:-1]] == [20] * (len(seen) - 1)
            np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(len(split)))


@every_pipeline
def test_an_epoch_that_another_has_ended_says_so(sets: Sets, name: str) -> None:
    """It would look like a short one else. One that came to its end of itself is over, as any iterator."""
    with sets.open(name) as pipeline:
        whole = pipeline.epoch(0)
        assert len(list(whole)) == 5
        first = pipeline.epoch(1)
        next(first)
        second = pipeline.epoch(2)
        next(second)
        with pytest.raises(RuntimeError, match=r"^epoch 1 was ended by the start of another"):
            next(first)
        assert next(whole, None) is None
        assert len(list(second)) == 4
        third = pipeline.epoch(3)
        next(third)
    with pytest.raises(RuntimeError, match=r"^epoch 3 was ended"):
        next(third)
    pipeline.close()
    with pytest.raises(ValueError, match="closed"):
        pipeline.epoch(0)


@every_pipeline
def test_an_incomplete_batch_is_dropped_unless_wanted(sets: Sets, name: str) -> None:
    with sets.open(name) as pipeline:
        assert [len(batch.labels) for batch in pipeline.epoch(0)] == [20] * 5
        assert pipeline.steps_per_epoch == 5
    with sets.open(name, drop_last=False) as pipeline:
        assert [len(batch.labels) for batch in pipeline.epoch(0)] == [20] * 5 + [7]
        assert pipeline.steps_per_epoch == 6


@every_pipeline
def test_a_subset_is_of_the_named_rows(sets: Sets, name: str) -> None:
    rows = np.random.default_rng(3).permutation(NUM_TRAIN)[:31]
    with sets.open(name, rows=rows, drop_last=False) as pipeline:
        assert pipeline.num_images == 31
        indices = np.concatenate([batch.indices.numpy().copy() for batch in pipeline.epoch(2)])
        np.testing.assert_array_equal(np.sort(indices), np.sort(rows))
        assert not np.array_equal(indices, rows)
        for batch in pipeline.epoch(2):
            expected = sets.dataset.train.images_nhwc[batch.indices.numpy()]
            np.testing.assert_array_equal(pixels(batch.images), expected)


@every_pipeline
def test_without_shuffling_the_order_is_that_of_the_set(sets: Sets, name: str) -> None:
    with sets.open(name, shuffle=False, drop_last=False) as pipeline:
        indices = np.concatenate([batch.indices.numpy().copy() for batch in pipeline.epoch(4)])
    np.testing.assert_array_equal(indices, np.arange(NUM_TRAIN))


@every_pipeline
def test_all_pipelines_shuffle_alike(sets: Sets, name: str) -> None:
    orders = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        with sets.open(name, seed=seed) as pipeline:
            shown = np.concatenate([batch.indices.numpy().copy() for batch in pipeline.epoch(epoch)])
        with sets.open("resident", seed=seed) as pipeline:
            expected = np.concatenate([batch.indices.numpy() for batch in pipeline.epoch(epoch)])
        np.testing.assert_array_equal(shown, expected)
        orders[seed, epoch] = shown.tolist()
    assert orders[0, 0] != orders[0, 1] != orders[1, 0] != orders[0, 0]


@pytest.mark.parametrize("name", FUSED[1:])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_pipelines_give_the_same_bits(sets: Sets, name: str, dtype: str) -> None:
    told = {"augmentation": EVERYTHING, "normalisation": None, "dtype": dtype, "seed": 7, "drop_last": False}
    with sets.open("resident", **told) as pipeline:
        expected = [values(batch) for epoch in (0, 5) for batch in pipeline.epoch(epoch)]
    with sets.open(name, **told) as pipeline:
        assert_same([values(batch) for epoch in (0, 5) for batch in pipeline.epoch(epoch)], expected)


@every_pipeline
def test_a_batch_is_a_function_of_seed_epoch_and_step(sets: Sets, name: str) -> None:
    told = {"augmentation": EVERYTHING, "seed": 3, "drop_last": False}
    with sets.open(name, **told) as pipeline:
        whole = [values(batch) for batch in pipeline.epoch(2)]
        next(pipeline.epoch(0))
        assert_same([values(batch) for batch in pipeline.epoch(2, first_step=3)], whole[3:])
    with sets.open(name, **told, num_threads=1) as pipeline:
        assert_same([values(batch) for batch in pipeline.epoch(2, first_step=2)], whole[2:])
        assert list(pipeline.epoch(2, first_step=6)) == []
        other_epoch = [values(batch) for batch in pipeline.epoch(3)]
    with sets.open(name, **told | {"seed": 4}) as pipeline:
        other_seed = [values(batch) for batch in pipeline.epoch(2)]
    for other in (other_epoch, other_seed):
        assert all(not np.array_equal(a[0], b[0]) for a, b in zip(whole, other, strict=True))


@every_pipeline
def test_augmentation_changes_with_the_epoch_not_only_the_order(sets: Sets, name: str) -> None:
    with sets.open(name, augmentation=Augmentation(crop_padding=3), shuffle=False) as pipeline:
        first, second = ([values(batch)[0] for batch in pipeline.epoch(epoch)] for epoch in (0, 1))
    assert all(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@every_pipeline
@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize("mixed_by", [{"cutmix": 1.0}, {"mixup": 1.0}, {"cutmix": 0.7, "mixup": 0.7}])
def test_label_weights_are_the_shares_of_what_is_shown(
    tmp_path_factory: pytest.TempPathFactory, name: str, per: str, mixed_by: dict[str, float]
) -> None:
    flat = Sets(Path(tmp_path_factory.getbasetemp()) / "flat", Dataset("flat", flat_split(60), flat_split(60, "test")))
    flat._folder.mkdir(exist_ok=True)
    weights = []
    with flat.open(
        name, augmentation=Augmentation(**mixed_by, mix_per=per), drop_last=False, batch_size=25
    ) as pipeline:
        for batch in pipeline.epoch(0):
            assert batch.mix_labels is not None
            assert batch.mix_weights is not None
            assert batch.mix_weights.dtype == torch.float32
            assert sorted(batch.mix_labels.tolist()) == sorted(batch.labels.tolist())
            own = batch.mix_weights
            # The class is the colour, so that the mean of an image says how much of which class it shows.
            expected = 2 * (own * batch.labels + (1 - own) * batch.mix_labels)
            shown = batch.images.mean(dim=(1, 2, 3)) * 255
            torch.testing.assert_close(shown, expected, atol=0.01, rtol=1e-5)
            weights.append(own.clone())
            if per == "batch":
                assert len(set(own.tolist())) == 1
    assert len(set(torch.cat(weights).tolist())) > (2 if per == "batch" else 20)


def _held() -> tuple[int, int, int]:
    """Threads, open files, and mapped pieces of shared memory."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), shared_memory()


def _at_most(before: tuple[int, int, int], within_s: float = 5.0) -> bool:
    """Whether no more is held than before; threads that were told to end have a moment to do so."""
    gc.collect()
    deadline = time.monotonic() + within_s
    while any(now > then for now, then in zip(_held(), before, strict=True)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _leave_early(pipeline: pipelines.Pipeline, epoch: int) -> None:
    for step, _batch in enumerate(pipeline.epoch(epoch)):
        if step == epoch % 4:
            break


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc to count threads and files")
@pytest.mark.parametrize(
    ("name", "streaming"), [*((name, False) for name in pipelines.NAMES), ("ffcv", True), ("dali", True)]
)
def test_an_epoch_left_early_leaves_nothing_behind(sets: Sets, name: str, streaming: bool) -> None:
    told = {"streaming": streaming, "drop_last": False, "augmentation": EVERYTHING}
    with sets.open(name, **told) as pipeline:
        list(pipeline.epoch(0))
    gc.collect()
    before = _held()
    for _ in range(2):
        with sets.open(name, **told) as pipeline:
            inside = []
            for epochs in (range(4), range(4, 16)):
                for epoch in epochs:
                    _leave_early(pipeline, epoch)
                # Batches on their way are files and shared memory too: what is held is counted when an epoch is over.
                assert sum(len(batch.labels) for batch in pipeline.epoch(99)) == NUM_TRAIN
                inside.append(_held())
            assert _at_most(inside[0]), f"held (threads, files, shared memory): {inside[0]}, and then {_held()}"
            kept = pipeline.epoch(100)
            next(kept)
        with pytest.raises(RuntimeError, match=r"^epoch 100 was ended"):
            next(kept)
    assert _at_most(before), f"held (threads, files, shared memory): {before} before, {_held()} after"


@every_pipeline
def test_wrong_epochs_and_steps_are_refused(sets: Sets, name: str) -> None:
    with sets.open(name) as pipeline:
        for epoch, step, what in ((-1, 0, "epoch: got -1"), (0, -1, "first_step: got -1"), (0, 6, "first_step: got 6")):
            with pytest.raises(ValueError, match=what):
                pipeline.epoch(epoch, step)
        with pytest.raises(ValueError, match=r"epoch: got 4294967296"):
            pipeline.epoch(1 << 32)


@every_pipeline
def test_normalising_is_by_the_training_part(sets: Sets, name: str) -> None:
    train = sets.dataset.train.images_nhwc / 255
    mean, std = train.mean(axis=(0, 1, 2)), train.std(axis=(0, 1, 2))
    with sets.open(name, part="test", normalisation=None, shuffle=False, batch_size=33) as pipeline:
        (batch,) = pipeline.epoch(0)
        expected = (sets.dataset.test.images_nhwc / 255 - mean) / std
        np.testing.assert_allclose(batch.images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
        told = pipeline.settings.normalisation
    assert told == Normalisation(told.mean, told.std)
    np.testing.assert_allclose(told.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(told.std, std, rtol=1e-12)
