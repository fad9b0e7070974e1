"""The Gaussian behind a value whose largest entries are wanted, and the rising function that makes the one the other.

Assumption: positive values of no known law are those of a Gaussian that is cut off at zero.
"""

import math
from functools import lru_cache

import numpy as np

from initwell.propagate.laws.functions import Function, line
from initwell.propagate.laws.gaussian import covariance, hermite, series_moments
from initwell.propagate.laws.rectified import marginal
from initwell.propagate.moments.alike import plain
from initwell.propagate.moments.remembered import Law
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Pointwise, Signal, replace
from initwell.propagate.rules.parts import one_atom
from initwell.theory.activations import activation

# A rectified zero-mean Gaussian has E[x]²/E[x²] = 1/π.
_LEAST = 0.25


def alone(x: Signal, first: int) -> Signal:
    """Take all segments as alike, and make one atom of each dimension from ``first`` on."""
    x = plain(x, *range(len(x.dims)))
    for d in range(first, len(x.dims)):
        x = one_atom(x, d)
    return x


def behind(x: Signal, first: int) -> tuple[Pointwise, Signal]:
    """Return a rising function and the Gaussian that it makes x of.

    What was put together of rectified values, or pooled before, remembers no Gaussian, but is no Gaussian either: where
    its mean is as large as those of rectified values are, it is taken as one cut off at zero, of its mean and size.

    >>> from initwell.propagate.rules.pointwise import applied
    >>> from initwell.propagate.moments.signal import independent
    >>> from initwell.theory.activations import activation
    >>> x = applied(activation("relu"), independent((4, 3), 2.0))
    >>> round(behind(replace(x, image=None), 2)[1].q, 6)
    2.0
    """
    if x.image is not None and x.image.base is None:
        u = alone(x.image.pre, first)
        if u.dims == x.dims and (u.gaussian or u.law is None):
            return x.image.phi, u
    law = None if x.gaussian or x.segmented else marginal(x)
    if law is not None:
        return _ranked(x, law)
    share = x.mean**2 / x.q if x.q > 0 else 1.0
    if x.gaussian or x.mean <= 0 or not _LEAST < share < 1 - 1e-9:
        return line(1.0), x
    level, scale = _cut_off(share)
    scale = x.mean / scale
    _, correlations = covariance(x)
    found = x.changed(scale**2 * (level**2 + correlations), level * scale)
    return activation("relu"), replace(found, profile=x.profile)


def _ranked(x: Signal, law: Law) -> tuple[Pointwise, Signal]:
    """Return the function that takes a standard Gaussian to the value of its rank, and the one behind x.

    Its correlations are those that make x's, which is what a Gaussian copula is.
    """
    from scipy.special import ndtr

    order = np.argsort(law.values[0])
    values, weights = law.values[0][order], law.weights[0][order] / law.weights[0].sum()
    ranks = np.cumsum(weights) - weights / 2

    def fn(z: Array) -> Array:
        return np.asarray(np.interp(ndtr(z), ranks, values))

    series = hermite(fn, (), 0.0, 1.0)
    at = np.linspace(-1.0, 1.0, 401)
    made = series_moments(series, series, at) - series.coefficients[0] ** 2
    _, correlations = covariance(x)
    found = np.interp(correlations, made / made[-1], at) if made[-1] > 0 else correlations
    u = x.changed(np.asarray(found), 0.0, gaussian=True)
    return Function(fn), replace(u, profile=x.profile)


@lru_cache(maxsize=256)
def _cut_off(share: float) -> tuple[float, float]:
    """Find t for which z + t, cut off at zero, has E[x]²/E[x²] = share; return it and E[x]."""

    def moments(t: float) -> tuple[float, float]:
        density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
        above = math.erfc(-t / math.sqrt(2)) / 2
        return density + t * above, (1 + t * t) * above + t * density

    low, high = -2.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        mean, q = moments(middle)
        low, high = (middle, high) if mean**2 / q < share else (low, middle)
    return low, moments(low)[0]
