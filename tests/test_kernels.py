"""The forms of the kernels against each other, and the reference against other libraries."""

import copy
import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CIFAR, augmentations, pictures, same_bits
from torchvision.transforms import v2

from fastcifar.kernels import (
    Augmentation,
    Augmenter,
    Normalisation,
    Plan,
    augment,
    augment_batch,
    draw_plan,
    numba_cpu,
    numba_share,
)
from fastcifar.kernels.numba_cast import FUSED, PLAIN, QUICK, quickest_way
from fastcifar.kernels.numba_task import BAND_PIXELS
from fastcifar.kernels.numba_vector import HAS_BFLOAT16_UNITS, HAS_FMA
from fastcifar.kernels.plan import PlanKey, settings_for

DTYPES = ("float32", "bfloat16", "float16")
SIDES = st.one_of(st.integers(1, 12), st.sampled_from([31, 32, 33, 40]))


@settings(max_examples=120)
@given(st.data())
def test_compiled_form_agrees_with_reference_on_every_bit(data):
    height, width = data.draw(SIDES), data.draw(SIDES)
    num_images = data.draw(st.integers(1, 7))
    augmentation = data.draw(augmentations(height, width))
    images = pictures(num_images + 2, height, width, data.draw(st.integers(0, 99)))
    rows = np.array(data.draw(st.lists(st.integers(0, num_images + 1), min_size=num_images, max_size=num_images)))
    options = {
        "seed": data.draw(st.integers(0, 2**64 - 1)),
        "epoch": data.draw(st.integers(0, 2**32 - 1)),
        "indices_n": data.draw(st.lists(st.integers(0, 2**40), min_size=num_images, max_size=num_images).map(np.array)),
        "dtype": data.draw(st.sampled_from(DTYPES)),
    }
    expected, weights, partners = augment_batch(images, rows, augmentation, CIFAR, form="reference", **options)
    for num_threads in (1, 2):
        got, got_weights, got_partners = augment_batch(
            images, rows, augmentation, CIFAR, form="numba", num_threads=num_threads, **options
        )
        assert same_bits(got, expected)
        if augmentation.mixes:
            assert torch.equal(got_weights, weights)
            assert torch.equal(got_partners, partners)
        else:
            assert got_weights is None
            assert got_partners is None


@pytest.mark.parametrize(("height", "width"), [(256, 256), (1, 1), (1, 256), (256, 1), (100, 31), (64, 64)])
def test_forms_agree_at_any_size(height, width):
    images = pictures(3, height, width)
    assert images[0].size in (3, 768) or images[0].size > 3 * BAND_PIXELS
    padding = min(height, width) - 1
    augmentation = Augmentation(
        crop_padding=padding, flip="random", cutmix=1.0, rotation=180, hue=0.5, saturation=1, mix_per="image", cutout=1
    )
    for changed in (augmentation, Augmentation(crop_padding=padding, flip="random", cutmix=1.0, mixup=1.0)):
        expected = augment_batch(images, [2, 0, 1], changed, CIFAR, seed=3, epoch=1, form="reference")[0]
        assert same_bits(augment_batch(images, [2, 0, 1], changed, CIFAR, seed=3, epoch=1, form="numba")[0], expected)


@pytest.mark.parametrize("side", [8, 40])
@pytest.mark.parametrize("mix_per", ["image", "batch"])
def test_a_batch_of_many_images_shared_among_threads_is_the_same(side, mix_per):
    """Each thread draws its own images; each image is moved once for itself and for the one that it is mixed into."""
    num_images = 150  # more than are drawn at once, for each of two threads
    images, rows = pictures(num_images, side, side), np.arange(num_images)[::-1].copy()
    augmentation = Augmentation(
        crop_padding=2, flip="random", cutout=3, cutmix=1.0, mixup=1.0, mix_switch=0.7, mix_per=mix_per
    )
    for changed in (augmentation, replace(augmentation, cutout=0), replace(augmentation, brightness=0.2, rotation=9)):
        options = {"seed": 4, "epoch": 3, "dtype": "bfloat16"}
        expected, weights, _ = augment_batch(images, rows, changed, CIFAR, form="reference", **options)
        plan = draw_plan(changed, seed=4, epoch=3, indices_n=rows, height=side, width=side, form="reference")
        assert 0 < np.count_nonzero(plan.cutmix_boxes_n4[:, 2]) < num_images or mix_per == "batch"
        for num_threads in (1, 2):
            got, got_weights, _ = augment_batch(images, rows, changed, CIFAR, num_threads=num_threads, **options)
            assert same_bits(got, expected)
            assert torch.equal(got_weights, weights)
            assert same_bits(augment(images, plan, CIFAR, rows_n=rows, num_threads=num_threads), expected)


