"""The reference form, in NumPy with PyTorch's cast: what the compiled forms must give, to the last bit.

All arithmetic on pixels is float32, one rounding an operation, in the order written here; coordinates of rotation are
integers.
"""

import math

import numpy as np

from fastcifar.kernels import philox
from fastcifar.kernels.plan import (
    ALTERNATING_FLIP,
    BIN,
    BIN_BITS,
    BIN_MASK,
    BRIGHTNESS,
    CONTRAST,
    CUTMIX,
    CUTOUT,
    FLIP,
    HUE,
    RANDOM_FLIP,
    ROTATION,
    SATURATION,
    SHIFT_X,
    SHIFT_Y,
    WEIGHT,
    Plan,
    Settings,
    share,
)

ZERO, ONE, TOP = np.float32(0), np.float32(1), np.float32(255)
# ITU-R BT.601 luma as torchvision rounds it.
GREY = (np.float32(0.2989), np.float32(0.587), np.float32(0.114))
# Rotation: sine and cosine as multiples of 2**-15, positions as multiples of 2**-16 pixel.
TURN_BITS, POSITION_BITS = 15, 16


def draw(
    settings: Settings,
    tables: tuple[np.ndarray, np.ndarray],
    seed: int,
    epoch: int,
    indices_n: np.ndarray,
    ints: np.ndarray,
    floats: np.ndarray,
) -> None:
    """Fill a plan's ints [n, 11] and floats [n, 6] for images of the given indices (int64 [n])."""
    num_images = len(indices_n)
    if num_images == 0:
        return
    ints[:] = 0
    geometry = philox.words(seed, epoch, indices_n, philox.GEOMETRY)
    side = 2 * settings.crop_padding + 1
    ints[:, SHIFT_Y] = philox.below(geometry[:, 0], side) - settings.crop_padding
    ints[:, SHIFT_X] = philox.below(geometry[:, 1], side) - settings.crop_padding
    if settings.flip == RANDOM_FLIP:
        ints[:, FLIP] = geometry[:, 2] >> np.uint32(philox.TOP_BIT)
    elif settings.flip == ALTERNATING_FLIP:
        first = philox.words(seed, 0, indices_n, philox.ALTERNATING)[:, 0] >> np.uint32(philox.TOP_BIT)
        ints[:, FLIP] = first ^ np.uint32(epoch & 1)
    floats[:] = ZERO
    if settings.rotation:
        floats[:, ROTATION] = philox.symmetric(geometry[:, 3]) * settings.rotation

    light = philox.words(seed, epoch, indices_n, philox.ERASE_LIGHT)
    if settings.cutout:
        top = philox.below(light[:, 0], settings.height - settings.cutout + 1)
        left = philox.below(light[:, 1], settings.width - settings.cutout + 1)
        ints[:, CUTOUT] = top
        ints[:, CUTOUT + 1] = left
        ints[:, CUTOUT + 2] = top + settings.cutout
        ints[:, CUTOUT + 3] = left + settings.cutout
    if settings.brightness:
        floats[:, BRIGHTNESS] = philox.symmetric(light[:, 2]) * settings.brightness
    floats[:, CONTRAST] = ONE + philox.symmetric(light[:, 3]) * settings.contrast

    colour = philox.words(seed, epoch, indices_n, philox.COLOUR)
    span = settings.saturation_high - settings.saturation_low
    floats[:, SATURATION] = settings.saturation_low + philox.unit(colour[:, 0]) * span
    if settings.hue:
        floats[:, HUE] = philox.symmetric(colour[:, 1]) * settings.hue

    floats[:, WEIGHT] = ONE
    _draw_mix(settings, tables, seed, epoch, indices_n, ints, floats)


def _draw_mix(
    settings: Settings,
    tables: tuple[np.ndarray, np.ndarray],
    seed: int,
    epoch: int,
    indices_n: np.ndarray,
    ints: np.ndarray,
    floats: np.ndarray,
) -> None:
    """CutMix boxes and label weights; the box as torchvision draws it."""
    drawn_for = indices_n if settings.mix_per_image else indices_n[:1]
    mix = philox.words(seed, epoch, drawn_for, philox.MIX)
    mixed = philox.unit(mix[:, 0]) < settings.mix_probability
    cut = mixed & (philox.unit(mix[:, 1]) < settings.mix_switch)
    floats[:, WEIGHT] = np.where(mixed & ~cut, quantile(tables[1], mix[:, 2]), ONE)

    half = np.float32(0.5) * np.sqrt(ONE - quantile(tables[0], mix[:, 2]))
    box = philox.words(seed, epoch, drawn_for, philox.BOX)
    for axis, side in ((0, settings.height), (1, settings.width)):
        centre = philox.below(box[:, axis], side)
        reach = (half * np.float32(side)).astype(np.int64)
        ints[:, CUTMIX + axis] = np.where(cut, np.maximum(centre - reach, 0), 0)
        ints[:, CUTMIX + 2 + axis] = np.where(cut, np.minimum(centre + reach, side), 0)
    area = (ints[:, CUTMIX + 2] - ints[:, CUTMIX]) * (ints[:, CUTMIX + 3] - ints[:, CUTMIX + 1])
    pixels = settings.height * settings.width
    floats[:, WEIGHT] = np.where(area > 0, share(pixels - area, pixels), floats[:, WEIGHT])


