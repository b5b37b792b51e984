"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no schedule state."""

import math

import torch

from fastcifar.config import ScheduleConfig


def scale(config: ScheduleConfig, progress: float) -> float:
    """The factor on the peak rate at `progress`, the share of the run's steps already done (0 to below 1)."""
    if progress < config.warmup:
        return progress / config.warmup
    rest = (progress - config.warmup) / (1 - config.warmup)
    if config.name == "linear":
        return 1 - rest
    if config.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    return 1.0


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float, whiten_factor: float) -> None:
    """Give every group its peak rate times `factor`, and the whitening stem's bias its own."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * (whiten_factor if group.get("whiten") else factor)