def test_a_task_draws_the_partner_of_its_last_image_by_itself(monkeypatch):
    """The first of two tasks, alone: what the other one draws is not there yet."""
    num_images, num_own = 20, 10
    images, rows = pictures(num_images, 16, 16), np.arange(num_images)
    augmentation = Augmentation(crop_padding=3, flip="random", cutmix=1.0)
    expected = augment_batch(images, rows, augmentation, CIFAR, seed=2, epoch=1, form="reference", dtype="float32")[0]
    drawn = draw_plan(augmentation, seed=2, epoch=1, indices_n=rows, height=16, width=16, form="reference")
    assert drawn.mix_weights_n[num_own - 1] < 1  # shows its partner
    assert drawn.shifts_n2[num_own].any()
    plan = Plan.identity(num_images, 16, 16)
    batch = torch.zeros(num_images, 16, 16, 3).permute(0, 3, 1, 2)

    def first_task(function, num, numbers, num_tasks):
        assert (num, num_tasks) == (num_images, 2)
        numba_share.alone(function.address, num_own, np.array(numbers, np.int64))

    monkeypatch.setattr(numba_cpu, "num_tasks_for", lambda num_images, num_threads: num_threads)
    monkeypatch.setattr(numba_cpu, "share_out", first_task)
    key = PlanKey(settings_for(augmentation, 16, 16), 2, 1, rows)
    numba_cpu.draw_and_augment(images, rows, key, plan, CIFAR, batch, num_threads=2)
    assert same_bits(batch[:num_own], expected[:num_own])
    assert not batch[num_own:].any()
    assert np.array_equal(plan.ints_nk[:num_own], drawn.ints_nk[:num_own])
    assert np.array_equal(plan.ints_nk[num_own:], Plan.identity(num_images - num_own, 16, 16).ints_nk)


def test_augment_batch_is_draw_plan_and_augment():
    images = pictures(9, 8, 8)
    augmentation = Augmentation(crop_padding=2, flip="random", mixup=1.0, rotation=20, mix_per="image")
    rows, indices = np.array([4, 4, 1]), np.array([100, 7, 3])
    plan = draw_plan(augmentation, seed=5, epoch=2, indices_n=indices, height=8, width=8)
    batch, weights, partners = augment_batch(
        images, rows, augmentation, CIFAR, seed=5, epoch=2, indices_n=indices, dtype="float32"
    )
    assert same_bits(augment(images, plan, CIFAR, rows_n=rows, dtype="float32"), batch)
    assert np.array_equal(weights.numpy(), plan.mix_weights_n)
    assert partners.tolist() == plan.partners_n.tolist() == [1, 2, 0]


@pytest.mark.parametrize("form", ["reference", "numba"])
def test_without_augmentation_pixels_are_only_normalised(form):
    images = pictures(4, 7, 5)
    batch = augment_batch(images, [3, 0], Augmentation(), CIFAR, seed=9, epoch=4, dtype="float32", form=form)[0]
    scale, shift = (torch.tensor(numbers, dtype=torch.float32) for numbers in (CIFAR.scale, CIFAR.shift))
    expected = torch.from_numpy(images[[3, 0]]).float() * scale + shift
    assert torch.equal(batch.permute(0, 2, 3, 1), expected)
    plan = Plan.identity(2, 7, 5)
    assert torch.equal(augment(images, plan, CIFAR, rows_n=[3, 0], dtype="float32", form=form), batch)
    mean, std = torch.tensor(CIFAR.mean), torch.tensor(CIFAR.std)
    by_torchvision = (torch.from_numpy(images[[3, 0]]).float() / 255 - mean) / std
    assert torch.allclose(expected, by_torchvision, atol=1e-6)


