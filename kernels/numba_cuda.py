"""The compiled form for NVIDIA GPUs: drawing and augmenting in one launch on torch's current stream.

A block of threads looks after an image.

This is the only module that knows Numba's CUDA target, be it Numba's own or the numba-cuda package; it is imported
where images lie on a GPU, or under NUMBA_ENABLE_CUDASIM=1. Its arithmetic is that of reference.py; products that feed
a sum go through `mul`, since the GPU's compiler would otherwise fuse the two and leave one rounding out.

A launch can be captured in a CUDA graph once it has run for the same settings; the captured seed and epoch are then
fixed.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import config as numba_config
from numba import cuda

from fastcifar.kernels import checks
from fastcifar.kernels.philox import (
    ALTERNATING,
    BOX,
    COLOUR,
    ERASE_LIGHT,
    GEOMETRY,
    MIX,
    MULTIPLIER_0,
    MULTIPLIER_1,
    NUM_ROUNDS,
    WEYL_0,
    WEYL_1,
)
from fastcifar.kernels.plan import (
    BETA_TABLE_BINS,
    BRIGHTNESS,
    CONTRAST,
    CUTMIX,
    CUTOUT,
    FLIP,
    HUE,
    NUM_FLOATS,
    NUM_INTS,
    NUM_SETTING_INTS,
    ROTATION,
    SATURATION,
    SHIFT_X,
    SHIFT_Y,
    WEIGHT,
    Plan,
    beta_tables,
    is_reflect,
    settings_for,
)
from fastcifar.kernels.reference import GREY, POSITION_BITS, TURN_BITS
from fastcifar.kernels.settings import Augmentation, Normalisation

if TYPE_CHECKING:
    import torch

# Numba makes its settings when it is imported, which a type checker cannot follow.
config: Any = numba_config
NUM_THREADS = 16 if config.ENABLE_CUDASIM else 128
TILE_PIXELS = 1024
FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2

_F, _U = np.float32, np.uint64
_ZERO, _HALF, _ONE, _TWO, _FOUR, _SIX, _TOP = _F(0), _F(0.5), _F(1), _F(2), _F(4), _F(6), _F(255)
_THREE, _FIVE = _F(3), _F(5)
_RED, _GREEN, _BLUE = GREY
_LOW, _WORD, _TOP_BIT, _UNIT_BITS = _U(0xFFFFFFFF), _U(32), _U(31), _U(8)
_M0, _M1, _W0, _W1 = _U(MULTIPLIER_0), _U(MULTIPLIER_1), _U(WEYL_0), _U(WEYL_1)
_UNIT = _F(2.0**-24)
_BIN_BITS = _U(32 - (BETA_TABLE_BINS.bit_length() - 1))
_BIN_MASK, _BIN = _U((1 << int(_BIN_BITS)) - 1), _F(2.0 ** -int(_BIN_BITS))
_POSITION_MASK, _POSITION = (1 << POSITION_BITS) - 1, _F(2.0**-POSITION_BITS)
_RADIAN, _TURN = math.pi / 180.0, float(1 << TURN_BITS)
_TILE_VALUES = 3 * TILE_PIXELS
_BOTH_INTS, _BOTH_FLOATS = 2 * NUM_INTS, 2 * NUM_FLOATS

# Columns of the settings on the device: those of plan.Settings, and then these.
_REFLECT, _KIND, _NUM_IMAGES = NUM_SETTING_INTS, NUM_SETTING_INTS + 1, NUM_SETTING_INTS + 2
_SCALE, _SHIFT = 8, 11

if config.ENABLE_CUDASIM:

    @cuda.jit(device=True)
    def mul(a, b):
        """Product of float32, rounded by itself."""
        return a * b

else:
    from numba.cuda import libdevice

    mul = libdevice.fmul_rn


@cuda.jit(device=True)
def _philox(index, epoch, stream, seed):
    c0, c1, c2, c3 = index & _LOW, index >> _WORD, epoch, _U(stream)
    k0, k1 = seed & _LOW, seed >> _WORD
    for _ in range(NUM_ROUNDS):
        product_0, product_1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            (product_1 >> _WORD) ^ c1 ^ k0,
            product_1 & _LOW,
            (product_0 >> _WORD) ^ c3 ^ k1,
            product_0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@cuda.jit(device=True)
def _below(word, bound):
    return np.int64((word * _U(bound)) >> _WORD)


@cuda.jit(device=True)
def _unit(word):
    return mul(_F(np.int64(word >> _UNIT_BITS)), _UNIT)


@cuda.jit(device=True)
def _symmetric(word):
    return mul(_unit(word), _TWO) - _ONE


@cuda.jit(device=True)
def _quantile(tables, at, word):
    position = at + np.int64(word >> _BIN_BITS)
    low, high = tables[position], tables[position + 1]
    return low + mul(high - low, mul(_F(np.int64(word & _BIN_MASK)), _BIN))


@cuda.jit(device=True)
def _draw_mix(index, seed, epoch, whole, parts, tables, ints, at_i, floats, at_f):
    w0, w1, w2, _w3 = _philox(index, epoch, MIX, seed)
    if _unit(w0) >= parts[0]:
        return
    if _unit(w1) >= parts[1]:
        floats[at_f + WEIGHT] = _quantile(tables, BETA_TABLE_BINS + 1, w2)
        return
    half = mul(_HALF, _F(math.sqrt(_ONE - _quantile(tables, 0, w2))))
    w0, w1, w2, _w3 = _philox(index, epoch, BOX, seed)
    own = whole[0] * whole[1]
    for axis in range(2):
        centre, side = _below(w0 if axis == 0 else w1, whole[axis]), whole[axis]
        reach = np.int64(mul(half, _F(side)))
        ints[at_i + CUTMIX + axis] = max(centre - reach, 0)
        ints[at_i + CUTMIX + 2 + axis] = min(centre + reach, side)
    y0, x0 = ints[at_i + CUTMIX], ints[at_i + CUTMIX + 1]
    y1, x1 = ints[at_i + CUTMIX + 2], ints[at_i + CUTMIX + 3]
    floats[at_f + WEIGHT] = _F(own - (y1 - y0) * (x1 - x0)) / _F(own)


@cuda.jit(device=True)
def _draw(index, first_index, seed, epoch, whole, parts, tables, ints, at_i, floats, at_f):
    """Draw one image's plan to ints[at_i:] and floats[at_f:]; whole and parts are the settings, by plan.Settings."""
    height, width, padding, flip, cutout = whole[0], whole[1], whole[2], whole[3], whole[4]
    for column in range(NUM_INTS):
        ints[at_i + column] = 0
    for column in range(NUM_FLOATS):
        floats[at_f + column] = _ZERO
    floats[at_f + WEIGHT] = _ONE
    floats[at_f + CONTRAST] = _ONE
    floats[at_f + SATURATION] = _ONE
    if padding > 0 or flip == 1 or parts[4] > _ZERO:
        w0, w1, w2, w3 = _philox(index, epoch, GEOMETRY, seed)
        ints[at_i + SHIFT_Y] = _below(w0, 2 * padding + 1) - padding
        ints[at_i + SHIFT_X] = _below(w1, 2 * padding + 1) - padding
        if flip == 1:
            ints[at_i + FLIP] = np.int32(w2 >> _TOP_BIT)
        if parts[4] > _ZERO:
            floats[at_f + ROTATION] = mul(_symmetric(w3), parts[4])
    if flip == 2:
        w0, w1, w2, w3 = _philox(index, _U(0), ALTERNATING, seed)
        ints[at_i + FLIP] = np.int32((w0 >> _TOP_BIT) ^ (epoch & _U(1)))
    if cutout > 0 or parts[2] > _ZERO or parts[3] > _ZERO:
        w0, w1, w2, w3 = _philox(index, epoch, ERASE_LIGHT, seed)
        if cutout > 0:
            top, left = _below(w0, height - cutout + 1), _below(w1, width - cutout + 1)
            ints[at_i + CUTOUT], ints[at_i + CUTOUT + 1] = top, left
            ints[at_i + CUTOUT + 2], ints[at_i + CUTOUT + 3] = top + cutout, left + cutout
        if parts[2] > _ZERO:
            floats[at_f + BRIGHTNESS] = mul(_symmetric(w2), parts[2])
        floats[at_f + CONTRAST] = _ONE + mul(_symmetric(w3), parts[3])
    if parts[6] > _ONE or parts[7] > _ZERO:
        w0, w1, w2, w3 = _philox(index, epoch, COLOUR, seed)
        floats[at_f + SATURATION] = parts[5] + mul(_unit(w0), parts[6] - parts[5])
        if parts[7] > _ZERO:
            floats[at_f + HUE] = mul(_symmetric(w1), parts[7])
    if parts[0] > _ZERO:
        drawn_for = index if whole[5] != 0 else first_index
        _draw_mix(drawn_for, seed, epoch, whole, parts, tables, ints, at_i, floats, at_f)


