"""Entries that are no Gaussian: a rectified stream plus a fresh branch, then rectified again, and the masks of both.

A residual stream is x' = φ(u'), u' = a·φ(u) + b, b Gaussian and independent. Its law is Σ w_i N(v_i, σ²) with v_i the
values of a·φ(u), binned to eighty: exact in mean and variance, and again of that form one block on. Backward, the
gradient at φ(u) through the stream is φ′(u')·g', and u' remembers u: the same mask twice. What g' is given u' is kept
as two tables, its power E[g'²|u'] and how it goes on average, E[g'|u']; given u they are

    E[g²|u] = E_b[φ′(u')²·power(u')]        E[g|u] = E_b[φ′(u')·passed(u')]        at u' = a·φ(u) + b

Where b = φ(v) is rectified, too, the law of u' is the convolution of both, and either one is a term whose rest is the
other: a sum of such is nowhere negative, and what rectifies it again lets through what either did. Where channels of
several layers are joined, each segment has a law of its own: a row of values and of each table. Assumption: φ(u)
enters u' with one factor a, and b is independent of u.
"""

import math
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np

from initwell.propagate.laws.gaussian import nodes, variances
from initwell.propagate.moments.copies import kept
from initwell.propagate.moments.remembered import Gate, Law, Term
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Image, Signal, replace

_BINS = 80
_REACH = 4.0
_GRID = 201
_STEPS = 48
_HARDLY = 0.1
# A Gaussian part of this share of the values' spread is wide enough for the nodes of a Gaussian of the whole.
_SMOOTH = 0.1


def distribution(u: Signal, kinks: tuple[float, ...] | None = None) -> tuple[Array, Array]:
    """Return points and weights of one entry's distribution: of shape (segments, points).

    Args:
        u: any signal; of no known law it counts as Gaussian.
        kinks: where a function that is to be averaged is not smooth; it may be narrow, as a sigmoid's slope is.

    >>> from initwell.propagate.moments.signal import independent
    >>> points, weights = distribution(independent((4,), 5.0, 1.0))
    >>> round(float(weights[0] @ points[0]), 6), round(float(weights[0] @ points[0] ** 2), 6)
    (1.0, 5.0)
    """
    law = u.law
    if law is None:
        return _of_gaussian(u)
    if not law.variance.any():
        return law.values, law.weights
    if kinks is not None and _is_smooth(law):
        return _by_densities(law, kinks)
    return _of_law(law)


@kept
def _of_gaussian(u: Signal) -> tuple[Array, Array]:
    z, w = _normal()
    values = u.means.reshape(-1, 1) + np.sqrt(np.maximum(variances(u), 1e-300)).reshape(-1, 1) * z
    return values, w[None] if len(values) == 1 else np.broadcast_to(w, values.shape)


@cache
def _normal() -> tuple[Array, Array]:
    z, w = nodes((), 0.0, 1.0)
    return z, w / w.sum()


@kept
def _of_law(law: Law) -> tuple[Array, Array]:
    z, w = _coarse()
    found = law.values[:, :, None] + np.sqrt(law.variance)[:, None, None] * z
    weights = law.weights[:, :, None] * w
    return found.reshape(len(found), -1), weights.reshape(len(found), -1)


@kept
def _is_smooth(law: Law) -> bool:
    spread = expected(law.weights, (law.values - expected(law.weights, law.values)[:, None]) ** 2)
    return bool((law.variance >= _SMOOTH**2 * spread).all())


@lru_cache(maxsize=16)
def _by_densities(law: Law, kinks: tuple[float, ...]) -> tuple[Array, Array]:
    return stacked([_by_density(law, row, kinks) for row in range(len(law.values))])


def _by_density(law: Law, row: int, kinks: tuple[float, ...]) -> tuple[Array, Array]:
    """Return the nodes for a Gaussian of the same mean and variance, weighted by the law's own density."""
    return _density(law.values[row].tobytes(), law.weights[row].tobytes(), float(law.variance[row]), kinks)