def test_pixels_come_back_from_identity_normalisation():
    images = pictures(5, 6, 6)
    for dtype in ("float32", "float16"):
        batch = augment(images, Plan.identity(5, 6, 6), Normalisation.identity(), dtype=dtype)
        assert np.array_equal((batch.permute(0, 2, 3, 1).float() * 255).round().numpy().astype(np.uint8), images)


KINDS = ["crop", "flip", "rotation", "saturation", "hue", "brightness", "contrast", "cutout", "cutmix", "mixup"]


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_leaves_pixels_untouched_at_its_identity(name):
    """A plan in which another image is changed, so that the kernels do go through that kind's code."""
    images = pictures(2, 9, 9)
    plan = Plan.identity(2, 9, 9)
    changed, value = {
        "crop": (plan.shifts_n2, 1),
        "flip": (plan.flips_n, 1),
        "rotation": (plan.rotation_n, 0.3),
        "saturation": (plan.saturation_n, 0.3),
        "hue": (plan.hue_n, 0.3),
        "brightness": (plan.brightness_n, 0.3),
        "contrast": (plan.contrast_n, 0.3),
        "cutout": (plan.cutout_boxes_n4, (1, 2, 5, 6)),
        "cutmix": (plan.cutmix_boxes_n4, (1, 2, 5, 6)),
        "mixup": (plan.mix_weights_n, 0.3),
    }[name]
    changed[0] = value
    if name == "cutmix":
        plan.mix_weights_n[0] = np.float32(81 - 16) / np.float32(81)
    untouched = augment(images, Plan.identity(2, 9, 9), CIFAR, dtype="float32")
    for form in ("reference", "numba"):
        batch = augment(images, plan, CIFAR, dtype="float32", form=form)
        assert same_bits(batch[1:], untouched[1:])
        assert not torch.equal(batch[0], untouched[0])


@pytest.mark.parametrize("form", ["reference", "numba"])
@pytest.mark.parametrize("mixed_by", [{"cutmix": 1.0}, {"mixup": 1.0}, {"cutmix": 1.0, "mixup": 1.0}])
def test_of_probability_zero_nothing_is_mixed(form, mixed_by):
    images = pictures(4, 9, 9)
    augmentation = Augmentation(**mixed_by, mix_probability=0.0, cutout=0)
    batch, weights, partners = augment_batch(
        images, range(4), augmentation, CIFAR, seed=9, epoch=4, dtype="float32", form=form
    )
    assert same_bits(batch, augment(images, Plan.identity(4, 9, 9), CIFAR, dtype="float32", form=form))
    assert weights is None
    assert partners is None
    plan = draw_plan(augmentation, seed=9, epoch=4, indices_n=range(4), height=9, width=9, form=form)
    assert np.array_equal(plan.ints_nk, Plan.identity(4, 9, 9).ints_nk)
    assert np.array_equal(plan.floats_nk, Plan.identity(4, 9, 9).floats_nk)


