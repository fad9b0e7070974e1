"""Pair moments of a pointwise function of Gaussians, for every agreement pattern at once.

With u, v ~ N(μ, s²) of correlation c and the function written in normalized Hermite polynomials of z = (u − μ)/s,
f = Σ a_k h_k(z), Mehler's formula gives E[f(u) f(v)] = Σ a_k² c^k: one set of coefficients serves every correlation.
What the series leaves out after its last term is E[f²] − Σ a_k², all of it at c = 1; it is spread as its decay k^(−3/2)
(a step function, the slowest there is) says.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from initwell.propagate.signal import Array, Signal
from initwell.theory.quadrature import legendre, standard_breaks

_TERMS = 80
_REACH = 9.5


def covariance(signal: Signal) -> tuple[float, Array]:
    """Return (variance, correlation for each agreement pattern) of a signal about its mean."""
    variance = max(signal.q - signal.mean**2, 0.0)
    if variance <= 1e-14 * max(signal.q, 1e-300):
        return 0.0, np.ones_like(signal.moments)
    return variance, np.clip((signal.moments - signal.mean**2) / variance, -1.0, 1.0)


def nodes(kinks: tuple[float, ...], mean: float, variance: float) -> tuple[Array, Array]:
    """Return nodes z and weights of N(0, 1), split where a function of mean + √variance·z is not smooth."""
    breaks = standard_breaks(kinks, variance, mean)
    edges = np.unique(np.concatenate([np.linspace(-_REACH, _REACH, 39), breaks[np.abs(breaks) < _REACH]]))
    x, w = legendre(16)
    half = np.diff(edges) / 2
    z = ((edges[1:] + edges[:-1]) / 2)[:, None] + half[:, None] * x
    weights = half[:, None] * w * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return z.ravel(), weights.ravel()


def pair_moments(
    f: Callable[[Array], Array], kinks: tuple[float, ...], mean: float, variance: float, correlations: Array
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
    if variance == 0:
        value = float(f(np.array([mean]))[0])
        return value, np.full_like(correlations, value * value)
    z, w = nodes(kinks, mean, variance)
    values = f(mean + math.sqrt(variance) * z)
    weighted = values * w
    coefficients = np.empty(_TERMS)
    before, here = np.zeros_like(z), np.ones_like(z)
    for k in range(_TERMS):
        coefficients[k] = weighted @ here
        before, here = here, (z * here - math.sqrt(k) * before) / math.sqrt(k + 1)
    squares = coefficients**2
    rest = max(float(weighted @ values) - float(squares.sum()), 0.0)
    unique, places = np.unique(correlations, return_inverse=True)
    found = np.polynomial.polynomial.polyval(unique, squares) + rest * _tail(unique)
    return float(coefficients[0]), np.asarray(found[places].reshape(correlations.shape))


@cache
def _decay() -> tuple[Array, Array]:
    k = np.unique(np.geomspace(_TERMS, 1e7, 60).round())
    mass = np.diff(-1 / np.sqrt(k))
    return np.sqrt(k[1:] * k[:-1]), mass / mass.sum()


def _tail(c: Array) -> Array:
    orders, mass = _decay()
    return np.asarray((np.abs(c)[:, None] ** orders * mass).sum(axis=1) * (c > 0))
