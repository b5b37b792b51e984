"""Steps that do not count: to compile and warm up before the clock runs, and to find out what fits into memory."""

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastcifar.training import distributed, loop
from fastcifar.training.clock import Clock
from fastcifar.training.device import describe
from fastcifar.training.evaluation import predict
from fastcifar.training.memory import largest_fitting
from fastcifar.training.resolution import resize
from fastcifar.training.session import Session

if TYPE_CHECKING:
    from fastcifar.pipelines import Pipeline


def warm_up(
    network: nn.Module, forward: Callable[[Tensor], Tensor], pipeline: "Pipeline", session: Session, clock: Clock
) -> None:
    """Compile and run every form of the step, and an evaluation, on labels that mean nothing.

    The network is put back as it was.
    """
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = loop.new_state(network, session.config, session.dtype)
    network.train()
    with clock.part("compile"):  # a pipeline compiles what its settings want with its first batch
        batch = next(iter(pipeline.epoch(0)))
    dummy = replace(batch, labels=torch.zeros_like(batch.labels))
    for part in ("compile", "warm-up"):
        with clock.part(part):
            for step in loop.turning_steps(session.config, pipeline.steps_per_epoch):
                state.step = step
                loop.take_step(state, forward, dummy, session.config, session.dtype, pipeline.steps_per_epoch)
    with clock.part("warm-up"):
        predict(network, [dummy], session.config.evaluate.tta, session.dtype)
    network.load_state_dict(before)


def memory_sentence(session: Session, state: loop.State, pipeline: "Pipeline") -> str:
    """What would have fitted, found by trying."""
    config, dtype = session.config, session.dtype
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
    loop.forget_compiled()
    gc.collect()
    pixels = max((stage.pixels for stage in config.train.resolution), default=0)

    def attempt(num: int) -> None:
        batch = next(iter(pipeline.epoch(0)))
        images = resize(batch.images[:num], pixels)
        part = replace(batch, images=images, labels=batch.labels[:num], mix_labels=None, mix_weights=None)
        loss, logits = loop.loss_and_logits(state.network, part, images, 0.0, dtype)
        if state.teacher is not None:
            loss = loss + loop.distance_to_teacher(state.teacher, batch.images[:num], logits, 1.0, dtype)
        loss.backward()

    size, num_processes = config.pipeline.batch_size, distributed.num_processes()
    num = largest_fitting(attempt, size // num_processes) * num_processes
    advice = (
        f"{num} fits: --set pipeline.batch_size={num}"
        if num
        else "not even a single image fits: smaller model.widths may"
    )
    return f"out of memory on {describe(session.device)} with pipeline.batch_size {size}; {advice}"
