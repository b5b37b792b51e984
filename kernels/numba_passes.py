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
    (
        "length",  # numbers of one task, first: the tasks' follow one another, as a task writes into its own
        "group",  # most images that are taken at a time
        "each",  # tiles of an image
        "places",  # of a transformed tile
        "tiles_row_bytes",  # of a tile's channels at one place, as they are transformed
        "tiles_task_bytes",  # from a task's tiles to the next one's; 0 where those of all images are kept
        "made_row_bytes",  # the same two of what the product makes of tiles
        "made_task_bytes",
        "into",  # addresses of the three steps' functions
        "multiply",
        "out_of",
        "first",  # where in a task's numbers those of each step begin: a Layout and what its step takes beside it,
        "second",  # a RowsLayout,
        "third",  # and another Layout, all as they are for the first task and the first image
    ),
)
"""What comes first of each task's numbers."""
_pass = reader(Pass)
_NUM_PASS, _LENGTH = len(Pass._fields), Pass._fields.index("length")
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
        own = moved(numbers, task * numbers[_LENGTH])
        told = _pass(own)
        into, multiply, out_of = moved(own, told.first), moved(own, told.second), moved(own, told.third)
        left, made = into[_TILES] + task * told.tiles_task_bytes, out_of[_TILES] + task * told.made_task_bytes
        num_groups = (last - first + told.group - 1) // told.group
        for at in range(num_groups):
            start = first + (last - first) * at // num_groups
            stop = first + (last - first) * (at + 1) // num_groups
            # Steps count tiles from the first image's, so that a group's are told to begin so much before they do.
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
