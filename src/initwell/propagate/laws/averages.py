"""Averages of squares: positive, and for few squares far from a Gaussian.

The mean v of squares has a mean μ and a variance s². The gamma law of that mean and variance, of ν = 2μ²/s² degrees of
freedom, is exact for ν independent squares of equal variance, and the usual approximation otherwise (Welch 1938,
Satterthwaite 1946). Roots and quotients of v, as norms and normalizations by hand hold, are taken under it; a Gaussian
would reach 0 and below. Assumption: entries of f(v) go together as those of v do.
"""

import numpy as np

from initwell.propagate.laws.gaussian import covariance, variances
from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Pointwise, Signal

_DECAY = "e to a product that is nowhere positive, under a gamma law"
KNOWN_DECAY = "e to a product of known numbers and steps, whose entries go together as those of the product"
_POINTS = 241
_REACH = 9.0


def is_average_of_squares(u: Signal) -> bool:
    """Whether a signal is an average of squares that is not the same everywhere."""
    known = u.average is not None and u.average.kind != "mean"
    return known and bool((u.means > 0).all()) and u.q > u.mean**2 * (1 + 1e-12)


def gamma_law(mean: float, variance: float) -> tuple[Array, Array]:
    """Return points and weights of the gamma law of a mean and a variance."""
    shape = mean**2 / max(variance, 1e-12 * mean**2)
    # In log v the density is smooth and falls off on both sides: equal steps are exact to rounding.
    centre, width = np.log(mean), 1 / np.sqrt(shape)
    low = -_REACH * width * (1 + width)
    t = np.linspace(low, _REACH * width, _POINTS)
    log_weight = shape * (t - np.expm1(t))
    weights = np.exp(log_weight - log_weight.max())
    return np.exp(centre + t), weights / weights.sum()


def gamma_moments(f: Pointwise, u: Signal) -> tuple[Array, Array]:
    """Return E[f(v)] by segment and E[f(v)f(v')] by pattern of an average of squares.

    >>> from initwell.propagate.moments.remembered import Average
    >>> from initwell.propagate.moments.signal import independent, replace
    >>> x = independent((500, 8), 1.0)
    >>> v = replace(independent((500,), 1.0 + 2 / 8, 1.0), average=Average("square", x, (1,)))
    >>> from initwell.propagate.laws.functions import Function
    >>> round(float(gamma_moments(Function(lambda v: 1 / v), v)[0][0]), 3)  # 8/(8 − 2)
    1.333
    """
    found = []
    for mean, variance in zip(u.means.flat, variances(u).flat, strict=True):
        points, weights = gamma_law(float(mean), float(variance))
        values = f.fn(points)
        found.append((float(values @ weights), float((values * values) @ weights)))
    means, squares = (np.array(part).reshape(u.means.shape) for part in zip(*found, strict=True))
    spread = np.maximum(squares - means**2, 0.0)
    return means, over_pairs(u.atoms, means) + over_pairs(u.atoms, np.sqrt(spread)) * covariance(u)[1]


def spanned(u: Signal) -> Array:
    """Return points over all that a value may well be."""
    if is_average_of_squares(u):
        laws = [gamma_law(float(m), float(v)) for m, v in zip(u.means.flat, variances(u).flat, strict=True)]
        return np.concatenate([points[weights > 1e-12] for points, weights in laws])
    spread = np.sqrt(max(u.q - u.mean**2, 0.0))
    return np.asarray(u.mean + spread * np.linspace(-6.0, 6.0, 121))


def decayed(u: Signal) -> Signal:
    """Return e^u of a value that is nowhere positive, under the gamma law of the mean and the variance of −u.

    Args:
        u: the value.

    >>> from initwell.propagate.moments.signal import independent
    >>> round(decayed(independent((500,), 2.0, -1.0)).mean, 3)  # −u exponential: 1/(1 + 1)
    0.5
    """
    found = []
    for mean, variance in zip(u.means.flat, variances(u).flat, strict=True):
        points, weights = gamma_law(-float(mean), float(variance))
        values = np.exp(-points)
        found.append((float(values @ weights), float((values * values) @ weights)))
    means, squares = (np.array(part).reshape(u.means.shape) for part in zip(*found, strict=True))
    spread = np.sqrt(np.maximum(squares - means**2, 0.0))
    moments = over_pairs(u.atoms, means) + over_pairs(u.atoms, spread) * covariance(u)[1]
    return u.changed(np.asarray(moments), means).approximate(_DECAY)