@lru_cache(maxsize=128)
def _density(one: bytes, two: bytes, own: float, kinks: tuple[float, ...]) -> tuple[Array, Array]:
    values, masses = np.frombuffer(one), np.frombuffer(two)
    mean = float(masses @ values)
    whole = own + float(masses @ (values - mean) ** 2)
    z, weights = nodes(kinks, mean, whole)
    points = mean + math.sqrt(whole) * z
    density = np.exp(-((points[:, None] - values) ** 2) / (2 * own) + z[:, None] ** 2 / 2) @ masses
    found = weights * density
    return points, found / found.sum()


def expected(weights: Array, values: Array) -> Array:
    """Return the average of each row of values, of shape (segments,)."""
    return np.asarray(np.add.reduce(weights * values, axis=1))


def marginal(x: Signal) -> Law | None:
    """Return how the entries of each segment are distributed, as far as it is known, and nothing else of them.

    Args:
        x: any signal.
    """
    made = x.image
    if x.law is not None or x.gaussian:
        points, weights = distribution(x)
    elif made is None or made.base is not None or made.pre.means.size != x.means.size or not of_known_law(made.pre):
        return None
    else:
        points, weights = distribution(made.pre)
        points = made.phi.fn(points)
    law = discrete(points, weights)
    return replace(law, near=np.zeros(())) if x.law is not None and x.law.near is not None else law


def discrete(points: Array, weights: Array) -> Law:
    """Return the law of values that are drawn by these weights, a row for each segment."""
    values, weights = _in_bins(points, weights)
    none = np.zeros(len(values))
    return Law(values, weights, none, None, none + 1.0, none)


def joined_laws(laws: Sequence[Law | None], images: Sequence[Image] = ()) -> Law | None:
    """Return the law of segments beside each other; None where that of one is not known.

    Args:
        laws: of values alone, as ``discrete`` and ``marginal`` return.
        images: what some of them are functions of.
    """
    found = [law for law in laws if law is not None]
    if len(found) < len(laws):
        return None
    rows = [row for law in found for row in zip(law.values, law.weights, strict=True)]
    none = np.zeros(len(rows))
    near = None if all(law.near is None for law in found) else np.zeros(())
    return Law(*stacked(rows), none, None, none + 1.0, none, near, tuple(images))


def of_known_law(u: Signal) -> bool:
    """Whether it is known how the entries of a signal are distributed, so that a function of them is."""
    return u.gaussian or u.law is not None or u.q == u.mean**2


@cache
def _coarse() -> tuple[Array, Array]:
    # Equal steps, with 0 between two points: a rectified stream has half its mass on one value, and its kink there.
    z = np.linspace(-5.5, 5.5, _STEPS)
    w = np.exp(-z * z / 2)
    return z, w / w.sum()


def sum_law(a: Signal, b: Signal, alpha: float, beta: float) -> Law | None:
    """Return the law of alpha·a + beta·b where a is of a known law, or a function of one, and b Gaussian; else None.

    Args:
        a: one summand, an image φ(u), or of known law.
        b: the other, independent of it.
        alpha: factor of a.
        beta: factor of b.

    Returns:
        A mixture of Gaussians of b's variance about the values of alpha·a, moved by beta·E[b].
    """
    made = a.image
    if a.gaussian or a.means.shape != b.means.shape:
        return None
    if a.law is None and (made is None or made.base is not None):
        return None
    # Heavier tails of a sum of few beside φ(u) are the lesser matter.
    normal = as_bell(b)
    offset, variance = beta * b.means.ravel(), beta**2 * variances(b).ravel()
    if a.law is not None and normal and (b.law is None or not _is_symmetric(a.law)):
        return moved(a.law, alpha, offset, variance)
    if made is None or made.base is not None or not normal or made.pre.means.size != a.means.size or not variance.all():
        return None
    points, weights = distribution(made.pre)
    values, weights = _in_bins(alpha * made.phi.fn(points), weights)
    factor = np.full(len(values), alpha)
    return Law(values + offset[:, None], weights, variance, Image(made.phi, made.pre), factor, offset)


