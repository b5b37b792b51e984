"""How everything for the CPU is compiled: exact arithmetic, cached on disk, compiled again when it has changed.

The cache is a help and never a hindrance: a damaged file of it, or one that names what is no longer there, is compiled
anew; where nothing can be written, nothing is cached.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

from numba import config as numba_config
from numba import njit
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.runtime import rtsys

from fastcifar.kernels.signals import signals_wait

# Numba makes its settings when it is imported, which a type checker cannot follow.
config: Any = numba_config

if config.THREADING_LAYER == "default" and "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
    # Where the user has asked for nothing: OpenMP, whose threads are then those of torch and not as many again. With
    # TBB, a process of one core waits at its end for ever if another thread than the main one used Numba first. Numba
    # looks at this when it first compiles or loads a parallel function, so that it must be said here.
    config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

_OTHERS = ("plan.py", "philox.py", "reference.py", "scalars.py", "settings.py", "shapes.py")


def sources(pattern: str) -> list[Path]:
    """Files that code for a device is made from: those named so in this folder, and what all devices share."""
    folder = Path(__file__).parent
    return [*sorted(folder.glob(pattern)), *(folder / name for name in _OTHERS)]


def digest_of(pattern: str = "numba_*.py") -> str:
    """Digest of all sources that compiled code is made from."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources(pattern))).hexdigest()


_DIGEST = digest_of()


def stamped(function: Any, digest: str = _DIGEST) -> FunctionType:
    """The function, with the digest in its closure.

    Numba's cache looks at a function's own file and closure only: it would go on using old code for what the function
    calls, or reads, in other files.
    """
    code = function.__code__.replace(co_freevars=(*function.__code__.co_freevars, "digest"))
    closure = (*(function.__closure__ or ()), CellType(digest))
    copy = FunctionType(code, function.__globals__, function.__name__, None, closure)
    copy.__module__, copy.__qualname__, copy.__doc__ = (
        function.__module__,
        function.__qualname__,
        function.__doc__,
    )
    return copy


class _Cache(FunctionCache):
    """Numba's cache of a function's machine code; Numba's own raises for files that it cannot read or write."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Give the code kept for `sig`, or None where there is none of any use."""
        try:
            # Numba's own first makes ready all that it could compile with, which takes most of the time that loading
            # takes; code that is there already needs the runtime alone.
            rtsys.initialize(target_context)
            return self._load_overload(sig, target_context)
        except Exception:
            # Whatever a damaged pickle raises. An empty index goes in its place.
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code compiled for `sig`, on a disk that is not full or read-only."""
        with suppress(OSError):
            super().save_overload(sig, data)


def jit(function: FunctionType, signature: Any = None, **options: Any) -> Any:
    """Compile with Numba and keep the code on disk where that is possible.

    `signature`: compile for this one now, and for no other; None compiles when called. `options` are njit's.
    """
    dispatcher = njit(error_model="numpy", **options)(function)
    # RuntimeError: no folder can be written.
    with suppress(RuntimeError):
        dispatcher._cache = _Cache(function)
    if signature is not None:
        with torch_threads_kept(), signals_wait():
            dispatcher.compile(signature)
        dispatcher.disable_compile()
    return dispatcher


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Leave torch's number of threads as it was.

    Numba's first parallel function has OpenMP take as many as there are cores, and OpenMP's threads are torch's too.
    """
    import torch

    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)


def compiled(function: Any, **options: Any) -> Any:
    """Decorate what is called from compiled functions only; a call from Python would crash the process.

    It is a part of them: nothing is kept of it by itself, nor made for Python, which takes a quarter of the time.
    """
    inner: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **options}
    return njit(error_model="numpy", **inner)(function)


def compiled_fused(function: Any) -> Any:
    """Decorate what `compiled` does where a product and a sum may become one operation, which rounds once."""
    return compiled(function, fastmath={"contract"})


def compiled_for(signature: Any, *, parallel: bool = False) -> Callable[[Any], Any]:
    """Decorate what is called from Python: compiled for one signature at once, run without Python's lock."""
    return lambda function: jit(stamped(function), signature, nogil=True, parallel=parallel)


def compiled_callback(function: Any, signature: Any) -> Any:
    """Compile for one signature at once; the result's `address` is what compiled code can call it by."""
    marked = stamped(function)
    callback: Any = CFunc(
        marked, (signature.args, signature.return_type), {}, {"nopython": True, "error_model": "numpy"}
    )
    with suppress(RuntimeError):
        callback._cache = _Cache(marked)
    with signals_wait():
        callback.compile()
    return callback
