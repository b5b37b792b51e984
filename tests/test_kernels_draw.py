"""What is drawn: the generator, the distributions, and what they depend on."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import augmentations
from scipy import stats

from fastcifar.kernels import Augmentation, draw_plan, epoch_order
from fastcifar.kernels.philox import philox_4x32
from fastcifar.kernels.plan import settings_for

# Random123, kat_vectors: philox4x32 10 (counter, key, answer).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_its_known_answers(counter, key, answer):
    assert tuple(philox_4x32(np.array([counter], dtype=np.uint32), key)[0].tolist()) == answer


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_compiled_philox_gives_its_known_answers(counter, key, answer):
    from numba import njit

    from fastcifar.kernels.numba_vector import pointer_to
    from fastcifar.kernels.numba_words import BLOCK, fill_words

    @njit
    def fill(indices, epoch, stream, seed, words):
        fill_words(pointer_to(indices), len(indices), epoch, stream, seed, pointer_to(words))

    index, epoch, stream = np.uint64(counter[0] | counter[1] << 32), np.uint64(counter[2]), np.uint64(counter[3])
    indices, words = np.full(19, index).view(np.int64), np.zeros((4, BLOCK), np.uint32)
    fill(indices, epoch, stream, np.uint64(key[0] | key[1] << 32), words.reshape(-1))
    for place in range(len(indices)):
        assert tuple(words[:, place].tolist()) == answer
    assert not words[:, len(indices) :].any()


@pytest.mark.parametrize("seed", [2**63 - 1, 2**63, 2**64 - 1])
def test_large_seeds_of_numpy_are_the_same_seeds(seed):
    options = {"epoch": 0, "indices_n": range(9), "height": 8, "width": 8}
    ours, theirs = (draw_plan(FULL, seed=kind(seed), **options) for kind in (int, np.uint64))
    assert np.array_equal(ours.floats_nk, theirs.floats_nk)
    assert np.array_equal(ours.ints_nk, theirs.ints_nk)


@settings(max_examples=100)
@given(st.data())
def test_forms_draw_the_same(data):
    height, width = data.draw(st.integers(1, 256)), data.draw(st.integers(1, 256))
    augmentation = data.draw(augmentations(height, width))
    num_times = data.draw(st.integers(1, 30))  # more than are drawn at once
    options = {
        "seed": data.draw(st.integers(0, 2**64 - 1)),
        "epoch": data.draw(st.integers(0, 2**32 - 1)),
        "indices_n": data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=9)) * num_times,
        "height": height,
        "width": width,
    }
    reference = draw_plan(augmentation, form="reference", **options)
    for num_threads in (1, 2):
        compiled = draw_plan(augmentation, form="numba", num_threads=num_threads, **options)
        assert np.array_equal(compiled.ints_nk, reference.ints_nk)
        assert np.array_equal(compiled.floats_nk.view(np.int32), reference.floats_nk.view(np.int32))


@pytest.mark.parametrize("mix_per", ["batch", "image"])
def test_threads_share_what_the_reference_draws(mix_per):
    augmentation = replace(FULL, mix_per=mix_per)
    options = {"seed": 5, "epoch": 3, "indices_n": np.arange(7000, 2000, -1), "height": 32, "width": 31}
    reference = draw_plan(augmentation, form="reference", **options)
    for num_threads in (1, 2, 4):
        compiled = draw_plan(augmentation, form="numba", num_threads=num_threads, **options)
        assert np.array_equal(compiled.ints_nk, reference.ints_nk)
        assert np.array_equal(compiled.floats_nk.view(np.int32), reference.floats_nk.view(np.int32))


FULL = Augmentation(
    crop_padding=4,
    flip="random",
    cutout=8,
    cutmix=1.0,
    mixup=0.5,
    mix_per="image",
    brightness=0.3,
    contrast=0.2,
    rotation=30,
    saturation=0.4,
    hue=0.1,
)


def _plan(augmentation=FULL, *, seed=0, epoch=0, indices=range(20000)):
    return draw_plan(augmentation, seed=seed, epoch=epoch, indices_n=indices, height=32, width=32)


@pytest.mark.parametrize("amount", [1e-46, 1e-9, 2.0**-24, 2.0**-23])
@pytest.mark.parametrize("setting", ["brightness", "contrast", "rotation", "saturation", "hue"])
def test_forms_draw_the_same_of_next_to_nothing(setting, amount):
    options = {"seed": 0, "epoch": 0, "indices_n": range(50), "height": 4, "width": 4}
    expected, found = (
        draw_plan(Augmentation(**{setting: amount}), form=form, **options) for form in ("reference", "numba")
    )
    assert np.array_equal(found.floats_nk.view(np.int32), expected.floats_nk.view(np.int32))


def test_a_draw_is_a_function_of_seed_epoch_and_index_alone():
    whole = _plan(indices=range(100))
    some = _plan(indices=[70, 3, 99])
    assert np.array_equal(whole.ints_nk[[70, 3, 99]], some.ints_nk)
    assert np.array_equal(whole.floats_nk[[70, 3, 99]], some.floats_nk)
    for other in (_plan(seed=1, indices=range(100)), _plan(epoch=1, indices=range(100)), _plan(indices=range(1, 101))):
        assert (other.ints_nk != whole.ints_nk).any(axis=1).mean() > 0.9


def test_one_setting_does_not_change_what_another_draws():
    crops = _plan(Augmentation(crop_padding=4))
    assert np.array_equal(crops.shifts_n2, _plan().shifts_n2)
    assert np.array_equal(_plan(Augmentation(flip="random")).flips_n, _plan().flips_n)
    assert np.array_equal(_plan(Augmentation(rotation=30)).rotation_n, _plan().rotation_n)


def test_distributions():
    plan = _plan()
    for axis in range(2):
        counts = np.bincount(plan.shifts_n2[:, axis] + 4, minlength=9)
        assert len(counts) == 9
        assert stats.chisquare(counts).pvalue > 1e-4
    assert abs(plan.flips_n.mean() - 0.5) < 0.02
    for drawn, low, high in (
        (plan.rotation_n, -30, 30),
        (plan.brightness_n, -0.3, 0.3),
        (plan.contrast_n, 0.8, 1.2),
        (plan.saturation_n, 0.6, 1.4),
        (plan.hue_n, -0.1, 0.1),
    ):
        assert stats.kstest(drawn, "uniform", (low, high - low)).pvalue > 1e-4
    assert stats.chisquare(np.bincount(plan.cutout_boxes_n4[:, 0], minlength=25)).pvalue > 1e-4
    correlation = np.corrcoef(np.column_stack([plan.shifts_n2, plan.flips_n, plan.rotation_n, plan.hue_n]).T)
    assert np.abs(correlation - np.eye(5)).max() < 0.03


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 3.0])
def test_mixup_weights_are_beta_distributed(alpha):
    weights = _plan(Augmentation(mixup=alpha, mix_per="image")).mix_weights_n
    # Not by a test on all values: those next to 1 all become 1 in float32.
    for bound in np.linspace(0.01, 0.99, 99):
        assert abs((weights <= bound).mean() - stats.beta.cdf(bound, alpha, alpha)) < 0.015


def test_cutmix_boxes_are_drawn_as_the_paper_does():
    """Box sides of sqrt(1 - weight) around a uniform centre, cut off at the edges (arXiv 1905.04899, appendix A)."""
    drawn = _plan(Augmentation(cutmix=1.0, mix_per="image"))
    boxes = drawn.cutmix_boxes_n4
    rng = np.random.default_rng(0)
    half = 0.5 * np.sqrt(1 - rng.random(20000))
    sides = []
    for _ in range(2):
        centre, reach = rng.integers(0, 32, 20000), (half * 32).astype(int)
        sides.append(np.minimum(centre + reach, 32) - np.maximum(centre - reach, 0))
    expected = 1 - sides[0] * sides[1] / 1024
    assert abs(drawn.mix_weights_n.mean() - expected.mean()) < 0.01
    assert stats.ks_2samp(drawn.mix_weights_n, expected).pvalue > 1e-4
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= 32).all()


def test_share_mixed_and_share_of_cutmix():
    plan = _plan(Augmentation(cutmix=1.0, mixup=1.0, mix_probability=0.6, mix_switch=0.25, mix_per="image"))
    cut = (plan.cutmix_boxes_n4[:, 2] > 0) | (plan.cutmix_boxes_n4[:, 3] > 0)
    mixed = cut | (plan.mix_weights_n < 1)
    assert abs(mixed.mean() - 0.6) < 0.02
    assert abs(cut.sum() / mixed.sum() - 0.25) < 0.02


def test_a_batch_is_mixed_by_its_first_image():
    augmentation = Augmentation(cutmix=1.0, mixup=1.0)
    first, second = _plan(augmentation, indices=[5, 6, 7]), _plan(augmentation, indices=[5, 1, 2, 3])
    assert len(set(first.mix_weights_n.tolist())) == 1
    assert first.mix_weights_n[0] == second.mix_weights_n[0]
    weights = {_plan(augmentation, indices=[i, 0]).mix_weights_n[0] for i in range(20)}
    assert len(weights) > 15


def test_alternating_flips_alternate():
    epochs = [_plan(Augmentation(flip="alternating"), epoch=epoch, indices=range(1000)).flips_n for epoch in range(4)]
    assert 400 < epochs[0].sum() < 600
    assert np.array_equal(epochs[1], 1 - epochs[0])
    assert np.array_equal(epochs[2], epochs[0])
    assert np.array_equal(epochs[3], epochs[1])


def test_padding_and_switch_have_no_effect_where_off():
    settings_off = settings_for(Augmentation(mix_switch=0.9, mix_probability=0.3), 32, 32)
    assert settings_off.mix_probability == 0
    assert (_plan(Augmentation(mixup=1.0, mix_switch=1.0), indices=range(50)).cutmix_boxes_n4 == 0).all()
    assert (_plan(Augmentation(cutmix=1.0, mix_switch=0.0), indices=range(50)).cutmix_boxes_n4 > 0).any()


@pytest.mark.parametrize("form", ["reference", "numba"])
def test_epoch_order_is_a_permutation_by_seed_and_epoch(form):
    for num_images in (0, 1, 2, 3, 4, 5, 1001):
        assert sorted(epoch_order(num_images, 7, 3, form=form)) == list(range(num_images))
    orders = {tuple(epoch_order(50, seed, epoch, form=form)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert np.array_equal(epoch_order(777, 2**64 - 1, 2**32 - 1, form=form), epoch_order(777, 2**64 - 1, 2**32 - 1))


def test_epoch_order_is_fair():
    places = np.stack([epoch_order(6, 0, epoch) for epoch in range(12000)])
    for place in range(6):
        assert stats.chisquare(np.bincount(places[:, place])).pvalue > 1e-4


@pytest.mark.parametrize("form", ["reference", "numba"])
def test_mixing_begins_at_its_epoch_and_leaves_the_rest_alone(form):
    options = {"seed": 3, "indices_n": range(8), "height": 32, "width": 32, "form": form}
    always = Augmentation(crop_padding=4, flip="random", cutmix=1.0)
    late = Augmentation(crop_padding=4, flip="random", cutmix=1.0, mix_from_epoch=2)
    for epoch in range(4):
        found = draw_plan(late, epoch=epoch, **options)
        expected = draw_plan(always, epoch=epoch, **options)
        assert np.array_equal(found.shifts_n2, expected.shifts_n2)
        assert np.array_equal(found.flips_n, expected.flips_n)
        mixed = (found.mix_weights_n < 1).any()
        assert mixed == (epoch >= 2)
        if epoch >= 2:
            assert np.array_equal(found.ints_nk, expected.ints_nk)
