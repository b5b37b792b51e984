"""Pixels, compiled for the CPU: image by image, in bands of rows, through buffers that stay in the first-level cache.

A band is assembled in uint8 (crop, flip, CutMix of equally lit images), normalised, cast and written. What cannot be
said in uint8 (MixUp, differently lit partners, rotation, colour) goes through a band of float32 instead.

Arguments are pointers, named as the arrays would be; `place` holds the images' height, width and whether they are
extended by reflection, and `task` the buffers of one thread.
"""

from collections import namedtuple

import numpy as np

from fastcifar.kernels.numba_cast import CHUNK, FLOAT32, cast, normalise, to_float32
from fastcifar.kernels.numba_colour import saturate, turn_hue
from fastcifar.kernels.numba_jit import compiled, compiled_for
from fastcifar.kernels.numba_rows import (
    fill_offsets,
    fill_texture,
    move_rows,
    rotate_rows,
    rotation_reach,
)
from fastcifar.kernels.numba_types import SERIAL_AUGMENT
from fastcifar.kernels.numba_vector import (
    SLACK,
    bytes_at,
    copy_bytes,
    floats_at,
    ints_at,
    moved,
    pointer_to,
    prefetch,
    words_at,
)
from fastcifar.kernels.plan import (
    BRIGHTNESS,
    CONTRAST,
    CUTMIX,
    CUTOUT,
    HUE,
    NUM_FLOATS,
    NUM_INTS,
    ROTATION,
    SATURATION,
    WEIGHT,
)

BAND_VALUES = 3072  # one 32x32 image

_ZERO, _ONE = np.float32(0), np.float32(1)

Place = namedtuple("Place", "height width reflect num_rows")
Task = namedtuple(
    "Task",
    "scale shift pixels others unflipped values other_values planes y_offsets x_offsets texture",
)


@compiled
def _aligned(num_bytes):
    return (num_bytes + 63) // 64 * 64


@compiled
def layout(height, width):
    """Where in a task's scratch memory its buffers begin, as Task orders them, and its size at the end; in bytes."""
    band, reach = max(BAND_VALUES, 3 * width), rotation_reach(height, width)
    shift = _aligned(4 * CHUNK)
    pixels = shift + _aligned(4 * CHUNK)
    others = pixels + _aligned(band + SLACK)
    # Before what is to be flipped there is room as well.
    unflipped = others + _aligned(band + SLACK) + 64
    values = unflipped + _aligned(band + SLACK)
    other_values = values + _aligned(4 * (band + SLACK))
    planes = other_values + _aligned(4 * (band + SLACK))
    y_offsets = planes + _aligned(4 * band)
    x_offsets = y_offsets + _aligned(4 * (height + 2 * reach))
    texture = x_offsets + _aligned(4 * (width + 2 * reach))
    end = texture + _aligned(3 * (height + 1) * (width + 1) + SLACK)
    return (
        0,
        shift,
        pixels,
        others,
        unflipped,
        values,
        other_values,
        planes,
        y_offsets,
        x_offsets,
        texture,
        end,
    )


@compiled
def _is_plain(floats):
    """Whether the pixels are the source's own bytes, moved."""
    return floats[ROTATION] == _ZERO and floats[SATURATION] == _ONE and floats[HUE] == _ZERO


@compiled
def _box(ints, column):
    return (
        np.int64(ints[column]),
        np.int64(ints[column + 1]),
        np.int64(ints[column + 2]),
        np.int64(ints[column + 3]),
    )


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
def _by_bytes(place, task, image, partner, ints, partner_ints, floats, kind, out16, out32):
    """Write an image, perhaps with a box of its partner, whose bytes are the source's own and whose light is one."""
    height, width, reflect, num_rows = place
    y0, x0, y1, x1 = box = _box(ints, CUTMIX)
    for top in range(0, height, num_rows):
        low = min(top + num_rows, height)
        move_rows(image, top, low, ints, height, width, reflect, task.unflipped, task.pixels)
        box_top, box_low = max(top, y0), min(low, y1)
        if box_top < box_low and x0 < x1:
            move_rows(
                partner,
                box_top,
                box_low,
                partner_ints,
                height,
                width,
                reflect,
                task.unflipped,
                task.others,
            )
            target = moved(task.pixels, 3 * ((box_top - top) * width + x0))
            source = moved(task.others, 3 * x0)
            for _ in range(box_low - box_top):
                copy_bytes(target, source, 3 * (x1 - x0))
                target, source = moved(target, 3 * width), moved(source, 3 * width)
        count = 3 * (low - top) * width
        normalise(
            task.pixels,
            count,
            task.scale,
            task.shift,
            floats[BRIGHTNESS],
            floats[CONTRAST],
            kind,
            out16,
            out32,
        )
        if kind == FLOAT32:
            _erase(ints, box, False, top, low, width, out32, _ZERO)
            _erase(partner_ints, box, True, top, low, width, out32, _ZERO)
        else:
            _erase(ints, box, False, top, low, width, out16, np.uint16(0))
            _erase(partner_ints, box, True, top, low, width, out16, np.uint16(0))
        out16, out32 = moved(out16, count), moved(out32, count)


