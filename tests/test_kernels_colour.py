"""Rotation, saturation and hue against torchvision, and against what they must do."""

import numpy as np
import pytest
import torch
from kernel_cases import CIFAR, pictures, same_bits
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from fastcifar.kernels import Augmentation, Normalisation, Plan, augment, augment_batch

FORMS = ("reference", "numba")


def smooth(num_images, height, width):
    """Images without hard edges, in which a small difference of position is a small difference of value."""
    y, x = np.mgrid[:height, :width] / 8.0
    phase = np.arange(num_images * 3).reshape(num_images, 1, 1, 3)
    waves = np.sin(y[None, :, :, None] + phase) * np.cos(x[None, :, :, None] - phase)
    return np.round(127.5 + 120 * waves).astype(np.uint8)


def levels(batch):
    """On the scale 0..255, from identity normalisation."""
    return batch * 255


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (21, 40), (8, 3)])
def test_rotation_is_torchvisions(form, height, width):
    angles = [-180, -135, -90, -33.3, -1, 0, 0.5, 45, 90, 179]
    images = smooth(len(angles), height, width)
    plan = Plan.identity(len(angles), height, width, "constant")
    plan.rotation_n[:] = angles
    batch = levels(augment(images, plan, Normalisation.identity(), dtype="float32", form=form))
    for image, rotated, angle in zip(images, batch, angles, strict=True):
        source = torch.from_numpy(image).permute(2, 0, 1).float()
        expected = tvf.rotate(source, angle, interpolation=InterpolationMode.BILINEAR)
        # Ours blends with black beyond the edge, torchvision cuts there: compare what lies inside.
        inside = tvf.rotate(torch.ones_like(source), angle, interpolation=InterpolationMode.BILINEAR) > 0.999
        assert inside.float().mean() > 0.2
        assert (rotated - expected)[inside].abs().max() < 0.25


@pytest.mark.parametrize("form", FORMS)
def test_rotation_by_quarters_moves_pixels_exactly(form):
    images = pictures(5, 12, 12)
    plan = Plan.identity(5, 12, 12)
    plan.rotation_n[:] = [0, 90, 180, -90, -180]
    batch = levels(augment(images, plan, Normalisation.identity(), dtype="float32", form=form)).permute(0, 2, 3, 1)
    for image, rotated, quarters in zip(images, batch.round().numpy(), [0, 1, 2, 3, 2], strict=True):
        assert np.array_equal(rotated, np.rot90(image, quarters))


@pytest.mark.parametrize("form", FORMS)
def test_rotation_with_crop_shows_the_extended_plane(form):
    """Beyond the edge the plane is a mirror: nothing of a grey image can be anything but grey."""
    images = np.full((40, 9, 7, 3), 77, dtype=np.uint8)
    augmentation = Augmentation(crop_padding=6, rotation=180, flip="random")
    batch = augment_batch(images, range(40), augmentation, CIFAR, seed=0, epoch=0, dtype="float32", form=form)[0]
    grey = augment(images[:1], Plan.identity(1, 9, 7), CIFAR, dtype="float32")
    assert same_bits(batch, grey.expand(batch.shape))


@pytest.mark.parametrize("form", FORMS)
def test_rotation_then_crop_then_flip(form):
    images = smooth(1, 16, 16).repeat(2, 0)
    plan = Plan.identity(2, 16, 16)
    plan.rotation_n[:] = 25
    rotated = augment(images, plan, CIFAR, dtype="float32", form=form)[0]
    plan.shifts_n2[:] = [[2, -3], [2, 0]]
    plan.flips_n[:] = [0, 1]
    shifted, mirrored = augment(images, plan, CIFAR, dtype="float32", form=form)
    assert same_bits(shifted[:, :14, 3:], rotated[:, 2:, :13])
    assert same_bits(mirrored[:, :14], rotated[:, 2:].flip(2))


@pytest.mark.parametrize("form", FORMS)
def test_saturation_is_torchvisions(form):
    factors = [0, 0.3, 0.9, 1.1, 2.5]
    images = pictures(len(factors), 16, 16)
    plan = Plan.identity(len(factors), 16, 16)
    plan.saturation_n[:] = factors
    batch = augment(images, plan, Normalisation.identity(), dtype="float32", form=form)
    for image, saturated, factor in zip(images, batch, factors, strict=True):
        source = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        assert torch.allclose(saturated, tvf.adjust_saturation(source, factor), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_hue_is_torchvisions(form):
    turns = [-0.5, -0.2, -0.01, 0.01, 0.1, 1 / 3, 0.5]
    images = pictures(len(turns), 16, 16)
    images[:, 0] = images[:, 0, :, :1]  # greys, which have no hue
    plan = Plan.identity(len(turns), 16, 16)
    plan.hue_n[:] = turns
    batch = augment(images, plan, Normalisation.identity(), dtype="float32", form=form)
    for image, turned, turn in zip(images, batch, turns, strict=True):
        source = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        assert torch.allclose(turned, tvf.adjust_hue(source, turn), atol=1e-4)
        assert torch.allclose(turned[:, 0], source[:, 0], atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_brightness_and_contrast_shift_and_scale(form):
    images = pictures(3, 8, 8)
    plan = Plan.identity(3, 8, 8)
    plan.brightness_n[:] = [0.5, 0, -0.25]
    plan.contrast_n[:] = [1, 0.5, 1.5]
    plain = augment(images, Plan.identity(3, 8, 8), CIFAR, dtype="float32")
    shift, scale = (
        torch.from_numpy(numbers.copy())[:, None, None, None] for numbers in (plan.brightness_n, plan.contrast_n)
    )
    assert same_bits(augment(images, plan, CIFAR, dtype="float32", form=form), (plain + shift) * scale)
