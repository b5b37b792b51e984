"""JSON that somebody may have edited: read with what is relied on looked at first."""

import json
from collections.abc import Mapping
from typing import Any

from fastcifar.data.errors import quote

Held = Mapping[str, str]
"""Names of values in a JSON object, and of what kind each must be."""
_KINDS: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "a JSON object": (dict,),
    "a number": (int, float),
    "a number or null": (int, float, type(None)),
}


def json_object(where: str, text: str, holds: Held) -> dict[str, Any]:
    """The JSON object that a text is. `ValueError` where it is none, or lacks one of the values that it `holds`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: got {type(value).__name__}, expected a JSON object")
    check_held(where, value, holds)
    return value


def check_held(where: str, value: dict[str, Any], holds: Held) -> None:
    """`ValueError` where a JSON object lacks one of the values that it `holds`, or has another kind of it."""
    for name, kind in holds.items():
        if name not in value:
            raise ValueError(f"{where}: holds no {name!r}")
        if not isinstance(value[name], _KINDS[kind]):
            raise ValueError(f"{where}: {name!r} is {quote(value[name])}, expected {kind}")
