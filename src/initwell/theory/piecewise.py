"""Activations that are polynomials between knots: every one-variable moment of them has a closed form."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from initwell.theory.activation import Activation, Array, ClosedForm

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


@dataclass(frozen=True)
class PiecewisePolynomial:
    """The function that is ``pieces[i]`` (ascending coefficients) up to and including ``knots[i]``.

    Args:
        knots: n ascending places.
        pieces: n + 1 polynomials.

    >>> PiecewisePolynomial((0.0,), ((0.0,), (0.0, 1.0)))(np.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    knots: tuple[float, ...]
    pieces: tuple[tuple[float, ...], ...]

    def __call__(self, x: Array) -> Array:
        """Evaluate it."""
        found = _value(self.pieces[-1], x)
        for knot, piece in zip(self.knots[::-1], self.pieces[-2::-1], strict=True):
            found = np.where(x <= knot, _value(piece, x), found)
        return np.asarray(found) if self.knots else np.asarray(found + np.zeros_like(x))

    def times(self, factor: float) -> "PiecewisePolynomial":
        """Multiply it by a number."""
        return PiecewisePolynomial(self.knots, tuple([tuple([factor * c for c in p]) for p in self.pieces]))

    def of_line(self, slope: float, offset: float) -> "PiecewisePolynomial":
        """Return u ↦ f(slope·u + offset), for a slope above 0."""
        knots = tuple([(t - offset) / slope for t in self.knots])
        return PiecewisePolynomial(knots, tuple([tuple(_shifted(p, offset, slope).tolist()) for p in self.pieces]))

    def series(self, q: float, mu: float, terms: int) -> tuple[Array, float] | None:
        """Expand it in normalized Hermite polynomials h_k of z, for u = mu + √q·z.

        Args:
            q: variance of u, above 0.
            mu: its mean.
            terms: how many coefficients, more than any piece has.

        Returns:
            E[f(u)·h_k(z)] for k = 0, 1, …, and E[f(u)²]; None where cancellation leaves fewer than twelve digits.

        Source: by parts, E[f·He_k] = E[f′·He_(k−1)] + Σ_t p(t)·He_(k−1)(t)·(the jump of f at t), t the knots.

        >>> PiecewisePolynomial((0.0,), ((0.0,), (0.0, 1.0))).series(1.0, 0.0, 3)[0].round(6).tolist()
        [0.398942, 0.5, 0.282095]
        """
        scale = math.sqrt(q)
        knots = [(t - mu) / scale for t in self.knots]
        pieces = [tuple(_shifted(p, mu, scale).tolist()) for p in self.pieces]
        found = np.zeros(terms)
        square = size = 0.0
        for (low, high), piece in zip(itertools.pairwise((-math.inf, *knots, math.inf)), pieces, strict=True):
            if any(piece):
                moments, sizes = partial_moments(low, high, 2 * len(piece) - 2)
                for (i, a), (j, b) in itertools.product(enumerate(piece), repeat=2):
                    square, size = square + a * b * moments[i + j], size + abs(a * b) * sizes[i + j]
                for k, slope in enumerate(_derivatives(piece)):
                    own = sum(c * m for c, m in zip(slope, moments, strict=False))
                    found[k] += own / math.sqrt(math.factorial(k))
        for t, left, right in zip(knots, pieces, pieces[1:], strict=False):
            if density := _normal_density(t):
                hermite = density * _hermite(t, terms)
                ways = itertools.zip_longest(_derivatives(left), _derivatives(right), fillvalue=())
                for d, (one, two) in enumerate(ways, 1):
                    found[d:] += (_value(two, t) - _value(one, t)) * hermite[:-d] * _falling(terms, d)
        return (found, square) if square >= _CANCELLED * size else None


def _value(polynomial: Polynomial, x: Any) -> Any:
    found = polynomial[-1] if polynomial else 0.0
    for coefficient in polynomial[-2::-1]:
        found = found * x + coefficient
    return found


def _derivatives(polynomial: Polynomial) -> Iterator[Polynomial]:
    """Yield a polynomial, its derivative, and so on down to a constant."""
    while polynomial:
        yield polynomial
        polynomial = [k * c for k, c in enumerate(polynomial)][1:]


@lru_cache(maxsize=256)
def _hermite(t: float, terms: int) -> Array:
    """Return the normalized Hermite polynomials h_0, h_1, … at t."""
    roots = _roots(terms)
    found = [0.0, 1.0]
    for k in range(terms - 1):
        found.append((t * found[-1] - roots[k] * found[-2]) / roots[k + 1])
    return np.array(found[1:])


@cache
def _roots(terms: int) -> list[float]:
    return [math.sqrt(k) for k in range(terms)]


@cache
def _falling(terms: int, d: int) -> Array:
    """Return √((k − d)!/k!) for k = d, d + 1, …"""
    k = np.arange(d, terms, dtype=np.float64)
    return np.asarray(np.prod([1 / np.sqrt(k - i) for i in range(d)], axis=0))


def differentiate(pieces: Sequence[Polynomial]) -> tuple[tuple[float, ...], ...]:
    """Return the derivative of each polynomial."""
    return tuple(tuple(k * c for k, c in enumerate(p))[1:] or (0.0,) for p in pieces)


def _shifted(polynomial: Polynomial, mu: float, scale: float) -> Array:
    # p(mu + scale·z) as a polynomial in z.
    result = [0.0]
    for coefficient in reversed(polynomial):
        result = [mu * a + scale * b for a, b in zip([*result, 0.0], [0.0, *result], strict=True)]
        result[0] += coefficient
    return np.array(result[: len(polynomial)])


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
    knots, pieces = tuple(float(k) for k in knots), tuple(tuple(float(c) for c in p) for p in pieces)
    slopes = differentiate(pieces)
    fn, derivative = (PiecewisePolynomial(knots, tuple(map(tuple, of))) for of in (pieces, slopes))
    values = [
        (np.polyval(a[::-1], k), np.polyval(b[::-1], k)) for k, a, b in zip(knots, pieces, pieces[1:], strict=False)
    ]
    probe = np.array([0.1, 0.7, 1.9, 7.3])
    return Activation(
        name=name,
        fn=fn,
        derivative=derivative,
        kinks=knots,
        jumps=tuple(float(k) for k, (a, b) in zip(knots, values, strict=True) if abs(a - b) > 1e-12),
        parameters=dict(parameters or {}),
        closed_forms=_moments(knots, pieces, slopes) | dict(closed_forms or {}),
        closed_forms_take_mean=True,
        citation=citation,
        odd=bool(np.array_equal(fn(-probe), -fn(probe))),
        bounded=not any(any(p[1:]) for p in (pieces[0], pieces[-1])),
    )
