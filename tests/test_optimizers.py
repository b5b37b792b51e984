"""Optimisers and schedules do what their formulas say."""

import pytest
import torch

from fastcifar import models
from fastcifar.schema import OPTIMIZERS, OptimizerConfig, ScheduleConfig, TrainConfig
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


@pytest.mark.parametrize("shape", [(64, 216), (256, 2304), (256, 216), (1, 9)])
def test_orthogonalising_by_gram_matrices_is_the_iteration(shape: tuple[int, int]) -> None:
    """Singular values from 1 to 1e-6 of the largest, as gradients have them; as a stack, and each matrix by itself."""
    torch.manual_seed(0)
    random = torch.randn(2, *shape, dtype=torch.float64)
    u, values, vh = torch.linalg.svd(random, full_matrices=False)
    matrices = u * torch.logspace(0, -6, values.shape[-1], dtype=torch.float64) @ vh
    exact = optimizers.orthogonalise(matrices)
    by_itself = torch.stack([optimizers.orthogonalise(matrix) for matrix in matrices.float()])
    for ours in (optimizers.orthogonalise(matrices.float()), by_itself):
        assert (ours - exact).norm() / exact.norm() < 1e-5


@pytest.mark.parametrize("decay", [1, 2])
def test_in_bfloat16_nothing_goes_astray(decay: float) -> None:
    """Small singular values grow as they should, though beside the largest their squares are lost in bfloat16."""
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(128, 1152), full_matrices=False)
    matrix = u * torch.arange(1, 129) ** -float(decay) @ vh
    exact, ours = optimizers.orthogonalise(matrix), optimizers.orthogonalise(matrix.bfloat16())
    assert ours.dtype == torch.bfloat16
    # A GPU's way, which rounds the matrix alike, is 1 and 4 % away.
    assert (ours.float() - exact).norm() / exact.norm() < (0.04 if decay == 1 else 0.08)
    assert (torch.linalg.svdvals(ours.float()) - torch.linalg.svdvals(exact)).abs().max() < 0.04


def test_what_is_zero_stays_zero() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert not optimizers.orthogonalise(torch.zeros(4, 36, dtype=dtype)).any()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_muon_steps_by_the_orthogonalised_momentum_from_the_normed_weight(dtype: torch.dtype | None) -> None:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(6, 4, 3, 3)) for _ in range(2)]
    before = [weight.detach().clone() for weight in weights]
    optimizer = optimizers.Muon(weights, lr=0.1, momentum=0.6, dtype=dtype)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    for weight, old in zip(weights, before, strict=True):
        direction = weight.grad * 1.6
        update = optimizers.orthogonalise(direction.view(1, 6, 36)).view(6, 4, 3, 3)
        expected = old * 6**0.5 / old.norm() - 0.1 * update
        torch.testing.assert_close(weight.detach(), expected, **({} if dtype is None else {"atol": 5e-3, "rtol": 0}))


def test_muon_computes_in_what_the_step_does() -> None:
    network = models.build("speednet", num_classes=10)
    for dtype, products in ((torch.bfloat16, torch.bfloat16), (torch.float32, None), (torch.float16, None)):
        _, muon = optimizers.build(network, OptimizerConfig(name="muon"), batch_size=100, dtype=dtype)
        assert muon._dtype == products


def test_every_trainable_weight_has_one_optimizer() -> None:
    network = models.build("speednet", num_classes=10)
    for name in OPTIMIZERS:
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
    for kind in ("ema", "lookahead", "growing_lookahead"):
        layer = torch.nn.Linear(2, 2)
        averaging = Averaging(layer, TrainConfig(averaging=kind, averaging_decay=0.9))
        for step in range(1, 21):
            averaging.update(step, 20)
        kept = layer.weight.detach().clone()
        averaging.finish()
        torch.testing.assert_close(layer.weight.detach(), kept)


