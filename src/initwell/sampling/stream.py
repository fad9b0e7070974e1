"""A stream of random numbers that is addressed by (seed, name) and index instead of being consumed."""

import hashlib
import operator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from initwell.errors import ArgumentError
from initwell.initializers.distributions import Array
from initwell.sampling.philox import encrypt
from initwell.sampling.transforms import normal_quantile, truncated_normal, unit

_PERSON = b"initwell stream1"
_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class PhiloxStream:
    """Random numbers by index: number i depends on the seed, the path of names and i, and on nothing else.

    The 128-bit BLAKE2b hash (personalised "initwell stream1") of the seed as 8 bytes, then of each name as its UTF-8
    length in 8 bytes and its UTF-8 bytes, all little-endian, gives four words: two are Philox's key, two the upper half
    of its counter. The lower half counts blocks of two numbers: number i is made of words 0 and 1 of block i/2 if i is
    even, of words 2 and 3 of block (i−1)/2 if it is odd, the first of the two being the lower half of 64 bits.

    Args:
        seed: a whole number from 0 to 2**64 − 1.
        path: the parameter's name, then the labels of children.

    Raises:
        ArgumentError: the seed is no such number.

    >>> whole = PhiloxStream(0, ("weight",)).uniform(0, 8)
    >>> bool((whole[3:6] == PhiloxStream(0, ("weight",)).uniform(3, 6)).all())
    True
    """

    seed: int
    path: tuple[str, ...]

    def __post_init__(self) -> None:
        """Take NumPy's whole numbers for Python's; refuse everything else."""
        object.__setattr__(self, "seed", checked_seed(self.seed))

    def bits(self, start: int, stop: int) -> NDArray[np.uint64]:
        """Return (stop - start,) words of 64 random bits."""
        if stop <= start:
            return np.empty(0, np.uint64)
        key0, key1, high0, high1 = self._words()
        blocks = np.arange(start // 2, (stop + 1) // 2, dtype=np.uint64)
        high = np.full((2, blocks.size), [[high0], [high1]], dtype=np.uint64)
        c0, c1, c2, c3 = encrypt((key0, key1), blocks & np.uint64(_WORD), blocks >> np.uint64(32), high[0], high[1])
        pairs = np.empty((blocks.size, 2), np.uint64)
        np.bitwise_or(c0, c1 << np.uint64(32), out=pairs[:, 0])
        np.bitwise_or(c2, c3 << np.uint64(32), out=pairs[:, 1])
        first = start % 2
        return pairs.reshape(-1)[first : first + stop - start]

    def uniform(self, start: int, stop: int) -> Array:
        """Return numbers start to stop of U(0, 1), the ends excluded."""
        return unit(self.bits(start, stop))

    def normal(self, start: int, stop: int) -> Array:
        """Return numbers start to stop of N(0, 1)."""
        return normal_quantile(self.uniform(start, stop))

    def truncated_normal(self, start: int, stop: int, low: float, high: float) -> Array:
        """Return numbers start to stop of N(0, 1) kept within [low, high]."""
        return truncated_normal(self.uniform(start, stop), low, high)

    def child(self, label: str) -> "PhiloxStream":
        """Return an independent stream, the same for the same label."""
        return PhiloxStream(self.seed, (*self.path, label))

    def _words(self) -> tuple[int, int, int, int]:
        digest = hashlib.blake2b(self.seed.to_bytes(8, "little"), digest_size=16, person=_PERSON)
        for name in self.path:
            encoded = name.encode("utf-8")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        value = int.from_bytes(digest.digest(), "little")
        return value & _WORD, value >> 32 & _WORD, value >> 64 & _WORD, value >> 96


def checked_seed(seed: object) -> int:
    """Return the seed as a Python int.

    Raises:
        ArgumentError: not a whole number from 0 to 2**64 − 1.

    >>> checked_seed(np.int64(3))
    3
    """
    cure = "Give a whole number from 0 to 2**64 - 1."
    if isinstance(seed, (bool, np.bool_)) or not hasattr(seed, "__index__"):
        raise ArgumentError("seed", seed, cure)
    value = operator.index(seed)
    if not 0 <= value < 2**64:
        raise ArgumentError("seed", seed, cure)
    return value
