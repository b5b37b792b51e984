"""The training loop."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.config import Config
from fastcifar.training import schedules
from fastcifar.training.averaging import Averaging

if TYPE_CHECKING:
    from fastcifar.pipelines import Batch, Pipeline


class NonFiniteLossError(ArithmeticError):
    """The loss became infinite or not a number, after which no step is worth taking."""


@dataclass(frozen=True)
class EpochReport:
    """What an epoch was like; its last step may come before the epoch's end in a run of fractional length."""

    epoch: int
    """Counted from 1."""
    step: int
    """Steps done in the whole run."""
    loss: float
    """Mean training loss, with label smoothing and mixing as trained."""
    accuracy: float
    """Share of the augmented training images whose own label was on top while training."""
    lr: float
    """Rate of the last step."""
    images_s: float
    seconds: float
    left_s: float
    """Seconds that the rest of the run takes at this epoch's pace."""


@dataclass
class State:
    """What changes while training. `step` counts the steps done."""

    network: nn.Module
    optimizers: list[torch.optim.Optimizer]
    averaging: Averaging
    step: int = 0


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to hear: each of these may do nothing."""

    on_step: Callable[[int, int], None] = field(default=lambda step, total_steps: None)
    on_epoch: Callable[[EpochReport], None] = field(default=lambda report: None)


def total_steps(config: Config, pipeline: "Pipeline") -> int:
    """Steps of the whole run."""
    return math.ceil(config.train.epochs * pipeline.steps_per_epoch)


def train(
    state: State,
    forward: Callable[[Tensor], Tensor],
    pipeline: "Pipeline",
    config: Config,
    dtype: torch.dtype,
    hooks: Hooks,
) -> None:
    """Train from `state.step` to the end of the run; `forward` is the network, or its compiled form.

    A step's batch and learning rate are functions of its number alone, so a run that starts from a checkpoint goes the
    way of one that never stopped. Raises `NonFiniteLossError`, naming the step, at the latest when its epoch ends.
    """
    num_steps = total_steps(config, pipeline)
    state.network.train()
    while state.step < num_steps:
        epoch, first_step = divmod(state.step, pipeline.steps_per_epoch)
        tally = _Tally()
        for batch in pipeline.epoch(epoch, first_step):
            taken = take_step(state, forward, batch, config, dtype, pipeline.steps_per_epoch)
            state.step += 1
            state.averaging.update(state.step, num_steps)
            tally.add(taken, batch.labels, state.step)
            hooks.on_step(state.step, num_steps)
            if state.step == num_steps:
                break
        hooks.on_epoch(tally.report(epoch, num_steps))
    state.averaging.finish()


@dataclass(frozen=True)
class Taken:
    """A step's mean loss (scalar), logits float32 [n, classes] and learning rate."""

    loss: Tensor
    logits: Tensor
    lr: float


def take_step(
    state: State,
    forward: Callable[[Tensor], Tensor],
    batch: "Batch",
    config: Config,
    dtype: torch.dtype,
    steps_per_epoch: int,
) -> Taken:
    """Forward, backward and update for the step numbered `state.step`."""
    num_steps = math.ceil(config.train.epochs * steps_per_epoch)
    lr = _set_rates(state, config, steps_per_epoch, num_steps)
    _seed_dropout(state.network, config.seed, state.step)
    images = resize(batch.images, pixels_at(config, state.step / num_steps))
    loss, logits = loss_and_logits(forward, batch, images, config.train.label_smoothing, dtype)
    loss.backward()
    if config.optimizer.clip_norm:
        nn.utils.clip_grad_norm_(state.network.parameters(), config.optimizer.clip_norm)
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return Taken(loss.detach(), logits.detach(), lr)


def turning_steps(config: Config, steps_per_epoch: int) -> list[int]:
    """The steps from which on a compiled step is another one: the first, new resolutions, the frozen stem."""
    num_steps = math.ceil(config.train.epochs * steps_per_epoch)
    starts = [0.0, *(stage.until for stage in config.train.resolution)]
    turns = {math.ceil(start * num_steps) for start in starts} | {_whiten_steps(config, steps_per_epoch, num_steps)}
    return sorted(step for step in turns if step < num_steps)