@cuda.jit(device=True)
def _turn(degrees):
    angle = np.float64(degrees)
    quarter = math.floor(angle / 90.0 + 0.5)
    r = (angle - quarter * 90.0) * _RADIAN
    r2 = r * r
    sine, cosine = 1.0, 1.0
    for power in range(13, 0, -2):
        sine = 1.0 - sine * r2 / np.float64((power + 1) * (power + 2))
    sine = sine * r
    for power in range(12, -1, -2):
        cosine = 1.0 - cosine * r2 / np.float64((power + 1) * (power + 2))
    q = np.int64(quarter) & 3
    if q == 1:
        cosine, sine = -sine, cosine
    elif q == 2:
        cosine, sine = -cosine, -sine
    elif q == 3:
        cosine, sine = sine, -cosine
    return np.int64(math.floor(cosine * _TURN + 0.5)), np.int64(math.floor(sine * _TURN + 0.5))


@cuda.jit(device=True)
def _reflected(position, side):
    if 0 <= position < side:
        return position
    if side == 1:
        return 0
    position = abs(position) % (2 * side - 2)
    return min(position, 2 * side - 2 - position)


@cuda.jit(device=True)
def _fetch(images, base, y, x, whole):
    """Place in images of the pixel that the extended image at base shows at (y, x); -1 where it shows nothing."""
    height, width = whole[0], whole[1]
    if not (0 <= y < height and 0 <= x < width):
        if whole[_REFLECT] == 0:
            return -1
        y, x = _reflected(y, height), _reflected(x, width)
    return base + 3 * (y * width + x)


