"""CutMix and MixUp against timm's own: the same images and labels for the same draw, and draws of the same kind."""

import numpy as np
import pytest
import torch
from kernel_cases import CIFAR, pictures
from timm.data import mixup as timm_mixup

from fastcifar.kernels import Augmentation, Plan, augment, augment_batch, draw_plan

NUM_CLASSES, SIDE = 10, 32


def _drawn(augmentation: Augmentation, num_images: int, **options: int) -> Plan:
    return draw_plan(augmentation, indices_n=range(num_images), height=SIDE, width=SIDE, **options)


@pytest.mark.parametrize(("mix_per", "mode"), [("batch", "batch"), ("image", "elem")])
@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_a_mixed_pair_is_timms(kind, mix_per, mode, monkeypatch):
    """In a batch of two timm's partner, the batch in reverse, is ours, the next image."""
    images, labels = pictures(2, SIDE, SIDE), torch.tensor([3, 8])
    plain = augment(images, Plan.identity(2, SIDE, SIDE), CIFAR, dtype="float32")
    mixer = timm_mixup.Mixup(
        cutmix_alpha=float(kind == "cutmix"), mode=mode, num_classes=NUM_CLASSES, label_smoothing=0.0
    )
    augmentation = Augmentation(**{kind: 1.0}, mix_per=mix_per)
    for epoch in range(20):
        plan = _drawn(augmentation, 2, seed=1, epoch=epoch)
        boxes = iter(plan.cutmix_boxes_n4.tolist())

        def our_box(*_: object, boxes=boxes, **__: object) -> tuple[int, int, int, int]:
            y0, x0, y1, x1 = next(boxes)
            return y0, y1, x0, x1

        # timm is told the boxes, or MixUp's weights; what a box says of the weight, it works out by itself.
        monkeypatch.setattr(timm_mixup, "rand_bbox", our_box)
        weights = plan.mix_weights_n.copy() if kind == "mixup" else np.full(2, 0.5, np.float32)
        by_cutmix = np.full(2, kind == "cutmix")
        monkeypatch.setattr(mixer, "_params_per_elem", lambda _, w=weights, c=by_cutmix: (w, c))
        monkeypatch.setattr(mixer, "_params_per_batch", lambda w=weights, c=by_cutmix: (w[0], c[0]))
        expected, expected_labels = mixer(plain.clone(), labels)
        got, got_weights, partners = augment_batch(images, range(2), augmentation, CIFAR, seed=1, epoch=epoch)
        own = got_weights[:, None]
        one_hot = torch.nn.functional.one_hot(labels, NUM_CLASSES).float()
        assert torch.allclose(got.float(), expected, atol=0.01)
        assert torch.allclose(augment(images, plan, CIFAR, dtype="float32"), expected, atol=1e-6)
        assert torch.allclose(own * one_hot + (1 - own) * one_hot[partners], expected_labels, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_weights_of_mixup_are_distributed_as_timms(alpha):
    num = 20_000
    ours = _drawn(Augmentation(mixup=alpha, mix_per="image"), num, seed=2, epoch=0).mix_weights_n
    np.random.seed(0)
    mixer = timm_mixup.Mixup(mixup_alpha=alpha, cutmix_alpha=0.0)
    theirs, _ = mixer._params_per_elem(num)
    places = np.linspace(0, 1, 201)
    gap = np.abs(np.searchsorted(np.sort(ours), places) - np.searchsorted(np.sort(theirs), places)).max() / num
    # Kolmogorov and Smirnov: two samples of one distribution are farther apart once in ten thousand times.
    assert gap < 2.225 * np.sqrt(2 / num)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_weights_of_cutmix_are_distributed_as_timms(alpha):
    """But for a pixel: a box's sides are even numbers, as torchvision's are, where timm has odd ones as well."""
    num = 20_000
    ours = _drawn(Augmentation(cutmix=alpha, mix_per="image"), num, seed=2, epoch=0).mix_weights_n
    np.random.seed(0)
    mixer = timm_mixup.Mixup(mixup_alpha=0.0, cutmix_alpha=alpha)
    uncorrected, _ = mixer._params_per_elem(num)
    theirs = [timm_mixup.cutmix_bbox_and_lam((3, SIDE, SIDE), weight)[1] for weight in uncorrected]
    places = np.linspace(0.01, 0.99, 99)
    # A pixel less along both sides of a box of h x w is h + w - 1 pixels less: at most two sides of the image.
    assert np.abs(np.quantile(ours, places) - np.quantile(theirs, places)).max() < 2 / SIDE
    assert 0 < ours.mean() - np.mean(theirs) < 1 / SIDE


@pytest.mark.parametrize("mix_per", ["batch", "image"])
def test_probability_and_switch_mean_what_they_mean_in_timm(mix_per):
    num, probability, switch = 4_000, 0.6, 0.3
    augmentation = Augmentation(cutmix=1.0, mixup=1.0, mix_probability=probability, mix_switch=switch, mix_per=mix_per)
    if mix_per == "image":
        plan = _drawn(augmentation, num, seed=3, epoch=0)
        boxes, weights = plan.cutmix_boxes_n4, plan.mix_weights_n
    else:
        plans = [_drawn(augmentation, 2, seed=3, epoch=epoch) for epoch in range(num)]
        boxes = np.stack([plan.cutmix_boxes_n4[0] for plan in plans])
        weights = np.array([plan.mix_weights_n[0] for plan in plans])
    by_cutmix = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    by_mixup = (weights < 1) & ~by_cutmix
    np.random.seed(0)
    mixer = timm_mixup.Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, prob=probability, switch_prob=switch)
    params = [mixer._params_per_batch() for _ in range(num)]
    theirs_cutmix = np.mean([cut and weight < 1 for weight, cut in params])
    theirs_mixup = np.mean([not cut and weight < 1 for weight, cut in params])
    # Four deviations of the difference of two shares near these.
    assert abs(by_cutmix.mean() - theirs_cutmix) < 4 * np.sqrt(2 * 0.18 * 0.82 / num)
    assert abs(by_mixup.mean() - theirs_mixup) < 4 * np.sqrt(2 * 0.42 * 0.58 / num)
