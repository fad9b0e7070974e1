"""Averages over atoms, and what is left of a value without them."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from initwell.propagate.moments.segments import FEW, Array, Layout, along, dropped, patterns
from initwell.propagate.moments.signal import Signal


def over_all(signal: Signal, moments: Array, axes: Sequence[int]) -> Array:
    """Average over all pairs along several atoms, keeping their axes with length 1: agree/n + differ·(1 − 1/n) each.

    Args:
        signal: whose atoms they are.
        moments: its own, or others by the same patterns.
        axes: the atoms.
    """
    if axes and moments.size <= FEW:
        layout = signal.layout
        weights = _weights(tuple([layout[axis] for axis in axes]), tuple(axes), moments.ndim)
        return np.asarray(np.add.reduce(moments * weights, axis=tuple(axes), keepdims=True))
    for axis in axes:
        atom = signal.atoms[axis]
        shape = moments.shape
        found = dropped(moments, atom.patterns.every, axis)
        moments = found.reshape((*shape[:axis], 1, *shape[axis + 1 :]))
    return moments


@lru_cache(maxsize=1024)
def _weights(layout: Layout, axes: tuple[int, ...], rank: int) -> Array:
    """Return the shares of pairs along axes of these segments, for each pattern."""
    found = np.ones((1,) * rank)
    for parts, axis in zip(layout, axes, strict=True):
        found = found * patterns(parts).every.reshape([-1 if i == axis else 1 for i in range(rank)])
    return found


def centred(signal: Signal, axes: Sequence[int]) -> Array:
    """Return the moments of x − x̄, x̄ the average over these atoms.

    E[(x − x̄)(x' − x̄')] = moments − E[x x̄'] − E[x̄ x'] + E[x̄ x̄']; where no atom has segments the last three are equal.

    Args:
        signal: x.
        axes: the atoms.

    >>> from initwell.propagate.moments.signal import independent
    >>> centred(independent((4,), 1.0), [0]).tolist()
    [0.75, -0.25]
    """
    every = over_all(signal, signal.moments, axes)
    if not signal.segmented or not any(signal.atoms[i].parts for i in axes):
        return np.asarray(signal.moments - every)
    first = second = signal.moments
    for i, atom in enumerate(signal.atoms):
        if i in axes:
            first = along(first, atom.patterns.rows, i).take(atom.patterns.first, i)
            second = along(second, atom.patterns.rows, i).take(atom.patterns.second, i)
        elif atom.parts:
            second = second.take(atom.patterns.swap, i)
    return np.asarray(signal.moments - first - second + every)
