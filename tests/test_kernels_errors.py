"""What is refused, in which words, and that nothing has been written by then."""

import numpy as np
import pytest
import torch
from kernel_cases import CIFAR, pictures, same_bits

from fastcifar.kernels import (
    Augmentation,
    Augmenter,
    Normalisation,
    Plan,
    augment,
    augment_batch,
    draw_plan,
    epoch_order,
)

IMAGES = pictures(4, 8, 8)
FORMS = ("reference", "numba")


@pytest.mark.parametrize(
    ("setting", "value", "takes"),
    [
        ("crop_padding", -1, "an integer from 0 to 256"),
        ("crop_padding", 2.0, "an integer from 0 to 256"),
        ("crop_padding", True, "an integer from 0 to 256"),
        ("padding_mode", "edge", "reflect or constant"),
        ("flip", "always", "none, random, alternating"),
        ("cutout", -2, "an integer from 0 to 256"),
        ("cutmix", -1.0, "0 (off) or a Beta parameter from 0.01 to 100"),
        ("mixup", float("nan"), "0 (off) or a Beta parameter from 0.01 to 100"),
        ("mixup", 1e-9, "0 (off) or a Beta parameter from 0.01 to 100"),
        ("mix_probability", 1.5, "a number from 0 to 1"),
        ("mix_switch", -0.1, "a number from 0 to 1"),
        ("mix_per", "epoch", "batch or image"),
        ("brightness", float("inf"), "a number from 0 to 100"),
        ("contrast", 1.1, "a number from 0 to 1"),
        ("rotation", 181, "a number from 0 to 180"),
        ("saturation", -0.1, "a number from 0 to 100"),
        ("hue", 0.6, "a number from 0 to 0.5"),
    ],
)
def test_wrong_settings_are_named(setting, value, takes):
    with pytest.raises(ValueError, match=f"^{setting}: got ") as caught:
        Augmentation(**{setting: value})
    assert str(caught.value) == f"{setting}: got {value!r}, takes {takes}"


@pytest.mark.parametrize(
    "mean", [0.5, (0.5, 0.5), [0.5] * 4, np.full((1, 3), 0.5), (0.5, 0.5, float("nan")), (0.5, 0.5, "x"), "abc"]
)
def test_wrong_normalisation_is_named(mean):
    with pytest.raises(ValueError, match=r"^mean: got .*, takes three finite numbers$"):
        Normalisation(mean=mean, std=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"^std: got .*, takes three numbers of at least 1e-6$"):
        Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"^mean and std: got .*on the scale 0 to 1: divide"):
        Normalisation(mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))


def test_settings_may_be_of_numpy():
    told = Augmentation(crop_padding=np.int64(2), cutmix=np.float32(1.0), mix_probability=np.float64(0.5))
    plain = Augmentation(crop_padding=2, cutmix=1.0, mix_probability=0.5)
    assert told == plain
    assert {type(getattr(told, name)) for name in ("crop_padding", "cutmix", "mix_probability")} == {int, float}
    with pytest.raises(ValueError, match=r"^crop_padding: got .*, takes an integer from 0 to 256$"):
        Augmentation(crop_padding=np.float64(2.0))
    with pytest.raises(ValueError, match=r"^cutout: got .*, takes an integer from 0 to 256$"):
        Augmentation(cutout=np.True_)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_means_may_be_a_list_an_array_or_a_tensor(kind):
    mean, std = (0.5, 0.25, 0.125), (0.25, 0.5, 1.0)
    assert Normalisation(kind(mean), kind(std)) == Normalisation(mean, std)
    assert hash(Normalisation(kind(mean), kind(std))) == hash(Normalisation(mean, std))


def _unwritten() -> torch.Tensor:
    return torch.full((4, 8, 8, 3), 7.0, dtype=torch.bfloat16).permute(0, 3, 1, 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(np.int16), "images_nhwc: got dtype int16, takes uint8"),
        (torch.from_numpy(IMAGES).float(), "images_nhwc: got dtype torch.float32, takes uint8"),
        (IMAGES[0], r"images_nhwc: got shape (8, 8, 3), takes [N, height, width, 3]"),
        (IMAGES.transpose(0, 3, 1, 2).copy(), r"images_nhwc: got shape (4, 3, 8, 8), takes [N, height, width, 3]"),
        (
            torch.from_numpy(IMAGES.transpose(0, 2, 1, 3)),
            "images_nhwc: got a strided view, takes contiguous memory in the order [N, height, width, 3]",
        ),
        (
            IMAGES[:, ::2],
            "images_nhwc: got a strided view, takes contiguous memory in the order [N, height, width, 3]",
        ),
        (np.zeros((4, 257, 1, 3), np.uint8), "height of images_nhwc: got 257, takes an integer from 1 to 256"),
        (np.zeros((4, 1, 0, 3), np.uint8), "width of images_nhwc: got 0, takes an integer from 1 to 256"),
        (IMAGES.tolist(), "images_nhwc: got list, takes a torch tensor or a NumPy array"),
        (
            torch.from_numpy(IMAGES).to("meta"),
            "images_nhwc: got a tensor on meta, takes one in main memory or on a CUDA GPU",
        ),
    ],
)
def test_wrong_images_are_refused(form, images, message):
    out = _unwritten()
    with pytest.raises(ValueError) as caught:
        augment(images, Plan.identity(4, 8, 8), CIFAR, form=form, out=out)
    assert str(caught.value) == message
    with pytest.raises(ValueError) as caught:
        augment_batch(images, range(4), Augmentation(), CIFAR, seed=0, epoch=0, form=form, out=out)
    assert str(caught.value) == message
    with pytest.raises(ValueError) as caught:
        Augmenter(Augmentation(), CIFAR, seed=0, form=form)(images, range(4), epoch=0)
    assert str(caught.value) == message
    assert (out == 7).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", [-1, 4, 2**40])
