"""Gaussian expectations by composite Gauss–Legendre quadrature, split where the integrand is not smooth."""

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from initwell.errors import ArgumentError
from initwell.theory.activation import Array, Function

# Beyond these many standard deviations N(0, 1) holds less than 1e-56, and 1e-22, of its mass.
REACH = 16.0
REACH_2D = 10.0
_TOLERANCE = 1e-14
_MOST_PANELS = 20_000
_ROUNDING = 32 * float(np.finfo(np.float64).eps)


@cache
def legendre(order: int) -> tuple[Array, Array]:
    """Return the nodes and weights of Gauss–Legendre quadrature of ``order`` points on [−1, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    return np.asarray(nodes), np.asarray(weights)


def standard_breaks(points: Sequence[float], q: float, mu: float) -> Array:
    """Return where to split an integral over z, for u = mu + √q·z.

    Args:
        points: where the function of u is not smooth.
        q: variance of u.
        mu: mean of u.

    Returns:
        Positions in z, unsorted: those of ``points``, and a ladder of doubling steps about u = 0, so that what
        happens within |u| of order 1 is seen however large q is.
    """
    steps = 2.0 ** np.arange(-2, max(-2, math.ceil(math.log2(math.sqrt(q) + 1e-300)) + 1))
    ladder = np.concatenate([-steps, [0.0], steps])
    return np.asarray((np.concatenate([np.asarray(points, dtype=np.float64), ladder]) - mu) / math.sqrt(q))


def _panels(breaks: Array) -> tuple[Array, Array]:
    base = np.linspace(-REACH, REACH, int(2 * REACH) + 1)
    inside = breaks[np.abs(breaks) < REACH]
    edges = np.unique(np.concatenate([base, inside]))
    return edges[:-1], edges[1:]


def _integrate(integrand: Callable[[Array], Array], low: Array, high: Array, order: int) -> Array:
    # (functions, panels): one value of the rule for each function on each panel.
    nodes, weights = legendre(order)
    half = (high - low) / 2
    z = ((high + low) / 2)[:, None] + half[:, None] * nodes
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by name below
        values = integrand(z.ravel()).reshape(-1, *z.shape)
    if not np.all(np.isfinite(values)):
        where = z[~np.isfinite(values).all(axis=0)]
        cure = f"A moment needs finite values; it is not finite {np.min(np.abs(where)):.3g} standard deviations out."
        raise ArgumentError("activation", "a function that is not finite", cure)
    return np.asarray(np.einsum("fpn,pn,n,p->fp", values, density, weights, half))


def expectation(integrand: Callable[[Array], Array], breaks: Array) -> tuple[Array, Array]:
    """Integrate several functions of z ~ N(0, 1) at once, to nearly machine precision.

    Every panel is done at two orders; where they differ it is halved, until they agree or can no more.

    Args:
        integrand: from z, shape (points,), to values, shape (functions, points).
        breaks: positions in z where a function may not be smooth.

    Returns:
        Values and estimates of their absolute errors, each of shape (functions,).

    Raises:
        ArgumentError: the function is not finite, or grows so fast that the expectation does not exist.
    """
    low, high = _panels(breaks)
    value: Array | float = 0.0
    error: Array | float = 0.0
    tails: Array | float = 0.0
    stuck: Array | float = 0.0
    size: Array | None = None
    while low.size:
        coarse, fine = _integrate(integrand, low, high, 10), _integrate(integrand, low, high, 16)
        size = np.abs(fine).sum(axis=1) if size is None else size
        off = np.abs(fine - coarse)
        narrow = high - low < 1e-14 * np.maximum(1.0, np.abs(low))
        done = np.all(off <= _TOLERANCE * size[:, None], axis=0) | narrow
        done |= low.size > _MOST_PANELS
        stuck = stuck + off[:, narrow].sum(axis=1)
        value = value + fine[:, done].sum(axis=1)
        error = error + off[:, done].sum(axis=1)
        outer = done & (np.maximum(np.abs(low), np.abs(high)) > REACH - 0.5)
        tails = tails + np.abs(fine[:, outer]).sum(axis=1)
        left, right = low[~done], high[~done]
        middle = (left + right) / 2
        low, high = np.concatenate([left, middle]), np.concatenate([middle, right])
    assert size is not None
    value, error, tails = np.asarray(value), np.asarray(error), np.asarray(tails)
    if np.any(tails > 1e-10 * size):
        cure = "It grows faster than a Gaussian falls at this q, so its moment does not exist; use a smaller q."
        raise ArgumentError("activation", "a function without a second moment", cure)
    if np.any(stuck > 1e-8 * size):
        cure = "It or its derivative has a singularity over which the moment does not converge; pass a milder function."
        raise ArgumentError("activation", "a function with an infinite moment", cure)
    return value, error + tails + _ROUNDING * size


def _inner_nodes(kinks: Array, panels: int, order: int) -> tuple[Array, Array]:
    # kinks: (outer, k) in the inner variable; returns nodes and weights, each (outer, nodes).
    base = np.linspace(-REACH_2D, REACH_2D, panels + 1)
    edges = np.concatenate(
        [np.broadcast_to(base, (len(kinks), len(base))), np.clip(kinks, -REACH_2D, REACH_2D)], axis=1
    )
    edges.sort(axis=1)
    nodes, weights = legendre(order)
    half = np.diff(edges, axis=1) / 2
    middle = (edges[:, 1:] + edges[:, :-1]) / 2
    y = middle[..., None] + half[..., None] * nodes
    w = half[..., None] * weights * np.exp(-0.5 * y * y) / math.sqrt(2 * math.pi)
    return y.reshape(len(kinks), -1), w.reshape(len(kinks), -1)


def _pair(
    fn: Function, law: tuple[float, float, float], kinks: Array, breaks: Array, panels: int, orders: tuple[int, int]
) -> float:
    # One product rule. ``law`` is (q, c, mu); ``breaks`` are the kinks and whatever else the panels are split at.
    q, c, mu = law
    s, scale = math.sqrt((1 - c) * (1 + c)), math.sqrt(q)
    base = np.linspace(-REACH_2D, REACH_2D, panels + 1)
    # Seen from the outer variable, a kink of φ(v) is blurred over s/c about break/c: steps of that width resolve it.
    ladder = np.concatenate([[0.0], 2.0 ** np.arange(-2, 5), -(2.0 ** np.arange(-2, 5))])
    blurred = (kinks[:, None] / c + (s / abs(c)) * ladder).ravel() if abs(c) > 0.05 else np.empty(0)
    edges = np.concatenate([base, breaks, blurred])
    edges = np.unique(edges[np.abs(edges) <= REACH_2D])
    nodes, weights = legendre(orders[0])
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    x = (middle[:, None] + half[:, None] * nodes).ravel()
    w = (half[:, None] * weights).ravel() * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    y, wy = _inner_nodes((breaks[None, :] - c * x[:, None]) / s, panels, orders[1])
    v = mu + scale * (c * x[:, None] + s * y)
    inner = np.sum(fn(v.ravel()).reshape(v.shape) * wy, axis=1)
    return float(np.sum(fn(mu + scale * x) * inner * w))


def pair_expectation(fn: Function, points: Sequence[float], q: float, c: float, mu: float) -> tuple[float, float]:
    """Integrate φ(u)φ(v) over a Gaussian pair of variances q, means mu and correlation c.

    Args:
        fn: φ.
        points: where φ is not smooth.
        q: variance of u and of v.
        c: their correlation, within [−1, 1].
        mu: mean of u and of v.

    Returns:
        The value and an estimate of its absolute error.
    """
    kinks = (np.asarray(points, dtype=np.float64) - mu) / math.sqrt(q)
    breaks = standard_breaks(points, q, mu)
    if abs(c) == 1.0:

        def product(z: Array) -> Array:
            u = math.sqrt(q) * z
            return (fn(mu + u) * fn(mu + c * u))[None]

        value, error = expectation(product, np.concatenate([breaks, c * breaks]))
        return float(value[0]), float(error[0])
    # Panels of 1.25 standard deviations see what happens about u = 0 by themselves unless q is large.
    breaks = breaks if q > 9 else kinks
    for panels in (16, 32, 64):
        coarse = _pair(fn, (q, c, mu), kinks, breaks, panels, (10, 8))
        value_ = _pair(fn, (q, c, mu), kinks, breaks, panels, (16, 14))
        error_ = abs(value_ - coarse)
        if error_ <= 1e-13 * max(abs(value_), 1e-3):
            break
    return value_, error_ + _ROUNDING * abs(value_)
