"""Pixels, compiled for the CPU: image by image, in bands of rows, through buffers of one band.

A band is assembled in uint8 (crop, flip, CutMix of equally lit images), normalised, cast and written, and stays in the
first-level cache meanwhile; or two bands are blended on the way (MixUp). What is more than that (rotation, colour,
differently lit partners) goes through planes of float32.

Arguments are pointers, named as the arrays would be; `place` and `task` are those of numba_task.py.
"""

from collections import namedtuple

import numpy as np
from numba import types

from fastcifar.kernels.numba_cast import blend, normalise, normalise_plane, to_float32, to_words
from fastcifar.kernels.numba_colour import saturate, turn_hue
from fastcifar.kernels.numba_draw import Drawing
from fastcifar.kernels.numba_jit import compiled
from fastcifar.kernels.numba_rows import fill_texture, move_rows, rotate_rows
from fastcifar.kernels.numba_share import call, reader, shared
from fastcifar.kernels.numba_task import BAND_PIXELS, Place, prepare
from fastcifar.kernels.numba_vector import (
    CACHE_LINE,
    LANES,
    PASTED_BYTES,
    address_of,
    bytes_at,
    floats_at,
    floats_in,
    ints_at,
    join_pixels,
    longs_at,
    moved,
    paste_bytes,
    prefetch,
    room_for,
    split_pixels,
    words_in,
)
from fastcifar.kernels.plan import (
    BRIGHTNESS,
    CONTRAST,
    CUTMIX,
    CUTOUT,
    FLOAT32,
    HUE,
    NUM_FLOATS,
    NUM_INTS,
    ROTATION,
    SATURATION,
    WEIGHT,
)

_ZERO, _ONE = np.float32(0), np.float32(1)

# How many images later the memory that is asked for now is worked on. A partner is needed one image before its turn, so
# that with 2 it would not be there yet.
_AHEAD = 3

Shown = namedtuple("Shown", "image ints floats")
"""An image, and its rows of the plan's arrays: what is done to it."""

Bands = namedtuple("Bands", "is_moved pixels others")
"""Buffers for a band of an image and of its partner, and whether the image, whole and moved, lies in the first already.

It does where it was kept when it was the partner of the image before: so each is moved once.
"""


@compiled
def _is_plain(floats):
    """Whether the pixels are the source's own bytes, moved."""
    return floats[ROTATION] == _ZERO and floats[SATURATION] == _ONE and floats[HUE] == _ZERO


@compiled
def _box(ints, column):
    return (np.int64(ints[column]), np.int64(ints[column + 1]), np.int64(ints[column + 2]), np.int64(ints[column + 3]))


@compiled
def _erase(ints, box, inside, top, low, width, out, zero):
    """Zero what the cutout box covers of rows top..low-1, which are out, inside or else outside another box."""
    y0, x0, y1, x1 = _box(ints, CUTOUT)
    for y in range(max(y0, top), min(y1, low)):
        within_y = box[0] <= y < box[2]
        row = moved(out, 3 * (y - top) * width)
        for x in range(x0, x1):
            if (within_y and box[1] <= x < box[3]) == inside:
                row[3 * x] = row[3 * x + 1] = row[3 * x + 2] = zero


@compiled
def _paste(source, target, num_rows, x0, x1, width):
    """Copy columns x0..x1-1 of rows, which have PASTED_BYTES behind them.

    In bands of columns of a fixed width: to copy row by row takes as long to begin as to do.
    """
    for first in range(3 * x0, 3 * x1, PASTED_BYTES):
        count = min(3 * x1 - first, PASTED_BYTES)
        to, origin = moved(target, first), moved(source, first)
        for _ in range(num_rows):
            paste_bytes(to, origin, count)
            to, origin = moved(to, 3 * width), moved(origin, 3 * width)


