"""Sums of two values neither of which is Gaussian, as of rectified ones: the law of the sum is the convolution of both.

Either one is a term of it whose rest is the other, for what meets both masks on the way back: see ``rectified``.
"""

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.laws.rectified import binned, distribution, moved, of_known_law, stacked
from initwell.propagate.moments.remembered import Law, Term
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Image, Signal

# The least share of all that is a point of its own.
_OFTEN = 0.1


def convolved(a: Signal, b: Signal, alpha: float, beta: float) -> Law | None:
    """Return the law of alpha·a + beta·b where neither is Gaussian and both are of known laws; else None.

    Args:
        a: one summand, an image φ(u), or of known law.
        b: the other, independent of it.
        alpha: factor of a.
        beta: factor of b.
    """
    if a.gaussian or b.gaussian or a.means.shape != b.means.shape:
        return None
    one, two = _summand(a), _summand(b)
    if one is None or two is None:
        return None
    one, two = moved(one, alpha), moved(two, beta)
    points = one.values[:, :, None] + two.values[:, None, :]
    weights = one.weights[:, :, None] * two.weights[:, None, :]
    # A function's kink may be where both are off, which is one point and no bin.
    off = _often(one)[:, :, None] & _often(two)[:, None, :]
    values, masses = stacked([_about(*row) for row in zip(points, weights, off, strict=True)])
    terms = tuple(
        Term(law.image, law.factor, moved(rest, 1.0, law.offset, law.variance))
        for law, rest in ((one, two), (two, one))
        if law.image is not None
    )
    none = np.zeros(len(values))
    return Law(values, masses, one.variance + two.variance, None, none + 1.0, none, terms=terms)


def _often(law: Law) -> NDArray[np.bool_]:
    """Return which values are the one that a law has most often: of a rectified value, where it is off."""
    found = np.zeros(law.values.shape, bool)
    for row, values, weights in zip(found, law.values, law.weights, strict=True):
        _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
        masses = np.bincount(at, weights) * (counts > 1)
        if masses.max() > _OFTEN:
            row[:] = at == masses.argmax()
    return found


def _about(values: Array, weights: Array, off: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Merge into bins all but what is one point."""
    rest = ~off & (weights > 0)
    if not off.any() or not rest.any():
        return binned(values.ravel(), weights.ravel())
    found, masses = binned(values[rest], weights[rest])
    return np.append(found, values[off][0]), np.append(masses * weights[rest].sum() / masses.sum(), weights[off].sum())


def _summand(x: Signal) -> Law | None:
    """Return the law of a term: its own, or that of what it is a function of, whose image it is then."""
    made = x.image
    if x.law is not None:
        return x.law if x.law.near is None and x.law.values.shape[0] == x.means.size else None
    if made is None or made.base is not None or made.pre.means.size != x.means.size or not of_known_law(made.pre):
        return None
    points, weights = distribution(made.pre)
    none = np.zeros(len(points))
    return Law(made.phi.fn(points), np.asarray(weights), none, Image(made.phi, made.pre), none + 1.0, none)
