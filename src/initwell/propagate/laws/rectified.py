"""Entries that are no Gaussian: a rectified stream plus a fresh branch, then rectified again, and the masks of both.

A residual stream is x' = φ(u'), u' = a·φ(u) + b, b Gaussian and independent. Its law is Σ w_i N(v_i, σ²) with v_i the
values of a·φ(u), binned to eighty of about equal weight: exact in mean and variance, and again of that form one block
on. Backward, the gradient at φ(u) through the stream is φ′(u')·g', and u' remembers u: the same mask twice. What g' is
given u' is kept as two tables, its power E[g'²|u'] and how it goes on average, E[g'|u']; given u they are

    E[g²|u] = E_b[φ′(u')²·power(u')]        E[g|u] = E_b[φ′(u')·passed(u')]        at u' = a·φ(u) + b

Assumption: φ(u) enters u' with one factor a, and b is independent of u.
"""

import math
from functools import cache

import numpy as np

from initwell.propagate.laws.gaussian import covariance, nodes
from initwell.propagate.moments.copies import kept
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Gate, Image, Law, Signal, replace

_BINS = 80
_GRID = 201
_STEPS = 48
_HARDLY = 0.1


def distribution(u: Signal) -> tuple[Array, Array]:
    """Return points and weights of one entry's distribution.

    >>> from initwell.propagate.moments.signal import independent
    >>> points, weights = distribution(independent((4,), 5.0, 1.0))
    >>> round(float(weights @ points), 6), round(float(weights @ points**2), 6)
    (1.0, 5.0)
    """
    return _of_gaussian(u) if u.law is None else _of_law(u.law)


@kept
def _of_gaussian(u: Signal) -> tuple[Array, Array]:
    variance, _ = covariance(u)
    z, w = nodes((), u.mean, max(variance, 1e-300))
    return u.mean + math.sqrt(variance) * z, w / np.add.reduce(w)


@kept
def _of_law(law: Law) -> tuple[Array, Array]:
    z, w = _coarse()
    values = law.values[:, None] + math.sqrt(law.variance) * z
    return values.ravel(), (law.weights[:, None] * w).ravel()


@cache
def _coarse() -> tuple[Array, Array]:
    # Equal steps, with 0 between two points: a rectified stream has half its mass on one value, and its kink there.
    z = np.linspace(-5.5, 5.5, _STEPS)
    w = np.exp(-z * z / 2)
    return z, w / w.sum()


def sum_law(a: Signal, b: Signal, alpha: float, beta: float) -> Law | None:
    """Return the law of alpha·a + beta·b where a is of a known law, or a function of one, and b Gaussian; else None.

    Args:
        a: one summand, an image φ(u).
        b: the other, independent of it.
        alpha: factor of a.
        beta: factor of b.

    Returns:
        A mixture of Gaussians of b's variance about the values of alpha·φ(u), moved by beta·E[b].
    """
    if a.segmented or b.segmented:
        return None
    if a.law is not None and b.gaussian:
        return moved(a.law, alpha, beta * b.mean, beta**2 * max(b.q - b.mean**2, 0.0))
    # Heavier tails of a sum of few beside φ(u) are the lesser matter.
    normal = bell_shaped(b) if b.law is None else _is_symmetric(b.law)
    if a.image is None or a.image.base is not None or a.gaussian or not normal:
        return None
    points, weights = distribution(a.image.pre)
    values, weights = binned(alpha * a.image.phi.fn(points), weights)
    variance = beta**2 * max(b.q - b.mean**2, 0.0)
    if variance == 0:
        return None
    offset = beta * b.mean
    return Law(values + offset, weights, variance, Image(a.image.phi, a.image.pre), alpha, offset)


def moved(law: Law, factor: float, offset: float = 0.0, variance: float = 0.0) -> Law:
    """Return the law of a value times a factor, plus a Gaussian of this mean and variance."""
    values, whole = factor * law.values + offset, factor**2 * law.variance + variance
    shift = factor * law.offset + offset
    share = 1 - variance / (whole + float(law.weights @ (values - law.weights @ values) ** 2) or 1.0)
    near = law.near if law.near is None or variance == 0 else law.near * share**2
    return replace(law, values=values, variance=whole, factor=factor * law.factor, offset=shift, near=near)


