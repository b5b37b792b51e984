"""The augmentation plan: the numbers that say what is done to each image of a batch, and the tables behind them.

Also what else the forms must agree on: places of settings, kinds of output.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastcifar.kernels.settings import FLIPS, PADDING_MODES, Augmentation, Normalisation

if TYPE_CHECKING:
    import torch

# Columns of Plan.ints_nk and Plan.floats_nk; the compiled forms read the same columns.
SHIFT_Y, SHIFT_X, FLIP, CUTOUT, CUTMIX = 0, 1, 2, 3, 7
NUM_INTS = 11
WEIGHT, BRIGHTNESS, CONTRAST, ROTATION, SATURATION, HUE = range(6)
NUM_FLOATS = 6

# A plan made by hand may turn by the whole circle; by far more than that, the kernels' integers would overflow.
MAX_ROTATION_DEGREES, MAX_HUE = 360, 1

# A word's high bits are a place in a table of quantiles, the low ones how far on to the next.
BETA_TABLE_BINS = 4096
BIN_BITS = np.uint64(32 - (BETA_TABLE_BINS.bit_length() - 1))
BIN_MASK, BIN = np.uint64((1 << int(BIN_BITS)) - 1), np.float32(2.0 ** -int(BIN_BITS))

NUM_SETTING_INTS = 6
RANDOM_FLIP, ALTERNATING_FLIP = FLIPS.index("random"), FLIPS.index("alternating")

# Dtypes of the output, and what kernels are told of them: their places.
DTYPES = ("float32", "bfloat16", "float16")
FLOAT32, BFLOAT16, FLOAT16 = range(3)


@dataclass(frozen=True)
class Plan:
    """What is done to each of n images of height x width pixels; made by `draw_plan`, or by hand from `Plan.identity`.

    The named properties are views: writing to them changes the plan. `augment` checks a plan before it touches pixels.
    """

    ints_nk: np.ndarray
    """int32 [n, 11], NumPy: shift y, x; flip; cutout box; CutMix box (y0, x0, y1, x1, end excluded)."""
    floats_nk: np.ndarray
    """float32 [n, 6], NumPy: weight of the own label, brightness, contrast, rotation, saturation, hue."""
    height: int
    width: int
    padding_mode: str = "reflect"

    @classmethod
    def identity(cls, num_images: int, height: int, width: int, padding_mode: str = "reflect") -> "Plan":
        """A plan that does nothing, NumPy arrays."""
        ints = np.zeros((num_images, NUM_INTS), dtype=np.int32)
        floats = np.zeros((num_images, NUM_FLOATS), dtype=np.float32)
        floats[:, [WEIGHT, CONTRAST, SATURATION]] = 1.0
        return cls(ints, floats, height, width, padding_mode)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ints_nk)

    @property
    def shifts_n2(self) -> np.ndarray:
        """int32 [n, 2]: output pixel (y, x) shows source pixel (y + shift_y, x + shift_x), before flipping."""
        return self.ints_nk[:, SHIFT_Y : SHIFT_X + 1]

    @property
    def flips_n(self) -> np.ndarray:
        """int32 [n]: 1 where the image is mirrored left-right after the shift."""
        return self.ints_nk[:, FLIP]

    @property
    def cutout_boxes_n4(self) -> np.ndarray:
        """int32 [n, 4]: y0, x0, y1, x1 of the erased box, end excluded; empty where y0 == y1 or x0 == x1."""
        return self.ints_nk[:, CUTOUT : CUTOUT + 4]

    @property
    def cutmix_boxes_n4(self) -> np.ndarray:
        """int32 [n, 4]: y0, x0, y1, x1 of the box that shows the partner, end excluded."""
        return self.ints_nk[:, CUTMIX : CUTMIX + 4]

    @property
    def mix_weights_n(self) -> np.ndarray:
        """float32 [n]: weight of the own label, for CutMix the share of own pixels; 1 - weight is the partner's."""
        return self.floats_nk[:, WEIGHT]

    @property
    def partners_n(self) -> np.ndarray:
        """int64 [n]: position in the batch of the image that each is mixed with, (i + 1) % n."""
        return partners(len(self))

    @property
    def brightness_n(self) -> np.ndarray:
        """float32 [n]: added after normalising, in standard deviations."""
        return self.floats_nk[:, BRIGHTNESS]

    @property
    def contrast_n(self) -> np.ndarray:
        """float32 [n]: factor, applied after brightness."""
        return self.floats_nk[:, CONTRAST]

    @property
    def rotation_n(self) -> np.ndarray:
        """float32 [n]: degrees, counter-clockwise."""
        return self.floats_nk[:, ROTATION]

    @property
    def saturation_n(self) -> np.ndarray:
        """float32 [n]: factor, 1 leaves pixels untouched."""
        return self.floats_nk[:, SATURATION]

    @property
    def hue_n(self) -> np.ndarray:
        """float32 [n]: turn of the hue as a share of the full circle, 0 leaves pixels untouched."""
        return self.floats_nk[:, HUE]


def partners(num_images: int) -> np.ndarray:
    """Mixing partner of each batch position, int64 [n]: (i + 1) % n."""
    partners_n = np.arange(1, num_images + 1, dtype=np.int64)
    if num_images:
        partners_n[-1] = 0
    return partners_n


