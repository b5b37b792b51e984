"""What no loader can beat, on the CPU by Numba: rows gathered and only widened; and a copy of large blocks."""

from functools import partial

import numpy as np
from numba import prange

from fastcifar.kernels.numba_jit import jit
from fastcifar.kernels.numba_vector import moved, pointer_to, prefetch

NUM_BLOCKS = 64
LINE_BYTES = 64
PIECE_BYTES = 4 * LINE_BYTES  # a fixed number, so that copying them becomes vector instructions
ROWS_AHEAD = 2

_parallel = partial(jit, parallel=True, nogil=True)


@_parallel  # type: ignore[arg-type]
def widen(images_nb, rows_n, out_nb):  # type: ignore[no-untyped-def]
    """Write the uint8 images at `rows_n` (int64 [n]) to `out_nb`, [n, bytes an image] of a wider integer type.

    Meanwhile a later row is asked for, or else half of the time would be waiting for memory.
    """
    num_rows, num_bytes = out_nb.shape
    num_pieces = num_bytes // PIECE_BYTES
    for unsigned in prange(num_rows):
        i = np.int64(unsigned)
        row, next_row = rows_n[i], rows_n[min(i + ROWS_AHEAD, num_rows - 1)]
        source, ahead = (
            moved(pointer_to(images_nb), row * num_bytes),
            moved(pointer_to(images_nb), next_row * num_bytes),
        )
        target = moved(pointer_to(out_nb), i * num_bytes)
        for _ in range(num_pieces):
            for line in range(0, PIECE_BYTES, LINE_BYTES):
                prefetch(moved(ahead, line))
            for j in range(PIECE_BYTES):
                target[j] = source[j]
            source, ahead, target = moved(source, PIECE_BYTES), moved(ahead, PIECE_BYTES), moved(target, PIECE_BYTES)
        for j in range(num_bytes - num_pieces * PIECE_BYTES):
            target[j] = source[j]


@_parallel  # type: ignore[arg-type]
def copy(source, target):  # type: ignore[no-untyped-def]
    """Copy a vector, in blocks shared among threads."""
    n = len(source)
    for unsigned in prange(NUM_BLOCKS):
        i = np.int64(unsigned)
        first, last = n * i // NUM_BLOCKS, n * (i + 1) // NUM_BLOCKS
        target[first:last] = source[first:last]
