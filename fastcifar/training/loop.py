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
from fastcifar.training import optimizers, schedules
from fastcifar.training.averaging import Averaging

if TYPE_CHECKING:
    from fastcifar.pipelines import Batch, Pipeline


class NonFiniteLossError(ArithmeticError):
    """The loss became infinite or not a number at `step` (counted from 1), after which no step is worth taking."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


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
    """What changes while training. `step` counts the steps done; a checkpoint holds all but the teacher."""

    network: nn.Module
    optimizers: list[torch.optim.Optimizer]
    averaging: Averaging
    scaler: torch.amp.GradScaler
    teacher: nn.Module | None = None
    step: int = 0
    skipped_steps: int = 0
    """Steps whose loss was not finite and that `train.on_nonfinite` let go by."""
    plateau: schedules.Plateau = field(default_factory=schedules.Plateau)
    best_accuracy: float = -1.0
    """Best validation accuracy so far, a share."""
    best_epoch: int = 0
    tally: "Tally" = field(default_factory=lambda: Tally())  # noqa: PLW0108 - it is defined below
    """The sums of the epoch under way."""


def new_state(network: nn.Module, config: Config, dtype: torch.dtype, teacher: nn.Module | None = None) -> State:
    """The state before the first step; `dtype` is what the step computes in."""
    device = next(network.parameters()).device.type
    # float16 has too few exponents for small gradients; the other dtypes need no scaling, and the scaler does nothing.
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    built = optimizers.build(network, config.optimizer, config.pipeline.batch_size)
    return State(network, built, Averaging(network, config.train), scaler, teacher)


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to hear, and whether it wants the run to end: each of these may do nothing."""

    on_step: Callable[[int, int], None] = field(default=lambda step, total_steps: None)
    on_epoch: Callable[[EpochReport], None] = field(default=lambda report: None)
    stop: Callable[[], bool] = field(default=lambda: False)
    """Asked after each step: whether to return now, the run unfinished."""
    ends: Callable[[], bool] = field(default=lambda: False)
    """Asked after each epoch: whether the run is over early."""


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
) -> bool:
    """Train from `state.step` to the end of the run; `forward` is the network, or its compiled form.

    A step's batch and learning rate are functions of its number alone (and, on a plateau, of the validation so far),
    so a run that starts from a checkpoint goes the way of one that never stopped. Returns whether the run is over;
    False where `hooks.stop` ended it. Raises `NonFiniteLossError`, naming the step, at the latest when its epoch ends.
    """
    num_steps = total_steps(config, pipeline)
    state.network.train()
    while state.step < num_steps:
        epoch, first_step = divmod(state.step, pipeline.steps_per_epoch)
        if first_step == 0:
            state.tally = Tally()
        state.tally.start()
        for batch in pipeline.epoch(epoch, first_step):
            taken = take_step(state, forward, batch, config, dtype, pipeline.steps_per_epoch)
            state.step += 1
            state.averaging.update(state.step, num_steps)
            state.tally.add(taken, batch.labels, state.step)
            hooks.on_step(state.step, num_steps)
            over = state.step == num_steps
            if over or hooks.stop():
                break
        epoch_ended = state.step % pipeline.steps_per_epoch == 0
        if over or epoch_ended:
            hooks.on_epoch(state.tally.report(epoch, num_steps))
            if hooks.ends():
                break
        if not over and hooks.stop():
            return False
    state.averaging.finish()
    return True


@dataclass(frozen=True)
class Taken:
    """A step's mean loss (scalar), logits float32 [n, classes] and learning rate."""

    loss: Tensor
    logits: Tensor
    lr: float
    skipped: bool = False
    """Whether the weights stayed as they were, the loss being not finite (0 here)."""


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
    if state.teacher is not None:
        weight = config.distill.weight
        distance = distance_to_teacher(state.teacher, batch.images, logits, config.distill.temperature, dtype)
        loss = (1 - weight) * loss + weight * distance
    if config.train.on_nonfinite == "skip" and not math.isfinite(loss.item()):
        # Counted and left out of the means: an epoch's loss would be no number else.
        state.skipped_steps += 1
        return Taken(torch.zeros_like(loss.detach()), logits.detach(), lr, skipped=True)
    state.scaler.scale(loss).backward()
    clip(state, config)
    for optimizer in state.optimizers:
        state.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    state.scaler.update()
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


