"""How integers repeat: the share of pairs of places that hold the same number, by which axes the places differ in.

Counted, not paired: a number that stands c times in a group of entries makes c² equal pairs of them.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from initwell.propagate.moments.axes import Atom, Dims

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


def places(shape: Sequence[int], sample: int | None = None) -> Dims:
    """Return one atom for each axis of places; none for an axis of length 1.

    Args:
        shape: of the index.
        sample: the axis that counts samples, if any.
    """
    return tuple((Atom(n, i == sample),) if n > 1 else () for i, n in enumerate(shape))


def agreement(index: Tensor | Integers) -> Array:
    """Measure how an integer tensor repeats itself.

    Args:
        index: of any shape; its axes of length 1 are left out.

    Returns:
        Shape (2,) * axes: the share of equal pairs among those that agree where 0, and differ where 1.

    >>> agreement(np.array([[7, 7, 8], [7, 9, 9]])).round(3).tolist()
    [[1.0, 0.333], [0.333, 0.167]]
    """
    numbers = np.asarray(index.detach().cpu().numpy() if isinstance(index, Tensor) else index)
    numbers = numbers.reshape([n for n in numbers.shape if n > 1])
    equal = np.empty((2,) * numbers.ndim)
    for place in np.ndindex(equal.shape):
        summed = [i for i, p in enumerate(place) if p]
        kept = [i for i, p in enumerate(place) if not p]
        count = math.prod(numbers.shape[i] for i in summed)
        equal[place] = _equal_pairs(numbers.transpose(kept + summed).reshape(-1, count))
    return between_pairs(equal, numbers.shape)


def between_pairs(sums: Array, sizes: Sequence[int]) -> Array:
    """Turn sums over agreeing (0) and all (1) pairs of each axis into averages over agreeing and differing ones."""
    for axis, n in enumerate(sizes):
        agree, every = sums.take(0, axis), sums.take(1, axis)
        sums = np.stack([agree / n, (every - agree) / (n * (n - 1))], axis)
    return sums


def _equal_pairs(groups: Integers) -> float:
    """Sum counts² of the numbers within each row."""
    if groups.shape[1] == 1:
        return float(groups.size)
    ordered = np.sort(groups, axis=1)
    border = np.ones(ordered.shape, dtype=bool)
    border[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    lengths = np.diff(np.flatnonzero(border.ravel()), append=border.size).astype(np.float64)
    return float(lengths @ lengths)


def patterns(coordinates: Sequence[Integers]) -> Array:
    """Measure how often places look up rows that agree in some coordinates and differ in the others.

    Agreeing in a set of coordinates at least is an agreement of their joint number; agreeing in exactly that set is
    that, less agreeing in one more: 1 − agree, coordinate by coordinate.

    Args:
        coordinates: of what each place looks up, each of the same shape.

    Returns:
        Shape (2,) * coordinates + (2,) * axes of places: shares, which add up to 1 over the former.

    >>> patterns([np.array([0, 0, 1]), np.array([0, 1, 1])]).round(3).tolist()
    [[[1.0, 0.0], [0.0, 0.333]], [[0.0, 0.333], [0.0, 0.333]]]
    """
    axes = sum(n > 1 for n in coordinates[0].shape)
    found = np.ones((2,) * (len(coordinates) + axes))
    for pattern in np.ndindex((2,) * len(coordinates)):
        agreeing = [c for c, p in zip(coordinates, pattern, strict=True) if not p]
        if agreeing:
            joint = np.zeros_like(agreeing[0])
            for c in agreeing:
                joint = joint * (int(c.max()) + 1) + c
            found[pattern] = agreement(joint)
    for axis in range(len(coordinates)):
        agree, free = found.take(0, axis), found.take(1, axis)
        found = np.stack([agree, free - agree], axis)
    return found
