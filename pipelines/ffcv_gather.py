"""Images out of a .beton's memory into a batch, compiled once and cached on disk. FFCV's own decoder cannot be cached.

One thread: copying 3 KB an image takes a small share of what the fused kernel takes, beside which it runs.
"""

import numpy as np
from numba import types

from fastcifar.kernels.numba_jit import compiled_for


def _array(dtype, ndim: int, readonly: bool = True):  # type: ignore[no-untyped-def]
    return types.Array(dtype, ndim, "C", readonly=readonly)


_OUT = _array(types.uint8, 2, readonly=False)
_MAPPED = types.void(_array(types.uint64, 1), _array(types.int64, 1), _array(types.uint8, 1), _OUT)
_STREAMED = types.void(
    _array(types.uint64, 1), _array(types.int64, 1), _array(types.uint8, 2), _array(types.uint32, 1), types.int64, _OUT
)


@compiled_for(_MAPPED)
def gather_mapped(pointers_n, samples_n, memory, out_nb):  # type: ignore[no-untyped-def]
    """Copy the images of `samples_n` from a mapped file.

    pointers_n: uint64 [N], where each image of the file begins; samples_n: int64 [n]; memory: uint8 [bytes of the
    file]; out_nb: uint8 [n, bytes an image].
    """
    size = out_nb.shape[1]
    for i in range(len(samples_n)):
        start = np.int64(pointers_n[samples_n[i]])
        out_nb[i, :] = memory[start : start + size]


@compiled_for(_STREAMED)
def gather_streamed(pointers_n, samples_n, pages_sb, slot_of_page, page_bits, out_nb):  # type: ignore[no-untyped-def]
    """Copy the images of `samples_n` from pages read into slots.

    pages_sb: uint8 [slots, bytes a page]; slot_of_page: uint32, by page of the file; page_bits: log2 of the bytes a
    page.
    """
    size = out_nb.shape[1]
    for i in range(len(samples_n)):
        pointer = np.int64(pointers_n[samples_n[i]])
        page = pointer >> page_bits
        start = pointer - (page << page_bits)
        out_nb[i, :] = pages_sb[slot_of_page[page], start : start + size]
