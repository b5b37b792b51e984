"""What a SPACE.toml says, and what it may not say."""

from pathlib import Path

import optuna
import pytest

from fastcifar import config as configs
from fastcifar.sweeps import space as spaces

FIXED = "trials = 3\nfixed.data.validation = 0.2\n"
RATE = '[space."optimizer.lr"]\nlow = 0.1\nhigh = 0.4\n'


def parse(text: str) -> spaces.Definition:
    return spaces.parse(text, name="x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trials = 3", "sweep.space: got {}, takes a section for each searched setting"),
        (RATE, "sweep.trials: got 0"),
        (f"trails = 3\n{FIXED}{RATE}", "sweep.trails: no such setting .did you mean trials"),
        (f"sampler = 'cma'\n{FIXED}{RATE}", "sweep.sampler: got 'cma', takes one of tpe, random, grid"),
        (f"pruner = 'asha'\n{FIXED}{RATE}", "sweep.pruner: got 'asha'"),
        (f"objective = 'test_accuracy'\n{FIXED}{RATE}", "sweep.objective: got 'test_accuracy'"),
        (f"recipe = 'nope'\n{FIXED}{RATE}", "recipe: got 'nope'"),
        (f"trials = 3\n{RATE}", "data.validation: got 0.0, takes a share or a count above 0"),
        (f"{FIXED}fixed.data.validatoin = 1\n{RATE}", "data.validatoin: no such setting .did you mean validation"),
        (f"{FIXED}fixed.optimiser.lr = 1\n{RATE}", "optimiser: no such setting"),
        (f'{FIXED}[space."optimizer.lrr"]\nlow = 1\nhigh = 2', "optimizer.lrr: no such setting .did you mean lr"),
        (f"{FIXED}[space.optimizer.lr]\nlow = 1\nhigh = 2", 'takes the whole setting in quotes: .space."optimizer.lr"'),
        (f'{FIXED}[space."optimizer.lr"]\nlow = 1\nhihg = 2', "space.optimizer.lr.hihg: no such setting"),
        (f'{FIXED}[space."optimizer.lr"]\nlow = 1', "space.optimizer.lr: got .*, takes low and high, or choices"),
        (f'{FIXED}[space."optimizer.lr"]\nlow = 2\nhigh = 1', "space.optimizer.lr.high: got 1.0"),
        (f'{FIXED}[space."optimizer.lr"]\nlow = 0\nhigh = 1', "optimizer.lr: got 0.0, takes a number above 0"),
        (f'{FIXED}[space."optimizer.lr"]\nlow = 0\nhigh = 1\nlog = true', "space.optimizer.lr.low: got 0.0"),
        (f'{FIXED}[space."optimizer.lr"]\nlow = 1\nhigh = 2\nstep = 1\nlog = true', "space.optimizer.lr.step: got 1.0"),
        (f'{FIXED}[space."optimizer.lr"]\nchoices = [1]\nlog = true', "takes choices alone"),
        (f'{FIXED}[space."optimizer.lr"]\nchoices = [0.1, "fast"]', "optimizer.lr: got 'fast', takes a number"),
        (f'{FIXED}[space."optimizer.lr"]\nchoices = [0.1, 0.1]', "takes values that differ"),
        (f'{FIXED}[space."optimizer.name"]\nlow = 1\nhigh = 2', "optimizer.name: got 1.0, takes text"),
        (f'{FIXED}[space."train.threads"]\nlow = 0.5\nhigh = 2', "train.threads: got 0.5, takes a whole number"),
        (f'{FIXED}[space."data.validation"]\nlow = 0.1\nhigh = 0.2', "space.data.validation: trials are compared on"),
        (f"{FIXED}[space.seed]\nlow = 1\nhigh = 2", "space.seed: trials are compared on one split"),
        (f"sampler = 'grid'\n{FIXED}{RATE}", "space.optimizer.lr: got a range without a step"),
        (f"pruner = 'median'\n{FIXED}fixed.train.epochs = 0.5\n{RATE}", "sweep.pruner: got 'median', takes none"),
        ("trials = ", "x.toml: not TOML"),
    ],
)
def test_a_wrong_space_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spaces.parse(text, name="x", where="x.toml")


