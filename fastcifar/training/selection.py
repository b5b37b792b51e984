"""Training on the harder part of each batch, judged by the network itself on small images.

The idea of choosing the hard half of a batch by a small proxy network is airbench96's (Jordan, arXiv:2404.00498). Here
the proxy is the network that is being trained, on images so small that judging one costs a few percent of training on
it: nothing else to train, and nothing to keep in a checkpoint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastcifar.schema import SelectionConfig
from fastcifar.training.losses import autocast, losses
from fastcifar.training.resolution import resize

if TYPE_CHECKING:
    from fastcifar.pipelines import Batch


def select(network: nn.Module, batch: "Batch", config: SelectionConfig, progress: float, dtype: torch.dtype) -> "Batch":
    """The part of the batch that is trained on when `progress` of the run is done.

    Before `config.since` its first images, which are as random as any; then those of the highest loss.
    """
    count = config.num_kept(len(batch.labels))
    if count == len(batch.labels):
        return batch
    if progress < config.since:
        rows = torch.arange(count, device=batch.labels.device)
    else:
        # In the batch's order: which of two images comes first must not depend on how sorting treats equal losses.
        rows = judged_losses(network, batch, config.pixels, dtype).topk(count).indices.sort().values
    return batch.part(rows)


@torch.no_grad()
def judged_losses(network: nn.Module, batch: "Batch", pixels: int, dtype: torch.dtype) -> Tensor:
    """Cross-entropy float32 [n] of a batch's images at `pixels`; the network stays as it is."""
    with _statistics_of_the_batch(network), autocast(batch.images, dtype):
        logits = network(resize(batch.images, pixels))
    return losses(logits.float(), batch, label_smoothing=0.0)


@contextmanager
def _statistics_of_the_batch(network: nn.Module) -> Iterator[None]:
    """Norms take their statistics from the batch, as images of another size have others, and remember nothing."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
