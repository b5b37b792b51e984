"""Gates: any figure with a least or a largest value that it may have; a figure that was not measured does not pass."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gate:
    """One figure's limit."""

    name: str
    limit: float
    is_least: bool
    """Whether the figure must be at least `limit`, else at most."""


@dataclass(frozen=True)
class Outcome:
    """What a gate came to; `value` is None where the figure was not measured."""

    gate: Gate
    value: float | None
    sentence: str
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        kind = "min" if self.gate.is_least else "max"
        return {"name": self.gate.name, kind: self.gate.limit, "value": self.value, "passed": self.passed}


def parse(least: Sequence[str], most: Sequence[str]) -> list[Gate]:
    """The gates of `--assert-min` and `--assert-max`, NAME=VALUE each. `ValueError` where one is something else."""
    options = (("--assert-min", least, True), ("--assert-max", most, False))
    return [_gate(option, text, is_least) for option, texts, is_least in options for text in texts]


def _gate(option: str, text: str, is_least: bool) -> Gate:
    name, equals, number = text.partition("=")
    try:
        limit = float(number.replace("_", "").replace(",", ""))
    except ValueError:
        limit = math.nan
    if not name.strip() or not equals or not math.isfinite(limit):
        raise ValueError(f"{option}: got {text!r}, takes NAME=VALUE, such as kernels.numba.crop_flip.bf16.images_s=1e6")
    return Gate(name.strip(), limit, is_least)


def check_measured(gates: Sequence[Gate], measurements: Sequence[str]) -> None:
    """`ValueError` where a gate is about none of the `measurements`, before anybody waits for them."""
    for gate in gates:
        if gate.name.split(".")[0] not in measurements:
            option = "--assert-min" if gate.is_least else "--assert-max"
            begins = ", ".join(f"{name}." for name in measurements)
            raise ValueError(f"{option}: got {gate.name!r}, takes a figure whose name begins with {begins}")


def judge(gates: Sequence[Gate], figures: Mapping[str, float]) -> list[Outcome]:
    """What each gate comes to."""
    return [_judge(gate, figures) for gate in gates]


def _judge(gate: Gate, figures: Mapping[str, float]) -> Outcome:
    value = figures.get(gate.name)
    wants = f"{'at least' if gate.is_least else 'at most'} {gate.limit:,.6g}"
    if value is None:
        near = difflib.get_close_matches(gate.name, figures, n=1, cutoff=0.5)
        hint = f"; measured was {near[0]}" if near else ""
        return Outcome(gate, None, f"gate {gate.name}: not measured, takes {wants}{hint}", False)
    passed = value >= gate.limit if gate.is_least else value <= gate.limit
    return Outcome(gate, value, f"gate {gate.name}: got {value:,.6g}, takes {wants}", passed)
