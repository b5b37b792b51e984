"""Residual networks for small images: one family of blocks, stems and shortcuts, set apart by a `ResNetSpec`.

Blocks after He et al., "Deep residual learning" (arXiv:1512.03385), pre-activation after "Identity mappings"
(arXiv:1603.05027), squeeze-and-excitation after Hu et al. (arXiv:1709.01507).
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.models.convolution import Conv2d
from fastcifar.models.specification import ResNetSpec


def conv_norm(channels_in: int, channels_out: int, kernel: int, stride: int, spec: ResNetSpec) -> nn.Sequential:
    """Convolution and BN, with dropout after one of them where the specification wants it and the kernel is 3x3."""
    layers = OrderedDict[str, nn.Module]()
    layers["conv"] = Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=spec.bias)
    layers["norm"] = nn.BatchNorm2d(channels_out)
    if spec.dropout and kernel == 3:
        layers["dropout"] = nn.Dropout(spec.dropout)
        if spec.dropout_after == "convolution":
            layers.move_to_end("norm")
    return nn.Sequential(layers)


class BasicBlock(nn.Module):
    """ReLU(second(ReLU(first(x))) + shortcut): convolutions with BN, the first one with the stride.

    The shortcut is the input; where shape changes, a 1x1 convolution and BN of the input. With `spec.shortcut` of
    `first`, the block that opens a stage has a 1x1 convolution and BN of what its second convolution reads instead.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, opens_stage: bool, spec: ResNetSpec) -> None:
        super().__init__()
        self.first = conv_norm(channels_in, channels_out, 3, stride, spec)
        self.second = conv_norm(channels_out, channels_out, 3, 1, spec)
        self.shortcut = nn.Sequential()
        self.shortcut_reads_first = opens_stage and spec.shortcut == "first"
        if self.shortcut_reads_first:
            self.shortcut = conv_norm(channels_out, channels_out, 1, 1, spec)
        elif stride > 1 or channels_in != channels_out:
            self.shortcut = conv_norm(channels_in, channels_out, 1, stride, spec)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels_in, h, w] to [n, channels_out, ceil(h / stride), ceil(w / stride)]."""
        middle = F.relu(self.first(x))
        return F.relu(self.second(middle) + self.shortcut(middle if self.shortcut_reads_first else x))


class PreactivationBlock(nn.Module):
    """second(first(x)) + shortcut, each a convolution of ReLU(BN(.)); nothing after the addition.

    The shortcut is the input; where shape changes, a bare 1x1 convolution of the first ReLU's output, as in He et al.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, opens_stage: bool, spec: ResNetSpec) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=spec.bias)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.conv2 = Conv2d(channels_out, channels_out, 3, padding=1, bias=spec.bias)
        changes_shape = stride > 1 or channels_in != channels_out
        self.project = nn.Conv2d(channels_in, channels_out, 1, stride, bias=spec.bias) if changes_shape else None

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels_in, h, w] to [n, channels_out, ceil(h / stride), ceil(w / stride)]."""
        activated = F.relu(self.norm1(x))
        shortcut = x if self.project is None else self.project(activated)
        return self.conv2(F.relu(self.norm2(self.conv1(activated)))) + shortcut


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate in (0, 1), computed from all channels' means through `channels // ratio` units."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        hidden = max(1, channels // ratio)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] to the same shape."""
        gates_nc = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * gates_nc[:, :, None, None]


class ResNet(nn.Module):
    """Stem, stages of blocks, global average pooling, a linear head with bias.

    The stem is convolution, BN, ReLU (with pre-activation the bare convolution: the first block's BN and ReLU follow,
    and BN and ReLU end the last stage), then max-pooling and squeeze-and-excitation where the specification has them.

    sweep_resnet's 4,934,746 parameters follow from its row: a 3x3 convolution from a to b channels with its BN is
    9ab + 2b. The stem (3 to 16) is 464. A stage of k blocks from a to w channels is its first block 9aw + 2w and
    9ww + 2w, its shortcut ww + 2w (width to width, as the first convolution has widened already), and (k - 1) blocks
    of 18ww + 4w; identity shortcuts cost nothing, and neither dropout. Three blocks to 64: 198,528; five to 128:
    1,420,032; three to 256: 3,313,152; the head 2,570.
    """

    def __init__(self, spec: ResNetSpec, num_classes: int) -> None:
        super().__init__()
        preactivation = spec.block == "preactivation"
        width = spec.stem_width or spec.widths[0]
        self.conv = Conv2d(3, width, spec.stem_kernel, spec.stem_stride, padding=1, bias=spec.bias)
        self.norm = None if preactivation else nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(spec.pool_kernel, spec.pool_stride) if spec.pool_kernel else None
        self.attention = SqueezeExcitation(width, spec.attention_ratio) if spec.attention_ratio else None
        block = PreactivationBlock if preactivation else BasicBlock
        self.stages = nn.Sequential()
        for stage, (channels, num_blocks) in enumerate(zip(spec.widths, spec.blocks, strict=True)):
            blocks = nn.Sequential()
            for index in range(num_blocks):
                stride = 2 if stage and not index else 1
                blocks.append(block(width, channels, stride, index == 0, spec))
                width = channels
            self.stages.append(blocks)
        self.last_norm = nn.BatchNorm2d(width) if preactivation else None
        self.head = nn.Linear(width, num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, num_classes] of normalised images [n, 3, h, w]."""
        x = self.conv(x)
        if self.norm is not None:
            x = F.relu(self.norm(x))
        if self.pool is not None:
            x = self.pool(x)
        if self.attention is not None:
            x = self.attention(x)
        x = self.stages(x)
        if self.last_norm is not None:
            x = F.relu(self.last_norm(x))
        return self.head(x.mean((2, 3)))


def _initialise(module: nn.Module) -> None:
    """He et al. (arXiv:1502.01852): deviation sqrt(2 / fan-out) before ReLU; BN starts at 1 and 0 as it is made."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
