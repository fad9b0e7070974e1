"""The largest of several entries of a Gaussian, and how two such maxima go together.

Entries of one window are s·(√c·z₀ + √(1−c)·z_k) about their mean: c is the correlation of entries of the window, which
all of them share and which so does not compete, and the z_k are independent. The largest has the density
n·Φ(z)^(n−1)·φ(z) in place of z_k. For maxima M and M′ of n independent entries each, of which o correspond, with
correlation r, and the rest do not, Hoeffding's formula gives

    Cov(M, M′) = ∫∫ Φ₂(a, b; r)^o · (Φ(a)Φ(b))^(n−o) − (Φ(a)Φ(b))^n da db

Windows that overlap have r = 1 on what they share.
"""

import math
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np

from initwell.propagate.gaussian import covariance, nodes
from initwell.propagate.segments import Array
from initwell.propagate.signal import Signal


def within_window(u: Signal, kernel: Sequence[int], nearer: Sequence[float] = ()) -> float:
    """Return the average correlation of two different entries of a window of the last dimensions.

    Args:
        u: any signal.
        kernel: how many entries a window has along each of the last dimensions.
        nearer: for each of them, E[u u'] at two places of a window over that at any two places.
    """
    _, correlations = covariance(u)
    first = len(u.dims) - len(kernel)
    nearer = nearer or (1.0,) * len(kernel)
    total, weight = 0.0, 0.0
    for place in np.ndindex(*(2,) * len(kernel)):
        pairs = math.prod(k * (k - 1) if d else k for d, k in zip(place, kernel, strict=True))
        differ = [axis for i, d in enumerate(place) if d for axis in u.axes([first + i])]
        if any(place) and pairs:
            found = float(correlations[tuple(int(i in differ) for i in range(correlations.ndim))])
            total += pairs * found * math.prod(f for d, f in zip(place, nearer, strict=True) if d)
            weight += pairs
    return min(max(total / weight, 0.0), 1.0) if weight else 0.0


def peak_law(u: Signal, count: int, common: float) -> tuple[Array, Array]:
    """Return values of the largest of ``count`` entries of u, and their weights.

    Args:
        u: Gaussian, its entries alike.
        count: how many entries.
        common: their correlation.
    """
    from scipy.special import ndtr

    z, weights = nodes((), 0.0, 1.0)
    keep = weights > 1e-9
    z, weights = z[keep][::2], weights[keep][::2]
    top = weights * count * ndtr(z) ** (count - 1)
    values = math.sqrt(common) * z[:, None] + math.sqrt(1 - common) * z[None, :]
    mass = (weights[:, None] * top[None, :]).ravel()
    return u.mean + math.sqrt(covariance(u)[0]) * values.ravel(), mass / mass.sum()


def covariance_of_largest(count: int, overlap: int, correlation: float) -> float:
    """Return Cov(M, M′) of two maxima of standard normal entries.

    Args:
        count: of entries, each.
        overlap: how many of them correspond.
        correlation: of those that do.

    >>> round(covariance_of_largest(2, 2, 1.0), 2), round(1 - 1 / math.pi, 2)
    (0.68, 0.68)
    """
    # Between these steps the covariance is as good as straight.
    low = math.floor(correlation * 32) / 32
    share = correlation * 32 - low * 32
    upper = _covariance(count, overlap, min(low + 1 / 32, 1.0))
    return (1 - share) * _covariance(count, overlap, low) + share * upper


@lru_cache(maxsize=4096)
def _covariance(count: int, overlap: int, correlation: float) -> float:
    if correlation == 0 or overlap == 0:
        return 0.0
    a, single, both = _grid(correlation)
    apart = np.outer(single, single)
    inside = both**overlap * apart ** (count - overlap) - apart**count
    return float(inside.sum() * (a[1] - a[0]) ** 2)


@cache
def _grid(correlation: float) -> tuple[Array, Array, Array]:
    """Return points, Φ there, and Φ₂ of each two, by Plackett's ∂Φ₂/∂r = φ₂."""
    from scipy.special import ndtr

    a = np.linspace(-6.0, 7.0, 131)
    single = np.asarray(ndtr(a))
    if correlation >= 1:
        return a, single, np.minimum.outer(single, single)
    x, w = np.polynomial.legendre.leggauss(24)
    end = math.asin(correlation)
    both = np.outer(single, single)
    squares = np.add.outer(a * a, a * a)
    for angle, weight in zip((x + 1) / 2 * end, w / 2 * end, strict=True):
        exponent = (squares - 2 * np.outer(a, a) * math.sin(angle)) / (2 * math.cos(angle) ** 2)
        both = both + weight / (2 * math.pi) * np.exp(-exponent)
    return a, single, both