def quantile(table: np.ndarray, words_n: np.ndarray) -> np.ndarray:
    """Draws, float32 [n], by a table of quantiles: place by the high 12 bits, linear in the low 20."""
    position = words_n >> np.uint32(BIN_BITS)
    # Only 20 bits, so that they are exact in float32.
    fraction = (words_n & np.uint32(BIN_MASK)).astype(np.float32) * BIN
    low, high = table[position], table[position + 1]
    return low + (high - low) * fraction


def augment(
    images_nhwc: np.ndarray,
    rows_n: np.ndarray,
    plan: Plan,
    scale: np.ndarray,
    shift: np.ndarray,
) -> np.ndarray:
    """Batch in float32 [n, h, w, 3] before the cast.

    images_nhwc: uint8 [N, h, w, 3]; rows_n: int64 [n]; scale, shift: float32 [3].
    """
    ints, floats = plan.ints_nk, plan.floats_nk
    height, width = plan.height, plan.width
    pixels = _geometry(images_nhwc, rows_n, plan)
    saturation = floats[:, SATURATION].reshape(-1, 1, 1)
    if (saturation != ONE).any():
        pixels = np.where((saturation != ONE)[..., None], saturate(pixels, saturation), pixels)
    hue = floats[:, HUE].reshape(-1, 1, 1)
    if (hue != ZERO).any():
        pixels = np.where((hue != ZERO)[..., None], turn_hue(pixels, hue), pixels)

    values = pixels * scale + shift
    brightness, contrast = (
        floats[:, BRIGHTNESS].reshape(-1, 1, 1, 1),
        floats[:, CONTRAST].reshape(-1, 1, 1, 1),
    )
    lit = (brightness != ZERO) | (contrast != ONE)
    values = np.where(lit, (values + brightness) * contrast, values)
    values[_inside(ints[:, CUTOUT : CUTOUT + 4], height, width)] = ZERO

    partner = np.roll(values, -1, axis=0)
    boxes = _inside(ints[:, CUTMIX : CUTMIX + 4], height, width)
    weight = floats[:, WEIGHT].reshape(-1, 1, 1, 1)
    blended = (weight < ONE) & ~boxes.any(axis=(1, 2)).reshape(-1, 1, 1, 1)
    if blended.any():
        values = np.where(blended, values * weight + partner * (ONE - weight), values)
    return np.where(boxes[..., None], partner, values)


def _inside(boxes_n4: np.ndarray, height: int, width: int) -> np.ndarray:
    """Whether a pixel lies in its image's box: bool [n, h, w]."""
    y0, x0, y1, x1 = (boxes_n4[:, side].reshape(-1, 1, 1) for side in range(4))
    y, x = np.arange(height).reshape(1, -1, 1), np.arange(width).reshape(1, 1, -1)
    return (y >= y0) & (y < y1) & (x >= x0) & (x < x1)


def _geometry(images_nhwc: np.ndarray, rows_n: np.ndarray, plan: Plan) -> np.ndarray:
    """Rotated, cropped, flipped pixels, float32 [n, h, w, 3] on the scale 0..255."""
    ints = plan.ints_nk
    columns = np.arange(plan.width).reshape(1, 1, -1)
    columns = np.where(ints[:, FLIP].reshape(-1, 1, 1) != 0, plan.width - 1 - columns, columns)
    y = np.arange(plan.height).reshape(1, -1, 1) + ints[:, SHIFT_Y].reshape(-1, 1, 1)
    x = columns + ints[:, SHIFT_X].reshape(-1, 1, 1)
    angles = plan.floats_nk[:, ROTATION]
    if not (angles != ZERO).any():
        return _fetch(images_nhwc, rows_n, y, x, plan)

    cosine, sine = turns(angles)
    cosine, sine = cosine.reshape(-1, 1, 1), sine.reshape(-1, 1, 1)
    # Twice the distance from the centre is an integer; times 2**-15 that makes positions in 2**-16 pixel.
    y_doubled, x_doubled = 2 * y - (plan.height - 1), 2 * x - (plan.width - 1)
    y_position = sine * x_doubled + cosine * y_doubled + ((plan.height - 1) << TURN_BITS)
    x_position = cosine * x_doubled - sine * y_doubled + ((plan.width - 1) << TURN_BITS)
    y_low, x_low = y_position >> POSITION_BITS, x_position >> POSITION_BITS
    y_part, x_part = (
        ((position & ((1 << POSITION_BITS) - 1)).astype(np.float32) * np.float32(2.0**-POSITION_BITS))[..., None]
        for position in (y_position, x_position)
    )
    top_left, top_right = (_fetch(images_nhwc, rows_n, y_low, x_low + right, plan) for right in (0, 1))
    low_left, low_right = (_fetch(images_nhwc, rows_n, y_low + 1, x_low + right, plan) for right in (0, 1))
    top = top_left + (top_right - top_left) * x_part
    low = low_left + (low_right - low_left) * x_part
    return top + (low - top) * y_part


