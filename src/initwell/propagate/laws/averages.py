"""Averages of squares: positive, and for few squares far from a Gaussian.

The mean v of squares has a mean μ and a variance s². The gamma law of that mean and variance, of ν = 2μ²/s² degrees of
freedom, is exact for ν independent squares of equal variance, and the usual approximation otherwise (Welch 1938,
Satterthwaite 1946). Roots and quotients of v, as norms and normalizations by hand hold, are taken under it; a Gaussian
would reach 0 and below. Assumption: entries of f(v) go together as those of v do.

Squares of gated values, as of relu(u)²·w, have a few very large ones among them: their average is more skewed than a
gamma variable of its variance, and hardly ever next to 0. An inverse Gaussian (Folks & Chhikara 1978) of the same mean
and variance has the third central moment 3s⁴/μ where a gamma law has 2s⁴/μ. Of the two that one is taken which is
nearer to what independent entries of their own law have, and a gamma variable of whatever variance they leave.

No average of squares is more often next to 0 than one square of a Gaussian, P(v < x) ∝ √x, the gamma law of variance 2.
Rows' sizes that vary by more are such a square times a log-normal number, which makes the variance what it is, as many
factors do: 1 + s² = 3·e^w. A gamma variable of variance 20 would be below 10⁻⁵ of its mean every other time; the rows
that a selective scan makes of that variance are so one time in a million. What a sum has of terms that are of one
size for all rows, as a residual stream has of its embeddings, no row has less than: the *floor* f, with

    v/μ = f + (1 − f)·t        Var t = s²/(1 − f)²

**Rare rows.** v of 4 squares is less than x with the probability 2x²/μ², and E[1/v²], what the scale of a norm of such
rows sends back, is a logarithm of its ε: made of rows far smaller than any of a tensor's. Where the average of N values
y = f(v) or f(v)² would not settle, Var y > N E[y]², it is as that of the y that are more frequent than one in N, as the
weak law of large numbers says of what has no mean (Feller 1971, vol. II, VII.7: Σ y/n goes to E[y; y < y_n],
n·P(y > y_n) = 1).
"""

import math

import numpy as np

from initwell.propagate.laws.few_features import law_of_few
from initwell.propagate.laws.gaussian import covariance, variances
from initwell.propagate.laws.rectified import distribution, expected, of_known_law
from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.copies import kept
from initwell.propagate.moments.remembered import Average
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Image, Pointwise, Signal, replace

_DECAY = "e to a product that is nowhere positive, under a gamma law"
_POINTS = 241
# Of a factor of a product, whose other factor smooths what bends: one square's moments are right to 1e-6.
_OF_FACTOR = 97
# A step of log v within which sizes count as one: powers are right to its square.
_ALIKE = 0.01
_STEPS = 100
_REACH = 9.0
_NODES = 15
# Of no more numbers 1/m has no expectation.
FEWEST = 2.0
_MOST = 0.99
# The relative variance of the square of one Gaussian number.
_ONE_SQUARE = 2.0
# By how much what is above a floor may vary.
_MOST_ABOVE = 1e4
# The third central moment of a gamma variable of mean 1, over the square of its variance.
_GAMMA = 2.0


def is_average_of_squares(u: Signal) -> bool:
    """Whether a signal is an average of squares that is not the same everywhere."""
    known = u.average is not None and u.average.kind != "mean"
    return known and bool((u.means > 0).all()) and u.q > u.mean**2 * (1 + 1e-12)


def _laws(u: Signal) -> list[tuple[Array, Array]]:
    """Return points and weights of an average of squares, by segment."""
    pairs = list(zip(u.means.ravel().tolist(), variances(u).ravel().tolist(), strict=True))
    if u.average is not None and (found := law_of_few(u.average)) is not None and len(found) == len(pairs):
        return [
            (points * (pair[0] / float(points.mean())), weights)
            for (points, weights), pair in zip(found, pairs, strict=True)
        ]
    numbers = u.average.numbers if u.average is not None else ()
    if len(numbers) != len(pairs):
        return [_law(u, mean, variance) for mean, variance in pairs]
    return [of_few_numbers(*pair, n) if n > FEWEST else _law(u, *pair) for pair, n in zip(pairs, numbers, strict=True)]


