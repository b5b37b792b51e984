"""Learning-rate schedules: functions of the step, but for the plateau, whose state a checkpoint keeps."""

import math
from dataclasses import asdict, dataclass

import torch

from fastcifar.schema import ScheduleConfig

# Smith, "Super-convergence" (arXiv:1708.07120): one cycle's momentum goes from 0.95 down to 0.85 and back.
ONE_CYCLE_MOMENTA = (0.95, 0.85)


def scale(config: ScheduleConfig, progress: float, epoch: float = 0.0) -> float:
    """The factor on the peak rate at `progress`, the share of the run's steps already done (0 to below 1).

    `epoch` is the same in epochs, by which `step` goes. A plateau's factor is `Plateau.factor`, on top of this one.
    """
    if progress < config.warmup:
        share = progress / config.warmup
        return _cosine(1 - share) if config.name == "one_cycle" else share
    rest = (progress - config.warmup) / (1 - config.warmup)
    if config.name in ("linear", "triangular"):
        return 1 - rest
    if config.name in ("cosine", "one_cycle"):
        return _cosine(rest)
    if config.name == "step":
        # A step that falls on an epoch's end must not be missed by rounding.
        return config.factor ** math.floor(epoch / config.step_epochs + 1e-9)
    return 1.0


def momentum(config: ScheduleConfig, progress: float) -> float | None:
    """SGD's momentum at `progress` where the schedule moves it, else None."""
    if config.name != "one_cycle":
        return None
    high, low = ONE_CYCLE_MOMENTA
    return high - (high - low) * scale(config, progress)


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float, whiten_factor: float) -> None:
    """Give every group its peak rate times `factor`, and the whitening stem's bias its own."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * (whiten_factor if group.get("whiten") else factor)


def set_momentum(optimizers: list[torch.optim.Optimizer], momentum: float | None) -> None:
    """Give every group that has a momentum this one, where there is one to give."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if momentum is not None and group["peak_momentum"]:
                group["momentum"] = momentum


@dataclass
class Plateau:
    """What has to improve, and how long it has not: reduces the rate by `factor` after `patience` epochs without.

    As torch.optim.lr_scheduler.ReduceLROnPlateau with its relative threshold of 1e-4, over plain numbers.
    """

    best: float = math.inf
    waited: int = 0
    factor: float = 1.0

    def update(self, config: ScheduleConfig, loss: float, accuracy: float) -> None:
        """Take in the validation loss and accuracy of an epoch."""
        if config.name != "plateau":
            return
        value = loss if config.watch == "loss" else -accuracy
        self.waited += 1
        if value < self.best - 1e-4 * abs(self.best) or math.isinf(self.best):
            self.best, self.waited = value, 0
        if self.waited > config.patience:
            self.factor, self.waited = self.factor * config.factor, 0

    def to_json(self) -> dict[str, float]:
        """The state, as a checkpoint keeps it."""
        return asdict(self)


def _cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))