def moved(law: Law, factor: Array | float, offset: Array | float = 0.0, variance: Array | float = 0.0) -> Law:
    """Return the law of a value times a factor, plus a Gaussian of this mean and variance: for each segment, or all."""
    factor, offset, variance = (np.broadcast_to(n, law.variance.shape) for n in (factor, offset, variance))
    values, whole = factor[:, None] * law.values + offset[:, None], factor**2 * law.variance + variance
    near = law.near
    if near is not None and variance.any():
        total = whole + expected(law.weights, (values - expected(law.weights, values)[:, None]) ** 2)
        near = near * float((1 - variance / np.where(total > 0, total, 1.0))[0]) ** 2
    shift = factor * law.offset + offset
    terms = tuple([Term(t.image, factor * t.factor, moved(t.rest, factor, offset, variance)) for t in law.terms])
    return replace(law, values=values, variance=whole, factor=factor * law.factor, offset=shift, near=near, terms=terms)


def without(law: Law, factor: Array, mean: Array, variance: Array) -> Law:
    """Return the law of a value times a factor, once the mean of many was taken off, which is Gaussian.

    Args:
        law: of the value.
        factor: what is left is multiplied by, of each segment.
        mean: of the result.
        variance: of the result; what is less of it is less in the Gaussian part, or in the values where that is
            not enough.
    """
    centre = expected(law.weights, law.values)
    values = factor[:, None] * (law.values - centre[:, None])
    own = expected(law.weights, values**2)
    shrunk = np.sqrt(np.minimum(variance / np.where(own > 0, own, 1.0), 1.0))
    by, offset = shrunk * factor, mean + shrunk * factor * (law.offset - centre)
    values, rest = mean[:, None] + shrunk[:, None] * values, np.maximum(variance - own, 0.0)
    return replace(law, values=values, variance=rest, factor=by * law.factor, offset=offset, terms=())


def _is_symmetric(law: Law) -> bool:
    values = law.values - expected(law.weights, law.values)[:, None]
    skew, variance = (expected(law.weights, values**k) for k in (3, 2))
    return bool((abs(skew) < 1e-3 * variance**1.5).all())


def as_bell(b: Signal) -> bool:
    """Whether a term of a sum counts as Gaussian beside others: it is bell-shaped, or its law is symmetric."""
    return bell_shaped(b) if b.law is None else _is_symmetric(b.law)


def bell_shaped(b: Signal) -> bool:
    """Whether entries are Gaussian, or the product of such and a gate, whose size hardly varies.

    Of g·n, n normal, the fourth moment is 3·E[g⁴]/E[g²]² squares of the second: with var g = r·E[g]² about 3·(1 + 4r).

    Args:
        b: any signal.
    """
    if b.gaussian or b.image is None or b.image.base is None:
        return b.gaussian
    points, weights = distribution(b.image.pre)
    values, weights = b.image.phi.fn(points).ravel(), weights.ravel() / len(weights)
    function = (
        float(weights @ values),
        float(weights @ values**2),
        b.image.pre.gaussian and getattr(b.image.phi, "line", None) is not None,
    )
    base = (b.image.base.mean, b.image.base.q, b.image.base.gaussian)
    gates = [(mean, q) for mean, q, normal in (function, base) if not normal]
    return len(gates) == 1 and all(q - mean**2 <= _HARDLY * mean**2 for mean, q in gates)


def binned(values: Array, weights: Array) -> tuple[Array, Array]:
    """Merge into bins as those of a Gaussian by equal steps, so that tails are kept; mean and variance stay."""
    return _binned(*(np.asarray(x, dtype=np.float64).tobytes() for x in (values, weights)))


