"""Segments: indices of one axis that are exchangeable only within consecutive parts, and the pairs of them.

A class token before the patches, a gradient that reaches one slice only, channels concatenated from several layers:
such an axis falls into S segments of n_1 … n_S indices, all alike within each. A pair of indices then agrees, in one
of S segments, or differs, with its first index in one segment and its second in another (or the same):

    patterns:  agree in 1, …, agree in S,  differ (1, 1), differ (1, 2), …, differ (S, S)      S + S² of them
    counts:    n_1, …, n_S,                n_s·n_t, less n_s where s = t

With S = 1 these are the two patterns "agree" and "differ", n and n(n − 1).
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, reduce
from itertools import accumulate
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
T = TypeVar("T", np.float64, np.int64)

# So few patterns are averaged by a matrix of new by old.
_SMALL = 64
# Weights of so many patterns are kept.
FEW = 1 << 11

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
    """

    parts: tuple[int, ...]
    first: Indices
    second: Indices
    swap: Indices
    counts: Array
    agree: Array
    differ: Array
    every: Array

    @cached_property
    def rows(self) -> Array:
        """Averages over the second index, for a first index in each segment: of shape (S, patterns)."""
        n = np.array(self.parts, dtype=np.float64)
        ours = self.first == np.arange(len(n))[:, None]
        return np.asarray(np.where(ours, self.counts, 0.0) / (n[:, None] * n.sum()))


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
    # A segment of length 1 has no pair that differs within it; of such an axis, take that one entry.
    differ = differ / (total * (total - 1)) if total > 1 else agree
    swap = np.concatenate([np.arange(s), s + np.arange(s * s).reshape(s, s).T.ravel()])
    return Patterns(parts, one, two, swap, counts, agree / total, differ, counts / total**2)


Layout = tuple[tuple[int, ...], ...]


def over(layout: Layout, differ: Collection[int]) -> Array:
    """Return the weights that average over all pairs that differ along some axes and agree along the others.

    Args:
        layout: the segments of each axis.
        differ: which axes.

    >>> over(((4,), (1, 3)), [0]).tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.75, 0.0, 0.0, 0.0, 0.0]
    """
    each = [patterns(parts).differ if i in differ else patterns(parts).agree for i, parts in enumerate(layout)]
    return np.asarray(reduce(np.multiply.outer, each, np.ones(()))).ravel()


def stretches(kinds: NDArray[np.int64]) -> tuple[int, ...]:
    """Return the lengths of stretches of neighbours of one kind.

    >>> stretches(np.array([0, 1, 2, 2, 3]))
    (1, 1, 2, 1)
    """
    borders = np.flatnonzero(np.diff(kinds)) + 1
    return tuple(np.diff([0, *borders.tolist(), kinds.size]).tolist())


def average(moments: Array, layout: Layout, differ: Collection[int]) -> float:
    """Return the average of moments over all pairs that differ along these axes and agree along the others.

    Args:
        moments: by pattern, an axis for each of the layout's.
        layout: the segments of each axis.
        differ: axes.

    >>> average(np.array([2.0, 4.0, 1.0, 0.5, 0.5, 3.0]), ((1, 2),), [0])  # of six, four are 0.5, two 3
    1.3333333333333333
    """
    if moments.size <= FEW:
        return float(averaging(layout, tuple(differ)).dot(moments.reshape(-1)))
    for axis, parts in enumerate(layout):
        pairs = patterns(parts)
        moments = (pairs.differ if axis in differ else pairs.agree) @ moments.reshape(pairs.counts.size, -1)
    return float(moments.item())


@lru_cache(maxsize=4096)
def averaging(layout: Layout, differ: tuple[int, ...]) -> Array:
    """Return ``over`` of few patterns, the same each time."""
    return over(layout, differ)


@lru_cache(maxsize=4096)
def refinement(parts: tuple[int, ...], finer: tuple[int, ...]) -> tuple[Indices, Indices]:
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


