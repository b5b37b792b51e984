"""Inputs as edits of good files: a fuzzer's bytes choose what is changed, so that what it makes is nearly right."""

from __future__ import annotations

import random
from typing import Any

DEEP: Any = None
for _ in range(60):
    DEEP = [DEEP]
# What a value in a tree is replaced by.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 255, 65_536, 2**31, 2**48, 2**63, -(2**63), 2**64, 10**400, 0.0, -0.5, 0.5, 1.5,
    1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"), "", "a", "0" * 64, "a" * 5_000, "../../outside",
    "/dev/zero", "\0", "\u202e\ud7ff", "\n\x1b[2J", "npy", "ffcv", "dali", "train", [], {}, [[]], [0], [1, 2, 3],
    [-1], [2**40, 2**40], [0.5, 0.5, 0.5], ["a"], {"a": 1}, {"": {}}, DEEP, "F32", "F64", "BOOL", "I64", "BF16",
)  # fmt: skip


class Choices:
    """Decisions read from bytes; all of them 0 when the bytes are used up."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def number(self, num_bytes: int) -> int:
        piece = self.data[self.at : self.at + num_bytes]
        self.at += num_bytes
        return int.from_bytes(piece, "little")

    def below(self, limit: int) -> int:
        return self.number(1 if limit <= 256 else 4) % max(1, limit)

    def take(self, num_bytes: int) -> bytes:
        piece = self.data[self.at : self.at + num_bytes]
        self.at += num_bytes
        return piece

    def rest(self) -> bytes:
        return self.take(len(self.data))


def edited_tree(tree: Any, choices: Choices) -> Any:
    """A copy of plain values with up to 8 of them replaced, dropped, doubled, renamed or exchanged."""
    tree = _copied(tree)
    for _ in range(8):
        if not choices:
            break
        places = list(_places(tree))
        if not places:
            break
        holder, key = places[choices.below(len(places))]
        action = choices.below(8)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        elif action == 1:
            holder.insert(key, _copied(holder[key]))
        elif action == 2:
            other, other_key = places[choices.below(len(places))]
            holder[key] = _copied(other[other_key])
        elif action == 3 and type(holder[key]) in (int, float):
            holder[key] += choices.below(256) - 128
        elif action == 3 and isinstance(holder[key], str):
            holder[key] += choices.take(4).decode("latin-1")
        elif action == 4 and isinstance(holder, dict):
            holder[choices.take(3).decode("latin-1")] = _copied(holder[key])
        else:
            holder[key] = _copied(ODD_VALUES[choices.below(len(ODD_VALUES))])
    return tree


def edited_bytes(good: bytes, choices: Choices) -> bytes:
    """A copy of `good` with up to 16 places overwritten, cut, doubled, and perhaps an end cut off or put on."""
    data = bytearray(good)
    for _ in range(16):
        if not choices or not data:
            break
        action = choices.below(8)
        # Headers come first in every format, so half of the edits are there.
        reach = min(len(data), 256) if action % 2 else len(data)
        at = choices.below(reach)
        if action == 0:
            del data[at : at + 1 + choices.below(64)]
        elif action == 1:
            data[at:at] = data[at : at + 1 + choices.below(64)]
        elif action == 2:
            del data[at:]
        elif action == 3:
            data[at:at] = choices.take(1 + choices.below(8))
        elif action == 4:
            data[at] ^= 1 << choices.below(8)
        else:
            piece = choices.take(1 + choices.below(8))
            data[at : at + len(piece)] = piece
    return bytes(data)


class Mutator:
    """Blind mutation for where atheris is not installed: no coverage guides it, but edits and seeds reach far."""

    def __init__(self, seeds: list[bytes], seed: int) -> None:
        self.corpus = list(seeds)
        self.random = random.Random(seed)

    def next(self) -> bytes:
        rng = self.random
        data = bytearray(rng.choice(self.corpus))
        for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(6):
                case 0:
                    data[at:at] = rng.randbytes(rng.randrange(1, 9))
                case 1:
                    del data[at : at + rng.randrange(1, 33)]
                case 2:
                    data[at : at + 8] = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1)).to_bytes(8, "little")
                case 3:
                    other = rng.choice(self.corpus)
                    start = rng.randrange(len(other) + 1)
                    data[at:at] = other[start : start + rng.randrange(1, 65)]
                case _ if data:
                    data[at % len(data)] = rng.randrange(256)
        return bytes(data[: 1 << 16])


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting and len(found) < 500:
        holder = waiting.pop()
        items = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
        for key, value in items:
            found.append((holder, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return found
