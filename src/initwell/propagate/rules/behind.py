"""The Gaussian behind a value whose largest entries are wanted, and the rising function that makes the one the other.

Assumption: positive values of no known law are those of a Gaussian that is cut off at zero.
"""

import math
from functools import lru_cache

from initwell.propagate.laws.functions import line
from initwell.propagate.laws.gaussian import covariance
from initwell.propagate.moments.alike import plain
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
        if u.dims == x.dims:
            return x.image.phi, u
    share = x.mean**2 / x.q if x.q > 0 else 1.0
    if x.gaussian or x.mean <= 0 or not _LEAST < share < 1 - 1e-9:
        return line(1.0), x
    level, scale = _cut_off(share)
    scale = x.mean / scale
    _, correlations = covariance(x)
    found = x.changed(scale**2 * (level**2 + correlations), level * scale)
    return activation("relu"), replace(found, profile=x.profile)


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