def of_few_numbers(mean: float, variance: float, numbers: float) -> tuple[Array, Array]:
    """Return points and weights of an average of ν numbers' squares that is multiplied by what varies besides.

    Next to 0 it is a gamma variable of ν degrees of freedom, however large its variance; what it is multiplied by
    counts as log-normal, so that E[1/v] is that of the gamma law of the mean and the variance.

    >>> points, weights = of_few_numbers(1.0, 0.6, 6.0)
    >>> [round(float(weights @ points**k), 3) for k in (1, -1)]  # 1/(1 − 0.6)
    [1.0, 2.5]
    """
    alone = numbers / (numbers - 2)
    share = math.log(max(1 / (1 - min(variance / mean**2, _MOST)) / alone, 1.0))
    points, weights = _times_log_normal(gamma_law(1.0, 2 / numbers, _OF_FACTOR), share)
    return mean * points, weights


def _times_log_normal(law: tuple[Array, Array], share: float) -> tuple[Array, Array]:
    """Return points and weights of a law times that of e^(√share·z − share/2)."""
    return products(law, _log_normal(share))


def _log_normal(share: float) -> tuple[Array, Array]:
    """Return points and weights of e^(√share·z − share/2), z a Gaussian: of mean 1."""
    z, chances = np.polynomial.hermite_e.hermegauss(_NODES)
    return np.exp(math.sqrt(share) * z - share / 2), chances / chances.sum()


