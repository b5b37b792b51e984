"""Rows of the source, moved: crop, flip and rotation, compiled for the CPU. Images are pointers to uint8 [3 h w]."""

from collections import namedtuple

import numpy as np

from fastcifar.kernels.numba_jit import compiled
from fastcifar.kernels.numba_vector import (
    BLOCK_BYTES,
    LANES,
    PASTED_BYTES,
    REVERSED_PIXELS,
    blank_bytes,
    copy_block,
    copy_bytes,
    mean_texels,
    moved,
    pack_texels,
    reverse_pixels,
)
from fastcifar.kernels.plan import FLIP, SHIFT_X, SHIFT_Y
from fastcifar.kernels.reference import POSITION_BITS, TURN_BITS
from fastcifar.kernels.scalars import reflected, turn
from fastcifar.kernels.settings import MAX_SIDE_PX

_POSITION_MASK = (1 << POSITION_BITS) - 1
_POSITION = np.float32(2.0**-POSITION_BITS)
_I = np.int32
_GREEN, _BLUE = np.int32(8), np.int32(16)

Row = namedtuple("Row", "y_low x_low y_part x_part top_left top_right low_left low_right")
"""Buffers for a row of pixels, [w + LANES] of 4 bytes each: where they lie in the source, and the four texels there."""

_reflected, _turn = compiled(reflected), compiled(turn)


@compiled
def _copy(target, source, num_bytes):
    """Copy bytes between places that do not overlap. The system's own way takes longer to begin than these to copy."""
    if num_bytes < BLOCK_BYTES:
        copy_bytes(target, source, max(num_bytes, 0))
        return
    last = num_bytes - BLOCK_BYTES
    for at in range(0, last, BLOCK_BYTES):
        copy_block(moved(target, at), moved(source, at))
    copy_block(moved(target, last), moved(source, last))


@compiled
def _copy_rows(image, y, num_rows, shift_x, height, width, target):
    """Copy source rows y.. shifted by shift_x pixels, in one piece: a shift along x is one of the flat image too.

    What lies beyond the left and right edges comes out wrong, or not at all, and is mended by _mend_columns.
    """
    begin = 3 * (y * width + shift_x)
    end = min(begin + 3 * num_rows * width, 3 * height * width)
    skipped = max(-begin, 0)
    _copy(moved(target, skipped), moved(image, begin + skipped), end - begin - skipped)


@compiled
def _blank_columns(first, last, num_rows, width, target):
    """Zero columns first..last-1 of rows, which have PASTED_BYTES behind them, in bands of bytes of a fixed width."""
    for start in range(3 * first, 3 * last, PASTED_BYTES):
        count = min(3 * last - start, PASTED_BYTES)
        row = moved(target, start)
        for _ in range(num_rows):
            blank_bytes(row, count)
            row = moved(row, 3 * width)


@compiled
def _mend_columns(image, first, last, top, low, shift_y, shift_x, height, width, reflect, target):
    """Write columns first..last-1, which lie beyond an edge of the source, of rows top..low-1."""
    if not reflect:
        _blank_columns(first, last, low - top, width, target)
        return
    for x in range(first, last):
        source_x = _reflected(x + shift_x, width)
        row = moved(target, 3 * x)
        if 0 <= source_x - shift_x < width:
            # The pixel is also shown elsewhere in the same row, already in its place.
            shown = moved(target, 3 * (source_x - shift_x))
            for _ in range(low - top):
                row[0], row[1], row[2] = shown[0], shown[1], shown[2]
                row, shown = moved(row, 3 * width), moved(shown, 3 * width)
        else:
            for y in range(top, low):
                pixel = moved(image, 3 * (width * _reflected(y + shift_y, height) + source_x))
                row[0], row[1], row[2] = pixel[0], pixel[1], pixel[2]
                row = moved(row, 3 * width)


@compiled
def _crop_rows(image, top, low, shift_y, shift_x, height, width, reflect, target):
    inner_top = min(max(-shift_y, top), low)
    inner_low = max(min(height - shift_y, low), inner_top)
    if inner_top < inner_low:
        begin = moved(target, 3 * (inner_top - top) * width)
        _copy_rows(image, inner_top + shift_y, inner_low - inner_top, shift_x, height, width, begin)
    for first, last in ((top, inner_top), (inner_low, low)):
        begin = moved(target, 3 * (first - top) * width)
        if not reflect:
            for j in range(3 * (last - first) * width):
                begin[j] = np.uint8(0)
            continue
        for y in range(first, last):
            _copy_rows(image, _reflected(y + shift_y, height), np.int64(1), shift_x, height, width, begin)
            begin = moved(begin, 3 * width)
    first, last = max(width - shift_x, 0), width
    if shift_x < 0:
        first, last = np.int64(0), min(-shift_x, width)
    _mend_columns(image, first, last, top, low, shift_y, shift_x, height, width, reflect, target)


