"""Pair moments of a pointwise function of Gaussians, for every agreement pattern at once.

With u, v ~ N(μ, s²) of correlation c and the function written in normalized Hermite polynomials of z = (u − μ)/s,
f = Σ a_k h_k(z), Mehler's formula gives E[f(u) f(v)] = Σ a_k² c^k: one set of coefficients serves every correlation.
What the series leaves out after its last term is E[f²] − Σ a_k², all of it at c = 1; it is spread as its decay k^(−3/2)
(a step function, the slowest there is) says.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np

from initwell.propagate.moments.by_pairs import by_pattern, over_pairs
from initwell.propagate.moments.copies import kept
from initwell.propagate.moments.segments import Array, Indices
from initwell.propagate.moments.signal import Signal
from initwell.theory.piecewise import PiecewisePolynomial
from initwell.theory.quadrature import legendre, standard_breaks

_TERMS = 80
_REACH = 9.5
_PANELS = 38
_POINTS = 16


def variances(signal: Signal) -> Array:
    """Return the variance by segment: of the shape of ``signal.means``."""
    if not signal.segmented:
        return np.full(signal.means.shape, _variance(signal))
    found = np.maximum(signal.diagonal - signal.means**2, 0.0)
    return np.asarray(np.where(found <= 1e-14 * np.maximum(signal.diagonal, 1e-300), 0.0, found))


def _variance(signal: Signal) -> float:
    """Return the variance of a signal without segments."""
    q, found = signal.q, signal.q - signal.mean**2
    return found if found > 1e-14 * max(q, 1e-300) else 0.0


@kept
def covariance(signal: Signal) -> tuple[float, Array]:
    """Return (variance, correlation for each pattern) of a signal about its mean."""
    if not signal.segmented:
        variance = _variance(signal)
        if variance == 0:
            return 0.0, np.ones_like(signal.moments)
        found = (signal.moments - signal.mean**2) / variance
        return variance, np.minimum(np.maximum(found, -1.0), 1.0)
    spread = variances(signal)
    scale = over_pairs(signal.atoms, np.sqrt(spread))
    correlations = (signal.moments - over_pairs(signal.atoms, signal.means)) / np.where(scale > 0, scale, 1.0)
    average = spread if spread.size == 1 else np.asarray(max(signal.q - signal.mean**2, 0.0))
    return float(average.flat[0]), np.where(scale > 0, np.clip(correlations, -1.0, 1.0), 1.0)


def nodes(kinks: tuple[float, ...], mean: float, variance: float) -> tuple[Array, Array]:
    """Return nodes z and weights of N(0, 1), split where a function of mean + √variance·z is not smooth.

    Args:
        kinks: where the function is not smooth.
        mean: of its argument.
        variance: of its argument.
    """
    rule = _rule(_breaks(kinks, mean, variance))
    return rule.z, rule.weights


def _breaks(kinks: tuple[float, ...], mean: float, variance: float) -> tuple[float, ...]:
    breaks = standard_breaks(kinks, variance, mean)
    return tuple(sorted(breaks[np.abs(breaks) < _REACH].tolist()))


@dataclass(frozen=True, eq=False)
class _Rule:
    """Gauss–Legendre quadrature of N(0, 1) over panels of equal width, those with breaks inside split there.

    Attributes:
        ends: of the pieces, ascending.
        z: nodes, ascending.
        weights: of the nodes.
    """

    ends: Array
    z: Array
    weights: Array

    @cached_property
    def pieces(self) -> tuple[Indices, Indices, Array]:
        """Which pieces are whole panels, and which; which are parts, and of which; see ``_shares`` for the last."""
        edges, middle = _edges(), (self.ends[1:] + self.ends[:-1]) / 2
        panel = np.searchsorted(edges, middle) - 1
        is_part = np.bincount(panel)[panel] > 1
        whole, split = (np.stack([np.flatnonzero(of), panel[of]]) for of in (~is_part, is_part))
        centre = (edges[panel] + edges[panel + 1])[is_part, None]
        inside = (2 * self.z.reshape(-1, _POINTS)[is_part] - centre) / (edges[1] - edges[0])
        return whole, split, _shares(inside)

    def collected(self, values: Array) -> Array:
        """Return values at the nodes as values at the panels' own, for sums of their products with polynomials."""
        pieces, found = values.reshape(-1, _POINTS), np.zeros((_PANELS, _POINTS))
        (here, panels), (parts, owners), shares = self.pieces
        found[panels] = pieces[here]
        np.add.at(found, owners, (pieces[parts, None, :] @ shares)[:, 0])
        return found.ravel()


