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

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.concentration import Weights
from initwell.propagate.gram import differs
from initwell.propagate.segments import Array
from initwell.propagate.signal import Signal, over_pairs, replace
from initwell.propagate.table import UnknownSignalError
from initwell.records import Record

# Below this variance of scores what grows with it is proportional to it.
SMALL = 1e-3


def stepped(x: float) -> float:
    """Return the nearest of numbers 1 % apart, so that layers that hardly differ share their integrals.

    >>> stepped(2.0), stepped(0.0)
    (1.9937155332430823, 0.0)
    """
    return math.exp(round(math.log(x) * 100) / 100) if x > 0 else 0.0


def known_variance(v: float) -> float:
    """Return a variance of scores, one of ``stepped``.

    Raises:
        UnknownSignalError: it is beyond what exp has numbers for: that of a mask, which is no Gaussian.
    """
    if v > 300:
        raise UnknownSignalError("a softmax of scores with a mask added to them")
    return stepped(max(v, 0.0))


@dataclass(frozen=True, eq=False)
class Open:
    """What a mask leaves open of rows of scores.

    Attributes:
        even: by pattern of the rows' axes, E[p p'] of the same place at equal scores, over all T places.
        sizes: place in the rows' segments → (open entries, share of its rows).
        count: T.
        typical: open entries of a row, on average.
    """

    even: Array
    sizes: Callable[[tuple[int, ...]], tuple[tuple[int, float], ...]]
    count: int
    typical: int


def all_open(count: int) -> Open:
    """Return that nothing is shut."""
    return Open(np.asarray(1 / count**2), lambda _: ((count, 1.0),), count, count)


@dataclass(frozen=True)
class Moment(Record):
    """A second moment of what becomes of two rows at the same place, averaged over places.

    Attributes:
        alone: a row's weights, variance of its scores → the moment of the row with itself.
        pair: count, variance, correlation → that of two rows of Gaussian scores.
    """

    alone: Callable[[Weights, float], float]
    pair: Callable[[int, float, float], float]

    def growth(self, count: int, v: float, correlation: float) -> float:
        """Return how far it has come at a correlation, from 0 for independent rows to 1 for equal ones."""
        if v < SMALL or count < 2:
            return correlation
        apart, same = self.pair(count, v, 0.0), self.pair(count, v, 1.0)
        return (self.pair(count, v, correlation) - apart) / (same - apart)

    def slope(self, count: int, v: float, correlation: float) -> float:
        """Say how strongly it goes with the correlation, over how far it has yet to go: 1 for a straight line."""
        if v < SMALL or count < 2 or correlation > 1 - 1e-6:
            return 1.0
        step = 0.01 * (1 - correlation)
        ends = [self.growth(count, v, correlation + x) for x in (-step, step)]
        return (ends[1] - ends[0]) / (2 * step) * (1 - correlation) / (1 - self.growth(count, v, correlation))

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
            here, sizes = known_variance(float(v[place])), left.sizes(place)
            whole[place] = sum(
                share * n / left.count * self.alone(replace(weights, count=n), here) for n, share in sizes
            )
            apart[place] = sum(share * n / left.count * self.pair(n, here, 0.0) for n, share in sizes)
        even = np.broadcast_to(left.even, s.moments.shape)
        level = even[tuple(slice(n) for n in v.shape)]
        overlap = even / over_pairs(s.atoms, np.sqrt(np.where(level > 0, level, 1.0)))
        ends = [over_pairs(s.atoms, np.sqrt(np.maximum(x, 0.0))) for x in (apart, whole)]
        return np.asarray(overlap * (ends[0] + self._shapes(s, left.typical) * (ends[1] - ends[0])))

    def _shapes(self, s: Signal, count: int) -> Array:
        size = over_pairs(s.atoms, np.sqrt(np.maximum(s.diagonal, 0.0)))
        correlation = np.clip(np.where(size > 0, s.moments / np.where(size > 0, size, 1.0), 1.0), -1.0, 1.0)
        wide = np.where(_fluctuates(s), math.sqrt(3 * s.spread) * (1 - correlation**2), 0.0)
        rows = np.stack(np.broadcast_arrays(size, correlation, wide), -1).round(4).reshape(-1, 3)
        cases, places = np.unique(rows, axis=0, return_inverse=True)
        found = [self._averaged(count, known_variance(v), c, x) for v, c, x in cases.tolist()]
        return np.asarray(np.array(found)[places].reshape(s.moments.shape))

    def _averaged(self, count: int, v: float, correlation: float, wide: float) -> float:
        # Gauss's three nodes.
        if wide == 0 or correlation == 1:
            return self.growth(count, v, correlation)
        either = [self.growth(count, v, float(np.clip(correlation + x, -1.0, 1.0))) for x in (-wide, wide)]
        return 2 / 3 * self.growth(count, v, correlation) + sum(either) / 6


def _fluctuates(s: Signal) -> NDArray[np.bool_]:
    """Say by pattern whether two rows differ, and only along axes that follow something: rows that share their keys."""
    found = fixed = np.zeros((1,) * len(s.atoms), dtype=bool)
    for i, atom in enumerate(s.atoms):
        found, fixed = (found | differs(s, i), fixed) if atom.follows else (found, fixed | differs(s, i))
    return np.asarray(found & ~fixed)