def test_a_trial_is_the_recipe_with_what_is_fixed_and_what_was_chosen() -> None:
    text = (
        f'{FIXED}fixed."train.epochs" = 2\n{RATE}[space."model.widths"]\nchoices = [[8, 16, 16], [16, 16, 16]]\n'
        '[space."optimizer.decay_norms"]\nchoices = [true, false]\n'
    )
    definition = parse(text)
    labels = list(definition.space.space["model.widths"].labels)
    params = {"optimizer.lr": 0.25, "model.widths": labels[1], "optimizer.decay_norms": False}
    settings = ["data.validation=0.2", "train.epochs=2", "optimizer.lr=0.25", "model.widths=[16, 16, 16]"]
    expected = configs.load("speedrun", [*settings, "optimizer.decay_norms=false", "name=a", "summary=b"])
    assert definition.config_of(params, "a", "b") == expected


def test_settings_have_the_last_word_but_not_on_what_is_searched() -> None:
    definition = spaces.parse(f"{FIXED}fixed.train.epochs = 2\n{RATE}", ["train.epochs=3", "seed=5"], name="x")
    assert (definition.config.train.epochs, definition.config.seed) == (3, 5)
    with pytest.raises(ValueError, match=r"--set: got 'optimizer.lr=1', takes another setting: the space searches"):
        spaces.parse(FIXED + RATE, ["optimizer.lr=1"], name="x")


def test_a_grid_is_every_value_in_decimal_steps() -> None:
    text = (
        "sampler = 'grid'\nfixed.data.validation = 0.2\n"
        '[space."optimizer.lr"]\nlow = 0.1\nhigh = 0.35\nstep = 0.1\n[space."train.threads"]\nlow = 1\nhigh = 2\n'
        '[space."augmentation.flip"]\nchoices = ["random", "none"]\n'
    )
    definition = parse(text)
    lrs = [0.1, 0.2, 0.3]
    assert definition.grid() == {"optimizer.lr": lrs, "train.threads": [1, 2], "augmentation.flip": ["random", "none"]}
    assert definition.num_trials == 12
    assert parse("trials = 5\n" + text).num_trials == 5


def test_a_setting_that_the_recipe_leaves_open_can_be_searched() -> None:
    recipe = 'recipe = "resnet18_dropout-fast"\npruner = "none"\n'
    definition = parse(f'{recipe}{FIXED}[space."model.dropout"]\nlow = 0.0\nhigh = 0.5\nstep = 0.1\n')
    study = optuna.create_study()
    assert 0 <= definition.suggest(study.ask())["model.dropout"] <= 0.5
    assert definition.config_of({"model.dropout": 0.3}).model.dropout == 0.3


def test_a_study_is_the_same_wherever_its_data_lies_and_however_long_it_gets() -> None:
    here = parse(FIXED + RATE)
    there = parse((FIXED + RATE).replace("trials = 3", "trials = 30")).with_data("cifar10", "/elsewhere")
    assert here.identity() == there.identity()
    for other in (
        RATE.replace("0.4", "0.5"),
        f'{RATE}[space."train.threads"]\nlow=1\nhigh=2',
        "fixed.seed = 1\n" + RATE,
    ):
        assert parse(FIXED + other).identity() != here.identity()


def test_a_recipe_file_is_looked_for_beside_the_space(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("seed = 7\n[data]\nvalidation = 100\n")
    (tmp_path / "rates.toml").write_text(f"recipe = 'mine.toml'\ntrials = 2\n{RATE}")
    definition = spaces.load(str(tmp_path / "rates.toml"))
    assert (definition.config.seed, definition.space.name) == (7, "rates")


@pytest.mark.parametrize("name", configs.toml_names("fastcifar.spaces"))
def test_the_spaces_that_come_with_fastcifar_can_be_read(name: str) -> None:
    definition = spaces.load(name)
    assert definition.space.summary
    assert definition.config.data.dataset == "cifar10"
