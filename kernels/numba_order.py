"""The order of an epoch, compiled: what every pipeline needs, and on a GPU all that is compiled for the CPU."""

import numpy as np
from numba import types

from fastcifar.kernels.numba_jit import compiled_for
from fastcifar.kernels.numba_vector import room_for
from fastcifar.kernels.numba_words import BLOCK, below, fill_words, room_for_words
from fastcifar.kernels.philox import ORDER

_U = np.uint64
_counters, _words = room_for(types.int64, BLOCK), room_for_words()


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation, int64 [num_images], as philox.epoch_order gives it."""
    order = np.empty(num_images, dtype=np.int64)
    _fisher_yates(order, np.uint64(seed), np.uint64(epoch))
    return order


@compiled_for(types.void(types.int64[::1], types.uint64, types.uint64))
def _fisher_yates(order, seed, epoch):
    """Fill order, int64 [n], with a permutation; seed and epoch uint64."""
    num_images = len(order)
    for place in range(num_images):
        order[place] = place
    counters, words = _counters(), _words()
    first = num_images
    for place in range(num_images - 1, 0, -1):
        counter = place >> 2
        if counter < first:
            num = min(counter + 1, BLOCK)
            first = counter + 1 - num
            for i in range(num):
                counters[i] = first + i
            fill_words(counters, num, epoch, ORDER, seed, words)
        other = below(_U(words[(place & 3) * BLOCK + counter - first]), place + 1)
        order[place], order[other] = order[other], order[place]
