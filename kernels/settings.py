"""What may happen to an image: the settings of augmentation and normalisation, validated where they are made."""

import math
import numbers
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

MAX_SIDE_PX = 256
MAX_SHOWN = 60
"""Characters of a wrong value that an error quotes."""
PADDING_MODES = ("reflect", "constant")
FLIPS = ("none", "random", "alternating")
MIX_SCOPES = ("batch", "image")


def _require(holds: bool, setting: str, got: object, takes: str) -> None:
    if not holds:
        shown = ascii(got)
        shown = shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 3] + "..."
        raise ValueError(f"{setting}: got {shown}, takes {takes}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """Python's own number for NumPy's, which compiled code would take for another type; anything else as it is."""
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _plain_tuple(values: Any) -> Any:
    """A tuple of Python's own numbers for a list, an array or a tensor of them; anything else as it is."""
    values = values.tolist() if hasattr(values, "tolist") else values
    return tuple(map(_plain, values)) if isinstance(values, list | tuple) else values


@dataclass(frozen=True)
class Augmentation:
    """What is done to each image of a batch; every default is "off", under which a pixel is only normalised.

    The order is fixed: rotate, crop, flip, saturation, hue, normalise, brightness and contrast, cutout, and then mix
    with the partner. The image is extended beyond its edges by `padding_mode`, for the crop and for the rotation
    alike.
    """

    crop_padding: int = 0
    """Shift by a whole number of pixels in -crop_padding..crop_padding along each axis."""
    padding_mode: str = "reflect"
    """Beyond the edge: "reflect" (without repeating the edge) or "constant" (pixel value 0 before normalising)."""
    flip: str = "none"
    """Mirror left-right: "none", "random", or "alternating" (random in epoch 0, then toggled every epoch)."""
    cutout: int = 0
    """Side in pixels of a square, wholly inside the image, that is erased to the mean (0 after normalising)."""
    cutmix: float = 0.0
    """CutMix with label weights drawn from Beta(cutmix, cutmix); 0 is off (Yun et al. 2019, arXiv 1905.04899)."""
    mixup: float = 0.0
    """MixUp with label weights drawn from Beta(mixup, mixup); 0 is off (Zhang et al. 2018, arXiv 1710.09412)."""
    mix_probability: float = 1.0
    """Share of batches (or of images, by mix_per) that are mixed."""
    mix_switch: float = 0.5
    """Share of CutMix among the mixed where both CutMix and MixUp are on."""
    mix_per: str = "batch"
    """Draw the mix once a "batch" (by the index of its first image) or for every "image"."""
    mix_from_epoch: int = 0
    """First epoch, counted from 0, in which images are mixed."""
    brightness: float = 0.0
    """Shift drawn from U(-brightness, brightness), in standard deviations: (x + shift) * scale after normalising."""
    contrast: float = 0.0
    """Scale drawn from U(1 - contrast, 1 + contrast)."""
    rotation: float = 0.0
    """Degrees: rotate about the centre, counter-clockwise, by U(-rotation, rotation), bilinear."""
    saturation: float = 0.0
    """Blend with grey by a factor from U(max(0, 1 - saturation), 1 + saturation), as torchvision's ColorJitter."""
    hue: float = 0.0
    """Turn the hue by U(-hue, hue) of the full circle, as torchvision's ColorJitter; up to 0.5."""

    def __post_init__(self) -> None:
        """Refuse a wrong setting with a ValueError that names it."""
        for setting in fields(self):
            object.__setattr__(self, setting.name, _plain(getattr(self, setting.name)))
        _require(
            _is_integer(self.crop_padding) and 0 <= self.crop_padding <= MAX_SIDE_PX,
            "crop_padding",
            self.crop_padding,
            f"an integer from 0 to {MAX_SIDE_PX}",
        )
        _require(
            self.padding_mode in PADDING_MODES,
            "padding_mode",
            self.padding_mode,
            " or ".join(PADDING_MODES),
        )
        _require(self.flip in FLIPS, "flip", self.flip, ", ".join(FLIPS))
        _require(
            _is_integer(self.cutout) and 0 <= self.cutout <= MAX_SIDE_PX,
            "cutout",
            self.cutout,
            f"an integer from 0 to {MAX_SIDE_PX}",
        )
        for name in ("cutmix", "mixup"):
            value = getattr(self, name)
            _require(
                _is_number(value) and (value == 0 or 0.01 <= value <= 100),
                name,
                value,
                "0 (off) or a Beta parameter from 0.01 to 100",
            )
        for name in ("mix_probability", "mix_switch"):
            value = getattr(self, name)
            _require(
                _is_number(value) and 0 <= value <= 1,
                name,
                value,
                "a number from 0 to 1",
            )
        _require(
            _is_integer(self.mix_from_epoch) and 0 <= self.mix_from_epoch < 1 << 32,
            "mix_from_epoch",
            self.mix_from_epoch,
            "an integer from 0 to 2**32 - 1",
        )
        _require(self.mix_per in MIX_SCOPES, "mix_per", self.mix_per, " or ".join(MIX_SCOPES))
        for name, most in (
            ("brightness", 100),
            ("contrast", 1),
            ("rotation", 180),
            ("saturation", 100),
            ("hue", 0.5),
        ):
            value = getattr(self, name)
            _require(
                _is_number(value) and 0 <= value <= most,
                name,
                value,
                f"a number from 0 to {most}",
            )

    @property
    def mixes(self) -> bool:
        """Whether images may be mixed, so that labels need weights."""
        return (self.cutmix > 0 or self.mixup > 0) and self.mix_probability > 0

    def at(self, epoch: int) -> "Augmentation":
        """What is done in this epoch, counted from 0: without mixing before `mix_from_epoch`."""
        return _unmixed(self) if self.mix_from_epoch and epoch < self.mix_from_epoch else self

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError where images are too large for the kernels or too small for the settings."""
        check_side("height", height)
        check_side("width", width)
        smallest = min(height, width)
        if self.padding_mode == "reflect":
            _require(
                self.crop_padding < smallest,
                "crop_padding",
                self.crop_padding,
                f"less than the smaller side of a {height}x{width} image with padding_mode 'reflect'",
            )
        _require(
            self.cutout <= smallest,
            "cutout",
            self.cutout,
            f"at most the smaller side of a {height}x{width} image",
        )


@lru_cache(maxsize=64)
def _unmixed(augmentation: Augmentation) -> Augmentation:
    return replace(augmentation, cutmix=0.0, mixup=0.0)


def check_side(name: str, side_px: int) -> None:
    """Raise ValueError unless an image may have this height or width."""
    _require(
        _is_integer(side_px) and 1 <= side_px <= MAX_SIDE_PX,
        name,
        side_px,
        f"an integer from 1 to {MAX_SIDE_PX}",
    )


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, for pixels on the scale 0..1: (pixel / 255 - mean) / std.

    Three numbers each, in a list, an array or a tensor too; they are kept as tuples of Python's floats.
    Every form computes it as float32 `pixel * scale + shift`, the product and the sum rounded one after the other,
    where `scale = 1 / (255 * std)` and `shift = -mean / std` are rounded to float32 once.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        """Refuse wrong numbers with a ValueError that names them."""
        for name in ("mean", "std"):
            got = getattr(self, name)
            values = _plain_tuple(got)
            _require(
                isinstance(values, tuple) and len(values) == 3 and all(_is_number(x) and abs(x) <= 1e6 for x in values),
                name,
                got,
                "three finite numbers",
            )
            object.__setattr__(self, name, values)
        _require(
            all(x >= 1e-6 for x in self.std),
            "std",
            self.std,
            "three numbers of at least 1e-6",
        )
        _require(
            max(self.mean) <= 1 or max(self.std) <= 1,
            "mean and std",
            (self.mean, self.std),
            "those of pixels on the scale 0 to 1: divide what is meant for 0 to 255 by 255",
        )

    @classmethod
    def identity(cls) -> "Normalisation":
        """Pixels on the scale 0..1."""
        return cls(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    @property
    def scale(self) -> tuple[float, float, float]:
        """Factor of each channel, in double precision."""
        return tuple(1.0 / (255.0 * std) for std in self.std)  # type: ignore[return-value]

    @property
    def shift(self) -> tuple[float, float, float]:
        """Summand of each channel, in double precision."""
        return tuple(0.0 - mean / std for mean, std in zip(self.mean, self.std, strict=True))  # type: ignore[return-value]
