"""A run is its configuration: what fits is read, what does not is one clear error."""

import tomllib
from pathlib import Path

import pytest

from fastcifar import config as configs
from fastcifar.schema import Config, Resolution


def test_the_command_line_goes_over_the_recipe() -> None:
    config = configs.load("speedrun", ["optimizer.lr=0.5", "data.dataset=shapes10", "train.epochs=2", "seed=7"])
    assert (config.optimizer.lr, config.data.dataset, config.train.epochs, config.seed) == (0.5, "shapes10", 2.0, 7)


def test_a_list_of_stages_is_read() -> None:
    stages = "train.resolution=[{until=0.5, pixels=24}, {until=1, pixels=32}]"
    assert configs.load("speedrun", [stages]).train.resolution == (Resolution(0.5, 24), Resolution(1.0, 32))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.rate=1", "optimizer.rate: no such setting"),
        ("optimiser.lr=1", "did you mean optimizer"),
        ("optimizer.lr=fast", "optimizer.lr: got 'fast', takes a number"),
        ("optimizer.lr=-1", "optimizer.lr: got -1.0, takes a number above 0"),
        ("pipeline.name=petastorm", "takes one of resident, ffcv, dali, torchvision"),
        ("pipeline.batch_size=0", "pipeline.batch_size: got 0"),
        ("pipeline.batch_size=true", "pipeline.batch_size: got True, takes a whole number"),
        ("pipeline.batch_size=1.5", "pipeline.batch_size: got 1.5, takes a whole number"),
        ("data.validation=1.5", "data.validation: got 1.5"),
        ("train.epochs=0", "train.epochs: got 0.0, takes a number above 0"),
        ("train=3", "train: got 3, takes a section"),
        ("seed.x=3", "seed: got {'x': 3}, takes a whole number"),
        ("train.resolution=[{until=0.5, pixels=24}]", "takes stages whose `until` rises and ends at 1"),
        ("train.resolution=[{until=1, pixels=24}, {until=1, pixels=32}]", "takes stages whose `until` rises"),
        ("pipeline.streaming=true", "pipeline.streaming: got True, takes false for resident"),
        ("train.resolution=[{pixels=24}]", "train.resolution.until: missing"),
        ("lr", "takes section.key=value"),
        ("augmentation.flip=sometimes", "augmentation.flip: got 'sometimes', takes none, random, alternating"),
        ("epochs=3", "epochs: no such setting (did you mean train.epochs?)"),
        ("dropout=0.5", "dropout: no such setting (did you mean model.dropout?)"),
        ("train.epochs=nan", "train.epochs: got nan, takes a finite number"),
        ("train.epochs=-inf", "train.epochs: got -inf, takes a finite number"),
        ("train.epochs=1e30", "train.epochs: got 1e+30, takes a number below 2**63"),
        ("name=a/b", "name: got 'a/b', takes letters, digits, and . _ + -"),
        ("name=", "name: got '', takes letters"),
    ],
)
def test_a_wrong_setting_names_itself_what_it_got_and_what_it_takes(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        configs.load("speedrun", [setting])
    assert message in str(raised.value)


def test_a_runs_folder_is_told_from_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(ValueError, match=r"a run's folder; takes its recipe, .*/config.toml"):
        configs.load(str(tmp_path))


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="speedrun"):
        configs.load("speedran")


def test_a_recipe_that_is_not_toml_says_so() -> None:
    with pytest.raises(ValueError, match="not TOML"):
        configs.parse("= 3")


def test_defaults_are_a_whole_configuration() -> None:
    assert tomllib.loads(configs.dumps(Config()))["model"]["name"] == "speednet"
