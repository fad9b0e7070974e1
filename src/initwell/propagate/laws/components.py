"""What a normalized field is made of: what samples share at each place, what places share in each sample, and the rest.

Given what they read, the entries of a channel over samples and positions are a Gaussian field. About its mean it falls
into parts that vary along some of the axes T and are the same along the others, M_T = Π_{T}(1 − J) Π_{not T} J M with J
the average over all pairs of an axis. Each part has Π_{T}(n − 1) degrees of freedom ν_T of one variance, so the mean
square V_T of a part in one channel is v_T χ²/ν_T. A channel is divided by its own s² = Σ V_T, and what part T has of x̂

    E[V_T/Σ V] = ∫ v_T/(1 + 2 v_T t/ν_T) · Π (1 + 2 v t/ν)^(−ν/2) dt

is less than v_T/Σ v where ν_T is small: at 2×2 positions what all samples have in common at each of them has three
degrees of freedom, and where it is a third of the variance it is 29 % of x̂², not 33 %. What the gradient is divided by
is of the same law, E[1/Σ V] = ∫ Π (1 + 2 v t/ν)^(−ν/2) dt: beside parts of many degrees of freedom one of few is not
missed where it is small, and 1/s² is smaller than of one χ² of the same variance.
"""

import itertools
import math
from collections.abc import Sequence
from functools import cache, lru_cache, reduce

import numpy as np

from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal

_LEAST = 2e-3
_MOST_AXES = 4
# Of the integrals over log t.
_STEP = 0.2
# At so few degrees of freedom there is next to no expectation of 1/s².
_LEAST_FREE = 4.0


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
    found = _shares(x, moments, axes)
    if found is None:
        return moments
    shares, sizes = found
    parts, free = _parts(sizes)
    order = _first(axes, moments.ndim)
    rows = moments.transpose(order).reshape(len(parts) + 1, -1)
    factors = np.where(shares > 0, _expected(shares, free) / np.where(shares > 0, shares, 1.0), 1.0)
    # What is no part of a mean that was taken off, if anything, stays.
    more = ((factors - 1) @ parts.reshape(len(parts), -1)).reshape(parts[0].shape)
    rows = (rows + more @ rows).reshape((2,) * moments.ndim)
    return np.asarray(rows.transpose(np.argsort(order)))


def inverse(x: Signal, moments: Array, axes: Sequence[int]) -> float | None:
    """Return E[1/s²]·E[s²] of the mean square s² over some axes; None where one χ² says it as well.

    Args:
        x: what it is of.
        moments: of x about its mean.
        axes: that are normalized over.

    >>> from initwell.propagate.moments.signal import independent
    >>> x = independent((4, 3), 1.0)
    >>> found = inverse(x, x.moments - 1 / 12, (0, 1))
    >>> found is not None and round(found, 3) == round(11 / 9, 3)
    True
    """
    found = _shares(x, moments, axes)
    return None if found is None else _inverse(found[0].tobytes(), found[1])


@lru_cache(maxsize=1024)
def _inverse(shares: bytes, sizes: tuple[int, ...]) -> float | None:
    of_parts, free, t = np.frombuffer(shares), _parts(sizes)[1], _times()
    if float(free[of_parts > 0].sum()) <= _LEAST_FREE:
        return None
    return float(np.exp(-(free / 2) @ np.log1p((2 * of_parts / free)[:, None] * t)) @ t) * _STEP


def _shares(x: Signal, moments: Array, axes: Sequence[int]) -> tuple[Array, tuple[int, ...]] | None:
    """Return the shares of all parts in the variance, and the sizes of the axes.

    None where no part of few degrees of freedom has a share, or where the parts are not those of exchangeable indices.
    """
    if len(axes) < 2 or len(axes) > _MOST_AXES or x.segmented or moments.flat[0] <= 0:
        return None
    sizes = tuple([x.atoms[axis].size for axis in axes])
    parts, free = _parts(sizes)
    within = moments.transpose(_first(axes, moments.ndim)).reshape(len(parts) + 1, -1)[:, 0]
    shares = np.maximum(parts[:, 0] @ within / within[0], 0.0)
    whole = float(np.add.reduce(shares))
    if whole <= 0 or float((shares / free).max()) < _LEAST:
        return None
    return shares / whole, sizes


def _first(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Return all axes, these in front."""
    return (*axes, *[i for i in range(ndim) if i not in axes])


@lru_cache(maxsize=1024)
def _parts(sizes: tuple[int, ...]) -> tuple[Array, Array]:
    """Return what takes moments along axes of these sizes to those of each part: a matrix a part, of all patterns.

    And the degrees of freedom of each part, which varies along some of the axes alone.
    """
    average = [np.array([[1 / n, 1 - 1 / n]] * 2) for n in sizes]
    count = range(len(sizes))
    parts = [t for n in count for t in itertools.combinations(count, n + 1)]
    each = [[np.eye(2) - average[i] if i in part else average[i] for i in count] for part in parts]
    free = [math.prod(sizes[i] - 1 for i in part) for part in parts]
    return np.array([reduce(np.kron, matrices) for matrices in each]), np.array(free, dtype=np.float64)


def _expected(shares: Array, free: Array) -> Array:
    """Return E[V/Σ V] of gamma variables of these means, which add up to 1, and degrees of freedom.

    >>> _expected(np.array([1 / 3, 2 / 3]), np.array([3.0, 1e4])).round(2).tolist()
    [0.29, 0.71]
    """
    # In log t both ends fall off exponentially.
    t = _times()
    each = (2 * shares / free)[:, None] * t
    whole = np.exp(-(free / 2) @ np.log1p(each)) * t * _STEP
    found = (shares[:, None] / (1 + each)) @ whole
    return np.asarray(found / found.sum())


@cache
def _times() -> Array:
    return np.asarray(np.exp(np.arange(-14.0, 14.0, _STEP)))
