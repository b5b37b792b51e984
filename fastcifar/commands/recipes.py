"""`fastcifar recipes`: the recipes that come with fastcifar."""

from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar recipes`."""

    show: tyro.conf.Positional[str] = ""
    """Name of a recipe to print whole, as TOML with every setting."""


def run(args: Args) -> int:
    """One line a recipe, or one recipe whole."""
    from fastcifar import config as configs

    if args.show:
        print(configs.dumps(configs.load(args.show)), end="")
        return 0
    names = configs.recipe_names()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {configs.load(name).summary}")
    return 0
