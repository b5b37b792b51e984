"""A run's configuration, filled from a TOML recipe and then from the command line; written down, and compared."""

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from fastcifar.schema import Config, shown
from fastcifar.suggestion import did_you_mean


def quoted(path: Path) -> str:
    """A path as a setting's value: a TOML string, whatever quotes are in the path."""
    return json.dumps(str(path), ensure_ascii=False)


def recipe_names() -> list[str]:
    """Names of the recipes that come with fastcifar, sorted."""
    return toml_names("fastcifar.recipes")


def load(recipe: str, settings: Sequence[str] = ()) -> Config:
    """The configuration of a recipe (a name, or the path of a TOML file) with `section.key=value` settings on top.

    Raises `ValueError` naming the setting, what it got and what it takes.
    """
    return parse(read_toml(recipe, "fastcifar.recipes", "recipe"), settings, where=recipe)


def toml_names(package: str) -> list[str]:
    """Names of the TOML files that come with fastcifar in a package, sorted."""
    files = resources.files(package).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def read_toml(name: str, package: str, what: str) -> str:
    """The text of a TOML file, by its path or by the name of one in `package`. `ValueError` where there is none."""
    names = toml_names(package)
    if name in names:
        return (resources.files(package) / f"{name}.toml").read_text(encoding="utf-8")
    takes = f"takes a .toml file or one of: {', '.join(names)}"
    if (Path(name) / "config.toml").is_file():
        raise ValueError(f"{what}: got {shown(name)}, a run's folder; takes its recipe, {Path(name) / 'config.toml'}")
    if not name.endswith(".toml"):
        raise ValueError(f"{what}: got {shown(name)}, {takes}")
    if not Path(name).exists():
        raise ValueError(f"{what}: {name} is not there, {takes}")
    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{name}: not UTF-8 text, expected TOML") from None


def parse(text: str, settings: Sequence[str] = (), *, where: str = "recipe") -> Config:
    """The configuration that TOML `text` says, with `settings` on top."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where}: not TOML: {error}") from None
    for setting in settings:
        apply(tree, setting)
    return build(Config, tree, "")


def dumps(config: Config) -> str:
    """The configuration as TOML that `parse` reads back to an equal one."""
    import tomli_w

    return tomli_w.dumps(_plain(asdict(config)))


def differences(one: Config, other: Config) -> dict[str, str]:
    """A sentence on each setting in which two configurations differ, by the setting's full name."""
    ones, others = _flat(asdict(one), ""), _flat(asdict(other), "")
    return {name: f"{name} is {value!r}, got {others[name]!r}" for name, value in ones.items() if value != others[name]}


def _flat(tree: Mapping[str, Any], path: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, _join(path, key)) if isinstance(value, Mapping) else {_join(path, key): value}
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        # TOML has no null: a setting that is None is left out, and read back as its default, which is None.
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def apply(tree: dict[str, Any], setting: str) -> str:
    """Put one `section.key=value` into the tree; the value is TOML, or else a bare string. Returns the key."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set: got {shown(setting)}, takes section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    put(tree, key.strip(), value, where="--set: ")
    return key.strip()


def put(tree: dict[str, Any], key: str, value: Any, *, where: str = "") -> None:
    """Put the value of `section.key` into the tree. `ValueError`, which begins with `where`, in place of a section."""
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ValueError(f"{where}{shown(key)}: {shown(part)} is a value, not a section")
    tree[last] = value


def build(kind: type, tree: Any, path: str) -> Any:
    """An instance of dataclass `kind` from a tree of plain values; unknown and missing keys are errors."""
    if not isinstance(tree, dict):
        raise ValueError(f"{path or 'recipe'}: got {shown(tree)}, takes a section of settings")
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for key in tree:
        if key not in known:
            hint = did_you_mean(key, known) or _in_sections(key, hints)
            raise ValueError(
                f"{_join(path, key)}: no such setting{hint}; {path or 'a recipe'} takes {', '.join(known)}"
            )
    for name, f in known.items():
        if name not in tree and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{_join(path, name)}: missing")
    values = {key: _convert(hints[key], value, _join(path, key)) for key, value in tree.items()}
    try:
        return kind(**values)
    except ValueError as error:
        # Settings that are of use without a recipe (the kernels') do not know what section they are in.
        raise ValueError(str(error) if str(error).startswith(path) else f"{path}.{error}") from None


def _in_sections(key: str, hints: Mapping[str, Any]) -> str:
    """As `did_you_mean`, of the sections that have such a setting."""
    sections = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    found = [f"{name}.{key}" for name, kind in sections.items() if key in {f.name for f in fields(kind)}]
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def _join(path: str, key: str) -> str:
    shown = key if re.fullmatch(r"[\w-]{1,60}", key) else ascii(key)[:60]
    return f"{path}.{shown}" if path else shown


_TAKES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _convert(kind: Any, value: Any, path: str) -> Any:
    if is_dataclass(kind):
        return build(kind, value, path)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{path}: got {shown(value)}, takes a list")
        return tuple(_convert(get_args(kind)[0], item, path) for item in value)
    if isinstance(kind, UnionType):
        kind = next(option for option in get_args(kind) if option is not type(None))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and not abs(value) < 2**63:
        is_finite = isinstance(value, int) or math.isfinite(value)
        takes = f"{_TAKES.get(kind, kind.__name__)} below 2**63" if is_finite else "a finite number"
        raise ValueError(f"{path}: got {shown(value)}, takes {takes}")
    if number and (kind is float or (kind is int and value == int(value))):
        return kind(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(f"{path}: got {shown(value)}, takes {_TAKES.get(kind, kind.__name__)}")
    return value