def products(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return points and weights of a product of two independent numbers, by the points and weights of each."""
    return np.outer(one[0], two[0]).ravel(), np.outer(one[1], two[1]).ravel()


def _law(u: Signal, mean: float, variance: float) -> tuple[Array, Array]:
    """Return points and weights of the law of an average of squares; the arguments are those of its segment."""
    rows = None if u.average is None else u.average.of
    if rows is not None and rows.swing > 0 and rows.floor > 0:
        points, weights = law_of_rows(variance / mean**2, rows.swing, rows.floor)
        return mean * points, weights
    if _third_moment(u, mean, variance) * mean > 2.5 * variance**2:
        return inverse_gaussian_law(mean, variance)
    return law_of_sizes(mean, variance)


def law_of_sizes(mean: float, variance: float, floor: float = 0.0, count: int = _POINTS) -> tuple[Array, Array]:
    """Return points and weights of rows' average squares.

    Args:
        mean: of the sizes.
        variance: of the sizes.
        floor: what all rows have, over the mean.
        count: how many points; of products of two laws those of both are multiplied.

    >>> points, weights = law_of_sizes(1.0, 50.0)
    >>> [round(float(weights @ points**k), 2) for k in (0, 1, 2)], round(float(weights[points < 1e-5].sum()), 2)
    ([1.0, 1.0, 51.0], 0.01)
    >>> points, _ = law_of_sizes(1.0, 50.0, 0.25)
    >>> bool(points.min() >= 0.25)
    True
    """
    # Of rows that hardly vary, such as those behind a norm, it is next to all of them, but never all.
    floor = min(floor, 1 - math.sqrt(variance / _MOST_ABOVE) / mean) if variance > 0 else 0.0
    if floor > 0:
        points, weights = law_of_sizes(1.0, variance / mean**2 / (1 - floor) ** 2, count=count)
        return mean * (floor + (1 - floor) * points), weights
    if variance <= _ONE_SQUARE * mean**2:
        return gamma_law(mean, variance, count)
    share = math.log((1 + variance / mean**2) / (1 + _ONE_SQUARE))
    return _times_log_normal(gamma_law(mean, _ONE_SQUARE * mean**2, _OF_FACTOR), share)


def law_of_rows(variance: float, swing: float, floor: float) -> tuple[Array, Array]:
    """Return points and weights of rows' average squares, in units of their mean, where some have a floor.

    Args:
        variance: in all.
        swing: what of it is of numbers that the rows were multiplied by.
        floor: what all rows have.
    """
    if swing <= 0 or floor <= 0:
        return law_of_sizes(1.0, variance)
    others = (1 + variance) / (1 + swing) - 1
    if others <= 0:
        return law_of_sizes(1.0, swing, floor)
    return products(_merged(*law_of_sizes(1.0, swing, floor, _OF_FACTOR)), gamma_law(1.0, others, _OF_FACTOR))


def _merged(points: Array, weights: Array) -> tuple[Array, Array]:
    """Make one point of those within a step: where nearly all of a size is its floor, most of them."""
    steps = np.floor(np.log(points) / _ALIKE).astype(int)
    at = steps - steps.min()
    masses = np.asarray(np.bincount(at, weights), dtype=np.float64)
    there = masses > 0
    return np.bincount(at, weights * points)[there] / masses[there], masses[there]


def _third_moment(u: Signal, mean: float, variance: float) -> float:
    """Return the third central moment of an average of squares, 0 where that of its entries is not known."""
    heavy = None if u.average is None or u.average.kind != "square" else _tails_of(u.average)
    if u.average is None or heavy is None:
        return 0.0
    count, (four, six) = math.prod(u.average.of.shape[d] for d in u.average.dims), heavy
    own, third = (four - 1) * mean**2 / count, (six - 3 * four + 2) * mean**3 / count**2
    rest, skew = max(variance - own, 0.0), u.average.of.skew
    # A product of two independent sizes, of which one has another law than a gamma variable.
    return third + (skew * rest + 6 * own if skew > _GAMMA else _GAMMA * rest) * rest / mean


@kept
def _tails_of(average: Average) -> tuple[float, float] | None:
    """Return ``tails`` of what was averaged: the same for all segments, and for all that is made of the average."""
    return tails(average.of)


def tails(x: Signal) -> tuple[float, float] | None:
    """Return E[x⁴]/E[x²]² and E[x⁶]/E[x²]³ of an entry, or None: of h·f(u) they are those of both multiplied.

    >>> from initwell.propagate.moments.signal import independent
    >>> [round(t) for t in tails(replace(independent((4,), 1.0), excess=3.0)) or ()]  # 3·2, 15·2³
    [6, 120]
    """
    made = x.image
    if x.excess:
        return 3 + x.excess, 15 * (1 + x.excess / 3) ** 3
    if of_known_law(x):
        points, weights = distribution(x)
    elif made is not None and of_known_law(made.pre):
        points, weights = _mixed(*distribution(made.pre), made.pre.excess)
        points = made.phi.fn(points)
    else:
        return None
    two, four, six = (expected(weights, points**k) for k in (2, 4, 6))
    if not (two > 0).all():
        return None
    base = None if made is None or of_known_law(x) else made.base
    others = (1.0, 1.0) if base is None else tails(base)
    own = float((four / two**2).mean()), float((six / two**3).mean())
    return None if others is None else (own[0] * others[0], own[1] * others[1])


def _mixed(points: Array, weights: Array, excess: float) -> tuple[Array, Array]:
    """Return a Gaussian law with this excess: its points times the root of a log-normal number of mean 1."""
    if excess <= 0:
        return points, weights
    sizes, chances = _log_normal(math.log1p(excess / 3))
    found = [points[..., None] * np.sqrt(sizes), weights[..., None] * chances]
    return found[0].reshape(*points.shape[:-1], -1), found[1].reshape(*weights.shape[:-1], -1)


def of_factor(scale: Pointwise, v: Signal, factor: Signal) -> float | None:
    """Return what E[(h f′ k)²] is over that of independents, where v averages the squares of x = h·f(u); else None.

    What comes back through x·k, k a function of v, is multiplied by k and h on its way to f(u), and by f′ on that to u.
    These are large where one of the n squares of v is: v = (h² f² + (n − 1) v′)/n, v′ of the others.

    Args:
        scale: k.
        v: an average of squares.
        factor: h, one of the two.
    """
    x, factors = v.average.of if v.average is not None else None, list[tuple[Array, Array, Array]]()
    made = None if x is None else x.image
    if x is None or v.average is None or made is None or made.base is None or v.means.size > 1:
        return None
    for part in (made.base, replace(made.pre, image=Image(made.phi, made.pre), gaussian=False, law=None)):
        if (found := _entries(part)) is None:
            return None
        factors.append(found)
    own = _entries(factor)
    if own is None:
        return None
    one, two = sorted(factors, key=lambda f: abs(_kurtosis(f) - _kurtosis(own)))
    count = math.prod(x.shape[d] for d in v.average.dims)
    points, weights = _law(v, v.mean, float(variances(v).flat[0]) * count / max(count - 1, 1))
    squares = np.multiply.outer(one[0] ** 2, two[0] ** 2)
    steps = np.append(0.0, np.geomspace(1e-6, 1.0, _STEPS)) * squares.max()
    powers = np.interp(squares, steps, (scale.fn((steps[:, None] + (count - 1) * points) / count) ** 2) @ weights)
    sent = np.multiply.outer(one[1] * one[0] ** 2, two[1] * two[2] ** 2)
    apart = float(sent.sum() * (one[1] @ powers @ two[1]))
    return float((sent * powers).sum()) / apart if apart > 0 else None


def _entries(x: Signal) -> tuple[Array, Array, Array] | None:
    """Return points and weights of a value's own law, and the slope there of the function that it is of a Gaussian."""
    made = x.image
    if of_known_law(x):
        points, weights = distribution(x)
        slopes = np.ones_like(points)
    elif made is not None and made.base is None and of_known_law(made.pre):
        u, weights = distribution(made.pre)
        step = 1e-5 * (np.abs(u).max() or 1.0)
        points, slopes = made.phi.fn(u), (made.phi.fn(u + step) - made.phi.fn(u - step)) / (2 * step)
    else:
        return None
    return (points[0], weights[0], slopes[0]) if len(points) == 1 else None


def _kurtosis(entries: tuple[Array, Array, Array]) -> float:
    points, weights, _ = entries
    return float(weights @ points**4) / max(float(weights @ points**2) ** 2, 1e-300)


def gamma_law(mean: float, variance: float, count: int = _POINTS) -> tuple[Array, Array]:
    """Return so many points and their weights of the gamma law of a mean and a variance."""
    t, shape = _steps(mean, variance, count)
    return _weighted(mean, t, shape * (t - np.expm1(t)))


def inverse_gaussian_law(mean: float, variance: float) -> tuple[Array, Array]:
    """Return points and weights of the inverse Gaussian law of a mean and a variance.

    >>> points, weights = inverse_gaussian_law(1.0, 0.5)
    >>> [round(float(weights @ points**k), 4) for k in (1, 2, 3, -1)]  # 1, 1 + s², 1 + 3s² + 3s⁴, 1 + s²
    [1.0, 1.5, 3.25, 1.5]
    """
    t, shape = _steps(mean, variance, _POINTS)
    return _weighted(mean, t, -t / 2 - shape * (np.cosh(t) - 1))


def _steps(mean: float, variance: float, count: int) -> tuple[Array, float]:
    """Return steps of log v from the mean, and μ²/s²: in log v densities are smooth and fall off on both sides."""
    shape = mean**2 / max(variance, 1e-12 * mean**2)
    width = 1 / math.sqrt(shape)
    return np.linspace(-_REACH * width * (1 + width), _REACH * width, count), shape


def _weighted(mean: float, t: Array, logs: Array) -> tuple[Array, Array]:
    # Equal steps are exact to rounding.
    weights = np.exp(logs - logs.max())
    return mean * np.exp(t), weights / weights.sum()


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
    count = math.prod(u.shape)
    for points, weights in _laws(u):
        values = f.fn(points)
        found.append((shown(values, weights, count), shown(values * values, weights, count)))
    means, squares = (np.array(part).reshape(u.means.shape) for part in zip(*found, strict=True))
    spread = np.maximum(squares - means**2, 0.0)
    return means, over_pairs(u.atoms, means) + over_pairs(u.atoms, np.sqrt(spread)) * covariance(u)[1]


def shown(values: Array, weights: Array, count: int) -> float:
    """Return E[y] as an average of so many y shows it: without what is rarer than one in them, where it lives of that.

    >>> points, weights = gamma_law(1.0, 0.5)  # of 4 squares
    >>> [round(shown(1 / (points**2 + 1e-9), weights, n), 1) for n in (100, 10_000)]
    [6.0, 15.0]
    """
    found = float(values @ weights)
    if not float((values * values) @ weights) > (count + 1) * found**2:
        return found
    order = np.argsort(np.abs(values))[::-1]
    frequent = order[np.cumsum(weights[order]) >= 1 / count]
    return float(values[frequent] @ weights[frequent])


def spanned(u: Signal) -> Array:
    """Return points over all that a value may well be."""
    if is_average_of_squares(u):
        return np.concatenate([points[weights > 1e-12] for points, weights in _laws(u)])
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