@cuda.jit(device=True)
def _between(low, high, part):
    return low + mul(high - low, part)


@cuda.jit(device=True)
def _rotated(images, base, y, x, degrees, whole):
    cosine, sine = _turn(degrees)
    y_doubled, x_doubled = 2 * y - (whole[0] - 1), 2 * x - (whole[1] - 1)
    y_position = sine * x_doubled + cosine * y_doubled + ((whole[0] - 1) << TURN_BITS)
    x_position = cosine * x_doubled - sine * y_doubled + ((whole[1] - 1) << TURN_BITS)
    y_low, x_low = y_position >> POSITION_BITS, x_position >> POSITION_BITS
    y_part = mul(_F(y_position & _POSITION_MASK), _POSITION)
    x_part = mul(_F(x_position & _POSITION_MASK), _POSITION)
    a, b = _fetch(images, base, y_low, x_low, whole), _fetch(images, base, y_low, x_low + 1, whole)
    c, d = _fetch(images, base, y_low + 1, x_low, whole), _fetch(images, base, y_low + 1, x_low + 1, whole)
    red = green = blue = _ZERO
    for channel in range(3):
        top = _between(
            _F(images[a + channel]) if a >= 0 else _ZERO, _F(images[b + channel]) if b >= 0 else _ZERO, x_part
        )
        low = _between(
            _F(images[c + channel]) if c >= 0 else _ZERO, _F(images[d + channel]) if d >= 0 else _ZERO, x_part
        )
        mean = _between(top, low, y_part)
        if channel == 0:
            red = mean
        elif channel == 1:
            green = mean
        else:
            blue = mean
    return red, green, blue


