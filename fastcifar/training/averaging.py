"""Averages of the weights over the run: an EMA to evaluate, or Lookahead, from which training goes on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastcifar.schema import TrainConfig

LOOKAHEAD_STEPS = 5


class Averaging:
    """Keeps an average of a network's floating-point state (weights and running statistics).

    `ema`: the average follows at `decay` a step, and `finish` puts it into the network.
    `lookahead` (Zhang et al., arXiv:1907.08610): every 5 steps the average moves to the network, keeping the share
    `decay` of itself, and the network's parameters go on from it.
    `growing_lookahead`: the same with running statistics too, and a decay a step that grows from 0 with the cube of
    progress, as in airbench.
    """

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        self._kind, self._decay = config.averaging, config.averaging_decay
        live = dict(network.named_parameters()) if self._kind == "lookahead" else network.state_dict()
        self._live = {name: value.detach() for name, value in live.items() if value.is_floating_point()}
        self.average: dict[str, Tensor] = {}
        if self._kind != "none":
            self.average = {name: value.clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int, total_steps: int) -> None:
        """Take in the network after `step` steps are done (counted from 1)."""
        if self._kind == "ema":
            # Early weights are worth nothing: the average's memory grows with the run, up to `decay`.
            decay = min(self._decay, step / (step + 10))
            self._follow(decay)
        elif self._kind == "lookahead" and step % LOOKAHEAD_STEPS == 0:
            self._follow(self._decay)
            self._put_back()
        elif self._kind == "growing_lookahead" and step % LOOKAHEAD_STEPS == 0:
            self._follow(self._decay**LOOKAHEAD_STEPS * (step / total_steps) ** 3)
            self._put_back()

    @torch.no_grad()
    def finish(self) -> None:
        """Put the average into the network."""
        if self._kind != "none":
            self._put_back()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the network be its average within the context, so that validation sees what `finish` will give."""
        live = {name: self._live[name].clone() for name in self.average}
        self._put_back()
        try:
            yield
        finally:
            for name, value in live.items():
                self._live[name].copy_(value)

    def _follow(self, decay: float) -> None:
        for name, average in self.average.items():
            average.lerp_(self._live[name], 1 - decay)

    @torch.no_grad()
    def _put_back(self) -> None:
        for name, average in self.average.items():
            self._live[name].copy_(average)