@torch.no_grad()
def _teach(teacher: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    autocast = torch.autocast(images.device.type, dtype) if dtype != torch.float32 else nullcontext()
    with autocast:
        return teacher(images).float()


def distance_to_teacher(
    teacher: nn.Module, images: Tensor, logits: Tensor, temperature: float, dtype: torch.dtype
) -> Tensor:
    """Mean Kullback-Leibler divergence of softened outputs from the teacher's, in nats, times temperature squared.

    Hinton et al. (arXiv:1503.02531); the square keeps the gradient's size whatever the temperature.
    """
    taught = F.log_softmax(_teach(teacher, images, dtype) / temperature, dim=1)
    learned = F.log_softmax(logits / temperature, dim=1)
    return F.kl_div(learned, taught, reduction="batchmean", log_target=True) * temperature**2


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
    progress = state.step / num_steps
    factor = schedules.scale(config.schedule, progress, state.step / steps_per_epoch) * state.plateau.factor
    whiten_steps = _whiten_steps(config, steps_per_epoch, num_steps)
    whiten_factor = max(0.0, 1 - state.step / whiten_steps) if whiten_steps else 0.0
    schedules.set_rates(state.optimizers, factor, whiten_factor)
    schedules.set_momentum(state.optimizers, schedules.momentum(config.schedule, progress))
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"] if group.get("whiten") else ():
                # Frozen, the stem and the input gradient of the next convolution need no backward pass.
                parameter.requires_grad_(whiten_factor > 0)
    return config.optimizer.lr * factor


def clip(state: State, config: Config) -> None:
    """Clip the gradient by value, by norm or by both, as the configuration wants it."""
    norm, value = config.optimizer.clip_norm, config.optimizer.clip_value
    if norm or value:
        for optimizer in state.optimizers:
            state.scaler.unscale_(optimizer)
    if value:
        nn.utils.clip_grad_value_(state.network.parameters(), value)
    if norm:
        nn.utils.clip_grad_norm_(state.network.parameters(), norm)


class Tally:
    """Sums of an epoch, kept on the device: reading them each step would make the GPU wait."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []
        self.num_images = 0
        self.seconds_s = 0.0
        self._last_step = 0
        self._num_checked = 0
        self._lr = 0.0
        self._since_s = time.perf_counter()

    def start(self) -> None:
        """The epoch begins, or goes on: the time until now was another's."""
        self._since_s = time.perf_counter()

    def add(self, taken: Taken, labels: Tensor, step: int) -> None:
        """Take in a step."""
        if not taken.skipped:
            self.losses.append(taken.loss)
            self.correct.append((taken.logits.argmax(1) == labels).sum())
            self.num_images += len(labels)
        self._last_step, self._lr = step, taken.lr
        now_s = time.perf_counter()
        self.seconds_s, self._since_s = self.seconds_s + now_s - self._since_s, now_s
        if not taken.loss.is_cuda:
            self._check()

    def report(self, epoch: int, num_steps: int) -> EpochReport:
        """Means of the epoch; NaN where every step was skipped."""
        self._check()
        now_s = time.perf_counter()
        self.seconds_s, self._since_s = self.seconds_s + now_s - self._since_s, now_s
        num = max(1, len(self.losses))
        return EpochReport(
            epoch=epoch + 1,
            step=self._last_step,
            loss=torch.stack(self.losses).mean().item() if self.losses else math.nan,
            accuracy=torch.stack(self.correct).sum().item() / self.num_images if self.losses else math.nan,
            lr=self._lr,
            images_s=self.num_images / self.seconds_s,
            seconds=self.seconds_s,
            left_s=(num_steps - self._last_step) * self.seconds_s / num,
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """The sums, as a checkpoint within an epoch keeps them."""
        if not self.losses:
            return {}
        counts = torch.tensor([self.num_images, self.seconds_s], dtype=torch.float64)
        return {"losses": torch.stack(self.losses), "correct": torch.stack(self.correct), "counts": counts}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Tally":
        """The sums that `to_tensors` gave."""
        tally = cls()
        if tensors:
            tally.losses, tally.correct = list(tensors["losses"].unbind()), list(tensors["correct"].unbind())
            num_images, tally.seconds_s = tensors["counts"].tolist()
            tally.num_images, tally._num_checked = int(num_images), len(tally.losses)
        return tally

    def _check(self) -> None:
        """Raise for the first loss that is not finite among those not looked at yet."""
        finite = [math.isfinite(loss) for loss in _numbers(self.losses[self._num_checked :])]
        if not all(finite):
            bad = self._num_checked + finite.index(False)
            step = self._last_step - len(self.losses) + 1 + bad
            raise NonFiniteLossError(f"the loss is {self.losses[bad].item()} at step {step}", step)
        self._num_checked = len(self.losses)


def _numbers(scalars: list[Tensor]) -> list[float]:
    return torch.stack(scalars).tolist() if scalars else []
