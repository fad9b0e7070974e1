"""Activations that are polynomials between knots: every one-variable moment of them has a closed form."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from initwell.theory.activation import Activation, Array, ClosedForm, Function

Polynomial = Sequence[float]

# A sum that cancels down to less than this share of its terms is left to quadrature: twelve digits must remain.
_CANCELLED = 1e-3


def _normal_density(x: float) -> float:
    return math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) if abs(x) < 40 else 0.0


def _mass(a: float, b: float) -> float:
    # P(a < z < b), from the tail on whose side the interval lies, so that nothing cancels there.
    if a > 0:
        return 0.5 * (math.erfc(a / math.sqrt(2)) - math.erfc(b / math.sqrt(2)))
    if b < 0:
        return _mass(-b, -a)
    return 0.5 * (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2)))


def partial_moments(a: float, b: float, highest: int) -> tuple[list[float], list[float]]:
    """Compute E[zᵏ; a < z < b] for z ~ N(0, 1) and k = 0 … ``highest``.

    Args:
        a: lower end, may be −∞.
        b: upper end, may be ∞.
        highest: largest power.

    Returns:
        The moments, and the sums of the sizes of the terms they were added up from, which bound their rounding.

    Source: integration by parts, M_k = (k−1)·M_{k−2} + a^{k−1}·p(a) − b^{k−1}·p(b).

    >>> partial_moments(0.0, math.inf, 2)[0]
    [0.5, 0.3989422804014327, 0.5]
    """
    at_a, at_b = _normal_density(a), _normal_density(b)
    moments, sizes = [_mass(a, b)], [_mass(a, b)]
    for k in range(1, highest + 1):
        low = a ** (k - 1) * at_a if at_a else 0.0
        high = b ** (k - 1) * at_b if at_b else 0.0
        moments.append((k - 1) * (moments[k - 2] if k > 1 else 0.0) + low - high)
        sizes.append((k - 1) * (sizes[k - 2] if k > 1 else 0.0) + abs(low) + abs(high))
    return moments, sizes


def evaluate_pieces(knots: Sequence[float], pieces: Sequence[Polynomial]) -> Function:
    """Return the function that is ``pieces[i]`` (ascending coefficients) up to and including ``knots[i]``."""
    width = max(len(p) for p in pieces)
    table = np.array([list(p) + [0.0] * (width - len(p)) for p in pieces])
    places = np.asarray(knots, dtype=np.float64)

    def piecewise_polynomial(x: Array) -> Array:
        index = np.searchsorted(places, x, side="left")
        # Keep what lies in an unused power out: 0·∞ is NaN.
        y = table[index, width - 1]
        for power in range(width - 2, -1, -1):
            y = y * x + table[index, power]
        return np.asarray(y)

    return piecewise_polynomial


def differentiate(pieces: Sequence[Polynomial]) -> tuple[tuple[float, ...], ...]:
    """Return the derivative of each polynomial."""
    return tuple(tuple(k * c for k, c in enumerate(p))[1:] or (0.0,) for p in pieces)


def _shifted(polynomial: Polynomial, mu: float, scale: float) -> Array:
    # p(mu + scale·z) as a polynomial in z.
    result = np.zeros(1)
    for coefficient in reversed(polynomial):
        result = np.convolve(result, [mu, scale])
        result[0] += coefficient
    return result


def _moment(
    knots: Sequence[float], pieces: Sequence[Polynomial], weigh: Callable[[Array], Array]
) -> Callable[[float, float], float]:
    # E[weigh(p)(z)] where weigh maps the polynomial in z of a piece to the one whose expectation is wanted.
    ends = (-math.inf, *knots, math.inf)

    def closed_form(q: float, mu: float = 0.0) -> float:
        scale = math.sqrt(q)
        total = size = 0.0
        for (low, high), piece in zip(itertools.pairwise(ends), pieces, strict=True):
            weighed = weigh(_shifted(piece, mu, scale)).tolist()
            if not any(weighed):
                continue
            moments, sizes = partial_moments((low - mu) / scale, (high - mu) / scale, len(weighed) - 1)
            total += sum(c * m for c, m in zip(weighed, moments, strict=True))
            size += sum(abs(c) * s for c, s in zip(weighed, sizes, strict=True))
        return total if abs(total) >= _CANCELLED * size else math.nan

    return closed_form


def _growth(p: Array) -> Array:
    # q·dE[φ²]/dq = E[φ²·(z² − 1)]/2, which asks no derivative of φ and so holds across jumps.
    return np.convolve(np.convolve(p, p), [-0.5, 0.0, 0.5])


def _moments(
    knots: Sequence[float], pieces: Sequence[Polynomial], slopes: Sequence[Polynomial]
) -> dict[str, ClosedForm]:
    return {
        "mean": _moment(knots, pieces, lambda p: p),
        "second_moment": _moment(knots, pieces, lambda p: np.convolve(p, p)),
        "derivative_second_moment": _moment(knots, slopes, lambda p: np.convolve(p, p)),
        "growth": _moment(knots, pieces, _growth),
    }


def piecewise(
    name: str,
    knots: Sequence[float],
    pieces: Sequence[Polynomial],
    *,
    parameters: Mapping[str, float] | None = None,
    closed_forms: Mapping[str, ClosedForm] | None = None,
    citation: str,
) -> Activation:
    """Build the activation that is a polynomial between knots, with the closed forms of its moments.

    Args:
        name: canonical name.
        knots: n ascending places where one polynomial hands over to the next.
        pieces: n + 1 tuples of coefficients, constant term first; a knot belongs to the piece on its left.
        parameters: what it was built from.
        closed_forms: further ones, such as "overlap".
        citation: where it comes from.

    Returns:
        The activation; kinks, jumps, derivative, oddness and boundedness are worked out from the pieces.

    >>> piecewise("step", [0.0], [(0.0,), (1.0,)], citation="Heaviside").jumps
    (0.0,)
    """
    pieces = tuple(tuple(float(c) for c in p) for p in pieces)
    slopes = differentiate(pieces)
    fn = evaluate_pieces(knots, pieces)
    values = [
        (np.polyval(a[::-1], k), np.polyval(b[::-1], k)) for k, a, b in zip(knots, pieces, pieces[1:], strict=False)
    ]
    probe = np.array([0.1, 0.7, 1.9, 7.3])
    return Activation(
        name=name,
        fn=fn,
        derivative=evaluate_pieces(knots, slopes),
        kinks=tuple(float(k) for k in knots),
        jumps=tuple(float(k) for k, (a, b) in zip(knots, values, strict=True) if abs(a - b) > 1e-12),
        parameters=dict(parameters or {}),
        closed_forms=_moments(knots, pieces, slopes) | dict(closed_forms or {}),
        closed_forms_take_mean=True,
        citation=citation,
        odd=bool(np.array_equal(fn(-probe), -fn(probe))),
        bounded=not any(any(p[1:]) for p in (pieces[0], pieces[-1])),
    )
