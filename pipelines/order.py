"""In which order an epoch shows the images: a pure function of (seed, epoch), and of whether they are streamed."""

import numpy as np

from fastcifar.kernels import epoch_order

# A streamed epoch reads the file in blocks of about this many bytes (FFCV's page size) in random order, and shuffles
# the images of this many blocks with each other: 32 MB, about 10,900 images of 32x32.
BLOCK_BYTES = 1 << 21
WINDOW_BLOCKS = 16


def shuffled(rows_n: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """`rows_n` (int64 [n]) in the epoch's order, every one once."""
    return rows_n[epoch_order(len(rows_n), seed, epoch)]


def streamed(rows_n: np.ndarray, image_bytes: int, seed: int, epoch: int) -> np.ndarray:
    """`rows_n` (int64 [n]) in an order that a file can be read in: random blocks, shuffled in windows, every row once.

    Rows are those of a file that holds images of `image_bytes` one after the other. Only the images of
    `WINDOW_BLOCKS` blocks are shuffled with each other, so that no more than two windows need be in memory.
    """
    blocks_n = rows_n // max(1, BLOCK_BYTES // image_bytes)
    blocks = np.flatnonzero(np.bincount(blocks_n))
    window_of_block = np.zeros(int(blocks[-1]) + 1, dtype=np.uint32)
    window_of_block[blocks[epoch_order(len(blocks), seed, epoch)]] = np.arange(len(blocks)) // WINDOW_BLOCKS
    # A stable sort by window of rows already shuffled leaves each window shuffled.
    order = epoch_order(len(rows_n), seed, epoch)
    windows_n = window_of_block[blocks_n[order]]
    return rows_n[order[np.argsort(windows_n, kind="stable")]]