def test_a_growing_lookahead_follows_ever_more_slowly() -> None:
    """As airbench has it: every 5 steps, keeping decay**5 * progress**3 of itself."""
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    averaging, expected = Averaging(layer, TrainConfig(averaging="growing_lookahead", averaging_decay=0.9)), 0.0
    for step in range(1, 21):
        with torch.no_grad():
            layer.weight += 1
        live = layer.weight.item()
        averaging.update(step, 20)
        if step % 5 == 0:
            kept = 0.9**5 * (step / 20) ** 3
            expected = kept * expected + (1 - kept) * live
            assert layer.weight.item() == pytest.approx(expected)
        else:
            assert layer.weight.item() == live


def test_an_ema_lies_between_the_old_and_the_new() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    averaging = Averaging(layer, TrainConfig(averaging="ema", averaging_decay=0.5))
    torch.nn.init.ones_(layer.weight)
    for step in range(100, 103):
        averaging.update(step, 200)
    averaging.finish()
    assert layer.weight.item() == pytest.approx(1 - 0.5**3)


def test_lookahead_is_zhangs_around_any_optimizer() -> None:
    """Against the algorithm as published: fast weights go 5 steps, the slow ones half the way to them."""
    fast = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(fast.weight)
    averaging = Averaging(fast, TrainConfig(averaging="lookahead", averaging_decay=0.5))
    optimizer = torch.optim.SGD(fast.parameters(), lr=1.0)
    slow = 0.0
    for step in range(1, 16):
        fast.weight.grad = torch.full_like(fast.weight, -1.0)
        optimizer.step()
        averaging.update(step, 15)
        if step % 5 == 0:
            slow += 0.5 * 5
            assert fast.weight.item() == slow


def test_validation_sees_the_average_and_training_goes_on_from_the_weights() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    averaging = Averaging(layer, TrainConfig(averaging="ema", averaging_decay=0.5))
    torch.nn.init.ones_(layer.weight)
    averaging.update(100, 200)
    with averaging.applied():
        assert layer.weight.item() == 0.5
    assert layer.weight.item() == 1.0


def test_a_step_schedule_falls_every_so_many_epochs() -> None:
    config = ScheduleConfig("step", factor=0.5, step_epochs=2)
    rates = [schedules.scale(config, epoch / 6, epoch) for epoch in (0, 1.9, 2, 3.9, 4, 5.9)]
    assert rates == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_one_cycle_is_the_librarys_and_moves_momentum_the_other_way() -> None:
    config = ScheduleConfig("one_cycle", warmup=0.3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    library = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=101, pct_start=0.3, div_factor=1e9, final_div_factor=1.0
    )
    # The library's phases end at whole steps: 0.3 of 101 steps less one.
    peak = 0.3 * 101 - 1
    for step in range(100):
        progress = 0.3 * step / peak if step <= peak else 0.3 + 0.7 * (step - peak) / (100 - peak)
        (rate,) = library.get_last_lr()
        assert schedules.scale(config, progress) == pytest.approx(rate, abs=1e-6)
        assert schedules.momentum(config, progress) == pytest.approx(optimizer.param_groups[0]["momentum"], abs=1e-6)
        optimizer.step()
        library.step()


def test_a_plateau_is_the_librarys() -> None:
    config = ScheduleConfig("plateau", factor=0.5, patience=2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    library = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    plateau = schedules.Plateau()
    losses = [2.0, 1.0, 1.5, 1.00005, 0.99995, 1.1, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.4, 0.5]
    for loss in losses:
        library.step(loss)
        plateau.update(config, loss, accuracy=0.0)
        assert plateau.factor == optimizer.param_groups[0]["lr"]
    assert plateau.factor < 1


def test_gradients_are_clipped_by_value_and_by_norm() -> None:
    from fastcifar import config as configs
    from fastcifar.training import loop

    for setting, holds in (
        ("optimizer.clip_value=0.1", lambda grads: max(g.abs().max() for g in grads) <= 0.1),
        ("optimizer.clip_norm=0.1", lambda grads: torch.cat([g.flatten() for g in grads]).norm() <= 0.1001),
    ):
        network = torch.nn.Linear(4, 4)
        config = configs.load("speedrun", ["optimizer.name=sgd", "optimizer.momentum=0", setting])
        state = loop.new_state(network, config, torch.float32)
        (network(torch.randn(8, 4)) ** 2).sum().mul(100).backward()
        loop.clip(state, config)
        assert holds([p.grad for p in network.parameters()])
