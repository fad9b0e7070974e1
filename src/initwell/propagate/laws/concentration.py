"""Moments of softmax weights p_t = e^(s_t)/Σ e^s of random scores, of one row or of two that correlate, by quadrature.

From 1/S^k = ∫ x^(k−1) e^(−xS) dx / (k−1)!, for T independent scores of one distribution,

    E[p_1^a p_2^b …] = ∫ x^(k−1)/(k−1)! · E[e^(as) e^(−x e^s)] · E[e^(bs) e^(−x e^s)] … · E[e^(−x e^s)]^(T−n) dx

for n different weights and k = a + b + …. For two rows whose scores correlate by ρ it is the same in x and x', with
E[e^(as) e^(−x e^s) e^(a's') e^(−x' e^s')] = Σ ρ^k c_k c'_k, the c_k normalized Hermite coefficients (Mehler). All
integrands are analytic and fall off twice exponentially, so that sums over equal steps converge at once.

Scores are Gaussian with two corrections of finite width. Each row of scores q·k has a variance of its own, since |q|²
is a χ² of as many degrees of freedom as the keys have channels: the moments are averaged over a Gamma distribution
with Gauss's nodes. And where the keys come from rows of one length, as a layer norm's, a row of scores is a coordinate
of points on a sphere of so many dimensions, whose density (1 − z²/C)^((C−3)/2) has shorter tails.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, reduce
from itertools import zip_longest

import numpy as np

from initwell.propagate.moments.segments import Array
from initwell.records import Record

_REACH = 9.5
_STEP = 0.35
_NODES = 6
_NOTHING = 1e-60
_HIGHEST = 6
_TERMS = 64
# Above this variance of scores, one takes nearly all.
_LARGE = 1024.0
# Rows of so many weights at most.
_LONGEST = 1e8
# Of an integral over two rows so many points along each are enough for nine digits.
_POINTS = 70
# Up to this variance of scores, moments of two rows are polynomials in their correlation: of these degrees, tried from
# the first on that may do at a variance.
_SMOOTH = 3.0
_DEGREES = ((8, 0.015), (10, 0.07), (12, 0.2), (16, 0.4), (20, 0.7), (24, 1.2), (32, _SMOOTH))

Powers = Sequence[int]
Kinds = tuple[tuple[Powers, Powers], ...]


@dataclass(frozen=True)
class Weights(Record):
    """The weights of rows of scores.

    Attributes:
        count: T, how many weights a row has, 1 or more; of unequal ones, as many as have their Σ p².
        spread: relative variance of the rows' variances of scores.
        width: dimensions of the sphere that the keys' inputs lie on; infinite for Gaussian ones.
    """

    count: float
    spread: float = 0.0
    width: float = math.inf

    def of(self, count: float) -> "Weights":
        """Return those of rows of so many."""
        return self if count == self.count else replace(self, count=count)

    def moments(self, variance: float, powers: Sequence[Powers]) -> Array:
        """Compute E[p_1^a p_2^b …] for several lists of powers.

        Args:
            variance: of a score, on average over rows.
            powers: for each moment a, b, …: one for each of as many different weights, at most ``count``; each at
                most 6.

        Returns:
            One moment for each list.

        >>> (Weights(8).moments(0.0, [(2,), (1, 1)]) * 64).round(6).tolist()
        [1.0, 1.0]
        """
        if self.count <= 1 or variance <= 0:
            return np.array([max(self.count, 1.0) ** -sum(p) for p in powers])
        found = [tuple(sorted(p)) for p in powers]
        limit = np.array([1 / self.count if len(p) == 1 else 0.0 for p in found])
        return beyond(variance, lambda v: np.array([_averaged(v, self, p) for p in found]), limit)

    def coupled(self, variance: float, powers: Powers) -> float:
        """Say how strongly a moment p_1^a p_2^b … goes with the product of what the scores 1 and 2 are images of.

        Scores s = √v·t of a row are a·x_t, and of two such x only what lies along a goes with the weights:

            E[p_1^a p_2^b … x_1·x_2] = E[p_1^a p_2^b … t_1 t_2]

        With Gaussian scores that is v·E[∂²(p_1^a p_2^b …)/∂s_1∂s_2] (Stein); on a sphere it is less, as large t are
        rarer there, and each row has it at a variance of its own.

        Args:
            variance: of a score, v.
            powers: a, b, …, two or more.

        >>> round(Weights(8).coupled(1e-9, (1, 1)) * 1e9 * 64 / (1 - 4 / 8 + 6 / 64), 3)
        1.0
        """
        return self._with_scores(variance, powers, (1, 1))

    def coupled_itself(self, variance: float, powers: Powers) -> float:
        """Say how strongly a moment goes with the square of what score 1 is an image of: E[p_1^a p_2^b … (t_1² − 1)].

        Args:
            variance: of a score.
            powers: a, b, …
        """
        return self._with_scores(variance, powers, (2,)) - self._with_scores(variance, powers, ())

    def _with_scores(self, variance: float, powers: Powers, scores: Powers) -> float:
        """Return E[p_1^a t_1^c p_2^b t_2^d …]; on which weights the c, d, … are is all that their order says."""
        if self.count <= 1 or variance <= 0:
            alone = 1.0 if all(c == 2 for c in scores) else 0.0
            return max(self.count, 1.0) ** -sum(powers) * alone
        limit = np.zeros(1) if len(powers) > 1 else None
        return float(beyond(variance, lambda v: np.array([_averaged(v, self, tuple(powers), scores)]), limit)[0])


def between(variance: float, count: float, correlation: float, powers: Sequence[tuple[Powers, Powers]]) -> Array:
    """Compute E[p_1^a p_2^b … p'_1^a' p'_2^b' …] of two rows of Gaussian scores.

    Args:
        variance: of a score.
        count: T.
        correlation: of s_t with s'_t.
        powers: for each moment a, b, … and a', b', …, as many of both; each 1 or 2.

    Returns:
        One moment for each pair of lists.

    >>> (between(1.0, 4, 1.0, [((1,), (1,))]) / Weights(4).moments(1.0, [(2,)])).round(6).tolist()
    [1.0]
    """
    return _kept_between(variance, count, correlation, tuple([(tuple(a), tuple(b)) for a, b in powers]))


@lru_cache(maxsize=4096)
def _kept_between(variance: float, count: float, correlation: float, powers: Kinds) -> Array:
    if count <= 1 or variance <= 0:
        return np.array([max(count, 1.0) ** -(sum(a) + sum(b)) for a, b in powers])

    def at(v: float) -> Array:
        series = _by_correlation(v, count, powers)
        if series is None:
            return _between(v, count, correlation, powers)
        return np.asarray(np.cos(np.arange(len(series)) * math.acos(min(max(correlation, -1.0), 1.0))) @ series)

    return beyond(variance, at)


def beyond(variance: float, moments: Callable[[float], Array], limit: Array | None = None) -> Array:
    """Return moments of a variance; of a large one from what they tend to.

    There the largest score takes nearly all. The others' share is that of a second score which comes within reach of
    e^1, whose chance goes as 1/σ: moments are a parabola in 1/σ, through three points.

    Args:
        variance: of a score.
        moments: of a variance that is not large.
        limit: that of an infinite one, if it is known.
    """
    if variance <= _LARGE:
        return moments(variance)
    known = [(math.sqrt(_LARGE / v), moments(v)) for v in (_LARGE, _LARGE / 4)]
    known.append((0.0, limit) if limit is not None else (math.sqrt(2), moments(_LARGE / 2)))
    at, found = math.sqrt(_LARGE / variance), np.zeros_like(known[0][1])
    for x, here in known:
        found = found + here * math.prod((at - y) / (x - y) for y, _ in known if y != x)
    return np.asarray(found)


@lru_cache(maxsize=256)
def _by_correlation(variance: float, count: float, powers: Kinds) -> Array | None:
    """Return Chebyshev's coefficients of each moment in ρ: shape (terms, moments); None where it takes too many.

    Moments are power series in ρ, whose coefficients are about those of e^(vρ).
    """
    for degree in [d for d, most in _DEGREES if variance <= most]:
        place = np.pi * np.arange(degree + 1) / degree
        ends = np.where(np.arange(degree + 1) % degree == 0, 0.5, 1.0)
        known = np.array([_between(variance, count, float(c), powers) for c in np.cos(place)])
        found = (2 / degree * ends[:, None] * np.cos(np.outer(np.arange(degree + 1), place)) * ends) @ known
        # Three digits more than the integrals have; a power of so many factors rounds by as much.
        if (np.abs(found[-2:]) <= 1e-12 * (count + 10) * np.abs(found[0])).all():
            return np.asarray(found)
    return None


@lru_cache(maxsize=4096)
def _between(variance: float, count: float, correlation: float, powers: Kinds) -> Array:
    series, step = _factors(variance, count)
    scaled = [coefficients * correlation ** np.arange(coefficients.shape[1]) for coefficients in series]
    kinds = {(0, 0), *((a, b) for one, two in powers for a, b in zip(one, two, strict=True))}
    crossed = {(a, b): scaled[a] @ series[b].T for a, b in kinds}
    # Positive but for what the series leaves out, and a mask's average count is no whole power.
    rest = np.maximum(crossed[0, 0], 1e-30)
    longest = max(len(one) for one, _ in powers)
    left = {longest: rest ** (count - longest)}
    for n in range(longest - 1, 0, -1):
        left[n] = left[n + 1] * rest
    found = []
    for one, two in powers:
        *first, last = zip(one, two, strict=True)
        inside = reduce(np.multiply, [crossed[pair] for pair in first], left[len(one)])
        over = math.factorial(sum(one) - 1) * math.factorial(sum(two) - 1)
        found.append(float(np.vdot(inside, crossed[last])) * step**2 / over)
    return np.array(found)


@lru_cache(maxsize=64)
def _factors(variance: float, count: float) -> tuple[Sequence[Array], float]:
    """Return the Hermite coefficients of ``_series`` where x and the terms count, and the steps between x."""
    whole = _series(variance)
    inside = whole[1][:, 0] * whole[0][:, 0] ** (count - 1)
    here = np.flatnonzero(inside > 1e-13 * inside.max())
    # As wide as it is, as smooth it is.
    thinned = max(1, here.size // _POINTS)
    kept = [coefficients[here[::thinned]] for coefficients in whole]
    # In products each comes twice.
    sizes = np.max([np.abs(c / c[:, :1]).max(axis=0) for c in kept], axis=0)
    terms = int(np.flatnonzero(sizes > 1e-9).max(initial=0)) + 1
    return [np.ascontiguousarray(c[:, :terms]) for c in kept], thinned * _STEP


@lru_cache(maxsize=4096)
def _averaged(variance: float, rows: Weights, powers: Powers, scores: Powers = ()) -> float:
    """Average p_1^a t_1^c p_2^b t_2^d … over the rows' variances."""
    inside = _others(variance, rows, len(powers))
    for power, score in zip_longest(powers, scores, fillvalue=0):
        inside = inside * _by_variances(variance, rows, score)[power]
    return float(inside.sum()) * _STEP / math.factorial(sum(powers) - 1)


