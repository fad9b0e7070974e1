"""What belongs to the two indices of a pair, for every pattern of a Signal's moments."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal

T = TypeVar("T", np.float64, np.int64)


def by_pattern(atoms: Sequence[Atom], values: NDArray[T], *, second: bool = False) -> NDArray[T]:
    """Return what belongs to a pair's first index (or its second) for every pattern.

    Args:
        atoms: of the patterns.
        values: by segment, one axis for each atom; an axis of length 1 serves all its segments, and stays so.
        second: of the second index.

    >>> by_pattern([Atom(4, parts=(1, 3))], np.array([2.0, 5.0])).tolist()
    [2.0, 5.0, 2.0, 2.0, 5.0, 5.0]
    """
    for axis, atom in enumerate(atoms):
        if values.shape[axis] > 1:
            values = values.take(atom.patterns.second if second else atom.patterns.first, axis)
    return values


def over_pairs(atoms: Sequence[Atom], values: Array, others: Array | None = None) -> Array:
    """Multiply what belongs to a pair's first index by what belongs to its second, for every pattern.

    >>> over_pairs([Atom(4, parts=(1, 3))], np.array([2.0, 5.0])).tolist()
    [4.0, 25.0, 4.0, 10.0, 10.0, 25.0]
    """
    others = values if others is None else others
    if values.size == 1 == others.size:
        return values * others
    return np.asarray(by_pattern(atoms, values) * by_pattern(atoms, others, second=True))


def product_of_means(a: Signal, b: Signal) -> Array:
    """Return E[x]E[y'] for every pattern of two signals of the same atoms, averaged over the pair's two orders."""
    if a is b:
        return over_pairs(a.atoms, a.means)
    return np.asarray(over_pairs(a.atoms, a.means, b.means) + over_pairs(a.atoms, b.means, a.means)) / 2
