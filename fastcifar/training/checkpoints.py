"""Checkpoints: everything a run needs to go on, as safetensors and JSON, written whole or not at all.

Nothing random is kept: order and augmentation are functions of seed, epoch and index.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fastcifar.training.averaging import Averaging

FORMAT = "fastcifar-checkpoint-1"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader or a crash sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_weights(path: Path, network: nn.Module, about: dict[str, str]) -> None:
    """Write the network's state to a safetensors file, with `about` as its metadata."""
    state = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
    write_atomically(path, save(state, metadata=about))


def load_weights(path: Path, network: nn.Module) -> None:
    """Read weights into the network. `ValueError` names the first tensor that is missing, strange or misshapen."""
    tensors, _ = _read(path)
    expected = network.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        found, wanted = tensors.get(name), expected.get(name)
        if found is None or wanted is None or found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise ValueError(f"{path}: {name}: found {_shape(found)}, expected {_shape(wanted)}")
    network.load_state_dict(tensors)


def save_checkpoint(
    path: Path, step: int, network: nn.Module, optimizers: list[torch.optim.Optimizer], averaging: Averaging
) -> None:
    """Write the state after `step` steps."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in averaging.average.items()}
    scalars: dict[str, float] = {}
    for i, optimizer in enumerate(optimizers):
        for key, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{i}.{key}.{name}"] = value
                elif value is not None:
                    scalars[f"optimizer.{i}.{key}.{name}"] = value
    about = {"format": FORMAT, "step": str(step), "scalars": json.dumps(scalars)}
    write_atomically(path, save({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, metadata=about))


def load_checkpoint(
    path: Path, network: nn.Module, optimizers: list[torch.optim.Optimizer], averaging: Averaging
) -> int:
    """Put a checkpoint's state back and return its step. `ValueError` where it is damaged or of another network."""
    tensors, about = _read(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path}: found format {about.get('format')!r}, expected {FORMAT!r}")
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    entries = {**tensors, **json.loads(about["scalars"])}
    try:
        for name, value in entries.items():
            if name.startswith("optimizer."):
                _, i, key, field = name.split(".", 3)
                states[int(i)].setdefault(int(key), {})[field] = value
        network.load_state_dict({n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")})
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            _match_layouts(optimizer)
        for name, average in averaging.average.items():
            average.copy_(tensors[f"average.{name}"])
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: does not fit this run's network and optimiser: {error}") from None
    return int(about["step"])


def _match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Lay the optimiser's tensors out in memory as their weights are, so that sums run in the same order as before."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected safetensors weights")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from None


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