def loss_and_logits(
    network: Callable[[Tensor], Tensor], batch: "Batch", images: Tensor, label_smoothing: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of a batch, each image's labels weighted by the share of each that is shown, and logits."""
    autocast = torch.autocast(images.device.type, dtype) if dtype != torch.float32 else nullcontext()
    with autocast:
        logits = network(images)
    logits = logits.float()
    if batch.mix_labels is None or batch.mix_weights is None:
        return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing), logits
    own = F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing, reduction="none")
    other = F.cross_entropy(logits, batch.mix_labels, label_smoothing=label_smoothing, reduction="none")
    return torch.lerp(other, own, batch.mix_weights).mean(), logits


def pixels_at(config: Config, progress: float) -> int:
    """Side in pixels that images are trained at when `progress` of the run is done; 0: as they are."""
    return next((stage.pixels for stage in config.train.resolution if progress < stage.until), 0)


def resize(images: Tensor, pixels: int) -> Tensor:
    """Images [n, c, h, w] scaled to `pixels` (0: as they are), bilinear with antialiasing, channels-last."""
    if pixels in (0, images.shape[-1]):
        return images
    images = F.interpolate(images, (pixels, pixels), mode="bilinear", antialias=True, align_corners=False)
    return images.contiguous(memory_format=torch.channels_last)


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network compiled for its device; on a GPU its steps are replayed as CUDA graphs."""
    on_gpu = next(network.parameters()).is_cuda
    return torch.compile(network, mode="max-autotune" if on_gpu else None)


def _seed_dropout(network: nn.Module, seed: int, step: int) -> None:
    """Make dropout's draws a function of seed and step, so that a resumed run repeats them."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules()):
        torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]))


def _whiten_steps(config: Config, steps_per_epoch: int, num_steps: int) -> int:
    return min(math.ceil(config.train.whiten_epochs * steps_per_epoch), num_steps)


def _set_rates(state: State, config: Config, steps_per_epoch: int, num_steps: int) -> float:
    """Set this step's learning rates, and freeze the whitening stem's bias once its epochs are over."""
    factor = schedules.scale(config.schedule, state.step / num_steps)
    whiten_steps = _whiten_steps(config, steps_per_epoch, num_steps)
    whiten_factor = max(0.0, 1 - state.step / whiten_steps) if whiten_steps else 0.0
    schedules.set_rates(state.optimizers, factor, whiten_factor)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"] if group.get("whiten") else ():
                # Frozen, the stem and the input gradient of the next convolution need no backward pass.
                parameter.requires_grad_(whiten_factor > 0)
    return config.optimizer.lr * factor


class _Tally:
    """Sums of an epoch, kept on the device: reading them each step would make the GPU wait."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._images = 0
        self._last_step = 0
        self._num_checked = 0
        self._lr = 0.0
        self._start_s = time.perf_counter()

    def add(self, taken: Taken, labels: Tensor, step: int) -> None:
        self._losses.append(taken.loss)
        self._correct.append((taken.logits.argmax(1) == labels).sum())
        self._images += len(labels)
        self._last_step, self._lr = step, taken.lr
        if not taken.loss.is_cuda:
            self._check()

    def report(self, epoch: int, num_steps: int) -> EpochReport:
        self._check()
        seconds = time.perf_counter() - self._start_s
        return EpochReport(
            epoch=epoch + 1,
            step=self._last_step,
            loss=torch.stack(self._losses).mean().item(),
            accuracy=torch.stack(self._correct).sum().item() / self._images,
            lr=self._lr,
            images_s=self._images / seconds,
            seconds=seconds,
            left_s=(num_steps - self._last_step) * seconds / len(self._losses),
        )

    def _check(self) -> None:
        """Raise for the first loss that is not finite among those not looked at yet."""
        finite = [math.isfinite(loss) for loss in _numbers(self._losses[self._num_checked :])]
        if not all(finite):
            bad = self._num_checked + finite.index(False)
            step = self._last_step - len(self._losses) + 1 + bad
            raise NonFiniteLossError(f"the loss is {self._losses[bad].item()} at step {step}")
        self._num_checked = len(self._losses)


def _numbers(scalars: list[Tensor]) -> list[float]:
    return torch.stack(scalars).tolist() if scalars else []
