"""Closed forms of Gaussian moments that several activations share, for (u, v) ~ N(0, q) with correlation c."""

import math

from initwell.theory.activation import ClosedForm

# exp(x²/2)·Φ(−x) overflows before it is multiplied; past this the quadrature takes over.
_LARGEST_ARGUMENT = 25.0


def arc_cosine(order: int, q: float, c: float) -> float:
    """Evaluate E[(u₊)ⁿ(v₊)ⁿ] for n = ``order`` of 0, 1 or 2.

    Args:
        order: power n; 0 is the step function.
        q: variance of u and v.
        c: their correlation.

    Returns:
        The expectation.

    Source: Cho & Saul, "Kernel methods for deep learning", NIPS 2009, eq. 4 to 7.

    >>> arc_cosine(1, 2.0, 1.0)
    1.0
    """
    sine = math.sqrt(max(0.0, (1 - c) * (1 + c)))
    # atan2 keeps its digits near c = ±1, where arccos loses half of them.
    away = math.pi - math.atan2(sine, c)
    if order == 0:
        return away / (2 * math.pi)
    if order == 1:
        return q * (sine + away * c) / (2 * math.pi)
    if order == 2:
        return q * q * (3 * sine * c + away * (1 + 2 * c * c)) / (2 * math.pi)
    raise ValueError(f"arc-cosine order {order}: only 0, 1 and 2 are written down")


def leaky_overlaps(slope: float) -> dict[str, ClosedForm]:
    """Return the overlaps of max(x, 0) + slope·min(x, 0), from φ(u) = slope·u + (1 − slope)·u₊."""
    a, b = slope, 1 - slope
    return {
        "overlap": lambda q, c: (a * a + a * b) * q * c + b * b * arc_cosine(1, q, c),
        "derivative_overlap": lambda q, c: a * a + a * b + b * b * arc_cosine(0, q, c),
    }


def exponential_tail(k: float, q: float) -> float:
    """Evaluate E[exp(k·u); u < 0] = exp(k²q/2)·Φ(−k√q), NaN where it would overflow.

    >>> round(exponential_tail(1.0, 1.0), 12)
    0.261578291865
    """
    x = k * math.sqrt(q)
    if x > _LARGEST_ARGUMENT:
        return math.nan
    return math.exp(0.5 * x * x) * 0.5 * math.erfc(x / math.sqrt(2))


def exponential_unit(scale: float, alpha: float, rate: float) -> dict[str, ClosedForm]:
    """Return the moments of scale·(x if x > 0 else alpha·(exp(rate·x) − 1)), the family of ELU, SELU and CELU.

    Args:
        scale: factor in front of everything.
        alpha: depth of the negative side.
        rate: how fast it is reached.

    Returns:
        Closed forms of "mean", "second_moment", "derivative_second_moment" and "growth".

    Source: completing the square in E[exp(k·u); u < 0].
    """

    def mean(q: float) -> float:
        return scale * (math.sqrt(q / (2 * math.pi)) + alpha * (exponential_tail(rate, q) - 0.5))

    def second_moment(q: float) -> float:
        once, twice = exponential_tail(rate, q), exponential_tail(2 * rate, q)
        negative = twice - 2 * once + 0.5
        # For small q the three terms of order 1 nearly cancel.
        return scale**2 * (0.5 * q + alpha**2 * negative) if 0.5 * q + alpha**2 * negative > 1e-3 else math.nan

    def derivative_second_moment(q: float) -> float:
        return scale**2 * (0.5 + (alpha * rate) ** 2 * exponential_tail(2 * rate, q))

    def growth(q: float) -> float:
        once, twice = exponential_tail(rate, q), exponential_tail(2 * rate, q)
        return scale**2 * q * (0.5 + (alpha * rate) ** 2 * (2 * twice - once))

    return {
        "mean": lambda q: mean(q) if abs(mean(q)) > 1e-3 else math.nan,
        "second_moment": second_moment,
        "derivative_second_moment": derivative_second_moment,
        "growth": growth,
    }


def _cross_density(q: float, k: float) -> float:
    # E[p(u)p(v)], p the standard normal density, at covariance k.
    return 1 / (2 * math.pi * math.sqrt((1 + q - k) * (1 + q + k)))