@dataclass(frozen=True, eq=False)
class Merging:
    """What becomes of patterns and segments when neighbouring segments are taken as alike.

    Attributes:
        parts: the new segments.
        patterns: new pattern of each old one.
        groups: new segment of each old one.
        counts: weights of the old patterns in the averages.
        lengths: weights of the old segments.
        empty: new patterns that no pair has → the old pattern whose value serves there, as any would.
    """

    parts: tuple[int, ...]
    patterns: Indices
    groups: Indices
    counts: Array
    lengths: Array
    empty: tuple[tuple[int, int], ...]

    def moments(self, array: Array, axis: int) -> Array:
        """Average patterns along one axis of an array."""
        if len(self.patterns) <= _SMALL:
            return along(array, self.matrix, axis)
        return self._moments(array, axis)

    @cached_property
    def matrix(self) -> Array:
        """What takes a few patterns to the new ones."""
        return self._moments(np.eye(len(self.patterns)), 0)

    def _moments(self, array: Array, axis: int) -> Array:
        found = _averaged(array, self.patterns, self.counts, len(self.parts) * (len(self.parts) + 1), axis)
        for new, old in self.empty:
            found[(slice(None),) * axis + (new,)] = array.take(old, axis)
        return found

    def means(self, array: Array, axis: int) -> Array:
        """Average segments along one axis of an array."""
        return _averaged(array, self.groups, self.lengths, len(self.parts), axis)


@lru_cache(maxsize=1024)
def merging(parts: tuple[int, ...], groups: tuple[int, ...]) -> Merging:
    """Take neighbouring segments as alike.

    Args:
        parts: the old segments.
        groups: for each of them, the number of its new segment: 0, 0, 1, …

    >>> merging((1, 1, 2), (0, 0, 1)).means(np.array([2.0, 4.0, 5.0]), 0).tolist()
    [3.0, 5.0]
    """
    old, group = patterns(tuple(parts)), np.array(groups)
    lengths = np.array(parts, dtype=np.float64)
    new = patterns(tuple(int(n) for n in np.bincount(group, weights=lengths)))
    k, s = len(new.parts), len(parts)
    place = k + group[old.first] * k + group[old.second]
    place[:s] = group
    empty = [(int(i), int(np.nonzero(group == new.first[i])[0][0])) for i in np.nonzero(new.counts == 0)[0]]
    return Merging(new.parts, place, group, old.counts, lengths, tuple(empty))


def _averaged(array: Array, places: Indices, weights: Array, size: int, axis: int) -> Array:
    # Sums by place, not a matrix of new by old: a hundred steps of a sequence have ten thousand patterns.
    moved = array.swapaxes(axis, 0)
    flat = moved.reshape(len(places), -1) * weights[:, None]
    sums = np.zeros((size, flat.shape[1]))
    np.add.at(sums, places, flat)
    totals = np.bincount(places, weights, size)
    found = sums / np.where(totals > 0, totals, 1.0)[:, None]
    return np.ascontiguousarray(found.reshape(size, *moved.shape[1:]).swapaxes(0, axis))


def dropped(array: Array, weights: Array, axis: int) -> Array:
    """Sum over one axis of an array by weights.

    >>> dropped(np.ones((2, 3)), np.array([1.0, 2.0, 3.0]), 1).tolist()
    [6.0, 6.0]
    """
    shape = array.shape
    rows = array.reshape(math.prod(shape[:axis]), shape[axis], -1)
    return np.asarray((weights @ rows).reshape(shape[:axis] + shape[axis + 1 :]))


def repeated(array: NDArray[T], new: Sequence[tuple[int, int]]) -> NDArray[T]:
    """Return an array with new axes along which it is the same, at a fifth of the time that ``np.repeat`` takes.

    Args:
        array: any.
        new: (where the axis is in the result, its length) for each of them, in this order.

    >>> repeated(np.array([1.0, 2.0]), [(0, 1), (2, 3)]).tolist()
    [[[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]]
    """
    lengths = list(array.shape)
    for axis, _ in new:
        lengths.insert(axis, 1)
    whole = array.reshape(lengths)
    for axis, n in new:
        lengths[axis] = n
    found = np.empty(lengths, array.dtype)
    found[...] = whole
    return found


def along(array: Array, matrix: Array, axis: int) -> Array:
    """Apply a matrix to one axis of an array.

    >>> along(np.ones((2, 3)), np.ones((1, 3)), 1).tolist()
    [[3.0], [3.0]]
    """
    return (array.swapaxes(axis, -1) @ matrix.T).swapaxes(axis, -1)
