"""An epoch's sums, what is told of them, and the error for a loss that is not finite."""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcifar.interruption import FailedError
from fastcifar.training import distributed


class NonFiniteLossError(FailedError):
    """The loss became infinite or not a number at `step` (counted from 1), after which no step is worth taking."""

    in_all_processes = True

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
    """Share of the augmented training images whose own label was on top while training: of those trained on, where
    `selection.keep` leaves some out."""
    lr: float
    """Rate of the last step."""
    images_s: float
    """Images trained on a second."""
    seconds: float
    left_s: float
    """Seconds that the rest of the run takes at this epoch's pace, larger images counted as more."""


@dataclass(frozen=True)
class Taken:
    """What is told of a step: where several processes train, as the mean over them."""

    loss: Tensor
    """Mean over the images, float32, a scalar on the device as the next."""
    correct: Tensor
    """How many images had their own label on top, float32."""
    num_images: int
    """Images of each process."""
    lr: float
    skipped: bool = False
    """Whether the weights stayed as they were, the loss being not finite (0 here)."""

    @classmethod
    def of(cls, loss: Tensor, logits: Tensor, labels: Tensor, lr: float, *, skipped: bool = False) -> "Taken":
        """From a step's loss, logits float32 [n, classes] and the images' own labels int64 [n]."""
        correct = (logits.detach().argmax(1) == labels).sum().float()
        return cls(loss.detach(), correct, len(labels), lr, skipped)


class Tally:
    """Sums of an epoch, kept on the device: reading them each step would make the GPU wait."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []
        self.num_images = 0
        self.num_steps = 0
        self.seconds_s = 0.0
        self._last_step = 0
        self._num_checked = 0
        self._lr = 0.0
        self._since_s = time.perf_counter()

    def start(self) -> None:
        """The epoch begins, or goes on: the time until now was another's."""
        self._since_s = time.perf_counter()

    def add(self, taken: Taken, step: int) -> None:
        """Take in a step."""
        self.num_steps += 1
        if not taken.skipped:
            self.losses.append(taken.loss)
            self.correct.append(taken.correct)
            self.num_images += taken.num_images
        self._last_step, self._lr = step, taken.lr
        now_s = time.perf_counter()
        self.seconds_s, self._since_s = self.seconds_s + now_s - self._since_s, now_s
        if not taken.loss.is_cuda:
            self.check()

    def report(self, epoch: int, left: float) -> EpochReport:
        """Means of the epoch; NaN where every step was skipped. `left`: the rest of the run, as work by the epoch's."""
        self.check()
        now_s = time.perf_counter()
        self.seconds_s, self._since_s = self.seconds_s + now_s - self._since_s, now_s
        return EpochReport(
            epoch=epoch + 1,
            step=self._last_step,
            loss=torch.stack(self.losses).mean().item() if self.losses else math.nan,
            accuracy=torch.stack(self.correct).sum().item() / self.num_images if self.losses else math.nan,
            lr=self._lr,
            images_s=self.num_images * distributed.num_processes() / self.seconds_s,
            seconds=self.seconds_s,
            left_s=left * self.seconds_s,
        )

    def check(self) -> None:
        """Raise for the first loss that is not finite among those not looked at yet."""
        finite = [math.isfinite(loss) for loss in _numbers(self.losses[self._num_checked :])]
        if not all(finite):
            bad = self._num_checked + finite.index(False)
            step = self._last_step - len(self.losses) + 1 + bad
            raise NonFiniteLossError(f"the loss is {self.losses[bad].item()} at step {step}", step)
        self._num_checked = len(self.losses)

    def to_tensors(self) -> dict[str, Tensor]:
        """The sums, as a checkpoint within an epoch keeps them."""
        counts = torch.tensor([self.num_images, self.num_steps, self.seconds_s], dtype=torch.float64)
        losses, correct = (torch.stack(sums) if sums else torch.zeros(0) for sums in (self.losses, self.correct))
        return {"losses": losses, "correct": correct, "counts": counts}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device) -> "Tally":
        """The sums that `to_tensors` gave, to go on with on `device`."""
        tally = cls()
        if tensors:
            tally.losses = list(tensors["losses"].to(device).unbind())
            tally.correct = list(tensors["correct"].to(device).unbind())
            num_images, num_steps, tally.seconds_s = tensors["counts"].tolist()
            tally.num_images, tally.num_steps = int(num_images), int(num_steps)
        return tally


def _numbers(scalars: list[Tensor]) -> list[float]:
    return torch.stack(scalars).tolist() if scalars else []
