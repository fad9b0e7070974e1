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
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from initwell.propagate.laws.gaussian import Series, covariance, nodes, series_moments
from initwell.propagate.moments.alike import plain
from initwell.propagate.moments.atoms import joined
from initwell.propagate.moments.places import by_axis, by_kinds, exactly, off_average, own_correlations
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal


@dataclass(frozen=True)
class Near:
    """The pairs of entries of two windows, or of one, along an axis; see ``places``.

    Attributes:
        same: how many of them are at one place.
        apart: how many are at two.
        common: the average of S over the latter, which is 1 over any two places.
        own: the average of L over them.
        far: the average of L over any two places.
    """

    same: float
    apart: float
    common: float = 1.0
    own: float = 0.0
    far: float = 0.0


def of_pairs(u: Signal, near: Sequence[Near]) -> Array:
    """Return the average correlation of two different entries of windows of the last dimensions.

    Args:
        u: any signal.
        near: along each of these dimensions, the entries' places.

    Returns:
        By pattern of the other dimensions.
    """
    first = len(u.dims) - len(near)
    _, correlations = covariance(u)
    lead = correlations.shape[: len(u.axes(range(first)))]
    table = correlations.reshape((*lead, *(2 if d else 1 for d in u.dims[first:])))
    table = np.broadcast_to(table, (*lead, *(2,) * len(near)))
    flat = table.reshape(*lead, -1)
    far = flat[..., -1]
    own = (flat[..., 0] - far) / max(1 - math.prod(n.far for n in near), 1e-6)
    total, weight = np.zeros(lead), 0.0
    for place in np.ndindex(*(2,) * len(near)):
        pairs = math.prod(n.apart if d else n.same for d, n in zip(place, near, strict=True))
        if any(place) and pairs:
            common, inside, anywhere = (
                math.prod(getattr(n, name) for d, n in zip(place, near, strict=True) if d)
                for name in ("common", "own", "far")
            )
            here = flat[..., int("".join(map(str, place)), 2)]
            total = total + pairs * ((here - own * anywhere) * common + own * inside)
            weight += pairs
    return np.clip(total / weight, -1.0, 1.0) if weight else np.asarray(far)


def _of_one_atom(u: Signal, dims: Sequence[int]) -> Signal:
    """Take what lies along each of some dimensions together, whatever parts it was seen in."""
    u = plain(u, *range(len(u.dims)))
    for dim in dims:
        while len(u.dims[dim]) > 1:
            u = joined(u, u.axes([dim])[0])
    return u


def within_window(u: Signal, kernel: Sequence[int]) -> float:
    """Return the average correlation of two different entries of windows that tile the last dimensions."""
    near = []
    u = _of_one_atom(u, range(len(u.dims) - len(kernel), len(u.dims)))
    for i, k in enumerate(kernel):
        places = u.profile[i] if len(u.profile) == len(kernel) else None
        if places is None or places.ndim == 1:
            near.append(Near(k, k * (k - 1)))
            continue
        block = np.arange(places.shape[1]) // k
        both = (block[:, None] == block) & ~np.eye(len(block), dtype=bool)
        common, own = (float(table[both].mean()) if both.any() else 0.0 for table in places)
        near.append(Near(k, k * (k - 1), common, own, off_average(places[1])))
    return max(float(of_pairs(u, near).flat[0]), 0.0)


def masked(g: Signal, u: Signal, slopes: Array, kappa: Series | None = None) -> tuple[Array, ...]:
    """Return how places of g·φ′(u) differ: a mask makes neighbours of a gradient less alike, but where u's are alike.

    With M = E[φ′φ′], M(1) of an entry with itself, M(0) of distant places, and M(0) + (M(1) − M(0))·μ of two places,

        (q M(1) − a M(0)) L_new = (q − a)·L·(M(0) + (M(1) − M(0))·μ) + a·(M(1) − M(0))·μ·S

    Of entries that differ along several axes the mask counts once: each axis has its share as a root. Assumption:
    distant places are as any two are on average.

    Args:
        g: the gradient.
        u: of the same dimensions.
        slopes: M by pattern.
        kappa: of φ′(u), whose moments M are, by u's correlation; None where M goes straight from M(0) to M(1).
    """
    count = len(g.profile)
    space = set(g.axes(range(len(g.dims) - count, len(g.dims)))) if count else set()
    far = tuple(int(i in space) for i in range(g.moments.ndim))
    here, own, level = (0,) * g.moments.ndim, g.q, float(g.moments[far])
    if not space or slopes.shape != g.moments.shape or slopes[here] <= 0 or own <= 0:
        return g.profile
    kept = min(max(float(slopes[far] / slopes[here]), 0.0), 1.0)
    c = exactly(min(max(float(covariance(u)[1][far]), 0.0), 0.999))
    others = u.profile if len(u.profile) == count else (None,) * count
    given = (exactly(level / own), exactly(kept), 1 / count, kappa, c)
    return tuple(by_axis(_masked, g.profile, others, given=given))


def _masked(
    places: Array, others: Array | None, level: float, kept: float, root: float, kappa: Series | None, c: float
) -> Array:
    if places.ndim == 1:
        return places
    alike = None if others is None else own_correlations(others)
    mu = np.eye(places.shape[1]) if alike is None else alike
    if kappa is not None and alike is not None and np.abs(alike).sum() > (1 + 1e-9) * len(alike):
        series = kappa
        low, high = series_moments(series, series, np.array([c, 1.0]))

        def share(kinds: Array) -> Array:
            return np.asarray((series_moments(series, series, c + (1 - c) * kinds) - low) / max(high - low, 1e-300))

        mu = by_kinds(share, alike)
    passed = np.maximum(kept + (1 - kept) * mu, 0.0) ** root
    fresh = (1 - level) * places[1] * passed + level * (1 - kept) * mu * places[0]
    table = np.stack([places[0], fresh / max(1 - level * kept, 1e-9)])
    np.fill_diagonal(table[1], places[0].diagonal())
    return table


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
