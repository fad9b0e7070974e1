"""Philox4x32-10: a counter goes in, four random words come out, and no state is kept."""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

ROUNDS = 10
# Salmon et al. 2011: the multipliers of Philox4x32, and the steps of its Weyl keys: (√5 − 1)/2 and √3 − 1, times 2³².
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(key: tuple[int, int], counters: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Encrypt counters to random words.

    Args:
        key: two 32-bit words, low word first.
        counters: (n, 4) words, each row one counter, low word first.

    Returns:
        (n, 4) random words.

    Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    >>> [hex(w) for w in philox4x32((0, 0), np.zeros((1, 4), np.uint32))[0]]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    words = tuple(np.ascontiguousarray(column, dtype=np.uint64) for column in np.asarray(counters, np.uint32).T)
    return np.stack(encrypt(key, *words), axis=1).astype(np.uint32)


def encrypt(key: tuple[int, int], c0: Words, c1: Words, c2: Words, c3: Words) -> tuple[Words, Words, Words, Words]:
    """Encrypt counters given as four arrays of 32-bit words kept in 64 bits, so that no product overflows.

    Args:
        key: two 32-bit words.
        c0: (n,) lowest words of the counters.
        c1: (n,) second words.
        c2: (n,) third words.
        c3: (n,) highest words.

    Returns:
        Four (n,) arrays of random words; the arguments are left as they are.
    """
    m0, m1 = (np.uint64(m) for m in MULTIPLIERS)
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = c0 * m0, c2 * m1
        c0, c2 = product1 >> _HALF, product0 >> _HALF
        c0 ^= c1
        c0 ^= np.uint64(k0)
        c2 ^= c3
        c2 ^= np.uint64(k1)
        product0 &= _MASK
        product1 &= _MASK
        c1, c3 = product1, product0
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3