# Numbers as bytes: a walk bins what the walk before it did, unless weights changed.
@lru_cache(maxsize=128)
def _binned(one: bytes, two: bytes) -> tuple[Array, Array]:
    from scipy.special import ndtri

    values, weights = np.frombuffer(one), np.frombuffer(two)
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    rank = ndtri(np.clip((np.cumsum(weights) - weights / 2) / weights.sum(), 1e-12, 1 - 1e-12))
    place = np.clip((rank / _REACH + 1) * _BINS / 2, 0, _BINS - 1).astype(int)
    mass = np.bincount(place, weights, _BINS)
    sums = np.bincount(place, weights * values, _BINS)
    keep = mass > 0
    mass, centres = mass[keep], sums[keep] / mass[keep]
    mean = float(mass @ centres)
    before, after = float(weights @ (values - mean) ** 2), float(mass @ (centres - mean) ** 2)
    stretch = math.sqrt(before / after) if after > 0 else 1.0
    return mean + (centres - mean) * stretch, np.asarray(mass, dtype=np.float64)


def _in_bins(values: Array, weights: Array) -> tuple[Array, Array]:
    return stacked([binned(*row) for row in zip(values, weights, strict=True)])


def stacked(rows: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Make values and weights of several laws rows of one length, filled up with values of no weight."""
    length = max(values.size for values, _ in rows)
    values, weights = np.empty((len(rows), length)), np.zeros((len(rows), length))
    for i, (v, w) in enumerate(rows):
        values[i, : v.size], values[i, v.size :], weights[i, : w.size] = v, v[-1], w
    return values, weights


def grid_of(u: Signal) -> Array:
    """Return the points at which what depends on an entry is tabulated: a row for each segment."""
    spread = np.sqrt(variances(u)).reshape(-1, 1)
    return np.asarray(u.means.reshape(-1, 1) + np.where(spread > 0, spread, 1.0) * _steps())


@cache
def _steps() -> Array:
    return np.linspace(-7.0, 7.0, _GRID)


def interpolated(points: Array, grid: Array, table: Array) -> Array:
    """Return a table's numbers at these points, row by row."""
    found = np.empty(points.shape)
    for row, at, known, numbers in zip(found, points, grid, table, strict=True):
        # Where a table says one number everywhere, it is that.
        same = numbers[-1] == numbers[0] and bool((numbers == numbers[0]).all())
        row[...] = numbers[0] if same else np.interp(at, known, numbers)
    return found


def through(gate: Gate, grid: Array, origin: Signal | None) -> tuple[Array, Array]:
    """Return E[g²|u] and E[g|u] over a grid of u, for the part of a gradient that met a later mask.

    Args:
        gate: that mask, of w.
        grid: of u, a row for each segment.
        origin: u; if w contains no function of it, the two are independent.

    Returns:
        E[g²|u], and E[g|u] up to a factor: both constant where the two are independent.
    """
    found = _of_origin(gate.pre.law, origin, len(grid))
    if found is None:
        powers = gate.moments[tuple(slice(n) for n in gate.pre.means.shape)].reshape(-1, 1)
        return np.broadcast_to(powers, grid.shape), np.ones_like(grid)
    image, factor, (rest, weights) = found
    powers, passes = np.empty_like(grid), np.empty_like(grid)
    for s, u in enumerate(grid):
        w = factor[s] * image.phi.fn(u)[:, None] + rest[s][None, :]
        slope = gate.slope(w.ravel()).reshape(w.shape)
        powers[s] = (slope**2 * np.interp(w, gate.grid[s], gate.power[s])) @ weights[s]
        passes[s] = (slope * np.interp(w, gate.grid[s], gate.passed[s])) @ weights[s]
    return powers, passes


def _of_origin(law: Law | None, origin: Signal | None, rows: int) -> tuple[Image, Array, tuple[Array, Array]] | None:
    """Return the function of the origin that a value contains, its factor, and points and weights of what is beside it.

    Args:
        law: of the value.
        origin: what there may be a function of.
        rows: how many segments the origin has.
    """
    if law is None or len(law.values) != rows:
        return None
    for term in law.terms:
        if term.image.pre is origin:
            rest = term.rest
            return term.image, term.factor, _of_law(rest) if rest.variance.any() else (rest.values, rest.weights)
    made = next((image for image in (law.image, *law.parts) if image is not None and image.pre is origin), None)
    if made is None:
        return None
    z, weights = _coarse()
    points = law.offset[:, None] + np.sqrt(law.variance)[:, None] * z
    return made, law.factor, (points, np.broadcast_to(weights, points.shape))
