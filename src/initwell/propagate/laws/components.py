"""What a normalized field is made of: what samples share at each place, what places share in each sample, and the rest.

Given what they read, the entries of a channel over samples and positions are a Gaussian field. About its mean it falls
into parts that vary along some of the axes T and are the same along the others, M_T = Π_{T}(1 − J) Π_{not T} J M with J
the average over all pairs of an axis. Each part has Π_{T}(n − 1) degrees of freedom ν_T of one variance, so the mean
square V_T of a part in one channel is v_T χ²/ν_T. A channel is divided by its own s² = Σ V_T, and what part T has of x̂

    E[V_T/Σ V] = ∫ v_T/(1 + 2 v_T t/ν_T) · Π (1 + 2 v t/ν)^(−ν/2) dt

is less than v_T/Σ v where ν_T is small: at 2×2 positions what all samples have in common at each of them has three
degrees of freedom, and where it is a third of the variance it is 29 % of x̂², not 33 %.
"""

import itertools
import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal

_LEAST = 2e-3
_MOST_AXES = 4


def in_parts(x: Signal, moments: Array, axes: Sequence[int]) -> Array:
    """Return moments about the mean over some axes as they are of what is divided by its own size, but for that size.

    Args:
        x: what they are of.
        moments: of x about its mean.
        axes: that are normalized over.

    >>> from initwell.propagate.moments.signal import independent
    >>> x = independent((4, 3), 1.0)
    >>> bool(np.allclose(in_parts(x, x.moments - 1 / 12, (0, 1)), x.moments - 1 / 12))
    True
    """
    sizes = [x.atoms[axis].size for axis in axes]
    here = (0,) * moments.ndim
    if len(axes) < 2 or len(axes) > _MOST_AXES or x.segmented or moments[here] <= 0:
        return moments
    parts = [(along, _part(moments, axes, sizes, along)) for along in _subsets(len(axes))]
    free = np.array([math.prod(sizes[i] - 1 for i in along) for along, _ in parts], dtype=np.float64)
    shares = np.maximum(np.array([float(part[here]) for _, part in parts]) / float(moments[here]), 0.0)
    if float((shares / free).max()) < _LEAST or shares.sum() <= 0:
        return moments
    shares = shares / shares.sum()
    found = _expected(shares, free)
    factors = np.where(shares > 0, found / np.where(shares > 0, shares, 1.0), 1.0)
    # What is no part of a mean that was taken off, if anything, stays.
    return np.asarray(moments + sum((f - 1) * part for f, (_, part) in zip(factors, parts, strict=True)))


@cache
def _subsets(count: int) -> list[tuple[int, ...]]:
    return [t for n in range(1, count + 1) for t in itertools.combinations(range(count), n)]


def _part(moments: Array, axes: Sequence[int], sizes: Sequence[int], along: Sequence[int]) -> Array:
    """Return the moments of what varies along these of the axes alone."""
    found = moments
    for i, (axis, n) in enumerate(zip(axes, sizes, strict=True)):
        average = np.array([[1 / n, 1 - 1 / n]] * 2)
        matrix = np.eye(2) - average if i in along else average
        found = np.moveaxis(np.tensordot(matrix, found, (1, axis)), 0, axis)
    return np.asarray(found)


def _expected(shares: Array, free: Array) -> Array:
    """Return E[V/Σ V] of gamma variables of these means, which add up to 1, and degrees of freedom.

    >>> _expected(np.array([1 / 3, 2 / 3]), np.array([3.0, 1e4])).round(2).tolist()
    [0.29, 0.71]
    """
    # In log t both ends fall off exponentially.
    t = np.exp(np.arange(-14.0, 14.0, 0.2))
    each = 2 * shares[:, None] * t / free[:, None]
    whole = np.exp(-(free / 2) @ np.log1p(each)) * t * 0.2
    found = (shares[:, None] / (1 + each)) @ whole
    return np.asarray(found / found.sum())
