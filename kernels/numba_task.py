"""A thread's buffers, compiled for the CPU: where they lie in its scratch memory, and what is the same for all images.

`Place` holds the images' height, width and whether they are extended by reflection, and how many rows make a band;
`Starts` at which byte of the scratch memory each buffer begins, a multiple of CACHE_LINE, and where the last one ends;
`Task` the buffers, pointers all, and the quickest way of normalising to bfloat16 that is right for all bytes (`way`).
"""

from collections import namedtuple

import numpy as np
from numba import types

from fastcifar.kernels.numba_cast import CHUNK, pair_up
from fastcifar.kernels.numba_jit import compiled, compiled_for
from fastcifar.kernels.numba_rows import Row, fill_offsets, rotation_reach
from fastcifar.kernels.numba_vector import CACHE_LINE, LANES, PASTED_BYTES, SLACK, floats_in, ints_in, moved, words_in

BAND_PIXELS = 1024  # one 32x32 image, and more than a row of the largest
PLANE_LENGTH = BAND_PIXELS + LANES

Place = namedtuple("Place", "height width reflect num_rows")
Planes = namedtuple("Planes", "reds greens blues")
Starts = namedtuple(
    "Starts",
    "scale shift scale_pairs shift_pairs pixels others unflipped planes words row y_offsets x_offsets texture end",
)
Task = namedtuple(
    "Task",
    "scale shift scale_pairs shift_pairs way pixels others unflipped planes other_planes words row y_offsets "
    "x_offsets texture other_texture",
)


@compiled
def _aligned(num_bytes):
    return (num_bytes + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE


@compiled
def _starts(height, width):
    """Where the buffers of a task lie for images of this size."""
    reach = rotation_reach(height, width)
    chunk, plane_bytes = _aligned(4 * CHUNK), 4 * PLANE_LENGTH
    # What is read and written in vectors may reach beyond the last pixel.
    pixel_bytes = _aligned(3 * BAND_PIXELS + max(3 * LANES, PASTED_BYTES, SLACK))
    pixels = 4 * chunk
    others = pixels + pixel_bytes
    # Before what is to be flipped there is room as well.
    unflipped = others + pixel_bytes + _aligned(SLACK)
    planes = unflipped + pixel_bytes
    words = planes + _aligned(6 * plane_bytes)
    row = words + _aligned(3 * plane_bytes // 2)
    y_offsets = row + _aligned(8 * 4 * (width + LANES))
    x_offsets = y_offsets + _aligned(4 * (height + 2 * reach))
    texture = x_offsets + _aligned(4 * (width + 2 * reach))
    end = texture + _aligned(2 * 4 * (height + 1) * (width + 1))
    return Starts(
        0,
        chunk,
        2 * chunk,
        3 * chunk,
        pixels,
        others,
        unflipped,
        planes,
        words,
        row,
        y_offsets,
        x_offsets,
        texture,
        end,
    )


@compiled_for(types.int64(types.int64, types.int64))
def scratch_bytes(height, width):
    """Size of the scratch memory that a task needs for images of this size."""
    return _starts(height, width).end


@compiled
def _three(first):
    return Planes(first, moved(first, PLANE_LENGTH), moved(first, 2 * PLANE_LENGTH))


@compiled
def prepare(place, scratch, scale3, shift3, way, rotates):
    """Lay out a task's scratch memory and fill what is the same for all its images."""
    height, width, reflect, _num_rows = place
    starts = _starts(height, width)
    planes, texture = floats_in(scratch, starts.planes), ints_in(scratch, starts.texture)
    row_ints, row_floats = ints_in(scratch, starts.row), floats_in(scratch, starts.row)
    length = width + LANES
    row = Row(
        row_ints,
        moved(row_ints, length),
        moved(row_floats, 2 * length),
        moved(row_floats, 3 * length),
        moved(row_ints, 4 * length),
        moved(row_ints, 5 * length),
        moved(row_ints, 6 * length),
        moved(row_ints, 7 * length),
    )
    task = Task(
        floats_in(scratch, starts.scale),
        floats_in(scratch, starts.shift),
        floats_in(scratch, starts.scale_pairs),
        floats_in(scratch, starts.shift_pairs),
        way,
        moved(scratch, starts.pixels),
        moved(scratch, starts.others),
        moved(scratch, starts.unflipped),
        _three(planes),
        _three(moved(planes, 3 * PLANE_LENGTH)),
        _three(words_in(scratch, starts.words)),
        row,
        ints_in(scratch, starts.y_offsets),
        ints_in(scratch, starts.x_offsets),
        texture,
        moved(texture, (height + 1) * (width + 1)),
    )
    for j in range(CHUNK):
        task.scale[j], task.shift[j] = scale3[j % 3], shift3[j % 3]
    pair_up(task.scale, task.scale_pairs)
    pair_up(task.shift, task.shift_pairs)
    if rotates:
        # The last row and column stay black.
        for j in range(2 * (height + 1) * (width + 1)):
            texture[j] = np.int32(0)
        reach = rotation_reach(height, width)
        fill_offsets(task.y_offsets, height, reach, width + 1, reflect)
        fill_offsets(task.x_offsets, width, reach, np.int64(1), reflect)
    return task
