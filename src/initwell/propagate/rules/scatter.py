"""How much channels differ in size that few weights made: what a normalization over samples divides by.

Given its weights w_1 … w_n, independent of mean 0, a channel of y = Σ w_k x_k has the variance s² = wᵀΣw over samples
and positions, Σ that of the x_k. A depthwise 3×3 convolution has n = 9; of images of one position, that it pads, n = 1.
Where two different x_k correlate by c, Σ has the eigenvalue 1 + (n − 1)c once and 1 − c for the rest, and for normal w

    E[e^(−ts²)] = (1 + 2λ₁t/n)^(−1/2) · (1 + 2λt/n)^(−(n−1)/2)        λ₁ = 1 + (n − 1)c,  λ = 1 − c

in units of E[s²]. Batch norm divides each channel by its own s² + ε, and the convolution's own backward multiplies by
the w whose sizes made s:

    E[1/(s² + ε)] = ∫ e^(−εt) E[e^(−ts²)] dt        E[Σ w²/(s² + ε)] = Σ ∫ e^(−εt) E[w² e^(−ts²)] dt

At n = 1 the first is about 1.25/√ε, and finite thanks to ε alone, while the second is next to 1. x̂² is E[s²/(s² + ε)].
Channels of x that few weights made differ in size themselves, and what reads n/taps of them keeps that share; few
samples scatter s² too. Both are taken as a gamma variable that s² is multiplied by. Assumption: the gradient's entries
at different positions are independent of each other.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from initwell.propagate.segments import Array
from initwell.propagate.signal import Signal, replace

_UNIFORM = 0.8
# Beyond a relative variance of 1 an inverse gamma variable has no mean; s² of few samples, with its ε, has.
_MOST = 0.75
_LEAST = 1e-12


def scattered(y: Signal, x: Signal, weight: Signal, taps: float, fan: float, near: float = 0.0) -> Signal:
    """Note how unlike the channels of y are.

    Args:
        y: what was made of x by the weight.
        x: dimensions (sample, channel, …).
        weight: fresh; its ``scatter`` is E[w⁴]/E[w²]² − 1.
        taps: positions that an entry of y reads of one channel.
        fan: entries that it reads in all.
        near: average squared correlation of what two different taps read of what is each place's own.

    Returns:
        y with its weights' ``scatter``, 1/n, c², and the relative variance of the sizes that x's channels bring along.
    """
    if not weight.scatter or weight.scatter[0] == 0 or weight.mean != 0 or fan < 1:
        return y
    tails = weight.scatter[0]
    others = {*x.axes([0]), *x.axes(range(2, len(x.dims)))}
    channels = set(x.axes([1]))
    level = x.averaged(others)
    variance = x.q - level
    if variance <= 1e-9 * x.q:
        return replace(y, scatter=(tails, 1 / fan, 0.0, 0.0))
    same = (x.averaged(x.axes(range(2, len(x.dims)))) - level) / variance if taps > 1 else 0.0
    apart = (x.averaged(channels) - x.averaged(channels | others)) / variance if fan > taps else 0.0
    inside = min((taps - 1) / max(fan - 1, 1), 1.0)
    squared = min(inside * max(same**2, near) + (1 - inside) * apart**2, 1.0)
    return replace(y, scatter=(tails, 1 / fan, squared, relative_variance(x) * taps / fan))


def relative_variance(x: Signal) -> float:
    """Return that of the variance of its channels, (E[w⁴]/E[w²]² − 1)/n + 2(1 − 1/n)c² and what came before."""
    if len(x.scatter) < 4:
        return 0.0
    tails, share, squared, before = x.scatter
    return tails * share + 2 * (1 - share) * squared + before


def inverse_sizes(x: Signal, floor: float, few: float = 0.0) -> tuple[float, float]:
    """Return E[1/(s² + ε)] over channels, and E[Σ w²/(s² + ε)]/Σ E[w²], both in units of 1/E[s²].

    Args:
        x: what is normalized.
        floor: ε over E[s²].
        few: relative variance of s² that comes from few samples.

    >>> from initwell.propagate.signal import independent
    >>> [round(v, 3) for v in inverse_sizes(replace(independent((4, 3), 1.0), scatter=(2.0, 1 / 9, 0.0, 0.0)), 0.0)]
    [1.286, 1.0]
    """
    tails, share, squared, before = x.scatter
    spread = min((1 + before) * (1 + few) - 1, _MOST)
    return _inverse(*(float(f"{v:.4g}") for v in (tails, share, squared, spread, max(floor, _LEAST))))


@lru_cache(maxsize=1024)
def _inverse(tails: float, share: float, squared: float, spread: float, floor: float) -> tuple[float, float]:
    if spread < 1e-3:
        return _integrals(tails, share, squared, floor)
    points, weights = _gamma(1 / spread)
    found = [_integrals(tails, share, squared, floor / p) for p in points]
    one, two = (float(sum(w * f[i] / p for w, p, f in zip(weights, points, found, strict=True))) for i in (0, 1))
    return one, two


def _gamma(shape: float) -> tuple[Array, Array]:
    """Return points and weights of a gamma variable of mean 1: Gauss–Laguerre, from its three-term recurrence."""
    i = np.arange(12.0)
    off = np.sqrt(i[1:] * (i[1:] + shape - 1))
    points, vectors = np.linalg.eigh(np.diag(2 * i + shape) + np.diag(off, 1) + np.diag(off, -1))
    return points / shape, vectors[0] ** 2


def _integrals(tails: float, share: float, squared: float, floor: float) -> tuple[float, float]:
    """Return both, where nothing but weights scatters."""
    n, c = 1 / share, math.sqrt(squared)
    # In log t both ends fall off exponentially: equal steps are exact to rounding.
    t = np.exp(np.arange(-18.0, math.log(40 / floor), 0.1))
    alike, apart = (1 + (n - 1) * c) * t / n, (1 - c) * t / n
    law = _of_square(tails)
    # What all have in common is a sum of n weights, and closer to a normal.
    first = law if c == 0 else _of_square(2 + (tails - 2) / n)
    (one, slope), (rest, slopes) = first(alike), law(apart)
    whole = np.exp(-floor * t) * one * rest ** (n - 1)
    inverse, undone = whole * t, whole * t * (slope + (n - 1) * slopes) / n
    # From 0 to the first point both are next to 1.
    return float(inverse.sum() * 0.1 + t[0] * 0.95), float(undone.sum() * 0.1 + t[0] * 0.95)


def _of_square(tails: float) -> Callable[[Array], tuple[Array, Array]]:
    """Return what gives E[e^(−tw²)], and E[w²e^(−tw²)] over it, for w² of mean 1: of normal or uniform w."""

    def gamma(t: Array) -> tuple[Array, Array]:
        return (1 + tails * t) ** (-1 / tails), 1 / (1 + tails * t)

    def uniform(t: Array) -> tuple[Array, Array]:
        from scipy.special import erf

        root = np.sqrt(3 * t)
        found = np.where(t < 1e-6, 1 - t, erf(root) * math.sqrt(math.pi) / 2 / np.maximum(root, 1e-12))
        slope = np.where(t < 1e-6, 1.0, (found - np.exp(-3 * t)) / (2 * np.maximum(t, 1e-12)))
        return found, slope / found

    return uniform if abs(tails - _UNIFORM) < 0.04 else gamma


def fan_of(shape: Sequence[int]) -> tuple[int, int]:
    """Return (taps, fan-in) of a convolution's weight, (out, in of a group, taps…).

    >>> fan_of((64, 1, 3, 3))
    (9, 9)
    """
    taps = math.prod(shape[2:])
    return taps, taps * shape[1]
