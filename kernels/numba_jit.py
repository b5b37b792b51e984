"""How everything for the CPU is compiled: exact arithmetic, cached on disk, compiled again when it has changed."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

from numba import njit

_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy"}
_OTHERS = ("plan.py", "philox.py", "reference.py", "settings.py")


def _digest() -> str:
    """Digest of all sources that compiled code is made from."""
    folder = Path(__file__).parent
    names = sorted(path.name for path in folder.glob("numba_*.py") if path.name != "numba_cuda.py")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in (*names, *_OTHERS))).hexdigest()


_DIGEST = _digest()


def _stamped(function: FunctionType) -> FunctionType:
    """The function, with the digest in its closure.

    Numba's cache looks at a function's own file and closure only: it would go on using old code for what the function
    calls, or reads, in other files.
    """
    code = function.__code__.replace(co_freevars=("digest",))
    copy = FunctionType(code, function.__globals__, function.__name__, None, (CellType(_DIGEST),))
    copy.__module__, copy.__qualname__, copy.__doc__ = (
        function.__module__,
        function.__qualname__,
        function.__doc__,
    )
    return copy


def compiled(function: Any) -> Any:
    """Decorate what is called from compiled functions only."""
    return njit(**_OPTIONS)(_stamped(function))


def compiled_for(signature: Any, *, parallel: bool = False) -> Callable[[Any], Any]:
    """Decorate what is called from Python: compiled for one signature at once, run without Python's lock."""
    return lambda function: njit(signature, nogil=True, parallel=parallel, **_OPTIONS)(_stamped(function))
