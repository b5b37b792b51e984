"""The training loop."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fastcifar.models.speednet import SpeedNet
from fastcifar.schema import Config
from fastcifar.training import distributed, optimizers, schedules
from fastcifar.training.averaging import Averaging
from fastcifar.training.losses import distance_to_teacher, loss_and_logits
from fastcifar.training.resolution import pixels_at, resize, work
from fastcifar.training.selection import select
from fastcifar.training.tally import EpochReport, Taken, Tally

if TYPE_CHECKING:
    from fastcifar.pipelines import Batch, Pipeline


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
    tally: Tally = field(default_factory=Tally)
    """The sums of the epoch under way."""


def new_state(network: nn.Module, config: Config, dtype: torch.dtype, teacher: nn.Module | None = None) -> State:
    """The state before the first step; `dtype` is what the step computes in."""
    device = next(network.parameters()).device.type
    # float16 has too few exponents for small gradients; the other dtypes need no scaling, and the scaler does nothing.
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    built = optimizers.build(network, config.optimizer, config.selection.num_kept(config.pipeline.batch_size), dtype)
    return State(network, built, Averaging(network, config.train), scaler, teacher)


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to hear, and whether it wants the run to end."""

    on_step: Callable[[int, int], None]
    """Told the number of the step that is done, and how many there are."""
    on_epoch: Callable[[EpochReport], None]
    stop: Callable[[], bool]
    """Asked after each step: whether to return now, the run unfinished."""
    ends: Callable[[], bool]
    """Asked before each epoch: whether the run is over early."""


def steps_in(epochs: float, steps_per_epoch: int) -> int:
    """Steps that a number of epochs takes, a fraction of one counted whole."""
    # 0.55 * 200 is a little over 110.
    return math.ceil(epochs * steps_per_epoch - 1e-9)


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
    so a run that starts from a checkpoint goes the way of one that never stopped. Returns whether the run is over, be
    it because `hooks.ends` said so; False where `hooks.stop` ended it. Raises `NonFiniteLossError`, naming the step, at
    the latest when its epoch ends.
    """
    num_steps = steps_in(config.train.epochs, pipeline.steps_per_epoch)
    state.network.train()
    while state.step < num_steps and not hooks.ends():
        epoch, first_step = divmod(state.step, pipeline.steps_per_epoch)
        if first_step == 0:
            state.tally = Tally()
        state.tally.start()
        over = False
        for batch in pipeline.epoch(epoch, first_step):
            taken = take_step(state, forward, batch, config, dtype, pipeline.steps_per_epoch)
            state.step += 1
            state.averaging.update(state.step, num_steps)
            state.tally.add(taken, state.step)
            hooks.on_step(state.step, num_steps)
            over = state.step == num_steps
            if over or hooks.stop():
                break
        epoch_ended = state.step % pipeline.steps_per_epoch == 0
        if over or epoch_ended:
            hooks.on_epoch(state.tally.report(epoch, work_left(state, config, num_steps, batch.images.shape[-1])))
        if not over and hooks.stop():
            # What is no number must not be kept for good.
            state.tally.check()
            return False
    state.averaging.finish()
    return True


def take_step(
    state: State,
    forward: Callable[[Tensor], Tensor],
    batch: "Batch",
    config: Config,
    dtype: torch.dtype,
    steps_per_epoch: int,
) -> Taken:
    """Forward, backward and update for the step numbered `state.step`, on this process's share of the batch."""
    num_steps = steps_in(config.train.epochs, steps_per_epoch)
    lr = _set_rates(state, config, steps_per_epoch, num_steps)
    _freeze_stem(state, config, steps_per_epoch)
    _seed_dropout(state.network, config.seed, state.step)
    skips = config.train.on_nonfinite == "skip"
    buffers = [buffer.clone() for buffer in state.network.buffers()] if skips else []
    progress = state.step / num_steps
    batch = select(state.network, distributed.share(batch), config.selection, progress, dtype)
    images = resize(batch.images, pixels_at(config, progress))
    loss, logits = loss_and_logits(forward, batch, images, config.train.label_smoothing, dtype)
    if state.teacher is not None:
        weight = config.distill.weight
        distance = distance_to_teacher(state.teacher, batch.images, logits, config.distill.temperature, dtype)
        loss = (1 - weight) * loss + weight * distance
    if skips and not math.isfinite(distributed.mean(loss.item())):
        # Counted and left out of the means: an epoch's loss would be no number else. The norms' running statistics have
        # seen the batch.
        state.skipped_steps += 1
        for buffer, before in zip(state.network.buffers(), buffers, strict=True):
            buffer.copy_(before)
        return Taken.of(torch.zeros_like(loss), logits, batch.labels, lr, skipped=True)
    state.scaler.scale(loss).backward()
    taken = Taken.of(loss, logits, batch.labels, lr)
    distributed.average_step(state.network, taken.loss, taken.correct)
    clip(state, config)
    for optimizer in state.optimizers:
        state.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    state.scaler.update()
    return taken