@compiled
def move_rows(image, top, low, ints, height, width, reflect, unflipped, target):
    """Write rows top..low-1 of the cropped and flipped image to target; all are pointers.

    unflipped is a buffer for as many rows, with SLACK bytes before. Behind both there is room for SLACK and for
    PASTED_BYTES, which may be read and written.
    """
    shift_y, shift_x = np.int64(ints[SHIFT_Y]), np.int64(ints[SHIFT_X])
    flipped = ints[FLIP] != 0
    _crop_rows(
        image,
        top,
        low,
        shift_y,
        shift_x,
        height,
        width,
        reflect,
        unflipped if flipped else target,
    )
    if not flipped:
        return
    for row in range(low - top):
        to, end = (
            moved(target, 3 * row * width),
            moved(unflipped, 3 * (row + 1) * width),
        )
        for x in range(0, width, REVERSED_PIXELS):
            reverse_pixels(moved(to, 3 * x), moved(end, -3 * (x + REVERSED_PIXELS)))


@compiled
def rotation_reach(height, width):
    """Pixels beyond an edge that a rotated and shifted position can lie at most."""
    return height + width + 2 * MAX_SIDE_PX


@compiled
def fill_offsets(offsets, side, reach, stride, reflect):
    """Offset in the texture of every position -reach..side+reach-1 along one axis.

    Where the plane shows nothing that is the texture's last row or column, which is black.
    """
    for position in range(-reach, side + reach):
        inside = 0 <= position < side
        offsets[position + reach] = np.int32(stride * (_reflected(position, side) if inside or reflect else side))


@compiled
def fill_texture(image, height, width, texture):
    """Copy an image to texture, int32 [h + 1, w + 1], all but the last row and column."""
    full = width // LANES * LANES
    for _ in range(height):
        for x in range(0, full, LANES):
            pack_texels(moved(texture, x), moved(image, 3 * x))
        for x in range(full, width):
            pixel = moved(image, 3 * x)
            texture[x] = _I(pixel[0]) | _I(pixel[1]) << _GREEN | _I(pixel[2]) << _BLUE
        image, texture = moved(image, 3 * width), moved(texture, width + 1)


@compiled
def rotate_rows(texture, y_offsets, x_offsets, top, low, ints, degrees, height, width, row, planes):
    """Write rows top..low-1 of the rotated, cropped and flipped image to planes, float32 [(low - top) w + LANES].

    row: buffers for one row. Where its pixels lie, their four texels, and the texels' means are three loops: the first
    and the last become vector instructions, which looking up does not.
    """
    cosine, sine = _turn(degrees)
    reach = rotation_reach(height, width)
    # From column to column the doubled distance from the centre changes by two, or by minus two where flipped.
    flipped = ints[FLIP] != 0
    step = -2 if flipped else 2
    x_doubled = 2 * (np.int64(ints[SHIFT_X]) + (width - 1 if flipped else 0)) - (width - 1)
    reds, greens, blues = planes
    for y in range(top, low):
        y_doubled = 2 * (y + np.int64(ints[SHIFT_Y])) - (height - 1)
        y_position = sine * x_doubled + cosine * y_doubled + ((height - 1) << TURN_BITS)
        x_position = cosine * x_doubled - sine * y_doubled + ((width - 1) << TURN_BITS)
        for x in range(width):
            row.y_low[x], row.x_low[x] = y_position >> POSITION_BITS, x_position >> POSITION_BITS
            row.y_part[x] = np.float32(_I(y_position & _POSITION_MASK)) * _POSITION
            row.x_part[x] = np.float32(_I(x_position & _POSITION_MASK)) * _POSITION
            y_position += sine * step
            x_position += cosine * step
        for x in range(width):
            y_at, x_at = moved(y_offsets, row.y_low[x] + reach), moved(x_offsets, row.x_low[x] + reach)
            above, below = moved(texture, y_at[0]), moved(texture, y_at[1])
            left, right = x_at[0], x_at[1]
            row.top_left[x], row.top_right[x] = above[left], above[right]
            row.low_left[x], row.low_right[x] = below[left], below[right]
        for x in range(0, width, LANES):
            mean_texels(
                moved(row.top_left, x),
                moved(row.top_right, x),
                moved(row.low_left, x),
                moved(row.low_right, x),
                moved(row.x_part, x),
                moved(row.y_part, x),
                moved(reds, x),
                moved(greens, x),
                moved(blues, x),
            )
        reds, greens, blues = moved(reds, width), moved(greens, width), moved(blues, width)
