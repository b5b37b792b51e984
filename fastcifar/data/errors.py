"""The one error that reading a data set ends in."""

from __future__ import annotations

from pathlib import Path


class DataError(ValueError):
    """A data set that cannot be used: one line that names the file, what was found and what was expected."""


def refuse(what: str | Path, found: str, expected: str = "") -> DataError:
    """The `DataError` "<what>: <found>; expected <expected>", for the caller to raise."""
    return DataError(f"{what}: {found}; expected {expected}" if expected else f"{what}: {found}")


def quote(value: object, most: int = 60) -> str:
    """Text out of a file, made safe to show in one line: ASCII, at most `most` characters.

    Containers are shown by their type alone: one from a hostile file may hold itself.
    """
    if isinstance(value, bytes | memoryview):
        value = bytes(value[: most + 1]).decode("latin-1")
    if not isinstance(value, str | int | None):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a huge number"
    shown = ascii(value)
    return shown if len(shown) <= most else shown[: most - 3] + "..."