def turning_steps(config: Config, steps_per_epoch: int) -> list[int]:
    """The steps from which on a compiled step is another one: the first, new resolutions, the frozen stem."""
    num_steps = steps_in(config.train.epochs, steps_per_epoch)
    starts = [0.0, *(stage.until for stage in config.train.resolution)]
    turns = {steps_in(start, num_steps) for start in starts} | {steps_in(config.train.whiten_epochs, steps_per_epoch)}
    return sorted(step for step in turns if step < num_steps)


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network compiled for its device; on a GPU its steps are replayed as CUDA graphs.

    Without autotuning: it picks kernels by their time, so that a seed would not repeat its bits, and takes minutes.
    """
    # A new resolution compiles anew: one form for all sizes would be slower than each of its own. Beyond the limit, of
    # all networks that a process trains one after the other, steps would go on uncompiled without a word.
    torch._dynamo.config.recompile_limit = 64
    if not next(network.parameters()).is_cuda:
        return torch.compile(network, dynamic=False)
    forward = torch.compile(network, mode="reduce-overhead", dynamic=False)

    def step_forward(images: Tensor) -> Tensor:
        # Or torch guesses where a step begins, and so when it may write over what its graphs have put out.
        torch.compiler.cudagraph_mark_step_begin()
        return forward(images)

    return step_forward


def forget_compiled() -> None:
    """Let go of all that was compiled in this process, and of the memory that its graphs hold."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _seed_dropout(network: nn.Module, seed: int, step: int) -> None:
    """Make dropout's draws a function of seed, step and process, so that a resumed run repeats them."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules()):
        torch.manual_seed(
            int(np.random.SeedSequence([seed, step, *distributed.seeds()]).generate_state(1, np.uint64)[0])
        )


def _whiten_factor(config: Config, step: int, steps_per_epoch: int) -> float:
    """The factor on the rate of the whitening stem's bias, which falls to 0 over its epochs."""
    whiten_steps = min(
        steps_in(epochs, steps_per_epoch) for epochs in (config.train.whiten_epochs, config.train.epochs)
    )
    return max(0.0, 1 - step / whiten_steps) if whiten_steps else 0.0


def _set_rates(state: State, config: Config, steps_per_epoch: int, num_steps: int) -> float:
    """Set this step's learning rates and momenta; the rate of what has none of its own."""
    progress = state.step / num_steps
    factor = schedules.scale(config.schedule, progress, state.step / steps_per_epoch) * state.plateau.factor
    schedules.set_rates(state.optimizers, factor, _whiten_factor(config, state.step, steps_per_epoch))
    schedules.set_momentum(state.optimizers, schedules.momentum(config.schedule, progress))
    return config.optimizer.lr * factor


def work_left(state: State, config: Config, num_steps: int, side: int) -> float:
    """Work of the steps to come, by that of the epoch's until now; `side`: of images as they are, in pixels."""
    done = range(state.step - state.tally.num_steps, state.step)
    return work(config, range(state.step, num_steps), num_steps, side) / work(config, done, num_steps, side)


def _freeze_stem(state: State, config: Config, steps_per_epoch: int) -> None:
    """Freeze the whitening stem once its epochs are over: it needs no backward pass then."""
    if isinstance(state.network, SpeedNet):
        state.network.stem_trains = _whiten_factor(config, state.step, steps_per_epoch) > 0


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