@cuda.jit(device=True)
def _ramp(k):
    k = k - _SIX if k >= _SIX else k
    return min(max(min(k, _FOUR - k), _ZERO), _ONE)


@cuda.jit(device=True)
def _turn_hue(red, green, blue, hue):
    value = max(red, green, blue)
    chroma = value - min(red, green, blue)
    inverse = _ONE / (chroma if chroma > _ZERO else _ONE)
    if value == red:
        angle = mul(green - blue, inverse)
    elif value == green:
        angle = _TWO + mul(blue - red, inverse)
    else:
        angle = _FOUR + mul(red - green, inverse)
    angle = angle + mul(hue, _SIX)
    angle = angle + _SIX if angle < _ZERO else angle
    angle = angle - _SIX if angle >= _SIX else angle
    return (
        value - mul(chroma, _ramp(angle + _FIVE)),
        value - mul(chroma, _ramp(angle + _THREE)),
        value - mul(chroma, _ramp(angle + _ONE)),
    )


@cuda.jit(device=True)
def _blended_with(colour, grey, factor):
    return min(max(mul(colour, factor) + grey, _ZERO), _TOP)


@cuda.jit(device=True)
def _pixel(images, base, y, x, whole, parts, ints, at_i, floats, at_f):
    """The three values at (y, x) of an image, all but mixed."""
    if (
        ints[at_i + CUTOUT] <= y < ints[at_i + CUTOUT + 2] and ints[at_i + CUTOUT + 1] <= x < ints[at_i + CUTOUT + 3]
    ) or base < 0:
        return _ZERO, _ZERO, _ZERO
    source_y = y + ints[at_i + SHIFT_Y]
    source_x = (whole[1] - 1 - x if ints[at_i + FLIP] != 0 else x) + ints[at_i + SHIFT_X]
    if floats[at_f + ROTATION] != _ZERO:
        red, green, blue = _rotated(images, base, source_y, source_x, floats[at_f + ROTATION], whole)
    else:
        place = _fetch(images, base, source_y, source_x, whole)
        red = green = blue = _ZERO
        if place >= 0:
            red, green, blue = _F(images[place]), _F(images[place + 1]), _F(images[place + 2])
    factor = floats[at_f + SATURATION]
    if factor != _ONE:
        grey = mul((mul(red, _RED) + mul(green, _GREEN)) + mul(blue, _BLUE), _ONE - factor)
        red, green, blue = (
            _blended_with(red, grey, factor),
            _blended_with(green, grey, factor),
            _blended_with(blue, grey, factor),
        )
    if floats[at_f + HUE] != _ZERO:
        red, green, blue = _turn_hue(red, green, blue, floats[at_f + HUE])
    brightness, contrast = floats[at_f + BRIGHTNESS], floats[at_f + CONTRAST]
    return (
        mul((mul(red, parts[_SCALE]) + parts[_SHIFT]) + brightness, contrast),
        mul((mul(green, parts[_SCALE + 1]) + parts[_SHIFT + 1]) + brightness, contrast),
        mul((mul(blue, parts[_SCALE + 2]) + parts[_SHIFT + 2]) + brightness, contrast),
    )


@cuda.jit(device=True)
def _bits16(value, kind):
    """Bits of the bfloat16 or float16 nearest to a float32, in an int64; as numba_cast.py has them."""
    bits = np.int64(_F(value).view(np.uint32))
    if kind == BFLOAT16:
        return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    sign, bits = bits & 0x80000000, bits & 0x7FFFFFFF
    if bits >= 143 << 23:
        half = np.int64(0x7C00)
    elif bits < 113 << 23:
        half = np.int64(_F(abs(_F(value)) + _HALF).view(np.uint32)) - (126 << 23)
    else:
        half = (bits + ((15 - 127) << 23) + 0xFFF + ((bits >> 13) & 1)) >> 13
    return half | (sign >> 16)


@cuda.jit(device=True)
def _mixed(own, other, weight, rest):
    return mul(own, weight) + mul(other, rest)


