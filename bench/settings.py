"""The augmentation settings that kernels and loaders are measured at, and the bytes that each of them moves."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastcifar.kernels import Augmentation

NAMES = ("identity", "crop_flip", "crop_flip_cutmix", "crop_flip_mixup", "rotation_jitter")
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
ARITHMETICS = {**DTYPES, "int8": "bfloat16"}
"""What training steps are measured in, and its dtype: int8 is bfloat16 with products of 8 bits."""
ITEM_BYTES = {"bf16": 2, "fp32": 4}


def augmentation(name: str) -> "Augmentation":
    """The augmentation of a name in NAMES.

    All but `identity` crop by 4 pixels with black beyond the edge, as every peer can. `rotation_jitter` is
    `crop_flip_cutmix` with rotation by up to 15 degrees and colour jitter on top.
    """
    from dataclasses import replace

    from fastcifar.kernels import Augmentation

    crop_flip = Augmentation(crop_padding=4, padding_mode="constant", flip="random")
    cutmix = replace(crop_flip, cutmix=1.0)
    jitter = {"rotation": 15.0, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}
    choices = {
        "identity": Augmentation(),
        "crop_flip": crop_flip,
        "crop_flip_cutmix": cutmix,
        "crop_flip_mixup": replace(crop_flip, mixup=1.0),
        "rotation_jitter": replace(cutmix, **jitter),  # type: ignore[arg-type]
    }
    if name not in choices:
        raise ValueError(f"setting: got {name!r}, takes one of {', '.join(NAMES)}")
    return choices[name]


def bytes_moved(name: str, pixels: int, dtype: str) -> int:
    """Fewest bytes of memory traffic an image: `pixels` uint8 triples read (of two for MixUp), as many values written.

    `dtype` is a key of DTYPES. CutMix reads a pixel of one image or of the other, never of both.
    """
    reads = 2 if name == "crop_flip_mixup" else 1
    return pixels * 3 * (reads + ITEM_BYTES[dtype])


@dataclass(frozen=True)
class Task:
    """What is measured, and its name: `crop_flip.bf16`, or `crop_flip.b16384.bf16` with a batch of its own."""

    setting: str
    dtype: str
    batch_size: int = 0
    """0: the batch size of the whole measurement."""

    @classmethod
    def parse(cls, name: str) -> "Task":
        """The task of a name."""
        setting, *batch, dtype = name.split(".")
        return cls(setting, dtype, int(batch[0].removeprefix("b")) if batch else 0)

    @property
    def name(self) -> str:
        """As `parse` reads it."""
        batch = [f"b{self.batch_size}"] if self.batch_size else []
        return ".".join([self.setting, *batch, self.dtype])
