"""Sums of few terms: heavier tails than a Gaussian's, and squares that go together where they share terms.

y = Σ w_k x_k of n terms, of which a depthwise convolution has nine, is no Gaussian. With 1 + t = E[w⁴]/E[w²]², κ the
excess of one entry of x, and n̄ and n² averages over positions, since fewer taps lie inside at a border,

    E[y⁴]/E[y²]² = ((1 + t)(3 + κ) − 3)/n̄ + 3·n²/n̄²

Two positions of one channel and sample that read o entries of x in common, through other taps, correlate by Σ w_k w_l
over these. It is 0 on average, but its square is not, and x_k² is in both: E[y²y′²]/E[y²]² is that of two that share
nothing, 1 + t/n, times

    1 + (2 + κ)·o/(n(n + t))

Where x is a product of two values, as of a gate and what it lets through, y counts as Gaussian, and the excess that it
has inside is kept for what is made of its squares, row by row: ``lengths``.

Divided by the size s of its channel, whose square has the relative variance t/n, y has moments smaller by 1 + t/n, and
those of two that share nothing are 1. The law is taken as that of one entry of x, with either sign, and a Gaussian
rest, in the shares that give these tails; a function f(y) has of two entries the part β²·Cov(y², y′²) more, β the
slope of f by y². Assumption: entries of x are independent, and x is about its mean.
"""

import math
from collections.abc import Sequence

import numpy as np

from initwell.propagate.laws.averages import tails
from initwell.propagate.laws.rectified import binned, distribution, expected
from initwell.propagate.moments.incidence import Axis
from initwell.propagate.moments.remembered import Law
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Image, Signal, replace

FEW = "a sum of few terms, no Gaussian, by its fourth moments"
# Of an excess below this a law is taken as Gaussian.
_LEAST = 0.05


def of_few(y: Signal, x: Signal, weight: Signal, axes: Sequence[Axis]) -> Signal:
    """Say how y = Σ w_k x_k is distributed, if so few terms make it that it is no Gaussian.

    Args:
        y: the sum; dimensions (sample, channel, space …).
        x: what is summed.
        weight: fresh, of mean 0; its ``scatter`` is t.
        axes: of space.
    """
    made = x.image
    if weight.scatter and made is not None and made.base is not None:
        return _of_products(y, x, weight, axes)
    if not weight.scatter or made is None or y.segmented or x.segmented:
        return y
    if not (made.pre.gaussian or made.pre.law is not None) or made.pre.segmented or y.q <= y.mean**2:
        return y
    points, weights = (row[0] for row in distribution(made.pre))
    values = made.phi.fn(points)
    values = values - weights @ values
    squares = values * values
    variance = float(weights @ squares)
    own = float((weights * squares) @ squares) / variance**2 - 3 if variance > 0 else 0.0
    count, square = (weight.shape[1] ** k * math.prod(axis.degrees[k - 1] for axis in axes) for k in (1, 2))
    spread = weight.scatter[0]
    few = ((1 + spread) * (3 + own) - 3) / count
    if few < _LEAST or own < _LEAST:
        return y
    both = np.concatenate([values, -values]) / math.sqrt(variance)
    flat, mass = binned(both, np.concatenate([weights, weights]) / 2)
    # A copy: no mask of x itself has to do with which of its entries make up the tails.
    none, near = np.zeros(1), _near(y, weight.shape[1], own, spread, axes)
    start = Law(flat[None], mass[None], none, Image(made.phi, replace(x)), none + 1, none, near)
    law = tailed(start, none + few + 3 * square / count**2 - 3, none + y.mean, none + y.q - y.mean**2)
    return replace(y, law=law, gaussian=False)


def _of_products(y: Signal, x: Signal, weight: Signal, axes: Sequence[Axis]) -> Signal:
    heavy = tails(x)
    if heavy is None:
        return y
    count = weight.shape[1] * math.prod(axis.degrees[0] for axis in axes)
    excess = ((1 + weight.scatter[0]) * heavy[0] - 3) / count
    return replace(y, excess=excess) if excess > _LEAST else y


def _near(y: Signal, inputs: int, own: float, tails: float, axes: Sequence[Axis]) -> Array:
    """Return Cov(y², y′²)/E[y²]² by pattern, but for what it is of an entry with itself."""
    found = np.zeros_like(y.moments)
    if len(y.atoms) != sum(map(len, y.dims)) or any(len(dim) > 1 for dim in y.dims):
        return found
    table, taps = np.ones(()), float(inputs)
    for axis in axes:
        n, taps = axis.sizes[0], taps * axis.sizes[2]
        agree, differ = axis.pairs[0, 0, 0] / n, axis.pairs[1, 0, 1] / max(n * (n - 1), 1)
        table = np.multiply.outer(table, np.array([agree, differ] if n > 1 else [agree]))
    shared = 1 + (2 + own) * inputs * table / (taps * (taps + tails))
    lead = len(y.axes([0, 1]))
    space = shared.reshape([2] * (y.moments.ndim - lead))
    channel = (0,) * len(y.axes([1]))
    for sample in [(0,), (1,)] if y.dims[0] else [()]:
        found[(*sample, *channel)] = (1 + tails / taps) * (1.0 if sample == (1,) else space) - 1
    found.flat[0] = 0.0
    return found


def normed(law: Law, spread: float, mean: Array, variance: Array) -> Law | None:
    """Return the law of a value divided by the size of its channel.

    Args:
        law: of the value.
        spread: relative variance of the squares of these sizes.
        mean: of the result, by segment.
        variance: of the result.
    """
    near = law.near
    if near is not None and spread:
        near = np.where(near != 0, (1 + near) / (1 + spread) - 1, 0.0)
    return tailed(replace(law, near=near), (3 + excess_of(law)) / (1 + spread) - 3, mean, variance)


def tailed(law: Law, excess: Array, mean: Array, variance: Array) -> Law | None:
    """Return a law of this mean, variance and excess, of the same values with another share of Gaussian in it.

    A segment that cannot have that is best taken as a Gaussian; None where all are.
    """
    values = law.values - expected(law.weights, law.values)[:, None]
    own, fourth = expected(law.weights, values**2), expected(law.weights, values**4)
    some = np.where(own > 0, own, 1.0)
    kurtosis = np.where(own > 0, fourth / some**2 - 3, 0.0)
    there = (kurtosis > 0) & (excess > 0)
    if not there.any():
        return None
    share = np.sqrt(np.clip(np.where(there, excess / np.where(there, kurtosis, 1.0), 0.0), 0.0, 1.0))
    factor = np.sqrt(share * variance / some)
    rest = np.maximum((1 - share) * variance, 1e-6 * variance)
    values = mean[:, None] + factor[:, None] * values
    return Law(values, law.weights, rest, law.image, law.factor * factor, mean, law.near)


def excess_of(law: Law) -> Array:
    """Return how much the fourth moment of a law, in units of its variance, exceeds a Gaussian's 3: by segment."""
    values = law.values - expected(law.weights, law.values)[:, None]
    own, fourth = expected(law.weights, values**2), expected(law.weights, values**4)
    whole = own + law.variance
    return np.asarray((fourth - 3 * own**2) / np.where(whole > 0, whole, 1.0) ** 2)
