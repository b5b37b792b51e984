"""Imports that wait until something is used, and are quick then."""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import with the garbage collector at rest.

    What a module makes stays. Looking for garbage in it again and again takes a sixth of the time to a first batch.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def attributes(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`: imports a public name from its module on first use, so that the package costs nothing.

    package: its name. homes: the module, within the package, of each public name.
    """

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with quick_imports():
            module = import_module(f"{package}.{homes[name]}")
        value = getattr(module, name)
        vars(sys.modules[package])[name] = value
        return value

    return attribute
