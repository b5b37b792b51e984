"""Maps transformed, multiplied by panels of bytes and transformed back, a few images at a time: compiled code.

Each thread takes its own images through all three steps (numba_tiles.py, numba_products.py), so that what one step
leaves, the next one finds in this core's own cache.
"""

from collections import namedtuple
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from fastcifar.kernels.numba_products import MIN_ROWS, ROWS, RowsLayout
from fastcifar.kernels.numba_share import call, reader, shared
from fastcifar.kernels.numba_tiles import Layout
from fastcifar.kernels.numba_vector import moved

Pass = namedtuple(
    "Pass",
    "length group each places tiles_row_bytes tiles_task_bytes made_row_bytes made_task_bytes into multiply out_of "
    "first second third",
)
"""What comes first of each task's numbers; the tasks' follow one another, as a task writes into its own.

How many numbers a task has; the most images that are taken at a time, an image's tiles and a tile's places; of tiles,
and of what is made of them by the product, a row's bytes and the bytes from one task's to the next's, 0 where the tiles
of all images are kept; the addresses of the three steps' functions, and where the numbers of each begin: a Layout with
what a step takes beside it, a RowsLayout, and another Layout. Tiles and products are the first task's.
"""
_pass = reader(Pass)
_NUM_PASS = len(Pass._fields)
_TILES = Layout._fields.index("tiles")
_LEFT, _NUM, _TARGET, _BLOCKS = map(RowsLayout._fields.index, ("address", "rows", "target", "blocks"))


def numbers_of(num_tasks: int, steps: tuple[Sequence[int], Sequence[int], Sequence[int]], **told: int) -> list[int]:
    """What the kernel takes: the steps' numbers, and by name what Pass tells beside their places."""
    first, second, third = steps
    at = _NUM_PASS, _NUM_PASS + len(first), _NUM_PASS + len(first) + len(second)
    length = at[2] + len(third)
    head = Pass(length=length, first=at[0], second=at[1], third=at[2], **told)
    return [*head, *first, *second, *third] * num_tasks


@lru_cache(maxsize=1)
def kernel() -> Any:
    """What does a pass over images, by threads.share_out."""

    def of_images(numbers, task, first, last):
        own = moved(numbers, task * numbers[0])
        told = _pass(own)
        into, multiply, out_of = moved(own, told.first), moved(own, told.second), moved(own, told.third)
        left, made = into[_TILES] + task * told.tiles_task_bytes, out_of[_TILES] + task * told.made_task_bytes
        num_groups = (last - first + told.group - 1) // told.group
        for group in range(num_groups):
            start = first + (last - first) * group // num_groups
            stop = first + (last - first) * (group + 1) // num_groups
            before = start * told.each
            multiply[_LEFT] = left if told.tiles_task_bytes else left + before * told.tiles_row_bytes
            into[_TILES] = multiply[_LEFT] - before * told.tiles_row_bytes
            multiply[_TARGET], out_of[_TILES] = made, made - before * told.made_row_bytes
            # Of too few tiles, whatever lies behind them is multiplied too, and never read.
            rows = max((stop - start) * told.each, MIN_ROWS)
            multiply[_NUM], multiply[_BLOCKS] = rows, (rows + ROWS - 1) // ROWS
            call(told.into, (into, task, start, stop))
            call(told.multiply, (multiply, task, 0, told.places * multiply[_BLOCKS]))
            call(told.out_of, (out_of, task, start, stop))

    return shared(of_images)