@cuda.jit(device=True)
def _plan_of(who, indices, whole, parts, tables, plan_ints, plan_floats, seed, epoch, ints, at_i, floats, at_f):
    """Draw the plan of the image at position who or, where there are no indices, read it."""
    if indices.shape[0] > 0:
        _draw(_U(indices[who]), _U(indices[0]), seed, epoch, whole, parts, tables, ints, at_i, floats, at_f)
    else:
        for column in range(NUM_INTS):
            ints[at_i + column] = plan_ints[who * NUM_INTS + column]
        for column in range(NUM_FLOATS):
            floats[at_f + column] = plan_floats[who * NUM_FLOATS + column]


@cuda.jit(device=True)
def _shown(images, base, partner_base, y, x, whole, parts, ints, floats):
    """The three values at (y, x), mixed."""
    y0, x0, y1, x1 = ints[CUTMIX], ints[CUTMIX + 1], ints[CUTMIX + 2], ints[CUTMIX + 3]
    has_box = y0 < y1 and x0 < x1
    if has_box and y0 <= y < y1 and x0 <= x < x1:
        return _pixel(images, partner_base, y, x, whole, parts, ints, NUM_INTS, floats, NUM_FLOATS)
    red, green, blue = _pixel(images, base, y, x, whole, parts, ints, 0, floats, 0)
    weight = floats[WEIGHT]
    if weight < _ONE and not has_box:
        r, g, b = _pixel(images, partner_base, y, x, whole, parts, ints, NUM_INTS, floats, NUM_FLOATS)
        rest = _ONE - weight
        return _mixed(red, r, weight, rest), _mixed(green, g, weight, rest), _mixed(blue, b, weight, rest)
    return red, green, blue