@lru_cache(maxsize=256)
def _by_variances(variance: float, rows: Weights, score: int = 0) -> Sequence[Array]:
    """Return ``_transforms`` at each of the rows' variances, one after the other."""
    if rows.spread < 1e-9:
        return _transforms(variance, rows.width, score)
    nodes = gamma_nodes(round(1 / rows.spread, 6))[0].tolist()
    return [
        np.concatenate(of) for of in zip(*[_transforms(variance * x, rows.width, score) for x in nodes], strict=True)
    ]


@lru_cache(maxsize=1024)
def _others(variance: float, rows: Weights, less: int) -> Array:
    """Return what all weights but so many come to over equal steps of log x, each variance by its share of rows."""
    none = _by_variances(variance, rows)[0]
    found = _power(none, rows.count - less)
    if rows.spread < 1e-9:
        return found
    nodes, weights = gamma_nodes(round(1 / rows.spread, 6))
    lengths = [_transforms(variance * x, rows.width)[0].size for x in nodes.tolist()]
    return np.asarray(found * np.repeat(weights, lengths))


def _power(none: Array, power: float) -> Array:
    """Return a power of E[e^(−x e^s)], negative where a row has fewer weights than a moment has.

    What it is multiplied by falls off as a higher power of the same: where that is nothing, so is the whole.
    """
    return np.where(none > _NOTHING, np.maximum(none, _NOTHING) ** power, 0.0)


