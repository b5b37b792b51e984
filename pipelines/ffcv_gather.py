"""Images out of a .beton's memory into a batch, compiled once and cached on disk. FFCV's own decoder cannot be cached.

Numba copies slices byte by byte, so the copying is by pointers, four times as fast: nothing here checks bounds, and
the file must have been checked. One thread: copying 3 KB an image takes a small share of what the fused kernel takes, beside which it runs.
"""

import numpy as np
from numba import njit, types

from fastcifar.kernels.numba_vector import copy_bytes, moved, pointer_to


def _array(dtype, ndim: int, readonly: bool = True):  # type: ignore[no-untyped-def]
    return types.Array(dtype, ndim, "C", readonly=readonly)


_OUT = _array(types.uint8, 2, readonly=False)
_MAPPED = types.void(_array(types.uint64, 1), _array(types.int64, 1), _array(types.uint8, 1), _OUT)
_STREAMED = types.void(
    _array(types.uint64, 1), _array(types.int64, 1), _array(types.uint8, 2), _array(types.uint32, 1), types.int64, _OUT
)


@njit(_MAPPED, cache=True, nogil=True)
def gather_mapped(pointers_n, samples_n, memory, out_nb):  # type: ignore[no-untyped-def]
    """Copy the images of `samples_n` from a mapped file.

    pointers_n: uint64 [N], where each image of the file begins; samples_n: int64 [n]; memory: uint8 [bytes of the
    file];
    out_nb: uint8 [n, bytes an image].
    """
    size = out_nb.shape[1]
    source, target = pointer_to(memory), pointer_to(out_nb)
    for i in range(len(samples_n)):
        copy_bytes(moved(target, i * size), moved(source, np.int64(pointers_n[samples_n[i]])), size)


@njit(_STREAMED, cache=True, nogil=True)
def gather_streamed(pointers_n, samples_n, pages_sb, slot_of_page, page_bits, out_nb):  # type: ignore[no-untyped-def]
    """Copy the images of `samples_n` from pages read into slots.

    pages_sb: uint8 [slots, bytes a page]; slot_of_page: uint32, by page of the file; page_bits: log2 of the bytes a
    page.
    """
    size = out_nb.shape[1]
    source, target = pointer_to(pages_sb), pointer_to(out_nb)
    for i in range(len(samples_n)):
        pointer = np.int64(pointers_n[samples_n[i]])
        page = pointer >> page_bits
        place = (np.int64(slot_of_page[page]) << page_bits) + (pointer - (page << page_bits))
        copy_bytes(moved(target, i * size), moved(source, place), size)
