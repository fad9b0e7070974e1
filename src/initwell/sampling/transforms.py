"""Random bits to uniform, normal and truncated normal numbers, with +, −, ×, ÷ and √ of IEEE 754 only.

Those five are rounded correctly on every machine, so equal bits in give equal bits out everywhere; a C library's log,
sin and erf are not. NumPy runs each as a pass of its own, so that no compiler can fuse a product into a sum.
"""

from decimal import Decimal
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from initwell.initializers.truncation import normal_cdf

Array = NDArray[np.float64]

# Wichura 1988, algorithm AS 241, routine PPND16: coefficients of rising powers for the middle, near tail and far tail.
_MIDDLE_TOP = (
    3.3871328727963666080e0,
    1.3314166789178437745e2,
    1.9715909503065514427e3,
    1.3731693765509461125e4,
    4.5921953931549871457e4,
    6.7265770927008700853e4,
    3.3430575583588128105e4,
    2.5090809287301226727e3,
)
_MIDDLE_BOTTOM = (
    1.0,
    4.2313330701600911252e1,
    6.8718700749205790830e2,
    5.3941960214247511077e3,
    2.1213794301586595867e4,
    3.9307895800092710610e4,
    2.8729085735721942674e4,
    5.2264952788528545610e3,
)
_NEAR_TOP = (
    1.42343711074968357734e0,
    4.63033784615654529590e0,
    5.76949722146069140550e0,
    3.64784832476320460504e0,
    1.27045825245236838258e0,
    2.41780725177450611770e-1,
    2.27238449892691845833e-2,
    7.74545014278341407640e-4,
)
_NEAR_BOTTOM = (
    1.0,
    2.05319162663775882187e0,
    1.67638483018380384940e0,
    6.89767334985100004550e-1,
    1.48103976427480074590e-1,
    1.51986665636164571966e-2,
    5.47593808499534494600e-4,
    1.05075007164441684324e-9,
)
_FAR_TOP = (
    6.65790464350110377720e0,
    5.46378491116411436990e0,
    1.78482653991729133580e0,
    2.96560571828504891230e-1,
    2.65321895265761230930e-2,
    1.24266094738807843860e-3,
    2.71155556874348757815e-5,
    2.01033439929228813265e-7,
)
_FAR_BOTTOM = (
    1.0,
    5.99832206555887937690e-1,
    1.36929880922735805310e-1,
    1.48753612908506148525e-2,
    7.86869131145613259100e-4,
    1.84631831751005468180e-5,
    1.42151175831644588870e-7,
    2.04426310338993978564e-15,
)
_SPLIT, _SPLIT_SQUARED = 0.425, 0.180625
# log((1 + s)/(1 − s)) = 2s·(1 + s²/3 + s⁴/5 + …); with s² <= 0.0295 the first term left out is below 2e-18.
_ARTANH = tuple(1.0 / (2 * k + 1) for k in range(11))
# ln 2 in two parts: the upper one has its last 11 bits zero, so that any exponent times it is exact.
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42fefa3800p-1"), float.fromhex("0x1.ef35793c76730p-45")
_SQRT_HALF = 0.7071067811865476


def unit(bits: NDArray[np.uint64]) -> Array:
    """Map 64 random bits to (0, 1).

    Args:
        bits: (n,) words, of which the upper 52 bits count.

    Returns:
        (n,) odd multiples of 2⁻⁵³: never 0 or 1, and 1 − u is as exact as u.
    """
    values = (bits >> np.uint64(12)).astype(np.float64)
    values += 0.5
    values *= 2.0**-52
    return values


def normal_quantile(u: Array) -> Array:
    """Return z with Φ(z) = u.

    Args:
        u: (n,) probabilities in (0, 1); those near 1 are taken as 1 minus an exact small number.

    Returns:
        (n,) standard normal quantiles, to a relative error of about 1e-15.

    Source: Wichura 1988, "Algorithm AS 241: The percentage points of the normal distribution", Applied Statistics 37.

    >>> float(normal_quantile(np.array([0.5]))[0])
    0.0
    """
    return _quantile(u, 1.0 - u)


def _quantile(lower: Array, upper: Array) -> Array:
    """Return the quantile of ``lower``, given its complement ``upper`` too, which may be known more exactly."""
    # Their difference, not lower - 0.5: mirrored arguments then give exactly the mirrored number.
    centred = 0.5 * (lower - upper)
    r = _SPLIT_SQUARED - centred * centred
    # A tail element passes through the middle's formula as well: dividing it all at once is faster than picking it out.
    np.maximum(r, 0.0, out=r)
    z = _polynomial(_MIDDLE_TOP, r)
    z *= centred
    z /= _polynomial(_MIDDLE_BOTTOM, r)
    tails = np.flatnonzero(np.abs(centred) > _SPLIT)
    if tails.size:
        sign = np.where(centred[tails] < 0, -1.0, 1.0)
        z[tails] = sign * _tail(np.minimum(lower[tails], upper[tails]))
    return z


def _tail(p: Array) -> Array:
    """Return the positive z whose upper tail has probability p, for p < 0.075."""
    r = np.sqrt(-log(p))
    z = _ratio(_NEAR_TOP, _NEAR_BOTTOM, r - 1.6)
    far = np.flatnonzero(r > 5.0)
    if far.size:
        z[far] = _ratio(_FAR_TOP, _FAR_BOTTOM, r[far] - 5.0)
    return z


def log(x: Array) -> Array:
    """Return the natural logarithm of positive normal numbers, to about 1e-16.

    Args:
        x: (n,) positive numbers, not subnormal.

    Returns:
        (n,) logarithms.

    >>> float(log(np.array([1.0]))[0])
    0.0
    """
    # frexp only takes the number apart, which is exact; halves are moved so that the mantissa is in [√½, √2).
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    power = np.asarray(exponent - low, dtype=np.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = _polynomial(_ARTANH, s * s)
    series *= 2.0 * s
    series += power * _LN2_LOW
    series += power * _LN2_HIGH
    return series


def truncated_normal(u: Array, low: float, high: float) -> Array:
    """Return the quantiles of a standard normal kept within [low, high].

    Args:
        u: (n,) probabilities, odd multiples of 2⁻⁵³ in (0, 1).
        low: lower bound in standard deviations; may be -inf.
        high: upper bound; may be inf.

    Returns:
        (n,) numbers within the bounds.
    """
    if low > 0:
        # Mirrored, so that a slice of the upper tail has the small, exact probabilities of the lower one.
        return -truncated_normal(1.0 - u, -high, -low)
    below, inside, above = _masses(low, high)
    z = _quantile(below + u * inside, above + (1.0 - u) * inside)
    return np.clip(z, low, high)


@lru_cache(maxsize=256)
def _masses(low: float, high: float) -> tuple[float, float, float]:
    """Return the probabilities below, within and above the bounds, each the nearest float."""
    below, under_high = normal_cdf(low), normal_cdf(high)
    return float(below), float(under_high - below), float(Decimal(1) - under_high)


def _ratio(top: tuple[float, ...], bottom: tuple[float, ...], r: Array) -> Array:
    z = _polynomial(top, r)
    z /= _polynomial(bottom, r)
    return z


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    """Evaluate by Horner's rule, in one buffer."""
    value = x * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        value += c
        value *= x
    value += coefficients[0]
    return value