@cache
def _edges() -> Array:
    return np.linspace(-_REACH, _REACH, _PANELS + 1)


@lru_cache(maxsize=128)
def _rule(breaks: tuple[float, ...]) -> _Rule:
    x, w = legendre(_POINTS)
    ends = np.unique(np.concatenate([_edges(), breaks]))
    half, middle = np.diff(ends) / 2, (ends[1:] + ends[:-1]) / 2
    z = middle[:, None] + half[:, None] * x
    weights = (half[:, None] * w) * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return _Rule(ends, z.ravel(), weights.ravel())


def _shares(x: Array) -> Array:
    """Return, at each x within [−1, 1], the polynomials that are 1 at one of Legendre's nodes and 0 at the others.

    Source: the barycentric formula, Berrut & Trefethen, SIAM Review 2004, with the weights of Wang & Xiang 2012.
    """
    nodes, w = legendre(_POINTS)
    signs = np.where(np.arange(_POINTS) % 2, -1.0, 1.0) * np.sqrt((1 - nodes**2) * w)
    away = x[..., None] - nodes
    # At a node itself its own share is 1 in the limit.
    found = signs / np.where(away == 0, 1e-200, away)
    return np.asarray(found / found.sum(axis=-1, keepdims=True))


@cache
def _basis() -> Array:
    """Return the normalized Hermite polynomials at the panels' nodes: shape (terms, nodes)."""
    z = _rule(()).z
    basis = np.empty((_TERMS, z.size))
    before, here = np.zeros_like(z), np.ones_like(z)
    for k in range(_TERMS):
        basis[k] = here
        before, here = here, (z * here - math.sqrt(k) * before) / math.sqrt(k + 1)
    return basis


Function = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class Series:
    """f(mean + √variance·z) by its normalized Hermite polynomials in z.

    Attributes:
        coefficients: a_0, a_1, …
        rest: what E[f²] has beyond the last of them.
    """

    coefficients: Array
    rest: float


@lru_cache(maxsize=1024)
def hermite(f: Function, kinks: tuple[float, ...], mean: float, variance: float) -> Series:
    """Expand a function of a Gaussian.

    Args:
        f: any function of float64 arrays.
        kinks: where it is not smooth.
        mean: of the Gaussian.
        variance: of it; 0 for a constant.

    Returns:
        The Series.

    >>> (hermite(lambda u: u * u, (), 0.0, 1.0).coefficients[:4] ** 2).round(6).tolist()  # z² = h_0 + √2·h_2
    [1.0, 0.0, 2.0, 0.0]
    """
    if variance == 0:
        coefficients = np.zeros(_TERMS)
        coefficients[0] = float(f(np.array([mean]))[0])
        return Series(coefficients, 0.0)
    known = f.series(variance, mean, _TERMS) if isinstance(f, PiecewisePolynomial) else None
    coefficients, square = known or _expanded(f, kinks, mean, variance)
    return Series(coefficients, max(square - float(coefficients @ coefficients), 0.0))


def _expanded(f: Function, kinks: tuple[float, ...], mean: float, variance: float) -> tuple[Array, float]:
    """Return the coefficients of a function and E[f²], by quadrature."""
    rule = _rule(_breaks(kinks, mean, variance))
    values = f(mean + math.sqrt(variance) * rule.z)
    weighted = values * rule.weights
    return _basis() @ rule.collected(weighted), float(weighted @ values)


def pair_moments(
    f: Function, kinks: tuple[float, ...], mean: float, variance: float, correlations: Array
) -> tuple[float, Array]:
    """Compute E[f(u)] and E[f(u) f(v)] at each correlation.

    Args:
        f: any function of float64 arrays.
        kinks: where it is not smooth.
        mean: of u and v.
        variance: of u and v; 0 for a constant.
        correlations: of u with v, any shape; 1 is the same entry.

    Returns:
        The mean and an array of ``correlations``' shape.

    >>> relu = lambda u: np.maximum(u, 0.0)
    >>> m, pairs = pair_moments(relu, (0.0,), 0.0, 1.0, np.array([1.0, 0.0]))
    >>> round(m, 6), pairs.round(6).tolist()
    (0.398942, [0.5, 0.159155])
    """
    series = hermite(f, kinks, mean, variance)
    return float(series.coefficients[0]), series_moments(series, series, correlations)