@compiled
def _by_bytes(place, task, bands, own, partner, kind, ahead, out16, out32):
    """Write an image, perhaps with a box of its partner, whose bytes are the source's own and whose light is one.

    Returns whether the partner, whole and moved, lies in the second of the bands.
    """
    height, width, reflect, num_rows = place
    y0, x0, y1, x1 = box = _box(own.ints, CUTMIX)
    is_whole = height <= num_rows
    has_box = y0 < y1 and x0 < x1
    for top in range(0, height, num_rows):
        low = min(top + num_rows, height)
        count = 3 * (low - top) * width
        # A third of what is asked for at once, the rest while the band is normalised.
        soon, later = moved(ahead, 3 * top * width), count // 3
        for at in range(0, later, CACHE_LINE):
            prefetch(moved(soon, at))
        if not bands.is_moved:
            move_rows(own.image, top, low, own.ints, height, width, reflect, task.unflipped, bands.pixels)
        box_top, box_low = max(top, y0), min(low, y1)
        if has_box and box_top < box_low:
            # Whole where it can be kept: the partner's turn is next.
            first, last = (top, low) if is_whole else (box_top, box_low)
            move_rows(partner.image, first, last, partner.ints, height, width, reflect, task.unflipped, bands.others)
            box_rows = moved(bands.others, 3 * (box_top - first) * width)
            _paste(box_rows, moved(bands.pixels, 3 * (box_top - top) * width), box_low - box_top, x0, x1, width)
        normalise(
            bands.pixels,
            count,
            task.scale,
            task.shift,
            task.scale_pairs,
            task.shift_pairs,
            task.way,
            own.floats[BRIGHTNESS],
            own.floats[CONTRAST],
            kind,
            moved(soon, later),
            out16,
            out32,
        )
        if kind == FLOAT32:
            _erase(own.ints, box, False, top, low, width, out32, _ZERO)
            _erase(partner.ints, box, True, top, low, width, out32, _ZERO)
        else:
            _erase(own.ints, box, False, top, low, width, out16, np.uint16(0))
            _erase(partner.ints, box, True, top, low, width, out16, np.uint16(0))
        out16, out32 = moved(out16, count), moved(out32, count)
    return is_whole and has_box