def test_rows_outside_are_refused(form, row):
    out = _unwritten()
    message = rf"^rows_n: got {row} at position 2, takes 0 to 3$"
    with pytest.raises(ValueError, match=message):
        augment(IMAGES, Plan.identity(4, 8, 8), CIFAR, rows_n=[0, 1, row, 3], form=form, out=out)
    with pytest.raises(ValueError, match=message):
        augment_batch(IMAGES, [0, 1, row, 3], Augmentation(), CIFAR, seed=0, epoch=0, form=form, out=out)
    assert (out == 7).all()
    augmenter = Augmenter(Augmentation(), CIFAR, seed=0, form=form)
    before = augmenter(IMAGES, range(4), epoch=0)[0]
    kept = before.clone()
    with pytest.raises(ValueError, match=message):
        augmenter(IMAGES, [0, 1, row, 3], epoch=0)
    assert torch.equal(before, kept)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [3, [0.5], [[0, 1]], torch.zeros(2), torch.tensor(1)])
def test_rows_that_are_no_vector_of_integers_are_refused(rows, form):
    with pytest.raises(ValueError, match=r"^rows_n: got shape .*, takes a vector of integers$"):
        augment_batch(IMAGES, rows, Augmentation(), CIFAR, seed=0, epoch=0, form=form)
    with pytest.raises(ValueError, match=r"^rows_n: got shape .*, takes a vector of integers$"):
        Augmenter(Augmentation(), CIFAR, seed=0, form=form)(IMAGES, rows, epoch=0)


def _boxed(column, box, weight=1.0):
    plan = Plan.identity(4, 8, 8)
    plan.ints_nk[1, column : column + 4] = box
    plan.mix_weights_n[1] = weight
    return plan


def _with(name, value):
    plan = Plan.identity(4, 8, 8)
    getattr(plan, name)[1] = value
    return plan


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (_boxed(3, (0, 0, 9, 8)), "plan.cutout_boxes_n4: got (y0, x0, y1, x1) = (0, 0, 9, 8) at position 1, "),
        (_boxed(7, (0, -1, 4, 4)), "plan.cutmix_boxes_n4: got (y0, x0, y1, x1) = (0, -1, 4, 4) at position 1, "),
        (_boxed(7, (5, 0, 4, 4)), "plan.cutmix_boxes_n4: got (y0, x0, y1, x1) = (5, 0, 4, 4) at position 1, "),
        (_boxed(7, (0, 0, 4, 4)), "plan.mix_weights_n: got 1.0 at position 1, takes the share of own pixels"),
        (_with("mix_weights_n", 1.5), "plan.mix_weights_n: got a weight outside 0 to 1"),
        (
            _boxed(7, (-(2**31), -(2**31), 2**31 - 1, 2**31 - 1)),
            "plan.cutmix_boxes_n4: got (y0, x0, y1, x1) = (-2147483648, -2147483648, 2147483647, 2147483647) at ",
        ),
        (_with("shifts_n2", 300), "plan.shifts_n2: got a shift beyond 256"),
        (_with("shifts_n2", -257), "plan.shifts_n2: got a shift beyond 256"),
        # Has no absolute value.
        (_with("shifts_n2", -(2**31)), "plan.shifts_n2: got a shift beyond 256"),
        # Quarters of this many degrees overflow 64 bits.
        (_with("rotation_n", 7.6e18), "plan.rotation_n: got 7.6e+18 at position 1, takes -360 to 360"),
        (_with("rotation_n", -361), "plan.rotation_n: got -361 at position 1, takes -360 to 360"),
        (_with("hue_n", 1.5), "plan.hue_n: got 1.5 at position 1, takes -1 to 1"),
        (_with("hue_n", np.nan), "plan.floats_nk: got a number that is not finite"),
        (Plan.identity(3, 8, 8), "plan: got a plan for 3 images, takes one for the 4 of this batch"),
        (Plan.identity(4, 8, 9), "plan: got one for 8x9 pixels, takes one for 8x8"),
        (Plan.identity(4, 8, 8, "edge"), "padding_mode: got 'edge', takes reflect or constant"),
        (Plan(np.zeros((4, 11)), np.zeros((4, 6)), 8, 8), "plan.ints_nk: got shape (4, 11) of float64"),
        (Plan(np.zeros((4, 9), np.int32), np.zeros((4, 6)), 8, 8), "plan.ints_nk: got shape (4, 9) of int32"),
    ],
)
def test_impossible_plans_are_refused(form, plan, message):
    out = _unwritten()
    with pytest.raises(ValueError) as caught:
        augment(IMAGES, plan, CIFAR, form=form, out=out)
    assert str(caught.value).startswith(message)
    assert (out == 7).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [3e38, -3e38])
