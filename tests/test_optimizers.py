"""Optimisers and schedules do what their formulas say."""

import pytest
import torch

from fastcifar import models
from fastcifar.config import OptimizerConfig, ScheduleConfig, TrainConfig
from fastcifar.training import optimizers, schedules
from fastcifar.training.averaging import Averaging


@pytest.mark.parametrize("shape", [(16, 64), (64, 16)])
def test_orthogonalising_brings_singular_values_near_one_and_keeps_the_vectors(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape)
    updates = optimizers.orthogonalise(matrices, steps=5)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ updates @ vh.mT
    values = torch.diagonal(inner, dim1=-2, dim2=-1)
    assert values.min() > 0.3
    assert values.max() < 1.3
    torch.testing.assert_close(inner, torch.diag_embed(values), atol=1e-4, rtol=0)


def test_muon_steps_by_the_orthogonalised_momentum_from_the_normed_weight() -> None:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(6, 4, 3, 3)) for _ in range(2)]
    before = [weight.detach().clone() for weight in weights]
    optimizer = optimizers.Muon(weights, lr=0.1, momentum=0.6)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    for weight, old in zip(weights, before, strict=True):
        direction = weight.grad * 1.6
        update = optimizers.orthogonalise(direction.view(1, 6, 36)).view(6, 4, 3, 3)
        torch.testing.assert_close(weight.detach(), old * 6**0.5 / old.norm() - 0.1 * update)


def test_every_trainable_weight_has_one_optimizer() -> None:
    network = models.build("speednet", num_classes=10)
    for name in ("muon", "sgd", "nesterov", "adam", "adamw"):
        built = optimizers.build(network, OptimizerConfig(name=name), batch_size=100)
        held = [id(p) for optimizer in built for group in optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_weight_decay_stays_off_norms_where_asked() -> None:
    network = models.build("speednet", num_classes=10)
    (optimizer,) = optimizers.build(network, OptimizerConfig(name="sgd", weight_decay=0.1, decay_norms=False), 100)
    for group in optimizer.param_groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}


def test_schedules_start_at_the_peak_and_end_near_zero() -> None:
    for name in ("linear", "cosine"):
        config = ScheduleConfig(name)
        rates = [schedules.scale(config, i / 100) for i in range(100)]
        assert rates[0] == 1
        assert rates == sorted(rates, reverse=True)
        assert 0 < rates[-1] < 0.011


def test_the_warm_up_rises_from_zero_to_the_peak() -> None:
    config = ScheduleConfig("linear", warmup=0.25)
    assert [schedules.scale(config, p) for p in (0, 0.125, 0.25, 0.625)] == [0, 0.5, 1, 0.5]


def test_the_average_of_a_constant_is_the_constant_and_lookahead_goes_on_from_it() -> None:
    for kind in ("ema", "lookahead"):
        layer = torch.nn.Linear(2, 2)
        averaging = Averaging(layer, TrainConfig(averaging=kind, averaging_decay=0.9))
        for step in range(1, 21):
            averaging.update(step, 20)
        kept = layer.weight.detach().clone()
        averaging.finish()
        torch.testing.assert_close(layer.weight.detach(), kept)


def test_an_ema_lies_between_the_old_and_the_new() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    averaging = Averaging(layer, TrainConfig(averaging="ema", averaging_decay=0.5))
    torch.nn.init.ones_(layer.weight)
    for step in range(100, 103):
        averaging.update(step, 200)
    averaging.finish()
    assert layer.weight.item() == pytest.approx(1 - 0.5**3)
