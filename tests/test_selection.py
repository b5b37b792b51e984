"""Training on the harder part of a batch: which images that is, and that choosing them leaves no trace."""

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fastcifar import config as configs
from fastcifar import models
from fastcifar.pipelines import Batch
from fastcifar.schema import SelectionConfig
from fastcifar.training import loop, selection
from fastcifar.training.selection import judged_losses, select


class Says(nn.Module):
    """A network whose first logit is the image's first pixel, so that a test chooses what is hard."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack((x[:, 0, 0, 0], torch.zeros(len(x))), 1)


def batch_of(first_logits: Tensor, *, mixed: bool = False) -> Batch:
    """Images of class 0 that `Says` gives these logits: the lower, the harder."""
    n = len(first_logits)
    images = first_logits[:, None, None, None].expand(n, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    zeros = torch.zeros(n, dtype=torch.int64)
    mix = (torch.ones_like(zeros), torch.linspace(0, 1, n)) if mixed else (None, None)
    return Batch(images, zeros, *mix, indices=torch.arange(n))


@given(
    logits=st.lists(st.integers(-50, 50), min_size=1, max_size=40),
    keep=st.floats(0.01, 1.0),
    mixed=st.booleans(),
)
def test_what_is_kept_is_at_least_as_hard_as_what_is_not(logits: list[int], keep: float, mixed: bool) -> None:
    batch = batch_of(torch.tensor(logits) / 8, mixed=mixed)
    config = SelectionConfig(keep=keep, pixels=0)
    kept = select(Says(), batch, config, 0.0, torch.float32)
    losses = judged_losses(Says(), batch, 0, torch.float32)
    left_out = torch.ones(len(logits), dtype=torch.bool)
    left_out[kept.indices] = False
    assert len(kept.labels) == config.num_kept(len(logits)) == max(1, round(keep * len(logits)))
    assert kept.indices.tolist() == sorted(kept.indices.tolist())
    if left_out.any():
        assert losses[kept.indices].min() >= losses[left_out].max()
    for field in fields(Batch):
        whole, part = getattr(batch, field.name), getattr(kept, field.name)
        assert (whole is None) == (part is None)
        if whole is not None:
            assert torch.equal(part, whole[kept.indices])
    assert kept.images.is_contiguous(memory_format=torch.channels_last)


def test_a_mixed_image_is_judged_by_both_of_its_labels() -> None:
    batch = batch_of(torch.tensor([2.0, 2.0, 2.0]), mixed=True)
    own, other = F.cross_entropy(torch.tensor([[2.0, 0.0]] * 2), torch.tensor([0, 1]), reduction="none")
    torch.testing.assert_close(
        judged_losses(Says(), batch, 0, torch.float32), torch.stack((other, (own + other) / 2, own))
    )


def test_until_its_share_of_the_run_any_images_are_kept() -> None:
    batch = batch_of(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    config = SelectionConfig(keep=0.5, since=0.3, pixels=0)
    assert select(Says(), batch, config, 0.29, torch.float32).indices.tolist() == [0, 1]
    assert select(Says(), batch, config, 0.3, torch.float32).indices.tolist() == [2, 3]


def test_keeping_all_costs_nothing() -> None:
    batch = batch_of(torch.tensor([3.0, 2.0]))
    assert select(nn.Identity(), batch, SelectionConfig(), 0.9, torch.float32) is batch


@pytest.mark.parametrize("fails", [False, True])
def test_judging_leaves_the_network_as_it_was(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network = models.build("speednet", num_classes=10).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batch = Batch(torch.randn(6, 3, 32, 32), torch.arange(6), None, None, torch.arange(6))
    if fails:
        monkeypatch.setattr(selection, "resize", lambda *_: torch.zeros(6, 5, 32, 32))
        with pytest.raises(RuntimeError):
            judged_losses(network, batch, 16, torch.float32)
    else:
        losses = judged_losses(network, batch, 16, torch.float32)
        assert losses.shape == (6,)
        assert not losses.requires_grad
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    network(batch.images)
    assert not torch.equal(network.stages[0].norm1.running_mean, before["stages.0.norm1.running_mean"])


def test_a_step_counts_the_images_it_trained_on() -> None:
    config = configs.load("speedrun", ["selection.keep=0.25", "pipeline.batch_size=8", "model.widths=[8, 8, 8]"])
    network = models.build("speednet", num_classes=10, widths=(8, 8, 8))
    state = loop.new_state(network, config, torch.float32)
    batch = Batch(torch.randn(8, 3, 32, 32), torch.arange(8), None, None, torch.arange(8))
    taken = loop.take_step(state, network, batch, config, torch.float32, steps_per_epoch=10)
    assert taken.num_images == 2
    state.tally.add(taken, 1)
    assert state.tally.num_images == 2


@pytest.mark.parametrize(("name", "value"), [("keep", 0), ("keep", 1.1), ("since", -0.1), ("since", 2), ("pixels", -1)])
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"selection.{name}"):
        configs.load("speedrun", [f"selection.{name}={value}"])
