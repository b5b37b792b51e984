"""`fastcifar recipes`: the recipes that come with fastcifar."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from fastcifar.commands import Option


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar recipes`."""

    show: Annotated[Option[str], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None
    """Recipe to print whole, as TOML with every setting; by default all are listed."""


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
