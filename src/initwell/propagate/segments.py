"""Segments: indices of one axis that are exchangeable only within consecutive parts, and the pairs of them.

A class token before the patches, a gradient that reaches one slice only, channels concatenated from several layers:
such an axis falls into S segments of n_1 … n_S indices, all alike within each. A pair of indices then agrees, in one
of S segments, or differs, with its first index in one segment and its second in another (or the same):

    patterns:  agree in 1, …, agree in S,  differ (1, 1), differ (1, 2), …, differ (S, S)      S + S² of them
    counts:    n_1, …, n_S,                n_s·n_t, less n_s where s = t

With S = 1 these are the two patterns "agree" and "differ", n and n(n − 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

# Beyond so many segments of one axis, neighbours that differ least are taken as alike (and said to be).
MOST = 32


@dataclass(frozen=True, eq=False)
class Patterns:
    """The patterns of pairs of one axis.

    Attributes:
        parts: length of each segment.
        first: segment of a pair's first index, by pattern.
        second: segment of its second index.
        swap: the pattern of the same pair taken the other way round.
        counts: how many pairs there are.
        agree: weights that average over pairs that agree; adds up to 1.
        differ: weights that average over pairs that differ.
        every: weights that average over all pairs.
        rows: shape (S, patterns): averages over the second index, for a first index in each segment.
    """

    parts: tuple[int, ...]
    first: Indices
    second: Indices
    swap: Indices
    counts: Array
    agree: Array
    differ: Array
    every: Array
    rows: Array


@cache
def patterns(parts: tuple[int, ...]) -> Patterns:
    """List the patterns of an axis of these segments.

    >>> patterns((1, 3)).counts.tolist()
    [1.0, 3.0, 0.0, 3.0, 3.0, 6.0]
    """
    n, s = np.array(parts, dtype=np.float64), len(parts)
    one, two = (np.concatenate([np.arange(s), grid.ravel()]) for grid in np.indices((s, s)))
    counts = np.concatenate([n, (np.outer(n, n) - np.diag(n)).ravel()])
    total = float(n.sum())
    agree, differ = counts.copy(), counts.copy()
    agree[s:], differ[:s] = 0.0, 0.0
    rows = np.where(one == np.arange(s)[:, None], counts, 0.0) / (n[:, None] * total)
    # A segment of length 1 has no pair that differs within it; of such an axis, take that one entry.
    differ = differ / (total * (total - 1)) if total > 1 else agree
    swap = np.concatenate([np.arange(s), s + np.arange(s * s).reshape(s, s).T.ravel()])
    return Patterns(parts, one, two, swap, counts, agree / total, differ, counts / total**2, rows)


def refinement(parts: Sequence[int], finer: Sequence[int]) -> tuple[Indices, Indices]:
    """Say which old pattern, and which old segment, each new one is when segments are split.

    Args:
        parts: the old segments.
        finer: the new ones; every old border is among theirs.

    >>> refinement((4,), (1, 3))[0].tolist()
    [0, 0, 1, 1, 1, 1]
    """
    ends = list(accumulate(parts))
    old = np.searchsorted(ends, np.array(list(accumulate(finer))) - 1, side="right")
    new, s = patterns(tuple(finer)), len(parts)
    places = s + old[new.first] * s + old[new.second]
    places[: len(finer)] = old
    return places, old


def common(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """Return the coarsest segments that both can be split into, of two axes of one length.

    >>> common((1, 3), (2, 2))
    (1, 1, 2)
    """
    ends = sorted({*accumulate(a), *accumulate(b)})
    return tuple(int(y - x) for x, y in zip([0, *ends], ends, strict=False))


def merging(parts: Sequence[int], groups: Sequence[int]) -> tuple[Array, Array, tuple[int, ...]]:
    """Return matrices that average patterns and segments when neighbours are taken as alike.

    Args:
        parts: the old segments.
        groups: for each of them, the number of its new segment: 0, 0, 1, …

    Returns:
        (new patterns, old patterns), (new segments, old segments), and the new parts.
    """
    old = patterns(tuple(parts))
    n = np.bincount(groups, weights=np.array(parts, dtype=np.float64))
    new = patterns(tuple(int(x) for x in n))
    group, s, k = np.array(groups), len(parts), len(n)
    place = k + group[old.first] * k + group[old.second]
    place[:s] = group
    whole = np.zeros((new.counts.size, old.counts.size))
    whole[place, np.arange(old.counts.size)] = old.counts
    empty = new.counts == 0
    # No such pairs: any value serves, and that of the pair that agrees does no harm.
    whole[empty] = 0.0
    for i in np.nonzero(empty)[0]:
        whole[i, np.nonzero(group == new.first[i])[0][0]] = 1.0
    whole /= whole.sum(axis=1, keepdims=True)
    single = np.zeros((k, s))
    single[group, np.arange(s)] = np.array(parts) / n[group]
    return whole, single, new.parts


def along(array: Array, matrix: Array, axis: int) -> Array:
    """Apply a matrix to one axis of an array.

    >>> along(np.ones((2, 3)), np.ones((1, 3)), 1).tolist()
    [[3.0], [3.0]]
    """
    return np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)
