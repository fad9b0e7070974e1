"""Functions of one Gaussian: whatever is computed entry by entry from a value u is base·f(u), f a known function.

x·sigmoid(1.702x), 0.5x(1 + tanh(√(2/π)(x + 0.0447x³))), x/(1 + |x|), where(x > 0, x, 0.1x), relu(relu(x)): each op of
such an expression composes functions, and every moment is then one Gaussian expectation of the whole, nothing being
taken as independent that is not. The backward is the same with the gradient as ``base``, which is independent of u:
g·f₁(u) along one path and g·f₂(u) along another add up to g·(f₁ + f₂)(u).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from initwell.propagate.laws.averages import gamma_moments, is_average_of_squares
from initwell.propagate.laws.few import FEW
from initwell.propagate.laws.gaussian import covariance, signal_moments, variances
from initwell.propagate.laws.rectified import distribution, expected, of_known_law
from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Image, Pointwise, Signal, merged_fidelity, replace
from initwell.theory.piecewise import PiecewisePolynomial

NOT_GAUSSIAN = "a nonlinearity of a value that is no sum of many terms, taken as Gaussian"


@dataclass(frozen=True, eq=False)
class Function:
    """A function of one number.

    Attributes:
        fn: of float64 arrays.
        kinks: where it is not smooth.
        line: (slope, offset), where it is a straight line.
    """

    fn: Callable[[Array], Array]
    kinks: tuple[float, ...] = ()
    line: tuple[float, float] | None = None


def line(slope: float, offset: float = 0.0) -> Function:
    """Return u ↦ slope·u + offset, a Function that knows that it is a straight line.

    >>> line(2.0, 1.0).fn(np.array([3.0])).tolist()
    [7.0]
    """
    return Function(lambda u: slope * u + offset, (), (slope, offset))


def is_line(phi: Pointwise) -> bool:
    """Whether a function is a straight line."""
    return isinstance(phi, Function) and phi.line is not None


def as_image(x: Signal) -> Image:
    """Return what a value is a function of: itself, if of nothing else."""
    return x.image if x.image is not None else Image(line(1.0), x)


def nowhere_zero(x: Signal) -> bool:
    """Whether a value is a positive function of a Gaussian, wherever that is: then its logarithm has moments."""
    image = as_image(x)
    if image.base is not None or image.pre.dims != x.dims or not image.pre.gaussian:
        return False
    spread, centre = np.sqrt(variances(image.pre)).reshape(-1, 1), image.pre.means.reshape(-1, 1)
    return bool((image.phi.fn(centre + spread * np.linspace(-8.0, 8.0, 241)) > 0).all())


def composed(outer: Pointwise, inner: Image) -> Pointwise:
    """Return outer ∘ inner, its kinks those of inner and wherever inner meets one of outer's.

    Args:
        outer: a function.
        inner: what it is applied to; of its Gaussian, ten standard deviations are searched for kinks.
    """
    if isinstance(inner.phi, Function) and inner.phi.line == (1.0, 0.0):
        return outer
    if isinstance(outer, Function) and outer.line and isinstance(inner.phi, Function) and inner.phi.line:
        (a, b), (c, d) = outer.line, inner.phi.line
        return line(a * c, a * d + b)
    f, g = outer.fn, inner.phi.fn
    if isinstance(inner.phi, Function) and inner.phi.line and inner.phi.line[0] != 0:
        slope, offset = inner.phi.line
        kinks = tuple([(level - offset) / slope for level in outer.kinks])
        if isinstance(f, PiecewisePolynomial) and slope > 0:
            return Function(f.of_line(slope, offset), kinks)
        return Function(lambda u: f(g(u)), kinks)
    return Function(lambda u: f(g(u)), (*inner.phi.kinks, *_meetings(g, outer.kinks, inner.pre)))


def _meetings(f: Callable[[Array], Array], levels: Sequence[float], u: Signal) -> tuple[float, ...]:
    """Return where f crosses these levels, within ten standard deviations of u, by bisection."""
    if not levels:
        return ()
    centre, spread = u.mean, max(float(np.sqrt(variances(u).max(initial=0.0))), 1e-150)
    grid = centre + spread * np.linspace(-10.0, 10.0, 801)
    found: list[float] = []
    for level in levels:
        above = f(grid) > level
        places = np.nonzero(above[1:] != above[:-1])[0]
        low, high = grid[places], grid[places + 1]
        for _ in range(50 if places.size else 0):
            middle = (low + high) / 2
            same = (f(middle) > level) == above[places]
            low, high = np.where(same, middle, low), np.where(same, high, middle)
        found += ((low + high) / 2).tolist()
    return tuple(found)


def combined(one: Pointwise, two: Pointwise, how: Callable[[Array, Array], Array]) -> Function:
    """Return u ↦ how(one(u), two(u)), which bends where either does.

    >>> combined(line(1.0), line(1.0), np.multiply).fn(np.array([3.0])).tolist()
    [9.0]
    """
    f, g = one.fn, two.fn
    return Function(lambda u: how(f(u), g(u)), (*one.kinks, *two.kinks))


def multiple(phi: Pointwise, factor: float) -> Pointwise:
    """Multiply a function by a number; a polynomial between knots stays one.

    >>> multiple(line(1.0), 2.0).fn(np.array([3.0])).tolist()
    [6.0]
    """
    f = phi.fn
    if factor == 1:
        return phi
    return Function(f.times(factor) if isinstance(f, PiecewisePolynomial) else lambda u: f(u) * factor, phi.kinks)


def function_moments(f: Pointwise, u: Signal) -> tuple[Array, Array]:
    """Compute E[f(u)] by segment and E[f(u)f(v)] by pattern.

    Of a straight line they are those of u, moved. Of a known law the mean and the second moment are its own; between
    different entries it has no joint law, and the correlation is that which f makes of a Gaussian u.

    Args:
        f: any function.
        u: Gaussian, or of known law.
    """
    if isinstance(f, Function) and f.line is not None:
        slope, offset = f.line
        means = np.asarray(slope * u.means + offset)
        if offset == 0:
            return means, np.asarray(slope**2 * u.moments)
    if is_average_of_squares(u):
        return gamma_moments(f, u)
    mean, moments = signal_moments(f.fn, f.kinks, u)
    if u.law is None or len(u.law.values) != u.means.size or u.q == u.mean**2:
        return mean, moments
    points, weights = distribution(u, f.kinks)
    values = f.fn(points)
    true, q = (expected(weights, powers).reshape(u.means.shape) for powers in (values, values * values))
    spread = np.maximum(moments[tuple(slice(n) for n in mean.shape)] - mean**2, 0.0)
    scale = over_pairs(u.atoms, np.sqrt(spread))
    centred = moments - over_pairs(u.atoms, mean)
    shape = np.where(scale > 0, centred / np.where(scale > 0, scale, 1.0), covariance(u)[1])
    own = over_pairs(u.atoms, np.sqrt(np.maximum(q - true**2, 0.0)))
    found = np.asarray(over_pairs(u.atoms, true) + own * shape)
    if u.law.near is not None and u.law.near.shape == found.shape:
        squares = (points - expected(weights, points)[:, None]) ** 2
        squares = squares / expected(weights, squares)[:, None] - 1
        slope = float((expected(weights, values * squares) / expected(weights, squares**2))[0])
        found = found + slope**2 * u.law.near
    return np.asarray(true), found


def evaluated(image: Image) -> Signal:
    """Return the signal base·φ(u)."""
    u, base = image.pre, image.base
    means, moments = function_moments(image.phi, u)
    straight = is_line(image.phi)
    if base is not None:
        means, moments = means * base.means, moments * base.moments
    found = u.changed(np.asarray(moments), means, gaussian=straight and u.gaussian and base is None)
    found = replace(found, image=image, profile=u.profile if base is None else base.profile)
    if base is not None:
        found = merged_fidelity(found, base)
    return found if straight else by_law(found, u)


def by_law(found: Signal, u: Signal) -> Signal:
    """Say of a function of u what had to be taken for granted of how u is distributed."""
    if not of_known_law(u):
        return found.approximate(NOT_GAUSSIAN)
    return found.approximate(FEW) if u.law is not None and u.law.near is not None else found


def unscaled(x: Signal) -> tuple[Signal, float]:
    """Return (y, c) where x was made as c·y; y may be x itself."""
    image = x.image
    if image is None or image.base is not None or not isinstance(image.phi, Function) or image.phi.line is None:
        return x, 1.0
    slope, offset = image.phi.line
    return (image.pre, slope) if offset == 0 and image.pre.dims == x.dims else (x, 1.0)


def shared_images(a: Signal, b: Signal) -> tuple[Image, Image] | None:
    """Return the images of two values that are functions of the same Gaussian; None if they are not."""
    one, two = as_image(a), as_image(b)
    return (one, two) if one.pre is two.pre and a.dims == b.dims == one.pre.dims else None
