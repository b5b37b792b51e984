"""What sets one residual network apart from another."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ResNetSpec:
    """One residual network; every default is the plain one. `fastcifar.models.resnet.ResNet` builds it."""

    widths: tuple[int, ...]
    """Channels of each stage; every stage but the first halves the map."""
    blocks: tuple[int, ...]
    """Blocks of each stage, of two 3x3 convolutions each."""
    block: str = "basic"
    """basic: convolution-BN-ReLU, ReLU after the addition. preactivation: BN-ReLU-convolution, nothing after it."""
    shortcut: str = "input"
    """What a projected shortcut reads: the block's `input`, in the blocks that change shape; or what comes out of the
    block's `first` convolution, BN and ReLU, in the first block of every stage."""
    bias: bool = False
    """Whether the convolutions have biases."""
    dropout: float = 0.0
    """Share of values dropped after each of a block's two 3x3 convolutions."""
    dropout_after: str = "convolution"
    """Where in a block: right after the `convolution`, or after its BN (`norm`)."""
    stem_width: int = 0
    """Channels of the stem; 0: those of the first stage."""
    stem_kernel: int = 3
    """Side of the stem's filters, px; its padding is 1 whatever the side."""
    stem_stride: int = 1
    """Stride of the stem's convolution."""
    pool_kernel: int = 0
    """Side of the max-pooling after the stem, px, without padding; 0: none."""
    pool_stride: int = 1
    """Stride of that pooling."""
    attention_ratio: int = 0
    """Squeeze-and-excitation after the stem, with this many times fewer hidden channels; 0: none."""

    def __post_init__(self) -> None:
        """Our own tables hold networks that exist."""
        assert len(self.widths) == len(self.blocks)
        assert self.block in ("basic", "preactivation")
        assert self.shortcut in ("input", "first")
        assert self.dropout_after in ("convolution", "norm")
        assert self.block == "basic" or (self.shortcut == "input" and not self.dropout), "only basic blocks know these"