def of_scores(variance: float, rows: Weights, several: Sequence[tuple[int, int]]) -> float:
    """Return E[p_1^a s_1^b p_2^c s_2^d …] of rows of one variance, for pairs (a, b), (c, d), …

    >>> round(of_scores(1.0, Weights(8), [(1, 0)]), 6)
    0.125
    """
    inside = _power(_transform(variance, rows.width, 0, 0), rows.count - len(several))
    for a, b in several:
        inside = inside * _transform(variance, rows.width, a, b)
    return float(inside.sum()) * _STEP / math.factorial(sum(a for a, _ in several) - 1)


@lru_cache(maxsize=1024)
def _transform(variance: float, width: float, a: int, b: int) -> Array:
    """Return x^a E[s^b e^(as) e^(−x e^s)], over equal steps of log x."""
    z = points(variance)
    grown = _grown(z, variance)
    return _summed(np.exp(-grown) * grown**a, density(z, width) * (math.sqrt(variance) * z) ** b)


@lru_cache(maxsize=1024)
def _transforms(variance: float, width: float, score: int = 0) -> Sequence[Array]:
    """Return x^p E[t^c e^(ps) e^(−x e^s)], s = √v·t, for each power p and one c, over equal steps of log x."""
    z = points(variance)
    shares = density(z, width) * z**score
    grown = _grown(z, variance)
    decay = np.exp(-grown)
    single = [_summed(decay, shares)]
    for _ in range(_HIGHEST):
        decay = decay * grown
        single.append(_summed(decay, shares))
    return tuple(single)