@compiled
def _by_blend(place, task, bands, own, partner, kind, ahead, out16, out32):
    """Write the mean of two images whose bytes are the source's own and of which nothing is cut out.

    Returns whether the partner, whole and moved, lies in the second of the bands.
    """
    height, width, reflect, num_rows = place
    for top in range(0, height, num_rows):
        low = min(top + num_rows, height)
        if not bands.is_moved:
            move_rows(own.image, top, low, own.ints, height, width, reflect, task.unflipped, bands.pixels)
        move_rows(partner.image, top, low, partner.ints, height, width, reflect, task.unflipped, bands.others)
        count = 3 * (low - top) * width
        # The planes are long enough for pixels as well.
        values, others, soon = task.planes.reds, task.other_planes.reds, moved(ahead, 3 * top * width)
        brightness, contrast = own.floats[BRIGHTNESS], own.floats[CONTRAST]
        to_float32(bands.pixels, count, task.scale, task.shift, brightness, contrast, soon, values)
        brightness, contrast = partner.floats[BRIGHTNESS], partner.floats[CONTRAST]
        soon = moved(soon, count // 3)
        to_float32(bands.others, count, task.scale, task.shift, brightness, contrast, soon, others)
        blend(values, others, count, own.floats[WEIGHT], kind, out16, out32)
        out16, out32 = moved(out16, count), moved(out32, count)
    return height <= num_rows


@compiled
def _fill_planes(place, task, shown, texture, top, low, planes):
    """Write rows top..low-1 of an image, all but mixed, to planes, float32 [(low - top) w + LANES]."""
    height, width, reflect, _num_rows = place
    image, ints, floats = shown
    reds, greens, blues = planes
    num_pixels = (low - top) * width
    if floats[ROTATION] != _ZERO:
        rotate_rows(
            texture, task.y_offsets, task.x_offsets, top, low, ints, floats[ROTATION], height, width, task.row, planes
        )
    else:
        move_rows(image, top, low, ints, height, width, reflect, task.unflipped, task.pixels)
        for x in range(0, num_pixels, LANES):
            split_pixels(moved(task.pixels, 3 * x), moved(reds, x), moved(greens, x), moved(blues, x))
    if floats[SATURATION] != _ONE:
        saturate(reds, greens, blues, num_pixels, floats[SATURATION])
    if floats[HUE] != _ZERO:
        turn_hue(reds, greens, blues, num_pixels, floats[HUE])
    y0, x0, y1, x1 = _box(ints, CUTOUT)
    for channel in range(3):
        plane = planes[channel]
        normalise_plane(
            plane, num_pixels, task.scale[channel], task.shift[channel], floats[BRIGHTNESS], floats[CONTRAST]
        )
        for y in range(max(y0, top), min(y1, low)):
            row = moved(plane, (y - top) * width)
            for x in range(x0, x1):
                row[x] = _ZERO


@compiled
def _join_planes(task, num_pixels, kind, out16, out32):
    """Cast the planes by kind and write them, pixel by pixel."""
    full = num_pixels // LANES * LANES
    if kind == FLOAT32:
        reds, greens, blues = task.planes
        for x in range(0, full, LANES):
            join_pixels(moved(out32, 3 * x), moved(reds, x), moved(greens, x), moved(blues, x))
        for x in range(full, num_pixels):
            out32[3 * x], out32[3 * x + 1], out32[3 * x + 2] = reds[x], greens[x], blues[x]
    else:
        for channel in range(3):
            to_words(task.planes[channel], num_pixels, kind, task.words[channel])
        red_words, green_words, blue_words = task.words
        for x in range(0, full, LANES):
            join_pixels(moved(out16, 3 * x), moved(red_words, x), moved(green_words, x), moved(blue_words, x))
        for x in range(full, num_pixels):
            out16[3 * x], out16[3 * x + 1], out16[3 * x + 2] = red_words[x], green_words[x], blue_words[x]


@compiled
def _by_planes(place, task, own, partner, kind, ahead, out16, out32):
    """Write any image, by bands of float32, a plane for each colour."""
    height, width, _reflect, num_rows = place
    y0, x0, y1, x1 = _box(own.ints, CUTMIX)
    has_box = y0 < y1 and x0 < x1
    weight = own.floats[WEIGHT]
    rest = _ONE - weight
    blended = not has_box and weight < _ONE
    if own.floats[ROTATION] != _ZERO:
        fill_texture(own.image, height, width, task.texture)
    if partner.floats[ROTATION] != _ZERO and (has_box or blended):
        fill_texture(partner.image, height, width, task.other_texture)
    for top in range(0, height, num_rows):
        low = min(top + num_rows, height)
        count = (low - top) * width
        for at in range(3 * top * width, 3 * low * width, CACHE_LINE):
            prefetch(moved(ahead, at))
        _fill_planes(place, task, own, task.texture, top, low, task.planes)
        # Of the partner only those rows are made that are shown.
        first, last = top, low
        if not blended:
            first, last = max(top, y0), min(low, y1) if has_box else top
        if first < last:
            _fill_planes(place, task, partner, task.other_texture, first, last, task.other_planes)
        for channel in range(3):
            plane, other = task.planes[channel], task.other_planes[channel]
            if blended:
                for j in range(count):
                    plane[j] = plane[j] * weight + other[j] * rest
            else:
                for y in range(first, last):
                    row, partner_row = moved(plane, (y - top) * width), moved(other, (y - first) * width)
                    for x in range(x0, x1):
                        row[x] = partner_row[x]
        _join_planes(task, count, kind, out16, out32)
        out16, out32 = moved(out16, 3 * count), moved(out32, 3 * count)


@compiled
def _is_by_bytes(own, partner):
    """Whether an image can be assembled, perhaps with its partner, before it is normalised."""
    y0, x0, y1, x1 = _box(own.ints, CUTMIX)
    if y0 < y1 and x0 < x1:
        return (
            _is_plain(own.floats)
            and _is_plain(partner.floats)
            and own.floats[BRIGHTNESS] == partner.floats[BRIGHTNESS]
            and own.floats[CONTRAST] == partner.floats[CONTRAST]
        )
    return _is_plain(own.floats) and own.floats[WEIGHT] >= _ONE


@compiled
def _is_by_blend(own, partner):
    """Whether an image is a mean of two, and each is all there."""
    y0, x0, y1, x1 = _box(own.ints, CUTMIX)
    _, _, cut_low, _ = _box(own.ints, CUTOUT)
    _, _, partner_cut_low, _ = _box(partner.ints, CUTOUT)
    return (
        (y0 >= y1 or x0 >= x1)
        and own.floats[WEIGHT] < _ONE
        and _is_plain(own.floats)
        and _is_plain(partner.floats)
        and cut_low == 0
        and partner_cut_low == 0
    )


Batch = namedtuple(
    "Batch",
    "num_images height width reflect kind images rows ints floats scale shift way scratch scratch_bytes out draw",
)
"""What `augment` takes: sizes, whether images are extended by reflection, the kind of output, and addresses.

Of the images, uint8 [N, 3 h w]; of the rows that the batch shows, int64 [num_images]; of the plan's arrays; of scale
and shift, float32 [3], whose quickest_way() is way; of the tasks' scratch memory, so many bytes each; of the output,
[num_images, 3 h w]; and of numba_draw.draw where the plan is still to be drawn, by the Drawing that follows, or 0.
"""
_batch = reader(Batch)
_NUM_BATCH_NUMBERS = len(Batch._fields)
_ints, _floats = room_for(types.int32, NUM_INTS), room_for(types.float32, NUM_FLOATS)
_NUM_DRAWING_NUMBERS = len(Drawing._fields)
_drawing = room_for(types.int64, _NUM_DRAWING_NUMBERS)
_AT_INTS, _AT_FLOATS = Drawing._fields.index("ints"), Drawing._fields.index("floats")


@compiled
def _draw_row(draw, numbers, task, row, ints, floats):
    """Draw one row of a plan into memory of its own. draw: the address of numba_draw.draw; numbers: a Drawing."""
    drawing = _drawing()
    for at in range(_NUM_DRAWING_NUMBERS):
        drawing[at] = numbers[at]
    # The row is written so many rows behind where these lie. Rows are of four bytes a number.
    drawing[_AT_INTS] = address_of(ints) - 4 * row * NUM_INTS
    drawing[_AT_FLOATS] = address_of(floats) - 4 * row * NUM_FLOATS
    call(draw, (drawing, task, row, row + 1))


@shared
def augment(numbers, task, first, last):
    """Write images first..last-1 of a batch, having drawn what is done to them where that has not been.

    numbers: a Batch and, in that case, a Drawing.
    """
    if first == last:
        return
    batch = _batch(numbers)
    num_images, height, width, kind = batch.num_images, batch.height, batch.width, batch.kind
    source, rows, num_values = bytes_at(batch.images), longs_at(batch.rows), 3 * height * width
    all_ints, all_floats = ints_at(batch.ints), floats_at(batch.floats)
    after = last if last < num_images else 0
    last_ints, last_floats = moved(all_ints, after * NUM_INTS), moved(all_floats, after * NUM_FLOATS)
    if batch.draw != 0:
        drawing = moved(numbers, _NUM_BATCH_NUMBERS)
        call(batch.draw, (drawing, task, first, last))
        if not first <= after < last:
            # Another task fills that row, and may not have come to it.
            last_ints, last_floats = _ints(), _floats()
            _draw_row(batch.draw, drawing, task, after, last_ints, last_floats)
    rotates = last_floats[ROTATION] != _ZERO
    for i in range(first, last):
        rotates |= all_floats[i * NUM_FLOATS + ROTATION] != _ZERO
    place = Place(height, width, batch.reflect != 0, BAND_PIXELS // width)
    scratch = moved(bytes_at(batch.scratch), task * batch.scratch_bytes)
    ours = prepare(place, scratch, floats_at(batch.scale), floats_at(batch.shift), batch.way, rotates)
    value_bytes = 4 if kind == FLOAT32 else 2
    bands = Bands(False, ours.pixels, ours.others)
    for i in range(first, last):
        j = i + 1 if i + 1 < num_images else 0
        later = i + _AHEAD if i + _AHEAD < num_images else 0
        partner_ints, partner_floats = moved(all_ints, j * NUM_INTS), moved(all_floats, j * NUM_FLOATS)
        if i + 1 == last:
            partner_ints, partner_floats = last_ints, last_floats
        own = Shown(
            moved(source, rows[i] * num_values), moved(all_ints, i * NUM_INTS), moved(all_floats, i * NUM_FLOATS)
        )
        partner = Shown(moved(source, rows[j] * num_values), partner_ints, partner_floats)
        ahead = moved(source, rows[later] * num_values)
        target = moved(bytes_at(batch.out), i * num_values * value_bytes)
        out16, out32 = words_in(target, 0), floats_in(target, 0)
        keeps = False
        if _is_by_bytes(own, partner):
            keeps = _by_bytes(place, ours, bands, own, partner, kind, ahead, out16, out32)
        elif _is_by_blend(own, partner):
            keeps = _by_blend(place, ours, bands, own, partner, kind, ahead, out16, out32)
        else:
            # Its scratch memory is that of the bands: it keeps nothing.
            _by_planes(place, ours, own, partner, kind, ahead, out16, out32)
        # The partner's turn is next.
        bands = Bands(keeps, bands.others, bands.pixels)
