"""Accuracy with and without test-time augmentation (TTA), from one pass over a pipeline."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.kernels.shapes import channels_last
from fastcifar.training.losses import autocast

if TYPE_CHECKING:
    from fastcifar.pipelines import Batch

DOUBT = 0.5
"""Selective TTA takes six views where one gives the two best classes probabilities less than this apart."""


@dataclass(frozen=True)
class Predictions:
    """Logits float32 [n, classes] without and with TTA, beside int64 labels [n] and indices [n] in the data set."""

    logits: Tensor
    tta_logits: Tensor
    labels: Tensor
    indices: Tensor

    @property
    def accuracy(self) -> float:
        """Top-1 without TTA, a share."""
        return _top1(self.logits, self.labels)

    @property
    def tta_accuracy(self) -> float:
        """Top-1 with TTA, a share."""
        return _top1(self.tta_logits, self.labels)

    @property
    def loss(self) -> float:
        """Mean cross-entropy without TTA and without label smoothing, in nats."""
        return F.cross_entropy(self.logits, self.labels).item()


def _top1(logits: Tensor, labels: Tensor) -> float:
    # Counted, so that 11 of 100 are 0.11 and nothing beside it.
    return int((logits.argmax(1) == labels).sum()) / len(labels) if len(labels) else math.nan


@torch.no_grad()
def predict(network: nn.Module, batches: "Iterable[Batch]", tta: str, dtype: torch.dtype) -> Predictions:
    """Predictions for all images of `batches`, the network in evaluation mode meanwhile."""
    rows: list[tuple[Tensor, ...]] = []
    was_training = network.training
    network.eval()
    for batch in batches:
        with autocast(batch.images, dtype):
            plain, averaged = _views(network, batch.images, tta)
        # The pipeline may reuse its buffers for the next batch.
        rows.append((plain.float(), averaged.float(), batch.labels.clone(), batch.indices.clone()))
    network.train(was_training)
    return Predictions(*(torch.cat(column) for column in zip(*rows, strict=True)))


def _views(network: nn.Module, images: Tensor, tta: str) -> tuple[Tensor, Tensor]:
    """Logits of the images, and their weighted mean over the views of `tta`.

    mirror_translate is airbench's: half the weight on the image and its mirror image, half on the same two views moved
    by one pixel up-left and down-right. selective gives these views to those images that one view leaves in doubt.
    """
    plain = network(images)
    if tta == "selective":
        best = plain.float().softmax(1).topk(min(2, plain.shape[1])).values
        doubtful = (best[:, 0] - best[:, -1] < DOUBT).nonzero().squeeze(1)
        averaged = plain.clone()
        if len(doubtful):
            averaged[doubtful] = _averaged(network, channels_last(images[doubtful]), plain[doubtful])
        return plain, averaged
    if tta == "mirror":
        return plain, _mirrored(network, images, plain)
    return plain, plain if tta == "none" else _averaged(network, images, plain)


def _mirrored(network: nn.Module, images: Tensor, plain: Tensor) -> Tensor:
    return 0.5 * (plain + network(images.flip(-1)))


def _averaged(network: nn.Module, images: Tensor, plain: Tensor) -> Tensor:
    """Mean logits of six views, of which `plain` are those of the first."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), "reflect")
    moved = [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]
    views = [channels_last(view) for image in moved for view in (image, image.flip(-1))]
    return 0.5 * _mirrored(network, images, plain) + 0.5 * torch.stack([network(view) for view in views]).mean(0)
