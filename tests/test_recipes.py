"""Every recipe that comes with fastcifar can be trained by, and keeps what its name promises."""

import pytest
import torch

from fastcifar import config as configs
from fastcifar import models
from fastcifar.commands.speedrun import RECIPES
from fastcifar.pipelines import Batch
from fastcifar.training import loop
from fastcifar.training.session import build_network

NAMES = configs.recipe_names()
SYSTEMS = [
    "resnet4m",
    "resnet18_pool5",
    "resnet18_stem7",
    "resnet18_dropout",
    "modified_resnet",
    "se_resnet",
    "sweep_resnet",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is_and_reads_back_as_it_was(name: str) -> None:
    config = configs.load(name)
    assert config.name == name
    assert config.summary
    assert configs.parse(configs.dumps(config)) == config


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_system_has_its_recipe_and_a_fast_one_of_a_quarter_of_the_epochs(name: str) -> None:
    published, fast = configs.load(name), configs.load(f"{name}-fast")
    assert published.model.name == fast.model.name == name
    assert fast.train.epochs <= published.train.epochs / 4


@pytest.mark.parametrize(("target", "name"), RECIPES.items())
def test_a_target_has_a_recipe_of_under_five_million_parameters(target: int, name: str) -> None:
    config = configs.load(name)
    network = models.build(config.model.name, num_classes=10, widths=config.model.widths)
    assert models.num_parameters(network) < 5_000_000
    assert str(target) in config.summary


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_takes_a_step_with_its_own_network_and_optimiser(name: str) -> None:
    config = configs.load(name, ["pipeline.batch_size=4"])
    torch.manual_seed(0)
    network = build_network(config.model, 10)
    before = {key: value.clone() for key, value in network.named_parameters() if value.requires_grad}
    state = loop.new_state(network, config, torch.float32)
    labels, indices = torch.tensor([1, 2, 3, 4]), torch.arange(4)
    mixes = config.augmentation.mixes
    batch = Batch(
        torch.randn(4, 3, 32, 32),
        labels,
        labels.roll(1) if mixes else None,
        torch.full((4,), 0.7) if mixes else None,
        indices,
    )
    state.step = 3  # past the first step of a warm-up, where the rate is 0
    network.train()
    taken = loop.take_step(state, network, batch, config, torch.float32, steps_per_epoch=10)
    assert torch.isfinite(taken.loss)
    for key, value in network.named_parameters():
        if value.requires_grad:
            assert torch.isfinite(value).all(), key
    moved = [key for key, value in network.named_parameters() if key in before and not torch.equal(value, before[key])]
    assert len(moved) > 0.9 * len(before)
