"""Moments of softmax weights p_t = e^(s_t)/Σ e^s of Gaussian scores, exact in one integral.

From 1/S^k = ∫ x^(k−1) e^(−xS) dx / (k−1)!, for T independent scores of one variance,

    E[p_1^a p_2^b …] = ∫ x^(k−1)/(k−1)! · E[e^(as) e^(−x e^s)] · E[e^(bs) e^(−x e^s)] … · E[e^(−x e^s)]^(T−n) dx

for n different weights and k = a + b + …. Both integrands are analytic and fall off twice exponentially, so that sums
over equal steps converge at once. Rows of scores q·k have a variance each: |q|² is a χ² of as many degrees of freedom
as the keys have channels. Over such rows the moments are averaged with Gauss's nodes of a Gamma distribution.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from initwell.propagate.segments import Array

_REACH = 9.5
_STEP = 0.25
_NODES = 6


def weight_moments(variance: float, count: int, powers: Sequence[Sequence[int]], spread: float = 0.0) -> Array:
    """Compute E[p_1^a p_2^b …] for several lists of powers.

    Args:
        variance: of a score, on average over rows.
        count: T, 1 or more.
        powers: for each moment a, b, …: one for each of as many different weights, at most ``count``.
        spread: relative variance of the rows' variances.

    Returns:
        One moment for each list.

    >>> (weight_moments(0.0, 8, [(2,), (1, 1)]) * 64).round(6).tolist()
    [1.0, 1.0]
    """
    if count == 1 or variance <= 0:
        return np.array([float(count) ** -sum(p) for p in powers])
    if spread < 1e-9:
        return _moments(variance, count, powers)
    nodes, weights = _gamma(round(1 / spread, 6))
    return np.asarray(sum(w * _moments(variance * x, count, powers) for x, w in zip(nodes, weights, strict=True)))


def _moments(variance: float, count: int, powers: Sequence[Sequence[int]]) -> Array:
    std = math.sqrt(variance)
    step = min(0.4, _STEP / std)
    z = np.arange(-_REACH, _REACH + step, step)
    density = np.exp(-z * z / 2)
    density /= density.sum()
    log_x = np.arange(-_REACH * std - 14 - math.log(count), _REACH * std + 6, _STEP)
    exponents = log_x[:, None] + std * z[None, :]
    decay = np.exp(-np.exp(np.minimum(exponents, 50.0)))
    # What e^(ps) times the decay is beyond e^5 is nothing.
    grown = decay * np.exp(np.minimum(exponents, 7.0))
    single = {0: decay @ density}
    for power in range(1, max(max(p) for p in powers) + 1):
        single[power] = grown @ density
        grown = grown * np.exp(np.minimum(exponents, 7.0))
    found = []
    for several in powers:
        inside = single[0] ** (count - len(several)) / math.factorial(sum(several) - 1)
        for power in several:
            inside = inside * single[power]
        found.append(float(inside.sum()) * _STEP)
    return np.array(found)


@cache
def _gamma(shape: float) -> tuple[Array, Array]:
    """Return Gauss's nodes and weights of a Gamma distribution of this shape and mean 1 (Golub and Welsch)."""
    n, alpha = np.arange(_NODES), shape - 1
    beside = np.sqrt(np.arange(1, _NODES) * (np.arange(1, _NODES) + alpha))
    values, vectors = np.linalg.eigh(np.diag(2 * n + 1 + alpha) + np.diag(beside, 1) + np.diag(beside, -1))
    return values / shape, np.asarray(vectors[0] ** 2)
