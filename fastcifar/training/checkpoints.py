"""Checkpoints: everything a run needs to go on, as safetensors and JSON, written whole or not at all.

Nothing random is kept: order and augmentation are functions of seed, epoch and index.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fastcifar.atomic import write_atomically
from fastcifar.data.errors import quote
from fastcifar.training.evaluation import Predictions
from fastcifar.training.loop import State
from fastcifar.training.schedules import Plateau
from fastcifar.training.tally import NonFiniteLossError, Tally

FORMAT = "fastcifar-checkpoint-3"
PREFIX = "step"


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors to a safetensors file, with `about` as its metadata."""
    write_atomically(path, _to_bytes(tensors, about))


def save_weights(path: Path, network: nn.Module, about: dict[str, Any]) -> None:
    """Write the network's state to a safetensors file, with `about` as its metadata."""
    save_tensors(path, network.state_dict(), about)


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions to a safetensors file."""
    save_tensors(path, {f.name: getattr(predictions, f.name) for f in fields(predictions)}, {})


def load_predictions(path: Path) -> Predictions:
    """Read predictions that `save_predictions` wrote. `ValueError` where the file is damaged or of something else."""
    tensors, _ = _read(path)
    try:
        return Predictions(**tensors)
    except TypeError as error:
        raise ValueError(f"{path}: holds no predictions: {error}") from None


def read_about(path: Path) -> dict[str, Any]:
    """What a file that this module wrote says of itself. `ValueError` where it is none, or damaged."""
    return _read(path, with_tensors=False)[1]


def load_weights(path: Path, network: nn.Module, *, without: tuple[str, ...] = ()) -> None:
    """Read weights into the network, but for those whose names begin with one of `without`.

    `ValueError` names the first tensor that is missing, strange or not finite.
    """
    tensors, expected = (
        {name: tensor for name, tensor in named.items() if not name.startswith(without)}
        for named in (_read(path)[0], network.state_dict())
    )
    for name in sorted(expected.keys() | tensors.keys()):
        found, wanted = tensors.get(name), expected.get(name)
        if found is None or wanted is None or found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise ValueError(f"{path}: {quote(name)}: found {_shape(found)}, expected {_shape(wanted)}")
        if found.is_floating_point() and not found.isfinite().all():
            raise ValueError(f"{path}: {quote(name)}: found values that are not finite numbers")
    network.load_state_dict(tensors, strict=not without)


def save_checkpoint(path: Path, state: State, config: str) -> None:
    """Write the state after `state.step` steps, beside the run's configuration as TOML."""
    tensors = {f"network.{name}": value for name, value in state.network.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in state.averaging.average.items()}
    tensors |= {f"tally.{name}": value for name, value in state.tally.to_tensors().items()}
    scalars: dict[str, float] = {}
    for i, optimizer in enumerate(state.optimizers):
        for key, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{i}.{key}.{name}"] = value
                elif value is not None:
                    scalars[f"optimizer.{i}.{key}.{name}"] = value
    about = {
        "format": FORMAT,
        "config": config,
        "step": state.step,
        "scalars": scalars,
        "scaler": state.scaler.state_dict(),
        "plateau": state.plateau.to_json(),
        "skipped_steps": state.skipped_steps,
        "best": [state.best_accuracy, state.best_epoch],
    }
    write_atomically(path, _to_bytes(tensors, about))


def load_checkpoint(path: Path, state: State) -> None:
    """Put a checkpoint's state back. `ValueError` where it is damaged or of another network."""
    tensors, about = _read(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path}: found format {quote(about.get('format'))}, expected {FORMAT!r}")
    try:
        states: list[dict[int, dict[str, Any]]] = [{} for _ in state.optimizers]
        for name, value in {**tensors, **about["scalars"]}.items():
            if name.startswith("optimizer."):
                _, i, key, field = name.split(".", 3)
                states[int(i)].setdefault(int(key), {})[field] = value
        state.network.load_state_dict(_named(tensors, "network."))
        for optimizer, values in zip(state.optimizers, states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": values})
            _match_layouts(optimizer)
        for name, average in state.averaging.average.items():
            average.copy_(tensors[f"average.{name}"])
        state.tally = Tally.from_tensors(_named(tensors, "tally."), next(state.network.parameters()).device)
        state.scaler.load_state_dict(about["scaler"])
        state.plateau = Plateau(**about["plateau"])
        state.step, state.skipped_steps = int(about["step"]), int(about["skipped_steps"])
        state.best_accuracy, state.best_epoch = float(about["best"][0]), int(about["best"][1])
        if state.step < 0 or state.skipped_steps < 0:
            raise ValueError(f"step is {state.step}, of which {state.skipped_steps} skipped")
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: does not fit this run's network and optimiser: {quote(str(error), 300)}") from None


def load_latest(folder: Path, state: State) -> tuple[Path, list[str]]:
    """Put the newest checkpoint of a folder back that is whole, and return its path and what was wrong with newer ones.

    `ValueError` where there is none.
    """
    wrong: list[str] = []
    for path in reversed(checkpoint_paths(folder)):
        try:
            load_checkpoint(path, state)
        except ValueError as error:
            wrong.append(str(error))
        else:
            return path, wrong
    raise ValueError("; ".join(wrong) or f"{folder}: holds no checkpoint to go on from")


def checkpoint_paths(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob(f"{PREFIX}*.safetensors"))


def save_latest(folder: Path, state: State, config: str, keep: int) -> Path:
    """Write a checkpoint into a folder and remove all but the last `keep`.

    `NonFiniteLossError`, and nothing is written, where a weight is not finite: what goes on from there is lost.
    """
    weights = dict(state.network.named_parameters())
    # All at once: on a GPU each look would wait for what it has still to do.
    finite = torch.stack([weight.isfinite().all() for weight in weights.values()]).tolist()
    if not all(finite):
        name = list(weights)[finite.index(False)]
        raise NonFiniteLossError(f"{name} is not finite after step {state.step}", state.step)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{PREFIX}{state.step:09d}.safetensors"
    save_checkpoint(path, state, config)
    for old in checkpoint_paths(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


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


def _read(path: Path, *, with_tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected the weights of a finished run")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("fastcifar", "{}"))
            if not isinstance(about, dict):
                raise ValueError("its metadata is no JSON object")
            names = file.keys() if with_tensors else ()
            return {name: file.get_tensor(name) for name in names}, about
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {quote(str(error), 300)}") from None


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