@pytest.mark.parametrize("padding_mode", ["reflect", "constant"])
def test_crop_is_a_slice_of_the_padded_image(padding_mode):
    padding, side = 3, 8
    shifts = list(itertools.product(range(-padding, padding + 1), repeat=2))
    images = pictures(len(shifts), side, side)
    plan = Plan.identity(len(shifts), side, side, padding_mode)
    plan.shifts_n2[:] = shifts
    plan.flips_n[::2] = 1
    batch = augment(images, plan, Normalisation.identity(), dtype="float32")
    padded = torch.nn.functional.pad(
        torch.from_numpy(images).permute(0, 3, 1, 2).float(), (padding,) * 4, mode=padding_mode
    )
    for i, (y, x) in enumerate(shifts):
        expected = padded[i, :, padding + y : padding + y + side, padding + x : padding + x + side]
        if plan.flips_n[i]:
            expected = expected.flip(2)
        assert torch.equal((batch[i] * 255).round(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["reference", "numba"])
def test_cast_is_torchs(dtype, form):
    """Scales from below the smallest number of the output to beyond its largest, each with every pixel value."""
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    plan = Plan.identity(1, 16, 16)
    for exponent in range(-40, 40):
        plan.contrast_n[0] = 1.37 * 2.0**exponent
        exact = augment(images, plan, CIFAR, dtype=torch.float32, form=form)
        assert same_bits(augment(images, plan, CIFAR, dtype=dtype, form=form), exact.to(dtype))
        plan.hue_n[0] = 1e-30  # goes another way through the kernel
        exact = augment(images, plan, CIFAR, dtype=torch.float32, form=form)
        assert same_bits(augment(images, plan, CIFAR, dtype=dtype, form=form), exact.to(dtype))
        plan.hue_n[0] = 0


@pytest.mark.parametrize("channel", range(3))
def test_the_quickest_way_to_bfloat16_is_one_that_is_right_for_every_byte(channel):
    """Of 129.5 the neighbours in bfloat16 are 129 and 130: rounding up would be wrong; units for bfloat16 take for zero
    what is smaller than 2**-126; and what lies close to half-way may go the other way if its product is not rounded."""
    halves = Normalisation(mean=tuple(-0.5 / 255 * (at == channel) for at in range(3)), std=(1 / 255,) * 3)
    wholes = Normalisation(mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)
    specks = Normalisation(mean=tuple(1e-39 * (at == channel) for at in range(3)), std=(1.0,) * 3)
    middle = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    for normalisation, quick_with_units, quick_without in (
        (halves, True, False),
        (wholes, True, True),
        (CIFAR, True, True),
        (specks, False, True),
        (middle, True, False),
    ):
        scale, shift = (np.array(values, np.float32) for values in (normalisation.scale, normalisation.shift))
        values = np.arange(256, dtype=np.float32)[:, None]
        right = values * scale + shift
        once = (values.astype(np.float64) * scale + shift).astype(np.float32)
        fused = _quickly(once if HAS_FMA else right) == _bfloat16_bits(right)
        quick = _quickly(right) == _bfloat16_bits(right)
        assert quick.all() == (quick_with_units if HAS_BFLOAT16_UNITS else quick_without)
        assert quickest_way(scale, shift) == (FUSED if fused.all() else QUICK if quick.all() else PLAIN)
        images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
        exact = augment(images, Plan.identity(1, 16, 16), normalisation, dtype="float32", form="numba")
        got = augment(images, Plan.identity(1, 16, 16), normalisation, dtype="bfloat16", form="numba")
        assert same_bits(got, exact.to(torch.bfloat16))


def _bfloat16_bits(values):
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()


def _quickly(values):
    """What the quick way makes of float32."""
    if HAS_BFLOAT16_UNITS:
        return _bfloat16_bits(np.where(np.abs(values) < 2.0**-126, values * np.float32(0), values))
    return ((values.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16).view(np.int16)


def test_cutout_erases_exactly_its_box():
    images = pictures(50, 10, 12)
    plan = draw_plan(Augmentation(cutout=4), seed=1, epoch=0, indices_n=range(50), height=10, width=12)
    batch = augment(images, plan, CIFAR, dtype="float32")
    whole = augment(images, Plan.identity(50, 10, 12), CIFAR, dtype="float32")
    for i, (y0, x0, y1, x1) in enumerate(plan.cutout_boxes_n4):
        assert (y1 - y0, x1 - x0) == (4, 4)
        whole[i, :, y0:y1, x0:x1] = 0
    assert same_bits(batch, whole)
    assert len({tuple(box) for box in plan.cutout_boxes_n4.tolist()}) > 20


def test_cutmix_weights_are_the_share_of_pixels_shown():
    """Image i is all of value i, so that what a pixel shows can be read from it."""
    height, width, num_images = 9, 14, 200
    images = np.arange(num_images, dtype=np.uint8)[:, None, None, None].repeat(height, 1).repeat(width, 2).repeat(3, 3)
    augmentation = Augmentation(crop_padding=3, flip="random", cutmix=1.0, mix_per="image")
    for form in ("reference", "numba"):
        batch, weights, partners = augment_batch(
            images,
            range(num_images),
            augmentation,
            Normalisation.identity(),
            seed=3,
            epoch=8,
            form=form,
            dtype="float32",
        )
        shown = (batch * 255).round().to(torch.int64)
        own = (shown == torch.arange(num_images)[:, None, None, None]).sum((1, 2, 3))
        others = (shown == partners[:, None, None, None]).sum((1, 2, 3))
        assert (own + others == 3 * height * width).all()
        assert torch.equal(weights, own.float() / (3 * height * width))
        assert 0.3 < weights.mean() < 0.8
        assert len(set(weights.tolist())) > 25


def test_mixup_blends_with_the_partner_by_the_labels_weight():
    images = pictures(20, 6, 6)
    augmentation = Augmentation(mixup=0.7, mix_per="image")
    batch, weights, partners = augment_batch(images, range(20), augmentation, CIFAR, seed=3, epoch=8, dtype="float32")
    plain = augment(images, Plan.identity(20, 6, 6), CIFAR, dtype="float32")
    weight = weights[:, None, None, None]
    assert torch.allclose(batch, plain * weight + plain[partners] * (1 - weight), atol=1e-6)


def _reversed_batch_of_torchvision(transform, plain, params):
    """Torchvision mixes with the image before, we with the one after: the same for a reversed batch."""
    images = transform.transform(plain.flip(0), params).flip(0)
    return images, transform.transform(params["labels"], params).flip(0)


def test_cutmix_is_torchvisions():
    num_images, num_classes = 8, 10
    images = pictures(num_images, 32, 32)
    labels = torch.arange(num_images) % num_classes
    plain = augment(images, Plan.identity(num_images, 32, 32), CIFAR, dtype="float32")
    transform = v2.CutMix(num_classes=num_classes)
    for epoch in range(10):
        plan = draw_plan(
            Augmentation(cutmix=1.0), seed=1, epoch=epoch, indices_n=range(num_images), height=32, width=32
        )
        y0, x0, y1, x1 = plan.cutmix_boxes_n4[0].tolist()
        weight = 1.0 - (y1 - y0) * (x1 - x0) / (32 * 32)
        params = {"labels": labels.flip(0), "batch_size": num_images, "box": (x0, y0, x1, y1), "lam_adjusted": weight}
        expected, expected_labels = _reversed_batch_of_torchvision(transform, plain, params)
        assert same_bits(augment(images, plan, CIFAR, dtype="float32"), expected)
        one_hot = torch.nn.functional.one_hot(labels, num_classes).float()
        own = torch.from_numpy(plan.mix_weights_n)[:, None]
        assert torch.allclose(own * one_hot + (1 - own) * one_hot[plan.partners_n], expected_labels)


def test_mixup_is_torchvisions():
    num_images, num_classes = 8, 10
    images = pictures(num_images, 32, 32)
    labels = torch.arange(num_images) % num_classes
    plain = augment(images, Plan.identity(num_images, 32, 32), CIFAR, dtype="float32")
    plan = draw_plan(Augmentation(mixup=0.4), seed=1, epoch=3, indices_n=range(num_images), height=32, width=32)
    weight = float(plan.mix_weights_n[0])
    assert 0 < weight < 1
    params = {"labels": labels.flip(0), "batch_size": num_images, "lam": weight}
    expected, _ = _reversed_batch_of_torchvision(v2.MixUp(num_classes=num_classes), plain, params)
    assert torch.allclose(augment(images, plan, CIFAR, dtype="float32"), expected, atol=1e-6)


def test_batch_of_one_is_its_own_partner():
    images = pictures(1, 8, 8)
    batch, weights, partners = augment_batch(images, [0], Augmentation(cutmix=1.0), CIFAR, seed=1, epoch=1)
    assert partners.tolist() == [0]
    assert 0 < weights[0] < 1
    assert same_bits(batch, augment(images, Plan.identity(1, 8, 8), CIFAR))


def test_empty_batch():
    for form in ("reference", "numba"):
        batch, weights, _ = augment_batch(
            pictures(2, 8, 8), [], Augmentation(mixup=1.0), CIFAR, seed=1, epoch=1, form=form
        )
        assert batch.shape == (0, 3, 8, 8)
        assert len(weights) == 0


def test_output_is_written_where_asked():
    images = torch.from_numpy(pictures(4, 8, 8))
    out = torch.full((4, 8, 8, 3), 7.0, dtype=torch.bfloat16).permute(0, 3, 1, 2)
    batch = augment(images, Plan.identity(4, 8, 8), CIFAR, out=out)
    assert batch is out
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert same_bits(out, augment(images.numpy(), Plan.identity(4, 8, 8), CIFAR, form="reference"))


def test_reads_memory_mapped_images(tmp_path):
    images = pictures(4, 8, 8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    plan = Plan.identity(2, 8, 8)
    assert same_bits(augment(mapped, plan, CIFAR, rows_n=[3, 1]), augment(images, plan, CIFAR, rows_n=[3, 1]))


@pytest.mark.parametrize("form", ["auto", "reference"])
def test_an_augmenter_does_what_augment_batch_does(form):
    """Batch after batch: of other sizes, epochs, images, sizes of images, and from tensors as from arrays."""
    augmentation = Augmentation(crop_padding=2, flip="random", cutmix=1.0, mix_from_epoch=1, brightness=0.1)
    augmenter = Augmenter(augmentation, CIFAR, seed=5, dtype="bfloat16", form=form)
    small, large = pictures(20, 8, 8), torch.from_numpy(pictures(20, 12, 16))
    rows = np.random.default_rng(0).permutation(20)
    for images, count, epoch, indices in (
        (small, 12, 0, None),
        (small, 12, 1, None),
        (small, 20, 1, rows[::-1].copy()),
        (small, 7, 1, None),
        (large, 7, 1, None),
        (large, 7, 2, torch.arange(100, 107)),
        (small, 0, 2, None),
        (small, 12, 0, None),
    ):
        told = {"epoch": epoch, "indices_n": indices}
        expected = augment_batch(images, rows[:count], augmentation, CIFAR, seed=5, form=form, **told)
        got = augmenter(images, rows[:count], **told)
        assert same_bits(got[0], expected[0])
        for mixing, expected_mixing in zip(got[1:], expected[1:], strict=True):
            assert (mixing is None) == (expected_mixing is None)
            assert mixing is None or torch.equal(mixing, expected_mixing)


def test_an_augmenters_batch_lies_where_the_one_before_did():
    augmenter = Augmenter(Augmentation(cutmix=1.0), CIFAR, seed=0)
    images = pictures(8, 8, 8)
    first = augmenter(images, range(8), epoch=0)
    again = augmenter(images, range(8), epoch=0)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(first, again, strict=True))
    assert augmenter(images, range(5), epoch=0)[0].data_ptr() == first[0].data_ptr()


def test_an_augmenter_may_be_copied_and_sent_to_another_process():
    images, augmenter = pictures(8, 8, 8), Augmenter(Augmentation(cutmix=1.0), CIFAR, seed=0)
    used = augmenter(images, range(8), epoch=0)[0].clone()
    for other in (copy.deepcopy(augmenter), pickle.loads(pickle.dumps(augmenter))):
        assert same_bits(other(images, range(8), epoch=0)[0], used)


def test_an_augmenter_takes_batches_of_any_number_of_sizes():
    augmentation, images = Augmentation(crop_padding=1, cutmix=1.0), pictures(20, 8, 8)
    augmenter = Augmenter(augmentation, CIFAR, seed=0)
    for count in (*range(1, 20), 3, 20):
        expected = augment_batch(images, range(count), augmentation, CIFAR, seed=0, epoch=0)
        got = augmenter(images, range(count), epoch=0)
        assert same_bits(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
    assert len(augmenter._prepared) < 20
