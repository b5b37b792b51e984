"""What no loader can beat, on the CPU by Numba: rows gathered and only widened; and a copy of large blocks."""

from functools import partial

import numpy as np
from numba import prange

from fastcifar.kernels.numba_jit import jit

NUM_BLOCKS = 64

_parallel = partial(jit, parallel=True, nogil=True)


@_parallel  # type: ignore[arg-type]
def widen(images_nb, rows_n, out_nb):  # type: ignore[no-untyped-def]
    """Write the uint8 images at `rows_n` (int64 [n]) to `out_nb`, [n, bytes an image] of a wider integer type."""
    for unsigned in prange(len(rows_n)):
        i = np.int64(unsigned)
        row = rows_n[i]
        for j in range(images_nb.shape[1]):
            out_nb[i, j] = images_nb[row, j]


@_parallel  # type: ignore[arg-type]
def copy(source, target):  # type: ignore[no-untyped-def]
    """Copy a vector, in blocks shared among threads."""
    n = len(source)
    for unsigned in prange(NUM_BLOCKS):
        i = np.int64(unsigned)
        first, last = n * i // NUM_BLOCKS, n * (i + 1) // NUM_BLOCKS
        target[first:last] = source[first:last]
