"""What a sweep searches: a recipe, what is fixed on top of it, and a domain for each setting that is searched."""

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar import config as configs
from fastcifar.schema import Config, check

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "hyperband")
OBJECTIVES = ("validation_accuracy",)


@dataclass(frozen=True)
class Domain:
    """The values that one setting may take: a range, or a list."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    """Whether the range is searched by factors rather than by differences."""
    step: float | None = None
    """Distance of a range's values; without one all numbers count (all whole numbers, for a setting of such)."""
    choices: tuple[Any, ...] = ()

    @property
    def labels(self) -> dict[Any, Any]:
        """The choices by what a study stores for each: itself where it is a plain value, else its JSON."""
        return {c if isinstance(c, str | int | float) else json.dumps(c): c for c in self.choices}

    @property
    def points(self) -> list[float]:
        """The values of a range with a step, in decimal arithmetic: 0.1, 0.2, 0.3 rather than 0.30000000000000004."""
        assert self.low is not None
        assert self.high is not None
        assert self.step is not None
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return [float(low + i * step) for i in range(int((high - low) / step) + 1)]


@dataclass(frozen=True)
class Space:
    """A whole sweep, as its TOML file says it."""

    name: str = ""
    """Name of the study, which a shared database knows it by; by default that of the file."""
    summary: str = ""
    """One line on what the sweep is for."""
    recipe: str = "speedrun"
    """Name of a recipe, or a TOML file (from the space file's folder, or the current one)."""
    trials: int = 0
    """Trials over all workers, those that were pruned included; 0: the whole grid."""
    seed: int = 0
    """Fixes what the sampler draws. (A trial's own seed is the recipe's.)"""
    sampler: str = "tpe"
    """tpe, random or grid."""
    pruner: str = "none"
    """none, median or hyperband: whether a trial that does badly is ended early."""
    startup_trials: int = 0
    """Trials before TPE and the median have a say; 0: a third of all, 10 at most."""
    objective: str = "validation_accuracy"
    """What is maximised: the validation accuracy after the last epoch."""
    storage: str = ""
    """SQL URL of the study's database; empty: an SQLite file in the sweep's folder."""
    heartbeat_s: int = 20
    """Seconds between a trial's signs of life; after three without one it counts as killed."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings of every trial, on top of the recipe."""
    space: Mapping[str, Domain] = field(default_factory=dict)
    """Domains by setting."""

    def __post_init__(self) -> None:
        """Refuse what is no sweep."""
        for name, choices in (("sampler", SAMPLERS), ("pruner", PRUNERS), ("objective", OBJECTIVES)):
            check(f"sweep.{name}", getattr(self, name), getattr(self, name) in choices, f"one of {', '.join(choices)}")
        for name in ("trials", "seed", "startup_trials"):
            check(f"sweep.{name}", getattr(self, name), getattr(self, name) >= 0, "a whole number of at least 0")
        check("sweep.heartbeat_s", self.heartbeat_s, self.heartbeat_s > 0, "a whole number above 0")
        takes = "a whole number above 0 (0 is for the grid sampler)"
        check("sweep.trials", self.trials, self.trials > 0 or self.sampler == "grid", takes)