def without(law: Law, factor: float, mean: float, variance: float) -> Law | None:
    """Return the law of a value times a factor, once the mean of many was taken off, which is Gaussian.

    Args:
        law: of the value.
        factor: what is left is multiplied by.
        mean: of the result.
        variance: of the result; what is less of it is less in the Gaussian part.

    Returns:
        None where that has not so much.
    """
    values = factor * (law.values - law.weights @ law.values)
    left = variance - float(law.weights @ values**2)
    if left <= 0:
        return None
    offset = mean + factor * (law.offset - float(law.weights @ law.values))
    return replace(law, values=values + mean, variance=left, factor=factor * law.factor, offset=offset)


def _is_symmetric(law: Law) -> bool:
    values = law.values - law.weights @ law.values
    skew, variance = (float(law.weights @ values**k) for k in (3, 2))
    return bool(abs(skew) < 1e-3 * variance**1.5)


def bell_shaped(b: Signal) -> bool:
    """Whether entries are Gaussian, or the product of such and a gate, whose size hardly varies.

    Of g·n, n normal, the fourth moment is 3·E[g⁴]/E[g²]² squares of the second: with var g = r·E[g]² about 3·(1 + 4r).

    Args:
        b: any signal.
    """
    if b.gaussian or b.image is None or b.image.base is None:
        return b.gaussian
    points, weights = distribution(b.image.pre)
    values = b.image.phi.fn(points)
    function = (
        float(weights @ values),
        float(weights @ values**2),
        b.image.pre.gaussian and getattr(b.image.phi, "line", None) is not None,
    )
    base = (b.image.base.mean, b.image.base.q, b.image.base.gaussian)
    gates = [(mean, q) for mean, q, normal in (function, base) if not normal]
    return len(gates) == 1 and all(q - mean**2 <= _HARDLY * mean**2 for mean, q in gates)


def binned(values: Array, weights: Array) -> tuple[Array, Array]:
    """Merge into bins of about equal weight; mean and variance stay."""
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    place = np.minimum((np.cumsum(weights) - weights / 2) * _BINS / weights.sum(), _BINS - 1).astype(int)
    mass = np.bincount(place, weights, _BINS)
    sums = np.bincount(place, weights * values, _BINS)
    keep = mass > 0
    mass, centres = mass[keep], sums[keep] / mass[keep]
    mean = float(mass @ centres)
    before, after = float(weights @ (values - mean) ** 2), float(mass @ (centres - mean) ** 2)
    stretch = math.sqrt(before / after) if after > 0 else 1.0
    return mean + (centres - mean) * stretch, np.asarray(mass, dtype=np.float64)


def grid_of(u: Signal) -> Array:
    """Return the points at which what depends on an entry is tabulated."""
    spread = math.sqrt(max(u.q - u.mean**2, 0.0)) or 1.0
    return np.asarray(u.mean + spread * _steps())


@cache
def _steps() -> Array:
    return np.linspace(-7.0, 7.0, _GRID)


def at(points: Array, grid: Array, table: Array) -> Array | float:
    """Return what a table over a grid says at some points: one number where it says that everywhere."""
    first = float(table[0])
    return first if table[-1] == first and bool((table == first).all()) else np.interp(points, grid, table)


def through(gate: Gate, grid: Array, origin: Signal | None) -> tuple[Array, Array]:
    """Return E[g²|u] and E[g|u] over a grid of u, for the part of a gradient that met a later mask.

    Args:
        gate: that mask, of w.
        grid: of u.
        origin: u; if w contains no function of it, the two are independent.

    Returns:
        E[g²|u], and E[g|u] up to a factor: both constant where the two are independent.
    """
    law = gate.pre.law
    if law is None or origin is None or law.image.pre is not origin:
        return np.full_like(grid, gate.moments[(0,) * gate.moments.ndim]), np.ones_like(grid)
    z, weights = _coarse()
    w = law.offset + law.factor * law.image.phi.fn(grid)[:, None] + math.sqrt(law.variance) * z[None, :]
    slope = gate.slope(w.ravel()).reshape(w.shape)
    power = np.interp(w, gate.grid, gate.power)
    passed = np.interp(w, gate.grid, gate.passed)
    return np.asarray((slope**2 * power) @ weights), np.asarray((slope * passed) @ weights)
