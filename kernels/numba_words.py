"""The counter-based generator of philox.py, compiled: many counters' words at a time."""

from typing import Any

import numpy as np
from numba import types

from fastcifar.kernels import philox, scalars
from fastcifar.kernels.numba_jit import compiled
from fastcifar.kernels.numba_vector import moved, room_for
from fastcifar.kernels.philox import LOW_WORD, NUM_ROUNDS, WORD_BITS

# Numba widens what it computes to 64 bits, so words travel in uint64 and are masked where they could exceed 32.
_U = np.uint64
_one_round, below = compiled(philox.one_round), compiled(scalars.below)

BLOCK = 64  # counters whose words are drawn at once


def room_for_words() -> Any:
    """Compiled: room for the four words of each counter of a block."""
    return room_for(types.uint32, 4 * BLOCK)


@compiled
def fill_words(indices, num, epoch, stream, seed, words):
    """Four words of the counters (index, epoch, stream) under the seed, for at most BLOCK indices (int64).

    words: uint32, all first ones, then all second ones and so on, BLOCK places apart. Round by round, each for all, so
    that the loops become vector instructions.
    """
    words_1, words_2, words_3 = moved(words, BLOCK), moved(words, 2 * BLOCK), moved(words, 3 * BLOCK)
    for i in range(num):
        index = _U(indices[i])
        words[i], words_1[i] = np.uint32(index & LOW_WORD), np.uint32(index >> WORD_BITS)
        words_2[i], words_3[i] = np.uint32(epoch), np.uint32(stream)
    k0, k1 = seed & LOW_WORD, seed >> WORD_BITS
    for _ in range(NUM_ROUNDS):
        next_k0, next_k1 = k0, k1
        for i in range(num):
            c0, c1, c2, c3, next_k0, next_k1 = _one_round(
                _U(words[i]), _U(words_1[i]), _U(words_2[i]), _U(words_3[i]), k0, k1
            )
            words[i], words_1[i], words_2[i], words_3[i] = np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)
        k0, k1 = next_k0, next_k1


@compiled
def words_of(words, i):
    """The four words of an index, in uint64, so that the product of two fits."""
    return _U(words[i]), _U(words[BLOCK + i]), _U(words[2 * BLOCK + i]), _U(words[3 * BLOCK + i])
