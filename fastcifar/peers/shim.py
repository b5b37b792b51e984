"""CUDA on a CPU, as far as a record script asks for it: what it would put on the GPU stays in main memory.

Half precision becomes `dtype`, compiling becomes nothing (it was measured to win nothing on a CPU, bench/LOG.md), and
CUDA's events tell the time on the wall. Nothing of this is undone: it is for a process of its own.
"""

import io
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_HALVES = (torch.float16, torch.bfloat16)


class OnCpu(TorchFunctionMode):
    """Turns every call of torch that names a GPU or a half precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.cuda, Tensor.pin_memory):
            return args[0]
        if func in (Tensor.half, Tensor.bfloat16):
            return args[0].to(self._dtype)
        # Pinning is asked of CUDA's driver.
        told = {name: name != "pin_memory" and self._here(value) for name, value in (kwargs or {}).items()}
        return func(*map(self._here, args), **told)

    def _here(self, value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == "cuda":
            return torch.device("cpu")
        if isinstance(value, str) and value.partition(":")[0] == "cuda":
            return "cpu"
        return self._dtype if isinstance(value, torch.dtype) and value in _HALVES else value


class WallEvent:
    """In the place of torch.cuda.Event."""

    def __init__(self, *_: object, **__: object) -> None:
        self._s = 0.0

    def record(self, *_: object) -> None:
        """Now; on a CPU everything asked for before has been done."""
        self._s = time.perf_counter()

    def elapsed_time(self, end: "WallEvent") -> float:
        """Milliseconds to another event."""
        return 1e3 * (end._s - self._s)

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """Whether all that was asked for before it has been done."""
        return True


def _as_it_is(model: Any = None, **_: object) -> Any:
    """In the place of torch.compile: the function or the module itself, and of the module what it was, `_orig_mod`."""
    if model is None:
        return _as_it_is
    if isinstance(model, nn.Module):
        # Set as an attribute it would be its own child, and there would be no end to going through its children.
        vars(model)["_orig_mod"] = model
    return model


def install(dtype: torch.dtype) -> None:
    """From now on a script that asks for CUDA runs on the CPU, in `dtype` where it asks for a half precision."""
    OnCpu(dtype).__enter__()
    load = torch.load
    # The first time torch saves it makes its table of dtypes, which loading needs too, and there torch.half is float16.
    torch.save(torch.zeros(1), io.BytesIO())
    replaced: dict[tuple[Any, str], Any] = {
        (torch, "compile"): _as_it_is,
        # Airbench95 and 96 average the weights whose dtype is torch.half or torch.float: bfloat16 ones must be either.
        (torch, "half"): dtype if dtype in _HALVES else torch.half,
        (nn.Module, "compile"): lambda self, *args, **kwargs: None,
        (torch, "load"): lambda *args, **kwargs: load(*args[:1], **{**kwargs, "map_location": "cpu"}),
        (torch.cuda, "Event"): WallEvent,
    }
    nothing = ("synchronize", "empty_cache", "set_device", "_sleep")
    replaced |= {(torch.cuda, name): lambda *args: None for name in nothing}
    for (owner, name), value in replaced.items():
        setattr(owner, name, value)
