"""What the tests of the kernels share: settings drawn by hypothesis, and images."""

import numpy as np
import torch
from hypothesis import strategies as st

from fastcifar.kernels import Augmentation, Normalisation

CIFAR = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def pictures(num_images: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_images, height, width, 3), dtype=np.uint8)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last bit, the sign of zero included."""
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(BITS[a.dtype]), b.contiguous().view(BITS[b.dtype]))


def sometimes(strategy: st.SearchStrategy, otherwise: object) -> st.SearchStrategy:
    return st.one_of(st.just(otherwise), strategy)


@st.composite
def augmentations(draw: st.DrawFn, height: int, width: int) -> Augmentation:
    """Any settings that images of this size can take."""
    smallest = min(height, width)
    padding_mode = draw(st.sampled_from(["reflect", "constant"]))
    most = smallest - 1 if padding_mode == "reflect" else smallest + 3
    beta = st.floats(0.05, 5)
    return Augmentation(
        crop_padding=draw(sometimes(st.integers(0, most), 0)),
        padding_mode=padding_mode,
        flip=draw(st.sampled_from(["none", "random", "alternating"])),
        cutout=draw(sometimes(st.integers(0, smallest), 0)),
        cutmix=draw(sometimes(beta, 0.0)),
        mixup=draw(sometimes(beta, 0.0)),
        mix_probability=draw(sometimes(st.floats(0, 1), 1.0)),
        mix_switch=draw(st.floats(0, 1)),
        mix_per=draw(st.sampled_from(["batch", "image"])),
        brightness=draw(sometimes(st.floats(0, 2), 0.0)),
        contrast=draw(sometimes(st.floats(0, 1), 0.0)),
        rotation=draw(sometimes(st.floats(0, 180), 0.0)),
        saturation=draw(sometimes(st.floats(0, 3), 0.0)),
        hue=draw(sometimes(st.floats(0, 0.5), 0.0)),
    )


def rms_error(our: torch.Tensor, their: torch.Tensor) -> float:
    """Root mean square of the difference, as a share of theirs."""
    return float((our.double() - their.double()).square().mean().sqrt() / their.double().square().mean().sqrt())