@lru_cache(maxsize=32)
def _series(variance: float) -> Sequence[Array]:
    """Return Hermite coefficients of x^p e^(ps) e^(−x e^s) for p = 0, 1, 2: shape (x, terms)."""
    z = points(variance)
    basis = np.empty((z.size, _TERMS))
    before, polynomial = np.zeros_like(z), density(z, math.inf)
    for k in range(_TERMS):
        basis[:, k] = polynomial
        before, polynomial = polynomial, (z * polynomial - math.sqrt(k) * before) / math.sqrt(k + 1)
    grown = _grown(z, variance)
    decay = np.exp(-grown)
    return tuple(_summed(decay * grown**p, basis) for p in range(3))


def points(variance: float, reach: float = _REACH) -> Array:
    """Return points t of scores √v·t, as many on either side: a sphere's density has the mean 0 of them."""
    step = min(0.4, _STEP / math.sqrt(variance))
    each = math.ceil(reach / step)
    return np.asarray(step * np.arange(-each, each + 1.0))


def _grown(z: Array, variance: float) -> Array:
    """Return x·e^s over x and s; where it is beyond e^7, e^(−x e^s) is nothing, and so is any power times it.

    Where the steps of s are those of log x it depends on the sum of their places alone: one axis for both.
    """
    std = math.sqrt(variance)
    low, high = -_REACH * std - 14 - math.log(_LONGEST), _REACH * std + 6
    count = math.ceil((high - low) / _STEP)
    if (z[1] - z[0]) * std < _STEP * (1 - 1e-9):
        grown = (low + _STEP * np.arange(count))[:, None] + std * z[None, :]
    else:
        grown = low + std * z[0] + _STEP * np.arange(count + z.size - 1)
    return np.asarray(np.exp(np.minimum(grown, 7.0)))


def _summed(values: Array, weights: Array) -> Array:
    """Sum over s what ``_grown`` gave, or a function of it."""
    if values.ndim == 2:
        return np.asarray(values @ weights)
    if weights.ndim == 1:
        return np.correlate(values, weights, "valid")
    return np.asarray(np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(values, len(weights))) @ weights)


def density(z: Array, width: float) -> Array:
    """Return the weights of scores at these points: Gaussian, or a coordinate's on a sphere of so many dimensions."""
    n = max(width, 4.0)
    found = np.exp(-z * z / 2) if n > 1e4 else np.maximum(1 - z * z / n, 0.0) ** ((n - 3) / 2)
    return np.asarray(found / found.sum())


@cache
def gamma_nodes(shape: float) -> tuple[Array, Array]:
    """Return Gauss's nodes and weights of a Gamma distribution of this shape and mean 1 (Golub and Welsch)."""
    n, alpha = np.arange(_NODES), shape - 1
    beside = np.sqrt(np.arange(1, _NODES) * (np.arange(1, _NODES) + alpha))
    values, vectors = np.linalg.eigh(np.diag(2 * n + 1 + alpha) + np.diag(beside, 1) + np.diag(beside, -1))
    return values / shape, np.asarray(vectors[0] ** 2)