@pytest.mark.parametrize("name", ["brightness_n", "contrast_n", "saturation_n"])
def test_huge_light_and_colour_are_no_fault(form, name, value):
    with np.errstate(all="ignore"):
        batch = augment(IMAGES, _with(name, value), CIFAR, form=form)
    assert torch.equal(batch[2:], augment(IMAGES, Plan.identity(4, 8, 8), CIFAR, form=form)[2:])


def test_the_most_that_a_plan_may_say_is_the_same_in_every_form():
    plan = Plan.identity(4, 8, 8)
    plan.rotation_n[:] = 360, -360, 90, 0
    plan.hue_n[:] = 1, -1, 0, 0.5
    plan.shifts_n2[:] = [(256, -256), (-256, 256), (0, 0), (256, 256)]
    one, other = (augment(IMAGES, plan, CIFAR, form=form) for form in FORMS)
    assert same_bits(one, other)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (
            torch.empty(4, 3, 8, 8),
            "out: got (4, 3, 8, 8) of torch.float32 on cpu, takes (4, 3, 8, 8) of torch.bfloat16",
        ),
        (_unwritten()[:3], "out: got (3, 3, 8, 8) of torch.bfloat16 on cpu, takes (4, 3, 8, 8)"),
        (_unwritten().contiguous(), "out: got strides (192, 64, 8, 1), takes channels-last memory"),
        (np.zeros(3), "out: got ndarray, takes a torch tensor"),
    ],
)
def test_wrong_output_is_refused(out, message):
    with pytest.raises(ValueError) as caught:
        augment(IMAGES, Plan.identity(4, 8, 8), CIFAR, out=out)
    assert str(caught.value).startswith(message)


def test_settings_that_do_not_fit_the_size_are_refused():
    for settings, message in (
        ({"crop_padding": 8}, "crop_padding: got 8, takes less than the smaller side of a 8x9 image"),
        ({"cutout": 9}, "cutout: got 9, takes at most the smaller side of a 8x9 image"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            draw_plan(Augmentation(**settings), seed=0, epoch=0, indices_n=[0], height=8, width=9)
    draw_plan(Augmentation(crop_padding=8, padding_mode="constant"), seed=0, epoch=0, indices_n=[0], height=8, width=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed: got -1, takes an integer from 0 to 2**64 - 1"),
        ({"seed": 2**64}, f"seed: got {2**64}, takes an integer from 0 to 2**64 - 1"),
        ({"epoch": 2**32}, f"epoch: got {2**32}, takes an integer from 0 to 2**32 - 1"),
        ({"epoch": 0.5}, "epoch: got 0.5, takes an integer from 0 to 2**32 - 1"),
        ({"dtype": "int8"}, "dtype: got 'int8', takes float32, bfloat16, float16 or the torch.dtype of that name"),
        (
            {"dtype": torch.float64},
            "dtype: got torch.float64, takes float32, bfloat16, float16 or the torch.dtype of that name",
        ),
        ({"form": "fast"}, "form: got 'fast', takes auto, reference, numba, cuda"),
        ({"form": "cuda"}, "form: got 'cuda' for images in main memory, takes 'auto', 'numba' or 'reference'"),
        ({"num_threads": 0}, "num_threads: got 0, takes an integer of at least 1"),
        ({"indices_n": [1]}, "indices_n: got 1 indices, takes one for each of the 2 rows"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError) as caught:
        augment_batch(IMAGES, [0, 1], Augmentation(), CIFAR, **{"seed": 0, "epoch": 0, **options})
    assert str(caught.value) == message
    per_call = {name: options[name] for name in options.keys() & {"epoch", "indices_n"}}
    with pytest.raises(ValueError) as caught:
        augmenter = Augmenter(
            Augmentation(), CIFAR, **{"seed": 0, **{name: options[name] for name in options.keys() - per_call}}
        )
        augmenter(IMAGES, [0, 1], **{"epoch": 0, **per_call})
    assert str(caught.value) == message


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_threads", [0, -2, 1.5])
def test_wrong_numbers_of_threads_are_named_by_every_form(form, num_threads):
    options = {"form": form, "num_threads": num_threads}
    drawn = {"seed": 0, "epoch": 0, **options}
    for call in (
        lambda: draw_plan(Augmentation(), indices_n=[0], height=8, width=8, **drawn),
        lambda: augment(IMAGES, Plan.identity(4, 8, 8), CIFAR, **options),
        lambda: augment_batch(IMAGES, [0], Augmentation(), CIFAR, **drawn),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == f"num_threads: got {num_threads}, takes an integer of at least 1"


def test_wrong_count_is_named():
    with pytest.raises(ValueError, match=r"^num_images: got -1, takes an integer from 0 to 2\*\*32 - 1$"):
        epoch_order(-1, 0, 0)