def _fetch(
    images_nhwc: np.ndarray,
    rows_n: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    plan: Plan,
) -> np.ndarray:
    """Pixels of the extended images at (y, x), which broadcast to [n, h, w]: float32 [n, h, w, 3]."""
    rows = rows_n.reshape(-1, 1, 1)
    if plan.padding_mode == "reflect":
        return images_nhwc[rows, _reflected(y, plan.height), _reflected(x, plan.width)].astype(np.float32)
    outside = (y < 0) | (y >= plan.height) | (x < 0) | (x >= plan.width)
    pixels = images_nhwc[rows, np.clip(y, 0, plan.height - 1), np.clip(x, 0, plan.width - 1)].astype(np.float32)
    return np.where(outside[..., None], ZERO, pixels)


def _reflected(position: np.ndarray, side: int) -> np.ndarray:
    """Position inside 0..side-1 that a mirrored plane shows, the edge itself not repeated."""
    if side == 1:
        return np.zeros_like(position)
    folded = position % (2 * side - 2)
    return np.minimum(folded, 2 * side - 2 - folded)


def turns(degrees_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine in multiples of 2**-15, int64 [n], of float32 angles.

    By Taylor series in float64 in a fixed order, because the libraries' functions differ in the last bit between
    machines.
    """
    degrees = degrees_n.astype(np.float64)
    quarter = np.floor(degrees / 90.0 + 0.5)
    r = (degrees - quarter * 90.0) * (math.pi / 180.0)
    r2 = r * r
    sine, cosine = np.ones_like(r), np.ones_like(r)
    for power in range(13, 0, -2):
        sine = 1.0 - sine * r2 / ((power + 1) * (power + 2))
    sine = sine * r
    for power in range(12, -1, -2):
        cosine = 1.0 - cosine * r2 / ((power + 1) * (power + 2))
    q = quarter.astype(np.int64) & 3
    turned_cosine = np.choose(q, [cosine, -sine, -cosine, sine])
    turned_sine = np.choose(q, [sine, cosine, -sine, -cosine])
    one = float(1 << TURN_BITS)
    return (
        np.floor(turned_cosine * one + 0.5).astype(np.int64),
        np.floor(turned_sine * one + 0.5).astype(np.int64),
    )


def saturate(pixels: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Blend with grey, clamped to 0..255: [..., 3] by [...], float32."""
    grey = (pixels[..., 0] * GREY[0] + pixels[..., 1] * GREY[1]) + pixels[..., 2] * GREY[2]
    blend = pixels * factor[..., None] + (grey * (ONE - factor))[..., None]
    return np.minimum(np.maximum(blend, ZERO), TOP)


def turn_hue(pixels: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Turn the hue by a share of the circle: [..., 3] by [...], float32.

    Hue, value and chroma of the hexagonal model; back by value - chroma * clamp(min(k, 4 - k), 0, 1) with k = (n +
    hue) mod 6 for n = 5, 3, 1 (Wikipedia, "HSL and HSV", alternative conversion), hue in sixths of the circle.
    """
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    inverse = ONE / np.where(chroma > ZERO, chroma, ONE)
    hue = np.where(
        value == red,
        (green - blue) * inverse,
        np.where(
            value == green,
            np.float32(2) + (blue - red) * inverse,
            np.float32(4) + (red - green) * inverse,
        ),
    )
    six = np.float32(6)
    hue = hue + turn * six
    hue = np.where(hue < ZERO, hue + six, hue)
    hue = np.where(hue >= six, hue - six, hue)
    channels = []
    for offset in (5, 3, 1):
        k = hue + np.float32(offset)
        k = np.where(k >= six, k - six, k)
        ramp = np.minimum(np.maximum(np.minimum(k, np.float32(4) - k), ZERO), ONE)
        channels.append(value - chroma * ramp)
    return np.stack(channels, axis=-1)