@cuda.jit(device=True)
def _write(tile, count, first, kind, out16, pairs, out32):
    """Cast count values of the tile to the output from place first on, neighbouring threads to neighbouring words."""
    thread, num_threads = cuda.threadIdx.x, cuda.blockDim.x
    if kind == FLOAT32:
        for value in range(thread, count, num_threads):
            out32[first + value] = tile[value]
    elif pairs.shape[0] > 0:
        for pair in range(thread, count // 2, num_threads):
            word = _bits16(tile[2 * pair], kind) | (_bits16(tile[2 * pair + 1], kind) << 16)
            # Torch's arrays of words are signed.
            pairs[first // 2 + pair] = np.int32(word - ((word >> 31) << 32))
    else:
        for value in range(thread, count, num_threads):
            half = _bits16(tile[value], kind)
            out16[first + value] = np.int16(half - ((half >> 15) << 16))


@cuda.jit
def _kernel(
    images,
    rows,
    indices,
    whole,
    parts,
    tables,
    plan_ints,
    plan_floats,
    seed,
    epoch,
    weights,
    out16,
    pairs,
    out32,
    bad_rows,
):
    """Augment a batch; see _launch for the arguments."""
    i, thread = cuda.blockIdx.x, cuda.threadIdx.x
    j = i + 1 if i + 1 < rows.shape[0] else 0
    # One a line: Numba's simulator tells shared arrays apart by their lines.
    ints = cuda.shared.array(_BOTH_INTS, np.int32)
    floats = cuda.shared.array(_BOTH_FLOATS, np.float32)
    tile = cuda.shared.array(_TILE_VALUES, np.float32)
    # Two threads, of different warps where there are any, look after the image's plan and its partner's.
    if thread == 0:
        _plan_of(i, indices, whole, parts, tables, plan_ints, plan_floats, seed, epoch, ints, 0, floats, 0)
    if thread == (32 if cuda.blockDim.x > 32 else 1):
        _plan_of(
            j, indices, whole, parts, tables, plan_ints, plan_floats, seed, epoch, ints, NUM_INTS, floats, NUM_FLOATS
        )
    cuda.syncthreads()

    width, num_pixels = whole[1], whole[0] * whole[1]
    base = rows[i] * 3 * num_pixels if 0 <= rows[i] < whole[_NUM_IMAGES] else -1
    partner_base = rows[j] * 3 * num_pixels if 0 <= rows[j] < whole[_NUM_IMAGES] else -1
    if thread == 0:
        weights[i] = floats[WEIGHT]
        if base < 0:
            bad_rows[0] = 1
    # Steps from pixel to pixel, without a division at each.
    y_step, x_step = cuda.blockDim.x // width, cuda.blockDim.x % width
    for start in range(0, num_pixels, TILE_PIXELS):
        count = min(TILE_PIXELS, num_pixels - start)
        y, x = (start + thread) // width, (start + thread) % width
        for pixel in range(thread, count, cuda.blockDim.x):
            red, green, blue = _shown(images, base, partner_base, y, x, whole, parts, ints, floats)
            tile[3 * pixel], tile[3 * pixel + 1], tile[3 * pixel + 2] = red, green, blue
            y, x = y + y_step, x + x_step
            if x >= width:
                y, x = y + 1, x - width
        cuda.syncthreads()
        _write(tile, 3 * count, 3 * (i * num_pixels + start), whole[_KIND], out16, pairs, out32)
        cuda.syncthreads()


def augment(
    images_nhwc: Any, rows_n: Any, plan: Plan, normalisation: Normalisation, dtype: "torch.dtype", out: Any
) -> "torch.Tensor":
    """Apply a plan to images on the GPU; the arguments of dispatch.augment, images, form and dtype checked."""
    import torch

    num_images, height, width, _ = images_nhwc.shape
    rows = np.arange(num_images) if rows_n is None else checks.int64_vector("rows_n", rows_n)
    checks.check_rows(rows, num_images)
    checks.check_plan_shape(plan, len(rows), height, width)
    checks.check_plan_numbers(plan)
    device = _device(images_nhwc)
    settings = _Settings(Augmentation(padding_mode=plan.padding_mode), normalisation, height, width, num_images)
    batch, _weights = _launch(
        images_nhwc,
        torch.from_numpy(rows).to(device),
        torch.empty(0, dtype=torch.int64, device=device),
        torch.from_numpy(plan.ints_nk).to(device),
        torch.from_numpy(plan.floats_nk).to(device),
        settings,
        0,
        0,
        dtype,
        out,
    )
    return batch


def augment_batch(
    images_nhwc: Any,
    rows_n: Any,
    augmentation: Augmentation,
    normalisation: Normalisation,
    seed: int,
    epoch: int,
    indices_n: Any,
    dtype: "torch.dtype",
    out: Any,
) -> "tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]":
    """Draw and augment on the GPU; the arguments of dispatch.augment_batch, images, form and dtype checked."""
    import torch

    num_images, height, width, _ = images_nhwc.shape
    device = _device(images_nhwc)
    rows = _int64("rows_n", rows_n, device, num_images)
    indices = rows if indices_n is None else _int64("indices_n", indices_n, device, None)
    if len(indices) != len(rows):
        raise ValueError(f"indices_n: got {len(indices)} indices, takes one for each of the {len(rows)} rows")
    settings = _Settings(augmentation, normalisation, height, width, num_images)
    nothing = _nothing(device)
    batch, weights = _launch(images_nhwc, rows, indices, *nothing, settings, int(seed), int(epoch), dtype, out)
    if not augmentation.mixes:
        return batch, None, None
    return batch, weights, torch.arange(1, len(rows) + 1, device=device) % max(len(rows), 1)


def raise_for_bad_rows(device: Any) -> None:
    """Raise ValueError where, since the last call, a row on this GPU was not one of the images'; waits for the GPU."""
    flag = _bad_rows(device)
    if int(flag.item()):
        flag.zero_()
        raise ValueError(
            "rows_n: got a row outside the images in a tensor on the GPU, takes 0 to the number of images - 1"
        )


class _Settings(NamedTuple):
    augmentation: Augmentation
    normalisation: Normalisation
    height: int
    width: int
    num_images: int


def _device(images: Any) -> Any:
    import torch

    return torch.device("cpu") if isinstance(images, np.ndarray) else images.device


def _int64(name: str, values: Any, device: Any, num_images: int | None) -> "torch.Tensor":
    """Values as int64 [n] on the device; those that come from main memory are checked to be rows."""
    import torch

    if isinstance(values, torch.Tensor) and values.is_cuda:
        if values.ndim != 1 or values.dtype != torch.int64 or not values.is_contiguous() or values.device != device:
            raise ValueError(
                f"{name}: got {tuple(values.shape)} of {values.dtype} on {values.device}, takes a contiguous vector of "
                f"int64 on {device}"
            )
        return values
    array = checks.int64_vector(name, values)
    if num_images is not None:
        checks.check_rows(array, num_images)
    return torch.from_numpy(array).to(device)


@lru_cache(maxsize=8)
def _bad_rows(device: Any) -> "torch.Tensor":
    import torch

    return torch.zeros(1, dtype=torch.int32, device=device)


@lru_cache(maxsize=8)
def _nothing(device: Any) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    return torch.empty(0, dtype=torch.int32, device=device), torch.empty(0, dtype=torch.float32, device=device)


@lru_cache(maxsize=64)
def _on_device(settings: _Settings, kind: int, device: Any) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Settings as the kernel reads them, and the quantiles: int64, float32 and float32."""
    import torch

    augmentation, normalisation = settings.augmentation, settings.normalisation
    drawn = settings_for(augmentation, settings.height, settings.width)
    whole = [*drawn[:NUM_SETTING_INTS], int(is_reflect(augmentation.padding_mode)), kind, settings.num_images]
    parts = np.array([*drawn[NUM_SETTING_INTS:], *normalisation.scale, *normalisation.shift], dtype=np.float32)
    tables = np.concatenate(beta_tables(augmentation))
    return tuple(torch.from_numpy(array).to(device) for array in (np.array(whole, dtype=np.int64), parts, tables))  # type: ignore[return-value]


def _launch(
    images: Any,
    rows: "torch.Tensor",
    indices: "torch.Tensor",
    plan_ints: "torch.Tensor",
    plan_floats: "torch.Tensor",
    settings: _Settings,
    seed: int,
    epoch: int,
    dtype: "torch.dtype",
    out: Any,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Run the kernel on torch's current stream; returns the batch and the weights of the own labels."""
    import torch

    from fastcifar.kernels.dispatch import output

    device, height, width = rows.device, settings.height, settings.width
    num_values = 3 * height * width
    batch = output(out, (len(rows), 3, height, width), dtype, _device(images))
    weights = torch.empty(len(rows), dtype=torch.float32, device=device)
    if len(rows) == 0:
        return batch, weights
    kind = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}[dtype]
    whole, parts, tables = _on_device(settings, kind, device)
    flat = batch.permute(0, 2, 3, 1).reshape(-1)
    nothing = flat[:0]
    # NumPy has no bfloat16, and words of 32 bits need whole ones in every image.
    out32 = flat if kind == FLOAT32 else nothing.view(torch.int16).float()
    out16 = (nothing if kind == FLOAT32 else flat).view(torch.int16)
    pairs = (flat if kind != FLOAT32 and num_values % 2 == 0 else nothing).view(torch.int32)
    arrays = [images.reshape(-1), rows, indices, whole, parts, tables, plan_ints.reshape(-1), plan_floats.reshape(-1)]
    results = [weights, out16, pairs, out32, _bad_rows(device)]
    arguments = (*_arrays(arrays), np.uint64(seed), np.uint64(epoch), *_arrays(results))
    if config.ENABLE_CUDASIM:
        _kernel[len(rows), NUM_THREADS](*arguments)
        return batch, weights
    with torch.cuda.device(device), cuda.gpus[device.index]:
        stream = cuda.external_stream(torch.cuda.current_stream(device).cuda_stream)
        _kernel[len(rows), NUM_THREADS, stream](*arguments)
    return batch, weights


def _arrays(tensors: Any) -> Any:
    """What Numba takes: tensors on a GPU as they are, arrays under the simulator."""
    if config.ENABLE_CUDASIM:
        return [tensor if isinstance(tensor, np.ndarray) else tensor.numpy() for tensor in tensors]
    return tensors
