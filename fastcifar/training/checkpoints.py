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


def save_weights(path: Path, network: nn.Module, about: dict[str, Any]) -> None:
    """Write the network's state to a safetensors file, with `about` as its metadata."""
    write_atomically(path, _to_bytes(network.state_dict(), about))


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
    write_atomically(path, _to_bytes(tensors, {"format": FORMAT, "step": step, "scalars": scalars}))


def load_checkpoint(
    path: Path, network: nn.Module, optimizers: list[torch.optim.Optimizer], averaging: Averaging
) -> int:
    """Put a checkpoint's state back and return its step. `ValueError` where it is damaged or of another network."""
    tensors, about = _read(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path}: found format {about.get('format')!r}, expected {FORMAT!r}")
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    entries = {**tensors, **about["scalars"]}
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
    return about["step"]


def _match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Lay the optimiser's tensors out in memory as their weights are, so that sums run in the same order as before."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _to_bytes(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    # One metadata key: safetensors writes several in an order that differs from process to process.
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    return save(plain, metadata={"fastcifar": json.dumps(about, sort_keys=True)})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected safetensors weights")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("fastcifar", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from None


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
