"""What a step minimises: cross-entropy with mixed labels, and the distance to a teacher."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from fastcifar.pipelines import Batch


def autocast(images: Tensor, dtype: torch.dtype) -> torch.autocast:
    """The context in which a network computes in `dtype` on the images' device; for float32 it changes nothing."""
    return torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32)


def loss_and_logits(
    network: Callable[[Tensor], Tensor], batch: "Batch", images: Tensor, label_smoothing: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of a batch, each image's labels weighted by the share of each that is shown, and logits."""
    with autocast(images, dtype):
        logits = network(images)
    logits = logits.float()
    return losses(logits, batch, label_smoothing).mean(), logits


def losses(logits: Tensor, batch: "Batch", label_smoothing: float) -> Tensor:
    """Cross-entropy [n] of a batch's images, each image's labels weighted by the share of each that is shown."""
    own = F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing, reduction="none")
    if batch.mix_labels is None or batch.mix_weights is None:
        return own
    other = F.cross_entropy(logits, batch.mix_labels, label_smoothing=label_smoothing, reduction="none")
    return torch.lerp(other, own, batch.mix_weights)


@torch.no_grad()
def _teach(teacher: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    with autocast(images, dtype):
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
