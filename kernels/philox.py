"""The counter-based generator Philox-4x32-10 in NumPy, and how its words become numbers.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; checked against the known
answers of their Random123 library. The key is the seed. The counter is (index, epoch, stream), so that what is drawn
for an image never depends on what was drawn before. The compiled forms are tested against this one.
"""

from typing import Any

import numpy as np

# Words travel in uint64, so that the product of two fits; LOW_WORD and WORD_BITS take it apart.
MULTIPLIER_0, MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL_0, WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
LOW_WORD, WORD_BITS = np.uint64(0xFFFFFFFF), np.uint64(32)
NUM_ROUNDS = 10

# A word's highest bit tosses a coin; its highest 24, which float32 holds exactly, make a number in [0, 1).
TOP_BIT, UNIT_BITS, UNIT = np.uint64(31), np.uint64(8), np.float32(2.0**-24)

# The last word of the counter: which four words of an image these are.
GEOMETRY = 0  # crop along y, crop along x, flip, rotation
ALTERNATING = 1  # flip in epoch 0
ERASE_LIGHT = 2  # cutout y, cutout x, brightness, contrast
COLOUR = 3  # saturation, hue
MIX = 4  # whether, which kind, label weight
BOX = 5  # CutMix centre y, centre x
ORDER = 6  # shuffling


def one_round(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """One of NUM_ROUNDS rounds: a counter of four words and a key of two for the next. All uint64, scalars or vectors.

    The compiled forms compile this same function.
    """
    product_0, product_1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
    return (
        (product_1 >> WORD_BITS) ^ c1 ^ k0,
        product_1 & LOW_WORD,
        (product_0 >> WORD_BITS) ^ c3 ^ k1,
        product_0 & LOW_WORD,
        (k0 + WEYL_0) & LOW_WORD,
        (k1 + WEYL_1) & LOW_WORD,
    )


def philox_4x32(counter_n4: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Four random words for each counter.

    counter_n4: uint32 [n, 4]; key: two 32-bit integers. Returns uint32 [n, 4].
    """
    counters = np.asarray(counter_n4).astype(np.uint64)
    state: tuple[Any, ...] = (*(counters[:, word] for word in range(4)), *(np.uint64(word) for word in key))
    for _ in range(NUM_ROUNDS):
        state = one_round(*state)
    return np.stack(state[:4], axis=1).astype(np.uint32)


def words(seed: int, epoch: int, indices_n: np.ndarray, stream: int) -> np.ndarray:
    """Four random words for each index: uint32 [n, 4] from int64 [n]."""
    indices = np.asarray(indices_n, dtype=np.int64).astype(np.uint64)
    counters = np.empty((len(indices), 4), dtype=np.uint32)
    counters[:, 0] = indices & LOW_WORD
    counters[:, 1] = indices >> WORD_BITS
    counters[:, 2] = epoch
    counters[:, 3] = stream
    return philox_4x32(counters, (seed & 0xFFFFFFFF, seed >> 32))


def below(words_n: np.ndarray, bound: int) -> np.ndarray:
    """Integers 0..bound-1, int64 [n]: the high half of word * bound, a bias below bound / 2**32."""
    return ((words_n.astype(np.uint64) * np.uint64(bound)) >> WORD_BITS).astype(np.int64)


def unit(words_n: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1), float32 [n]: the high 24 bits, exact in float32."""
    return (words_n >> np.uint32(UNIT_BITS)).astype(np.float32) * UNIT


def symmetric(words_n: np.ndarray) -> np.ndarray:
    """Numbers in [-1, 1), float32 [n], exact in float32."""
    return unit(words_n) * np.float32(2.0) - np.float32(1.0)


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation, int64 [num_images]: Fisher-Yates from the last place down, place i drawn from word i."""
    blocks = np.arange((num_images + 3) // 4, dtype=np.int64)
    drawn = words(seed, epoch, blocks, ORDER).reshape(-1)[:num_images].astype(np.uint64)
    products: np.ndarray = drawn * np.arange(1, num_images + 1, dtype=np.uint64)
    places = products >> WORD_BITS
    order = list(range(num_images))
    for place, other in zip(range(num_images - 1, 0, -1), reversed(places.tolist()), strict=False):
        order[place], order[other] = order[other], order[place]
    return np.array(order, dtype=np.int64)