@dataclass(frozen=True)
class Definition:
    """A space with its recipe read: everything that a worker needs to make trials, as plain values."""

    space: Space
    tree: Mapping[str, Any]
    """The settings of every trial, searched ones as in the recipe."""

    @property
    def config(self) -> Config:
        """The configuration that trials start from."""
        return configs.build(Config, self.tree, "")

    @property
    def num_trials(self) -> int:
        """Trials until the sweep is done."""
        if self.space.sampler != "grid":
            return self.space.trials
        size = math.prod(len(values) for values in self.grid().values())
        return min(self.space.trials or size, size)

    @property
    def startup_trials(self) -> int:
        """Trials before TPE and the median have a say."""
        return self.space.startup_trials or min(10, max(1, self.num_trials // 3))

    @property
    def most_epochs(self) -> int:
        """Most lines of metrics that a trial can write."""
        domain = self.space.space.get("train.epochs")
        epochs = [float(value) for value in _extremes(domain)] if domain else [self.config.train.epochs]
        return math.ceil(max(epochs))

    def with_data(self, dataset: str, path: str) -> "Definition":
        """The same for the data set that was found."""
        return replace(self, tree=_put(_put(self.tree, "data.dataset", dataset), "data.path", path))

    def grid(self) -> dict[str, list[Any]]:
        """Every value of every domain, as a study stores it. `ValueError` for a range without a step."""
        found: dict[str, list[Any]] = {}
        for key, domain in self.space.space.items():
            if domain.choices:
                found[key] = list(domain.labels)
                continue
            whole = self.is_whole(key)
            if domain.step is None and not whole:
                raise ValueError(f"space.{key}: got a range without a step, the grid sampler takes choices or a step")
            points = replace(domain, step=domain.step or 1.0).points
            found[key] = [int(point) for point in points] if whole else points
        return found

    def is_whole(self, key: str) -> bool:
        """Whether a setting is a whole number; not where the recipe leaves it open, or knows none of this name."""
        try:
            return isinstance(_get(self.tree, key), int)
        except (KeyError, TypeError):
            return False

    def suggest(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Have the study's sampler choose a value for each searched setting; as `trial.params` stores them."""
        return {key: self._suggest_one(trial, key, domain) for key, domain in self.space.space.items()}

    def _suggest_one(self, trial: "optuna.Trial", key: str, domain: Domain) -> Any:
        if domain.choices:
            return trial.suggest_categorical(key, list(domain.labels))
        assert domain.low is not None
        assert domain.high is not None
        # A range that no whole number of steps fills ends at its last point.
        high = domain.high if domain.step is None else domain.points[-1]
        if self.is_whole(key):
            return trial.suggest_int(key, int(domain.low), int(high), log=domain.log, step=int(domain.step or 1))
        return trial.suggest_float(key, domain.low, high, log=domain.log, step=domain.step)

    def config_of(self, params: Mapping[str, Any], name: str = "", summary: str = "") -> Config:
        """The configuration of a trial with these `trial.params`. `ValueError` where there is none."""
        tree: Mapping[str, Any] = {**self.tree, "name": name or self.tree["name"], "summary": summary}
        for key, stored in params.items():
            domain = self.space.space[key]
            tree = _put(tree, key, domain.labels[stored] if domain.choices else stored)
        return configs.build(Config, tree, "")

    def identity(self) -> dict[str, Any]:
        """What may not change between the workers and the days of one study; where the data lies may."""
        free = ("name", "summary", "trials", "storage", "heartbeat_s", "recipe", "fixed", "space")
        settings = {f.name: getattr(self.space, f.name) for f in fields(self.space) if f.name not in free}
        domains = {
            key: {f.name: getattr(domain, f.name) for f in fields(domain)} for key, domain in self.space.space.items()
        }
        tree = {**_put(self.tree, "data.path", ""), "summary": ""}
        plain: dict[str, Any] = json.loads(json.dumps({**settings, "space": domains, "settings": tree}))
        return plain


def load(space: str, settings: Sequence[str] = ()) -> Definition:
    """The sweep of a space (a name, or the path of a TOML file) with `section.key=value` settings fixed on top.

    Raises `ValueError` naming the setting, what it got and what it takes.
    """
    text = configs.read_toml(space, "fastcifar.spaces", "SPACE")
    return parse(text, settings, name=Path(space).stem, folder=Path(space).parent, where=space)


def parse(
    text: str, settings: Sequence[str] = (), *, name: str, folder: Path = Path(), where: str = "sweep"
) -> Definition:
    """The sweep that TOML `text` says, with `settings` fixed on top; files that it names are looked for in `folder`."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where}: not TOML: {error}") from None
    fixed, domains = tree.pop("fixed", {}), tree.pop("space", {})
    space: Space = configs.build(Space, {"name": name, **tree}, "sweep")
    check("sweep.fixed", fixed, isinstance(fixed, dict), "a section of settings")
    check("sweep.space", domains, isinstance(domains, dict) and domains != {}, "a section for each searched setting")
    space = replace(space, fixed=fixed, space={key: _domain(key, domain) for key, domain in domains.items()})
    recipe = str(folder / space.recipe) if (folder / space.recipe).is_file() else space.recipe
    base = tomllib.loads(configs.dumps(configs.load(recipe)))
    for key, value in _leaves(fixed, base):
        base = _put(base, key, value)
    for setting in settings:
        key = configs.apply(base, setting)
        check("--set", setting, key not in space.space, "another setting: the space searches this one")
    definition = Definition(space, base)
    _check_settings(definition)
    return definition


def _check_settings(definition: Definition) -> None:
    """Refuse settings that no recipe has, values that they do not take, and a sweep that would see the test set."""
    validation = definition.config.data.validation
    takes = "a share or a count above 0: a sweep tunes on the validation split only"
    check("data.validation", validation, validation > 0, takes)
    for key, domain in definition.space.space.items():
        if key in ("seed", "name", "summary") or key.split(".")[0] == "data":
            raise ValueError(f"space.{key}: trials are compared on one split of one data set, takes other settings")
        for value in domain.choices or _extremes(domain):
            number = value
            if not domain.choices and value == int(value) and definition.is_whole(key):
                number = int(value)
            configs.build(Config, _put(definition.tree, key, number), "")
        if not domain.choices and domain.step is not None and definition.is_whole(key):
            check(f"space.{key}.step", domain.step, domain.step == int(domain.step), "a whole number, as the setting")
    check(
        "sweep.pruner",
        definition.space.pruner,
        definition.space.pruner == "none" or definition.most_epochs > 1,
        "none where a trial lasts one epoch or less: it reports once, at its end",
    )
    if definition.space.sampler == "grid":
        definition.grid()


def _domain(key: str, tree: Any) -> Domain:
    path = f"space.{key}"
    if isinstance(tree, dict) and any(isinstance(value, dict) for value in tree.values()):
        inner = next(name for name, value in tree.items() if isinstance(value, dict))
        raise ValueError(f'{path}: takes the whole setting in quotes: [space."{key}.{inner}"]')
    choices = tree.pop("choices", []) if isinstance(tree, dict) else []
    domain: Domain = configs.build(Domain, tree, path)
    check(f"{path}.choices", choices, isinstance(choices, list), "a list")
    domain = replace(domain, choices=tuple(choices))
    is_range = domain.low is not None and domain.high is not None
    check(path, tree, is_range != bool(choices), "low and high, or choices")
    if choices:
        check(path, tree, tree == {}, "choices alone, without low, high, log or step")
        check(f"{path}.choices", choices, len(domain.labels) == len(choices), "values that differ")
        return domain
    assert domain.low is not None
    assert domain.high is not None
    check(f"{path}.high", domain.high, domain.high >= domain.low, f"a number of at least low, {domain.low:g}")
    check(f"{path}.low", domain.low, domain.low > 0 or not domain.log, "a number above 0, for a log range")
    check(f"{path}.step", domain.step, domain.step is None or domain.step > 0, "a number above 0")
    check(f"{path}.step", domain.step, domain.step is None or not domain.log, "nothing, for a log range")
    return domain


def _extremes(domain: Domain) -> tuple[Any, ...]:
    return domain.choices or (domain.low, domain.high)


def _leaves(tree: Mapping[str, Any], known: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Settings of nested sections or of dotted names, and their values."""
    for key, value in tree.items():
        inner = known.get(key, {}) if isinstance(known, Mapping) else {}
        if isinstance(value, dict) and isinstance(inner, Mapping):
            yield from _leaves(value, inner, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _get(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value


def _put(tree: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of the tree with one setting in it."""
    copy = deepcopy(dict(tree))
    configs.put(copy, key, value)
    return copy
