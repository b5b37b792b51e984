"""That what is compared does the work that it is measured for: peers, bounds, and the check of compiled kernels."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcifar.bench import bounds, gpu_check, settings
from fastcifar.bench.peers import BatchTensorLoader, KorniaLoader, Peer, TensorLoader
from fastcifar.bench.workers import Place
from fastcifar.kernels import Augmentation

NUM, SIDE = 60, 8
MEAN_STD = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
LOADERS = [
    TensorLoader,
    BatchTensorLoader,
    pytest.param(KorniaLoader, marks=pytest.mark.skipif(find_spec("kornia") is None, reason="kornia is not installed")),
]


def images_nhwc() -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (NUM, SIDE, SIDE, 3), dtype=np.uint8)
    return images


def make(kind: type[Peer], augmentation: Augmentation, dtype: str = "fp32") -> Peer:
    # A label tells an image apart.
    labels = np.arange(NUM, dtype=np.int64)
    return kind(images_nhwc(), labels, augmentation, MEAN_STD, batch_size=20, dtype=dtype, device="cpu")


def normalised(images: np.ndarray) -> Tensor:
    mean, std = (torch.tensor(values) for values in MEAN_STD)
    return ((torch.tensor(images) / 255 - mean) / std).permute(0, 3, 1, 2)


@pytest.mark.filterwarnings("ignore")  # kornia's own
@pytest.mark.parametrize("kind", LOADERS)
def test_a_peer_with_nothing_on_hands_out_every_image_once_an_epoch(kind: type[Peer]) -> None:
    wants = normalised(images_nhwc())
    labels = []
    for images, of_batch in make(kind, Augmentation()).epoch():
        torch.testing.assert_close(images, wants[of_batch], rtol=1e-4, atol=1e-4)
        labels += of_batch.tolist()
    assert sorted(labels) == list(range(NUM))
    assert labels != list(range(NUM))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LOADERS)
def test_a_peer_crops_and_flips_each_image_by_itself(kind: type[Peer]) -> None:
    pad, peer = 2, make(kind, Augmentation(crop_padding=2, padding_mode="constant", flip="random"))
    padded = np.pad(images_nhwc(), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    seen = set()
    for images, of_batch in peer.epoch():
        for image, label in zip(images, of_batch.tolist(), strict=True):
            windows = [
                (y, x, flip, normalised(padded[label : label + 1, y : y + SIDE, x : x + SIDE][:, :, ::flip].copy())[0])
                for y in range(2 * pad + 1)
                for x in range(2 * pad + 1)
                for flip in (1, -1)
            ]
            found = [place for *place, window in windows if torch.allclose(image, window, rtol=1e-3, atol=1e-3)]
            assert len(found) == 1
            seen.add(tuple(found[0]))
    assert {flip for _, _, flip in seen} == {1, -1}
    assert len({(y, x) for y, x, _ in seen}) > 10


@pytest.mark.parametrize("kind", [TensorLoader, BatchTensorLoader])
def test_a_peer_mixes_a_box_of_the_next_image_into_each(kind: type[Peer]) -> None:
    wants = normalised(images_nhwc())
    mixed = 0
    for images, of_batch in make(kind, Augmentation(cutmix=1.0)).epoch():
        own, partner = wants[of_batch], wants[of_batch].roll(1, 0)
        from_own = torch.isclose(images, own, rtol=1e-4, atol=1e-4).all(1)
        from_partner = torch.isclose(images, partner, rtol=1e-4, atol=1e-4).all(1)
        assert (from_own | from_partner).all()
        mixed += int((~from_own).sum())
    assert mixed > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LOADERS)
def test_a_peer_hands_out_what_ours_do(kind: type[Peer]) -> None:
    images, labels = next(make(kind, settings.augmentation("crop_flip_cutmix"), "bf16").epoch())
    assert images.dtype == torch.bfloat16
    assert images.shape == (20, 3, SIDE, SIDE)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert len(labels.reshape(-1)) >= 20


@pytest.mark.parametrize(("dtype", "wide"), [("bf16", np.uint16), ("fp32", np.uint32)])
def test_the_gather_gathers_and_widens(dtype: str, wide: type, tmp_path: object) -> None:
    from fastcifar.bench import gather

    images_nb = images_nhwc().reshape(NUM, -1)
    rows = np.random.default_rng(1).permutation(NUM)[:17]
    out = np.zeros((17, images_nb.shape[1]), dtype=wide)
    gather.widen(images_nb, rows, out)
    assert (out == images_nb[rows]).all()
    assert settings.ITEM_BYTES[dtype] == out.itemsize


def test_the_copy_copies_all_and_counts_what_it_reads_and_writes() -> None:
    copy = bounds.Copy(place=Place(threads=1), num_bytes=1_000_003)
    copy.prepare("task")
    assert (copy._target == 7).all()
    sample = copy.run("task", 0.01)
    assert sample.units % 2_000_006 == 0
    assert sample.rate > 0


def test_the_matrix_product_counts_two_operations_a_multiplication() -> None:
    product = bounds.MatrixProduct(place=Place(threads=1), side=32)
    product.prepare("step.fp32")
    torch.testing.assert_close(product._out, product._a @ product._b)
    assert product.run("step.fp32", 0.01).units % (2 * 32**3) == 0


def test_the_kernel_check_finds_no_difference_and_would_find_one(monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_nhwc()
    same = gpu_check.compare(images, "crop_flip_cutmix", "bf16", "cpu")
    assert (same["num_different"], same["largest_difference"], same["num_images"]) == (0, 0.0, NUM)

    batch = gpu_check._batch

    def off_by_one(*told: object) -> Tensor:
        made = batch(*told)  # type: ignore[arg-type]
        if told[-1] == "reference":
            made[3, 1, 4, 1] += 1
        return made

    monkeypatch.setattr(gpu_check, "_batch", off_by_one)
    other = gpu_check.compare(images, "crop_flip", "fp32", "cpu")
    assert other["num_different"] == 1
    assert other["largest_difference"] == pytest.approx(1.0)
