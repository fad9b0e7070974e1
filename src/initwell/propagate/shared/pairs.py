"""Pair: how two tensors of one shape vary together, by which indices agree; the same array that a Signal has for one.

    moments[b] = E[v_i w_j] − E[v_i] E[w_j] for indices that agree on the axes where b is 0 and differ where b is 1

With v = w it is a Signal's own moments about its means. All that is linear in each of the two acts on it as it acts on
a Signal, so the rules of shapes, sums and contractions serve here too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from initwell.propagate.moments.atoms import matched
from initwell.propagate.moments.axes import Atom, Dims
from initwell.propagate.moments.by_pairs import by_pattern, over_pairs
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.parts import one_atom, selected, sliced


@dataclass(frozen=True, eq=False)
class Pair:
    """Covariances of two tensors.

    Attributes:
        dims: the atoms of each dimension, of both.
        moments: by pattern; with segments, a pair's first index is of the first tensor.
    """

    dims: Dims
    moments: Array

    def times(self, factor: float) -> "Pair":
        """Multiply one of the tensors by a number."""
        return Pair(self.dims, self.moments * factor)

    def plus(self, other: "Pair | None", factor: float = 1.0) -> "Pair":
        """Add factor times another pair's covariances."""
        if other is None:
            return self
        one, two = fitted(self, other)
        return Pair(one.dims, one.moments + factor * two.moments)

    def product(self, other: "Pair") -> "Pair":
        """Multiply covariances entry by entry."""
        one, two = fitted(self, other)
        return Pair(one.dims, one.moments * two.moments)

    def swapped(self) -> "Pair":
        """Take the second tensor first."""
        moments = self.moments
        for axis, atom in enumerate(a for dim in self.dims for a in dim):
            if atom.parts:
                moments = np.asarray(moments.take(atom.patterns.swap, axis))
        return self if moments is self.moments else Pair(self.dims, moments)

    def signal(self) -> Signal:
        """Return a signal of these moments, for rules that act on moments."""
        return Signal(self.dims, self.moments)


def total(*terms: tuple[float, Pair | None]) -> Pair | None:
    """Add up factors times pairs; None stands for no covariance at all.

    >>> pair = Pair(((Atom(3),),), np.array([2.0, 1.0]))
    >>> found = total((1.0, pair), (0.5, pair), (4.0, None))
    >>> found and found.moments.tolist()
    [3.0, 1.5]
    """
    found: Pair | None = None
    for factor, pair in terms:
        if pair is not None and factor:
            found = pair.times(factor) if found is None else found.plus(pair, factor)
    return found


def of(signal: Signal) -> Pair:
    """Return a signal's covariances with itself."""
    return Pair(signal.dims, signal.moments - over_pairs(signal.atoms, signal.means))


def nothing(signal: Signal) -> Pair:
    """Return covariances of 0 for a signal's atoms."""
    return Pair(signal.dims, np.zeros_like(signal.moments))


def raw(pair: Pair | None, one: Signal, two: Signal) -> Pair:
    """Return E[v_i w_j] itself, the product of the means included.

    Args:
        pair: covariances of v and w.
        one: v.
        two: w.
    """
    one, two = aligned(one, two)
    if pair is not None and not (one.means.any() and two.means.any()):
        return pair
    first = np.broadcast_to(by_pattern(one.atoms, one.means), one.moments.shape)
    found = Pair(one.dims, first * by_pattern(two.atoms, two.means, second=True))
    return found if pair is None else found.plus(pair)


def aligned(one: Signal, two: Signal) -> tuple[Signal, Signal]:
    """Give two signals of one shape the same atoms."""
    if one.dims is two.dims or one.dims == two.dims:
        return one, two
    return matched(one, two, [(d, d) for d in range(len(one.dims))])


def fitted(one: Pair, two: Pair) -> tuple[Pair, Pair]:
    """Give two pairs the same atoms."""
    if one.dims is two.dims or one.dims == two.dims:
        return one, two
    a, b = aligned(one.signal(), two.signal())
    return Pair(a.dims, a.moments), Pair(b.dims, b.moments)


Stretch = tuple[int, int]


def picked(pair: Pair, dim: int, one: Stretch, two: Stretch, *, drop: bool) -> Pair | None:
    """Keep a stretch of a dimension of each tensor.

    Args:
        pair: of the whole tensors.
        dim: the dimension.
        one: (start, stop) in the first tensor.
        two: (start, stop) in the second: the same, or apart from it.
        drop: whether the dimension goes, being of length 1.

    Returns:
        None where the stretches overlap in part, or lie in several segments.

    >>> pair = Pair(((Atom(6),), (Atom(2),)), np.array([[4.0, 2.0], [1.0, 0.5]]))
    >>> found = picked(pair, 0, (0, 1), (3, 4), drop=True)
    >>> found and found.moments.tolist()
    [1.0, 0.5]
    """
    whole = pair.signal()
    if one == two:
        kept = selected(whole, dim, one[0]) if drop else sliced(whole, dim, *one)
        return Pair(kept.dims, kept.moments)
    whole = one_atom(whole, dim)
    axis = whole.axes([dim])[0]
    atom = whole.atoms[axis]
    places = [_segment(atom, *stretch) for stretch in (one, two)]
    if None in places or max(one[0], two[0]) < min(one[1], two[1]):
        return None
    (s, t), count = (p or 0 for p in places), len(atom.patterns.parts)
    moments = np.asarray(whole.moments.take(count + s * count + t, axis))
    length = one[1] - one[0]
    if length > 1:
        moments = np.stack([moments, moments], axis)
    new: Sequence[tuple[Atom, ...]] = [] if drop else [(Atom(length, atom.sample),) if length > 1 else ()]
    return Pair((*whole.dims[:dim], *new, *whole.dims[dim + 1 :]), moments)


def _segment(atom: Atom, start: int, stop: int) -> int | None:
    ends = np.cumsum(atom.patterns.parts)
    first, last = (int(np.searchsorted(ends, i, side="right")) for i in (start, stop - 1))
    return first if first == last else None
