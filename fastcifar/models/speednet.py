"""The speedrun network: whitened patches, three residual stages, global max-pooling, a scaled linear head.

Shape and initialisation follow airbench (Jordan, arXiv:2404.00498), which follows Page's "How to train your
ResNet"; ours adds an identity shortcut around the second convolution of each stage, which costs no multiplication.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.models.activation import convolve_pool_norm_gelu, gelu, norm_gelu
from fastcifar.models.convolution import Conv2d


class BatchNorm(nn.BatchNorm2d):
    """Batch norm with a frozen scale of 1 and quickly moving statistics.

    The scale is redundant before the next normalised layer. Of the old statistics 0.6 is kept (airbench's momentum,
    which counts the other way round than torch's): with a few hundred steps in all, they must follow fast.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-12, momentum=0.4)
        self.weight.requires_grad_(False)


class Conv3x3(Conv2d):
    """3x3 convolution, same size out, no bias, whose first `channels_in` filters start as the identity (dirac)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
        with torch.no_grad():
            # As nn.init.dirac_ does, which goes through the channels one by one: a minute for a million of them.
            self.weight[:channels_in].zero_()[:, :, 1, 1].fill_diagonal_(1)


class Stage(nn.Module):
    """Widen and halve the map, then one residual convolution at the new width."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3(channels_in, channels_out)
        self.norm1 = BatchNorm(channels_out)
        self.conv2 = Conv3x3(channels_out, channels_out)
        self.norm2 = BatchNorm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels_in, h, w] to [n, channels_out, h // 2, w // 2]."""
        # Pooling drops the last row and column of an odd map: padding only on the other side leaves them uncomputed,
        # a quarter of the work at 7x7, and the same result.
        height, width = x.shape[-2:]
        x = convolve_pool_norm_gelu(x, self.conv1, self.norm1, sides=(1, 1 - width % 2, 1, 1 - height % 2))
        return norm_gelu(self.conv2(x), self.norm2, shortcut=x)


def _largest(x: Tensor) -> Tensor:
    """The largest value of each map: [n, channels] of [n, channels, h, w]."""
    if torch.compiler.is_compiling():
        # By the place of the largest. The gradient of amax looks for values that are equal to it, and a compiler that
        # makes them anew without rounding to 16 bits finds none: the gradient is no number then.
        return x.flatten(2).max(2).values
    return x.amax((2, 3))


class SpeedNet(nn.Module):
    """Residual network for small images: 1,972,792 parameters at the default widths and 10 classes."""

    def __init__(self, num_classes: int, widths: tuple[int, ...] = (64, 256, 256)) -> None:
        super().__init__()
        if len(widths) != 3:
            raise ValueError(f"model.widths: got {list(widths)}, speednet takes three")
        patch = 2 * 2 * 3
        self.whiten = nn.Conv2d(3, 2 * patch, kernel_size=2, bias=True)
        self.whiten.weight.requires_grad_(False)
        self.stem_trains = True
        """Whether the stem's bias is trained; without it a backward pass ends before the stem."""
        self.stages = nn.Sequential(*map(Stage, (2 * patch, *widths[:-1]), widths))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        with torch.no_grad():
            self.head.weight /= self.head.weight.std()

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, num_classes] of normalised images [n, 3, h, w], h and w of at least 9."""
        # A plain condition, which a compiler looks at before every step; of requires_grad it was found to keep none.
        x = self.whiten(x) if self.stem_trains else self.whiten(x).detach()
        x = self.stages(gelu(x))
        # The head's weights start at deviation 1; dividing by the width keeps logits small without a slow head.
        return self.head(_largest(x)) / self.head.in_features

    @torch.no_grad()
    def init_whiten(self, images: Tensor, eps: float = 5e-4) -> None:
        """Set the stem to whiten the 2x2 patches of normalised training `images` [n, 3, h, w], each sign its filter.

        The eigenvectors of the patches' covariance, divided by the roots of their eigenvalues plus `eps`.
        """
        patches = F.unfold(images.float(), kernel_size=2).transpose(1, 2).reshape(-1, 12)
        eigenvalues, eigenvectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (eigenvectors / (eigenvalues + eps).sqrt()).T.reshape(12, 3, 2, 2)
        self.whiten.weight.copy_(torch.cat((filters, -filters)))
