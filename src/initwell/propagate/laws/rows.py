"""Second moments of what softmax makes of rows of scores, by pattern of the axes that count rows.

Of one row they are those of ``concentration``. Between two rows they grow with the correlation of their scores, from
the product of their means to those of one row: exactly, by ``concentration.between``, at their common variance. Rows
of which a mask leaves n_i of T entries open are averaged over their sizes, and what two rows without correlation have
in common is measured from the weights at equal scores, open/n_i.

Where rows share their keys, their correlation is q_i·q_i', which fluctuates as ``gram`` says: it is averaged over.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.laws.concentration import Weights
from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.gram import differs
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.propagate.table import UnknowableError
from initwell.records import Record

# Below this variance of scores what grows with it is proportional to it.
SMALL = 1e-3
# Scores have no such variance, but for a mask of −10⁴ or less.
_MASK = 1e6


def stepped(x: float) -> float:
    """Return the nearest of numbers 1 % apart, so that layers that hardly differ share their integrals.

    >>> stepped(2.0), stepped(0.0)
    (1.9937155332430823, 0.0)
    """
    return math.exp(round(math.log(x) * 100) / 100) if x > 0 else 0.0


def known_variance(v: float) -> float:
    """Return a variance of scores, one of ``stepped``.

    Raises:
        UnknowableError: it is that of a mask, which is no Gaussian.
    """
    if v > _MASK:
        raise UnknowableError("a softmax of scores whose variance is above 10⁶, as with a mask added to them")
    return stepped(max(v, 0.0))


Sizes = tuple[tuple[float, float], ...]


@dataclass(frozen=True, eq=False)
class Open:
    """What a mask leaves open of rows of scores.

    Attributes:
        even: by pattern of the rows' axes, E[p p'] of the same place at equal scores, over all T places.
        count: T.
        rows: (open entries, share of the rows).
        sizes: place in the rows' segments → (open entries, share of its rows).
        uneven: what unequal weights at equal scores leave of the variance of scores, and of gradients' squares.
    """

    even: Array
    count: int
    rows: Sizes
    sizes: Callable[[tuple[int, ...]], Sizes]
    uneven: tuple[float, float] = (1.0, 1.0)

    @property
    def typical(self) -> float:
        """Open entries of a row, on average."""
        return sum(n * share for n, share in self.rows) / (sum(share for _, share in self.rows) or 1.0)

    def entries(self, value: Callable[[float], float], sizes: Sizes) -> float:
        """Average over all entries of rows of these sizes what those that are open have, by how many these are."""
        return float(sum(share * n / self.count * value(n) for n, share in sizes))

    def by_row(self, value: Callable[[float], float]) -> float:
        """Average over rows what a row has, by how many of its entries are open."""
        return float(sum(share * value(n) for n, share in self.rows))

    def pairs(self, value: Callable[[float], float], sizes: Sizes | None = None) -> float:
        """Average over all pairs of different entries of a row, or of rows of these sizes, what two open ones have."""
        total = self.count * (self.count - 1)
        rows = self.rows if sizes is None else sizes
        return float(sum(share * n * (n - 1) / total * value(n) for n, share in rows if n > 1))


def all_open(count: int) -> Open:
    """Return that nothing is shut."""
    return Open(np.asarray(1 / count**2), count, ((count, 1.0),), lambda _: ((count, 1.0),))


@dataclass(frozen=True)
class Moment(Record):
    """A second moment of what becomes of two rows at the same place, averaged over places.

    Attributes:
        alone: a row's weights, variance of its scores → the moment of the row with itself.
        pair: count, variance, correlation → that of two rows of Gaussian scores.
    """

    alone: Callable[[Weights, float], float]
    pair: Callable[[float, float, float], float]

    def growth(self, count: float, v: float, correlation: float) -> float:
        """Return how far it has come at a correlation, from 0 for independent rows to 1 for equal ones."""
        return _growth(self.pair, count, v, correlation)

    def rates(self, s: Signal, weights: Weights, left: Open) -> list[float]:
        """Say how strongly it goes with the correlation of rows that differ along each axis, times how far it can go.

        Args:
            s: centred scores, at one place of a row.
            weights: of a row whose entries are all open.
            left: what is open.
        """
        steep = [self.steep(s, left, axis) for axis in range(len(s.atoms))]
        if not any(steep):
            return steep
        even = s.changed(left.even + np.zeros(s.moments.shape), 0.0)
        level = even.averaged(())
        whole, apart = self._ends(known_variance(s.q * left.uneven[0]), weights, left, left.rows)
        return [even.averaged([i]) / level * (whole - apart) * x if x else 0.0 for i, x in enumerate(steep)]

    def steep(self, s: Signal, left: Open, axis: int) -> float:
        """Say how strongly it grows with the correlation of rows that differ along an axis, times how far that can go.

        Args:
            s: centred scores, at one place of a row.
            left: what is open.
            axis: of the scores' moments.
        """
        v, count = known_variance(s.q * left.uneven[0]), left.typical
        c = s.averaged([axis]) / s.q if s.q > 0 else 1.0
        if v == 0 or count <= 1 or c > 1 - 1e-6:
            return 0.0
        step = 0.01 * (1 - c)
        ends = [self.growth(count, v, c + x) for x in (-step, step)]
        return (ends[1] - ends[0]) / (2 * step) * (1 - c)

    def over(self, s: Signal, weights: Weights, left: Open) -> Array:
        """Return it by pattern of the rows' axes.

        Args:
            s: centred scores, at one place of a row.
            weights: of a row whose entries are all left.
            left: what is left.
        """
        v = s.diagonal
        whole, apart = np.empty(v.shape), np.empty(v.shape)
        for place in np.ndindex(v.shape):
            ends = self._ends(known_variance(float(v[place]) * left.uneven[0]), weights, left, left.sizes(place))
            whole[place], apart[place] = ends
        even = np.empty(s.moments.shape)
        even[...] = left.even
        level = even[tuple(slice(n) for n in v.shape)]
        overlap = even / over_pairs(s.atoms, np.sqrt(np.where(level > 0, level, 1.0)))
        high, low = (over_pairs(s.atoms, np.sqrt(np.maximum(x, 0.0))) for x in (whole, apart))
        return np.asarray(overlap * (low + self.shapes(s, left) * (high - low)))

    def _ends(self, v: float, weights: Weights, left: Open, sizes: Sizes) -> tuple[float, float]:
        """Return it of rows with themselves, and of rows without correlation."""
        whole = left.entries(lambda n: self.alone(weights.of(n), v), sizes)
        return whole, left.entries(lambda n: self.pair(n, v, 0.0), sizes)

    def shapes(self, s: Signal, left: Open) -> Array:
        """Return by pattern how far it has come, from 0 for independent rows to 1 for equal ones.

        Args:
            s: centred scores, at one place of a row.
            left: what is left.
        """
        size = over_pairs(s.atoms, np.sqrt(np.maximum(s.diagonal, 0.0)))
        correlation = np.clip(np.where(size > 0, s.moments / np.where(size > 0, size, 1.0), 1.0), -1.0, 1.0)
        wide = np.where(_fluctuates(s), math.sqrt(3 * s.spread) * (1 - correlation**2), 0.0)
        cases = np.empty((*s.moments.shape, 3))
        cases[..., 0], cases[..., 1], cases[..., 2] = size, correlation, wide
        return _grown(self.pair, left.typical, left.uneven[0], cases.round(4).tobytes()).reshape(s.moments.shape)


Pair = Callable[[float, float, float], float]


def _growth(pair: Pair, count: float, v: float, correlation: float) -> float:
    if v < SMALL or count <= 1:
        return correlation
    apart, same = pair(count, v, 0.0), pair(count, v, 1.0)
    return (pair(count, v, correlation) - apart) / (same - apart)


@lru_cache(maxsize=1024)
def _grown(pair: Pair, count: float, share: float, cases: bytes) -> Array:
    """Return the growth in each case: a variance, of which a share counts, a correlation, and how far this varies."""
    found = dict[tuple[float, ...], float]()
    rows = [tuple(row) for row in np.frombuffer(cases).reshape(-1, 3).tolist()]
    for v, correlation, wide in dict.fromkeys(rows):
        places = [(1.0, correlation)]
        if wide != 0 and correlation != 1:
            # Gauss's three nodes.
            either = [(1 / 6, min(max(correlation + x, -1.0), 1.0)) for x in (-wide, wide)]
            places = [(2 / 3, correlation), *either]
        variance = known_variance(v * share)
        found[v, correlation, wide] = sum(w * _growth(pair, count, variance, c) for w, c in places)
    return np.array([found[row] for row in rows])


def _fluctuates(s: Signal) -> NDArray[np.bool_]:
    """Say by pattern whether two rows differ, and only along axes that follow something: rows that share their keys."""
    found = fixed = np.zeros((1,) * len(s.atoms), dtype=bool)
    for i, atom in enumerate(s.atoms):
        found, fixed = (found | differs(s, i), fixed) if atom.follows else (found, fixed | differs(s, i))
    return np.asarray(found & ~fixed)