@compiled
def _fill_values(place, task, image, top, low, ints, floats, values):
    """Write rows top..low-1 of an image, all but mixed, to values, float32 [3 (low - top) w + SLACK]."""
    height, width, reflect, _num_rows = place
    num_pixels = (low - top) * width
    brightness, contrast = floats[BRIGHTNESS], floats[CONTRAST]
    if floats[ROTATION] != _ZERO:
        fill_texture(image, height, width, task.texture)
        rotate_rows(
            task.texture,
            task.y_offsets,
            task.x_offsets,
            top,
            low,
            ints,
            floats[ROTATION],
            height,
            width,
            values,
        )
    else:
        move_rows(image, top, low, ints, height, width, reflect, task.unflipped, task.pixels)
    if _is_plain(floats):
        to_float32(
            task.pixels,
            3 * num_pixels,
            task.scale,
            task.shift,
            brightness,
            contrast,
            values,
        )
    else:
        if floats[ROTATION] == _ZERO:
            for j in range(3 * num_pixels):
                values[j] = np.float32(task.pixels[j])
        if floats[SATURATION] != _ONE or floats[HUE] != _ZERO:
            _colour(values, num_pixels, floats[SATURATION], floats[HUE], task.planes)
        to_float32(values, 3 * num_pixels, task.scale, task.shift, brightness, contrast, values)
    y0, x0, y1, x1 = _box(ints, CUTOUT)
    for y in range(max(y0, top), min(y1, low)):
        row = moved(values, 3 * (y - top) * width)
        for j in range(3 * x0, 3 * x1):
            row[j] = _ZERO


@compiled
def _colour(values, num_pixels, saturation, hue, planes):
    reds, greens, blues = (
        planes,
        moved(planes, num_pixels),
        moved(planes, 2 * num_pixels),
    )
    for x in range(num_pixels):
        reds[x], greens[x], blues[x] = (
            values[3 * x],
            values[3 * x + 1],
            values[3 * x + 2],
        )
    if saturation != _ONE:
        saturate(reds, greens, blues, num_pixels, saturation)
    if hue != _ZERO:
        turn_hue(reds, greens, blues, num_pixels, hue)
    for x in range(num_pixels):
        values[3 * x], values[3 * x + 1], values[3 * x + 2] = (
            reds[x],
            greens[x],
            blues[x],
        )


@compiled
def _by_values(
    place,
    task,
    image,
    partner,
    ints,
    partner_ints,
    floats,
    partner_floats,
    kind,
    out16,
    out32,
):
    """Write any image, by bands of float32."""
    height, width, _reflect, num_rows = place
    values, others = task.values, task.other_values
    y0, x0, y1, x1 = _box(ints, CUTMIX)
    has_box = y0 < y1 and x0 < x1
    weight = floats[WEIGHT]
    rest = _ONE - weight
    blended = not has_box and weight < _ONE
    for top in range(0, height, num_rows):
        low = min(top + num_rows, height)
        count = 3 * (low - top) * width
        _fill_values(place, task, image, top, low, ints, floats, values)
        if blended or (has_box and max(top, y0) < min(low, y1)):
            _fill_values(place, task, partner, top, low, partner_ints, partner_floats, others)
        if blended:
            for j in range(count):
                values[j] = values[j] * weight + others[j] * rest
        elif has_box:
            for y in range(max(top, y0), min(low, y1)):
                for j in range(3 * ((y - top) * width + x0), 3 * ((y - top) * width + x1)):
                    values[j] = others[j]
        cast(values, count, kind, out16, out32)
        out16, out32 = moved(out16, count), moved(out32, count)