def normal_gate() -> dict[str, ClosedForm]:
    """Return the moments of x·Φ(x), the exact GELU.

    Source: Stein's lemma applied twice; agrees with Tsuchida et al., "Avoiding kernel fixed points", AAAI 2021,
    proposition 3.
    """

    def overlap(q: float, c: float) -> float:
        k = q * c
        both = 0.25 + math.asin(k / (1 + q)) / (2 * math.pi)
        return k * both + _cross_density(q, k) * (q * q + k * k * (1 - q) / (1 + q))

    def derivative_overlap(q: float, c: float) -> float:
        k = q * c
        both = 0.25 + math.asin(k / (1 + q)) / (2 * math.pi)
        return both + _cross_density(q, k) * (2 * k / (1 + q) + k / ((1 + q - k) * (1 + q + k)))

    def growth(q: float) -> float:
        root = math.sqrt(1 + 2 * q)
        half = 0.25 * q + q * math.asin(q / (1 + q)) / (2 * math.pi) + q * q / (2 * math.pi * (1 + q) * root)
        return half + q * q / (math.pi * (1 + q) * root) * (2 - q / (1 + q) - q / (1 + 2 * q))

    return {
        "mean": lambda q: q / math.sqrt(2 * math.pi * (1 + q)),
        "second_moment": lambda q: overlap(q, 1.0),
        "derivative_second_moment": lambda q: derivative_overlap(q, 1.0),
        "growth": growth,
        "overlap": overlap,
        "derivative_overlap": derivative_overlap,
    }


def error_function() -> dict[str, ClosedForm]:
    """Return the moments of erf(x).

    Source: Williams, "Computing with infinite networks", NIPS 1996, eq. 11.
    """
    return {
        "mean": lambda q: 0.0,
        "second_moment": lambda q: 2 / math.pi * math.asin(2 * q / (1 + 2 * q)),
        "derivative_second_moment": lambda q: 4 / (math.pi * math.sqrt(1 + 4 * q)),
        "growth": lambda q: 4 * q / (math.pi * (1 + 2 * q) * math.sqrt(1 + 4 * q)),
        "overlap": lambda q, c: 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q)),
        "derivative_overlap": lambda q, c: 4 / (math.pi * math.sqrt((1 + 2 * q - 2 * q * c) * (1 + 2 * q + 2 * q * c))),
    }


def bell() -> dict[str, ClosedForm]:
    """Return the moments of exp(−x²), from Gaussian integrals of Gaussians."""

    def spread(q: float, c: float) -> float:
        return (1 + 2 * q - 2 * q * c) * (1 + 2 * q + 2 * q * c)

    return {
        "mean": lambda q: 1 / math.sqrt(1 + 2 * q),
        "second_moment": lambda q: 1 / math.sqrt(1 + 4 * q),
        "derivative_second_moment": lambda q: 4 * q / (1 + 4 * q) ** 1.5,
        "growth": lambda q: -2 * q / (1 + 4 * q) ** 1.5,
        "overlap": lambda q, c: 1 / math.sqrt(spread(q, c)),
        "derivative_overlap": lambda q, c: 4 * q * c / spread(q, c) ** 1.5,
    }


def sine() -> dict[str, ClosedForm]:
    """Return the moments of sin(x), from the characteristic function of a Gaussian."""
    return {
        "mean": lambda q: 0.0,
        "second_moment": lambda q: -0.5 * math.expm1(-2 * q),
        "derivative_second_moment": lambda q: 0.5 * (1 + math.exp(-2 * q)),
        "growth": lambda q: q * math.exp(-2 * q),
        "overlap": lambda q, c: -0.5 * math.exp(-q * (1 - c)) * math.expm1(-2 * q * c),
        "derivative_overlap": lambda q, c: 0.5 * (math.exp(-q * (1 - c)) + math.exp(-q * (1 + c))),
    }


def cosine() -> dict[str, ClosedForm]:
    """Return the moments of cos(x), from the characteristic function of a Gaussian."""
    odd = sine()
    return {
        "mean": lambda q: math.exp(-0.5 * q),
        "second_moment": odd["derivative_second_moment"],
        "derivative_second_moment": odd["second_moment"],
        "growth": lambda q: -q * math.exp(-2 * q),
        "overlap": odd["derivative_overlap"],
        "derivative_overlap": odd["overlap"],
    }


def snake() -> dict[str, ClosedForm]:
    """Return the moments of x + sin²(x) = x + (1 − cos 2x)/2, from the characteristic function of a Gaussian."""
    return {
        "mean": lambda q: -0.5 * math.expm1(-2 * q),
        "second_moment": lambda q: q + (1.5 - 2 * math.exp(-2 * q) + 0.5 * math.exp(-8 * q)) / 4,
        "derivative_second_moment": lambda q: 1 - 0.5 * math.expm1(-8 * q),
        "growth": lambda q: q * (1 + math.exp(-2 * q) - math.exp(-8 * q)),
    }