@lru_cache(maxsize=16)
def partners_of(num_images: int) -> "torch.Tensor":
    """As partners, a tensor in main memory that all batches of this size share."""
    import torch

    return torch.from_numpy(partners(num_images))


def partners_on(device: Any, num_images: int) -> "torch.Tensor":
    """As partners, a tensor on the device."""
    import torch

    return torch.arange(1, num_images + 1, device=device) % max(num_images, 1)


class Settings(NamedTuple):
    """An augmentation for images of one size, as every form reads it: NUM_SETTING_INTS integers first."""

    height: int
    width: int
    crop_padding: int
    flip: int
    cutout: int
    mix_per_image: int
    mix_probability: np.float32
    mix_switch: np.float32
    brightness: np.float32
    contrast: np.float32
    rotation: np.float32
    saturation_low: np.float32
    saturation_high: np.float32
    hue: np.float32
    cutmix: float
    mixup: float


class PlanKey(NamedTuple):
    """What a plan is a pure function of."""

    settings: Settings
    seed: int
    """Below 2**64."""
    epoch: int
    """Below 2**32."""
    indices_n: np.ndarray
    """int64 [n], contiguous: index of each image in the data set."""


NUM_SETTING_FLOATS = len(Settings._fields) - NUM_SETTING_INTS


def _column(name: str) -> int:
    """Place of a setting among the integers or among the floats."""
    place = Settings._fields.index(name)
    return place if place < NUM_SETTING_INTS else place - NUM_SETTING_INTS


# Where kernels that get the settings as two arrays find them.
SETTING_HEIGHT, SETTING_WIDTH = _column("height"), _column("width")
SETTING_PADDING, SETTING_FLIP, SETTING_CUTOUT = _column("crop_padding"), _column("flip"), _column("cutout")
SETTING_MIX_PER_IMAGE = _column("mix_per_image")
SETTING_MIX_PROBABILITY, SETTING_MIX_SWITCH = _column("mix_probability"), _column("mix_switch")
SETTING_BRIGHTNESS, SETTING_CONTRAST = _column("brightness"), _column("contrast")
SETTING_ROTATION, SETTING_HUE = _column("rotation"), _column("hue")
SETTING_SATURATION_LOW, SETTING_SATURATION_HIGH = _column("saturation_low"), _column("saturation_high")


@lru_cache(maxsize=64)
def settings_for(augmentation: Augmentation, height: int, width: int) -> Settings:
    """The numbers of an augmentation; raises ValueError where the images are of a size that it cannot take."""
    augmentation.check_size(height, width)
    if augmentation.cutmix > 0 and augmentation.mixup > 0:
        switch = augmentation.mix_switch
    else:
        # A drawn number in [0, 1) is below 1 always and below 0 never, so that one comparison serves all three cases.
        switch = 1.0 if augmentation.cutmix > 0 else 0.0
    return Settings(
        height=height,
        width=width,
        crop_padding=augmentation.crop_padding,
        flip=FLIPS.index(augmentation.flip),
        cutout=augmentation.cutout,
        mix_per_image=int(augmentation.mix_per == "image"),
        mix_probability=np.float32(augmentation.mix_probability if augmentation.mixes else 0.0),
        mix_switch=np.float32(switch),
        brightness=np.float32(augmentation.brightness),
        contrast=np.float32(augmentation.contrast),
        rotation=np.float32(augmentation.rotation),
        saturation_low=np.float32(max(0.0, 1.0 - augmentation.saturation)),
        saturation_high=np.float32(1.0 + augmentation.saturation),
        hue=np.float32(augmentation.hue),
        cutmix=float(augmentation.cutmix),
        mixup=float(augmentation.mixup),
    )


@lru_cache(maxsize=16)
def beta_table(alpha: float) -> np.ndarray:
    """Quantiles of Beta(alpha, alpha) at 0, 1/4096 ... 1, float32 [4097]; linear in between.

    alpha 0 (off) and 1 give the uniform distribution's. The array is read-only.
    """
    probabilities = np.linspace(0.0, 1.0, BETA_TABLE_BINS + 1)
    if alpha in (0.0, 1.0):
        quantiles = probabilities
    else:
        from scipy.special import betaincinv

        quantiles = betaincinv(alpha, alpha, probabilities)
    table = quantiles.astype(np.float32)
    table.flags.writeable = False
    return table


def beta_tables(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Tables of CutMix's and MixUp's label weights."""
    return beta_table(settings.cutmix), beta_table(settings.mixup)


@lru_cache(maxsize=16)
def scale_shift(normalisation: Normalisation) -> tuple[np.ndarray, np.ndarray]:
    """Factor and summand of each channel, float32 [3] each, read-only."""
    pair = (
        np.array(normalisation.scale, dtype=np.float32),
        np.array(normalisation.shift, dtype=np.float32),
    )
    for array in pair:
        array.flags.writeable = False
    return pair


def is_reflect(padding_mode: str) -> bool:
    """Whether the image is extended by reflection (else by zeros)."""
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode: got {padding_mode!r}, takes {' or '.join(PADDING_MODES)}")
    return padding_mode == "reflect"


def share(own_pixels: np.ndarray, pixels: int) -> np.ndarray:
    """Share of own pixels as the nearest float32."""
    return own_pixels.astype(np.float32) / np.float32(pixels)
