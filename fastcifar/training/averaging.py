"""Averages of the weights over the run: an EMA to evaluate, or Lookahead, from which training goes on."""

import torch
from torch import Tensor, nn

from fastcifar.config import TrainConfig

LOOKAHEAD_STEPS = 5


class Averaging:
    """Keeps an average of a network's floating-point state (weights and running statistics).

    `ema`: the average follows at `decay` a step, and `finish` puts it into the network.
    `lookahead`: every 5 steps the average moves to the network and the network back to the average, with a decay that
    grows from 0 with the cube of progress, as in airbench.
    """

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        self._kind, self._decay = config.averaging, config.averaging_decay
        state = network.state_dict(keep_vars=False)
        self._live = {name: value for name, value in state.items() if value.is_floating_point()}
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
            self._follow(self._decay**LOOKAHEAD_STEPS * (step / total_steps) ** 3)
            self._put_back()

    @torch.no_grad()
    def finish(self) -> None:
        """Put the average into the network."""
        if self._kind != "none":
            self._put_back()

    def _follow(self, decay: float) -> None:
        for name, average in self.average.items():
            average.lerp_(self._live[name], 1 - decay)

    def _put_back(self) -> None:
        for name, average in self.average.items():
            self._live[name].copy_(average)
