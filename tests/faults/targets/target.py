"""What a target is, and edits to start from."""

from __future__ import annotations

from pathlib import Path


class Target:
    """One reader. `read` returns when the answer is right."""

    name = ""
    errors: tuple[type[Exception], ...] = (ValueError, OSError)
    heavy = False
    """Whether torch or a loader is needed: slower, and given less time."""
    instrumented: tuple[str, ...] = ("fastcifar",)
    """Packages whose coverage guides the fuzzer; none where Numba compiles them."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def seeds(self) -> list[bytes]:
        """Inputs to start from."""
        edits = [bytes([mode, 7 * i % 251, i, 3 * i % 256, i * i % 256, 255 - i]) for i in range(24) for mode in (0, 1)]
        return [b"\0", *edits]

    def read(self, data: bytes) -> None:
        """Read what the input says; raise what the reader raises."""
        raise NotImplementedError

    def says_where(self, message: str) -> bool:
        """Whether an error names what it is about."""
        return str(self.scratch) in message


# What `edited_bytes` and `edited_tree` take for edits here and there in a file.
EDITS = [bytes([7 * i % 256, 11 * i % 256, 0, 0, 0, i, 255 - i, 128, i]) for i in range(8)]