def series_moments(one: Series, two: Series, correlations: Array) -> Array:
    """Return E[f(u) g(v)] = Σ a_k b_k c^k and the rest."""
    products = one.coefficients * two.coefficients
    c = correlations.ravel()
    found = _powers(c) @ products
    rest = math.sqrt(one.rest * two.rest)
    found = found + rest * _tail(c) if rest else found
    return np.asarray(found.reshape(correlations.shape))


def _powers(c: Array) -> Array:
    """Return 1, c, c² … of each."""
    found = np.empty((c.size, _TERMS))
    found[:, 0], found[:, 1:] = 1.0, c[:, None]
    np.multiply.accumulate(found[:, 1:], axis=1, out=found[:, 1:])
    return found


MomentsPair = tuple[Array, Array]


def signal_moments(f: Function, kinks: tuple[float, ...], u: Signal) -> MomentsPair:
    """Compute E[f(u)] by segment and E[f(u) f(u')] by pattern of a Gaussian signal.

    Args:
        f: any function of float64 arrays.
        kinks: where it is not smooth.
        u: the signal; segments of unlike mean or variance have each a series of their own, Σ a_k b_k c^k between two.

    Returns:
        Means of the shape of ``u.means``, and moments of the shape of ``u.moments``.
    """
    _, correlations = covariance(u)
    if not u.segmented:
        mean, moments = pair_moments(f, kinks, u.mean, _variance(u), correlations)
        return np.full_like(u.means, mean), moments
    pairs = zip(u.means.ravel().tolist(), variances(u).ravel().tolist(), strict=True)
    return _by_segment(lambda kind: hermite(f, kinks, *kind), list(pairs), u, correlations)


def unlike_moments(functions: Sequence[Function], which: Indices, kinks: tuple[float, ...], u: Signal) -> MomentsPair:
    """Compute E[f_i(u)] by segment and E[f_i(u) f_j(u')] by pattern, each segment with a function of its own.

    Args:
        functions: of float64 arrays.
        which: the function of each segment: of the shape of ``u.means``.
        kinks: where they are not smooth.
        u: a Gaussian signal.

    Returns:
        As ``signal_moments``.
    """
    kinds = zip(which.ravel().tolist(), u.means.ravel().tolist(), variances(u).ravel().tolist(), strict=True)
    return _by_segment(lambda kind: hermite(functions[kind[0]], kinks, *kind[1:]), list(kinds), u, covariance(u)[1])


def _by_segment(expand: Callable[[Any], Series], kinds: Sequence[Any], u: Signal, correlations: Array) -> MomentsPair:
    """Compute Σ a_k b_k c^k with the series of both segments of each pattern."""
    places = {kind: place for place, kind in enumerate(dict.fromkeys(kinds))}
    which, series = np.array([places[kind] for kind in kinds]), [expand(kind) for kind in places]
    labels = np.asarray(which.reshape(u.means.shape), np.int64)
    sides = (np.broadcast_to(by_pattern(u.atoms, labels, second=side), u.moments.shape) for side in (False, True))
    first, second = (side.ravel() for side in sides)
    terms, rest = np.array([s.coefficients for s in series]), np.sqrt(np.array([s.rest for s in series]))
    c = correlations.ravel()
    found = np.einsum("ik,ik,ik->i", terms[first], terms[second], _powers(c))
    if rest.any():
        found = found + rest[first] * rest[second] * _tail(c)
    moments = found.reshape(u.moments.shape)
    means = np.array([s.coefficients[0] for s in series])[which]
    return means.reshape(u.means.shape), moments


@cache
def _decay() -> tuple[Array, Array]:
    k = np.unique(np.geomspace(_TERMS, 1e7, 60).round())
    mass = np.diff(-1 / np.sqrt(k))
    return np.sqrt(k[1:] * k[:-1]), mass / mass.sum()


def _tail(c: Array) -> Array:
    orders, mass = _decay()
    found = np.zeros(c.shape)
    # Below, what is left after so many terms is less than 1e-17.
    near = c > 0.6
    found[near] = c[near, None] ** orders @ mass
    return found