@compiled
def _is_by_bytes(ints, floats, partner_floats):
    """Whether an image can be assembled, perhaps with its partner, before it is normalised."""
    y0, x0, y1, x1 = _box(ints, CUTMIX)
    if y0 < y1 and x0 < x1:
        return (
            _is_plain(floats)
            and _is_plain(partner_floats)
            and floats[BRIGHTNESS] == partner_floats[BRIGHTNESS]
            and floats[CONTRAST] == partner_floats[CONTRAST]
        )
    return _is_plain(floats) and floats[WEIGHT] >= _ONE


@compiled
def _prepare(place, scratch, scale3, shift3, rotates):
    """Lay out a task's scratch memory and fill what is the same for all its images."""
    height, width, reflect, _num_rows = place
    (
        start,
        shift,
        pixels,
        others,
        unflipped,
        values,
        other_values,
        planes,
        y_offsets,
        x_offsets,
        texture,
        end,
    ) = layout(height, width)
    task = Task(
        floats_at(scratch, start),
        floats_at(scratch, shift),
        moved(scratch, pixels),
        moved(scratch, others),
        moved(scratch, unflipped),
        floats_at(scratch, values),
        floats_at(scratch, other_values),
        floats_at(scratch, planes),
        ints_at(scratch, y_offsets),
        ints_at(scratch, x_offsets),
        moved(scratch, texture),
    )
    for j in range(CHUNK):
        task.scale[j], task.shift[j] = scale3[j % 3], shift3[j % 3]
    if rotates:
        for j in range(end - texture):
            task.texture[j] = np.uint8(0)
        reach = rotation_reach(height, width)
        fill_offsets(task.y_offsets, height, reach, 3 * (width + 1), reflect)
        fill_offsets(task.x_offsets, width, reach, np.int64(3), reflect)
    return task


@compiled_for(SERIAL_AUGMENT)
def augment_range(
    first,
    last,
    images,
    rows,
    ints_nk,
    floats_nk,
    height,
    width,
    reflect,
    scale3,
    shift3,
    kind,
    scratch,
    out,
):
    """Write images first..last-1 of the batch.

    images and out: addresses of uint8 [N, 3 h w] and of the output [n, 3 h w], of the dtype that kind says. scratch:
    uint8 of the size that layout() gives, this task's own.
    """
    num_images, num_values = len(rows), 3 * height * width
    rotates = False
    for i in range(first, last + 1):
        rotates |= floats_nk[i if i < num_images else 0, ROTATION] != _ZERO
    place = Place(height, width, reflect, max(BAND_VALUES // (3 * width), 1))
    task = _prepare(place, pointer_to(scratch), scale3, shift3, rotates)
    source, all_ints, all_floats = (
        bytes_at(images),
        pointer_to(ints_nk),
        pointer_to(floats_nk),
    )
    value_bytes = 4 if kind == FLOAT32 else 2
    for i in range(first, last):
        j = i + 1 if i + 1 < num_images else 0
        image, partner = (
            moved(source, rows[i] * num_values),
            moved(source, rows[j] * num_values),
        )
        # The partner is the next image to be augmented.
        for at in range(0, num_values, 64):
            prefetch(moved(partner, at))
        ints, partner_ints = (
            moved(all_ints, i * NUM_INTS),
            moved(all_ints, j * NUM_INTS),
        )
        floats, partner_floats = (
            moved(all_floats, i * NUM_FLOATS),
            moved(all_floats, j * NUM_FLOATS),
        )
        target = moved(bytes_at(out), i * num_values * value_bytes)
        out16, out32 = words_at(target, 0), floats_at(target, 0)
        if _is_by_bytes(ints, floats, partner_floats):
            _by_bytes(
                place,
                task,
                image,
                partner,
                ints,
                partner_ints,
                floats,
                kind,
                out16,
                out32,
            )
        else:
            _by_values(
                place,
                task,
                image,
                partner,
                ints,
                partner_ints,
                floats,
                partner_floats,
                kind,
                out16,
                out32,
            )
