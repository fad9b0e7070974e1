"""Swing: rows that differ in size, since each was multiplied by a number of its own; and what a norm makes of it.

Gates of one number a token (FocalNet's, by level) leave rows of unlike sizes: with f Gaussian, the mean square of a row
of f·y varies by E[f⁴]/E[f²]² − 1 = 2 of its own size, and of a sum of L such levels by 2/L. That is the *swing*. A norm
takes it off, but its backward divides by it: s² is as that of ν = 2/swing free entries, and E[1/s²] = ν/(ν − 2)/E[s²].

What comes back is large where the factors are small. Times such a factor that is undone, as s² ∝ Σ f²:

    E[f²/s²] = E[f²]/E[s²]

so a gradient has a negative swing, 1 − E[1/s²]·E[s²]. And of the ν numbers that make a row's size the norm does not see
their length: what the gradient sends to them has lost one direction of ν.

Attention makes such rows as well: o = Σ p v of independent v is as large as Σ p², which varies from row to row by what
``of_weights`` says. Gradients that come back through a norm of o go as 1/Σ p², and values get Σ p g.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from initwell.propagate.laws import lengths
from initwell.propagate.laws.concentration import Weights
from initwell.propagate.laws.functions import Function, as_image, composed, function_moments
from initwell.propagate.moments.signal import Image, Signal, replace

# Of rows of fewer free entries 1/s² has next to no expectation.
_FEWEST = 3.0
# Numbers of less than this are as good as one and the same, such as the norms of wide rows.
_LEAST = 0.05
_WHY = "a gradient that a norm of rows of unlike size sends back, as if it went with these sizes alone"
# An average of squares of rows that are all of one size varies by no less than this.
_EVEN = 1e-9


def by_row(base: Signal, factor: Signal) -> float:
    """Return E[f⁴]/E[f²]² − 1 of a factor that is one number for all features of a row; 0 of any other.

    Features are the last dimension, or the second one of images.
    """
    rank = len(base.shape)
    wide = [d for d in range(rank) if len(factor.shape) == rank and factor.shape[d] == 1 < base.shape[d]]
    features = {rank - 1, 1} if rank == 4 else {rank - 1}
    if len(wide) != 1 or not features & {*wide} or factor.q <= 0 or not any(a.sample for a in factor.atoms):
        return 0.0
    image = as_image(factor)
    if image.base is not None or factor.gaussian:
        found = 2.0 - 2.0 * factor.mean**4 / factor.q**2
        return found if found > _LEAST else 0.0
    return _of_squares(image)


def _of_squares(image: Image) -> float:
    """Return Var f²/E[f²]²; of segments, whose own sizes are known, what f² varies by within each."""
    mean, moments = function_moments(composed(Function(np.square), image), image.pre)
    spread, square = moments[tuple(slice(n) for n in mean.shape)] - mean**2, mean**2
    for atom in image.pre.atoms:
        shares = np.array(atom.parts or (atom.size,)) / atom.size
        spread, square = (shares @ x.reshape(len(shares), -1) for x in (spread, square))
    found = float(spread.item()) / max(float(square.item()), 1e-300)
    return found if found > _LEAST else 0.0


def of_multiple(found: Signal, *summands: Signal) -> Signal:
    """Return rows h·f(u) + h·g(u) = h·(f + g)(u), u one number a row, with what comes of the swing of (f + g)(u).

    Args:
        found: the sum, which remembers h and u.
        summands: what it is the sum of.
    """
    image = found.image
    if image is None or image.base is None or not (image.base.swing or any(x.swing > 0 for x in summands)):
        return found
    own = _of_squares(image) if _is_by_row(image) else 0.0
    return of_product(found, image.base.swing, own) if own else found


def _is_by_row(image: Image) -> bool:
    """Whether a function is of numbers that are repeated along features, the last dimension or the second of images."""
    u, alike = image.pre, {*copied(image.pre)}
    features = (1, len(u.dims) - 1) if len(u.dims) == 4 else (len(u.dims) - 1,)
    return any(u.axes([d]) and {*u.axes([d])} <= alike for d in features)


def of_sum(a: Signal, b: Signal, alpha: float, beta: float) -> Mapping[str, Any]:
    """Return swing and lengths of alpha·a + beta·b: variances of independent sizes add up; of gradients, the excess.

    Args:
        a: one summand.
        b: the other, independent of it.
        alpha: factor of a.
        beta: factor of b.

    Returns:
        Those fields of the sum; none where neither summand has any.
    """
    if not (a.swing or b.swing or a.lengths or b.lengths):
        return {}
    sizes = np.array([alpha**2 * a.q, beta**2 * b.q])
    found = {}
    for name, pair in (("swing", (a.swing, b.swing)), ("lengths", (a.lengths, b.lengths))):
        power = 1 if min(pair) < 0 else 2
        found[name] = float(sizes**power @ pair) / (float(sizes.sum()) ** power or 1.0)
    # A term of rows of one size is what no row has less than.
    return found | {"floor": float(sizes @ [floor_of(a), floor_of(b)]) / (float(sizes.sum()) or 1.0)}


def floor_of(x: Signal) -> float:
    """Return the size that all rows have, over their average: 1 where they hardly swing, as behind a norm."""
    return x.floor if x.swing > _LEAST else 1.0


def of_product(
    found: Signal, one: float, two: float, *, same: bool = False, axes: Sequence[int] = (), floor: float = 0.0
) -> Signal:
    """Return a product with what comes of its factors' swings.

    Args:
        found: the product, factors taken as independent.
        one: swing of one factor.
        two: of the other.
        same: whether both factors are of the same rows: with sizes t^a and t^b, t lognormal, E[t^(a + b)] is
            e^(ab Var log t) of E[t^a]·E[t^b], and 1 + swing is e^(a² Var log t).
        axes: along which a factor repeats one row, such as streams: their pairs are of that row, too.
        floor: of the product.
    """
    found = replace(found, floor=floor)
    low, high = min(one, two), max(one, two)
    if same and low > 0:
        both = math.exp(math.sqrt(math.log1p(one) * math.log1p(two)))
        return replace(_within_rows(found, both, axes), swing=(1 + one) * (1 + two) * both**2 - 1)
    if low < 0 < high:
        share = 1 / (1 - low)
        found = replace(found, moments=found.moments * share, means=found.means * share**0.5, swing=0.0)
        return found.approximate(_WHY)
    return replace(found, swing=low if low < 0 else (1 + one) * (1 + two) - 1)


def of_square(found: Signal, swing: float) -> Signal:
    """Return the square of a value whose rows swing: squares of one row go with its size, E[s⁴] = (1 + swing)·E[s²]².

    Args:
        found: the square, rows as of one size; features are its last dimension.
        swing: of the rows.

    >>> from initwell.propagate.moments.signal import independent
    >>> of_square(independent((4, 3), 3.0, 1.0), 0.5).moments.tolist()
    [[4.5, 1.5], [1.0, 1.0]]
    """
    return _within_rows(found, 1 + swing) if swing > 0 and found.dims else found


def copied(x: Signal) -> list[int]:
    """Return the axes along which a value repeats what it is at one index."""
    moments, sizes = x.moments, x.means.shape
    axes = [i for i, n in enumerate(sizes) if n == 1 and moments.shape[i] == 2]
    return [i for i in axes if np.array_equal(moments.take(0, i), moments.take(1, i))]


def _within_rows(found: Signal, factor: float, axes: Sequence[int] = ()) -> Signal:
    """Multiply the moments of entries of one row, or of those that these axes repeat."""
    features = len(found.dims[-1]) if found.dims else 0
    sizes = found.means.shape[: len(found.atoms) - features]
    same = tuple([slice(None) if i in axes else slice(n) for i, n in enumerate(sizes)])
    moments = found.moments.copy()
    moments[same] *= factor
    return replace(found, moments=moments)


def of_weights(rows: Weights, variance: float) -> float:
    """Return the swing of rows of a softmax's weights, the relative variance of Σ p².

    Args:
        rows: of weights.
        variance: of a score.

    >>> of_weights(Weights(8), 0.0), round(of_weights(Weights(8), 4.0), 2)
    (0.0, 0.19)
    """
    if rows.count < 2 or variance <= 0:
        return 0.0
    two, four, pair = rows.moments(variance, [(2,), (4,), (2, 2)])
    found = float((four + (rows.count - 1) * pair) / (rows.count * two**2)) - 1.0
    return found if found > _LEAST else 0.0


def of_longer_rows(found: Signal, x: Signal) -> Signal:
    """Return rows that a view has put together, as those of heads: of k rows side by side sizes vary by a k-th as much.

    A last dimension of 1, as of a state that one row reads, counts no features.

    Args:
        found: the view.
        x: what it shows.
    """
    before, after = (next((n for n in reversed(y.shape) if n > 1), 1) for y in (x, found))
    return replace(found, swing=x.swing * before / after) if after > before and after % before == 0 else found


def over_places(x: Signal, dims: Sequence[int]) -> Signal:
    """Return rows that a norm divides together, as those of all places of an image: sizes of many average out.

    Assumption: each row was multiplied by a number of its own.

    Args:
        x: the rows.
        dims: over which a norm averages, the features, the last dimension or the first of these of images, among them.
    """
    if x.swing <= 0 or len(dims) < 2:
        return x
    features = dims[-1] if len(x.shape) == 3 else dims[0]
    places = math.prod(x.shape[d] for d in dims if d != features)
    return replace(x, swing=x.swing / places)


def of_inverse(found: Signal, factor: Signal) -> Signal:
    """Return a gradient times 1/s, s² the average square of a row, with the negative swing that it gets of those.

    Args:
        found: the product.
        factor: 1/s, as a function of the average, whose variance holds the swing of the rows.
    """
    image = factor.image
    average = None if image is None else image.pre.average
    if image is None or average is None or average.kind != "square" or image.base is not None:
        return found
    rows = average.of
    if rows.swing <= 0 >= rows.lengths:
        return found
    even = replace(rows, lengths=0.0, skew=0.0)
    longer = _inverse_gain(image, 1 + rows.lengths, even)
    whole = _inverse_gain(image, 1 + lengths.of_rows(rows), replace(even, swing=0.0, floor=0.0))
    if not min(whole, longer) >= 1:
        return found
    return replace(found, swing=min(1 - whole / longer, 0.0), lengths=1 - longer)


def _inverse_gain(image: Image, factor: float, rows: Signal) -> float:
    """Return by how much E[k²] is larger, k a function of an average of squares, than of other rows.

    Args:
        image: k.
        factor: by how much less E[v²] of the others is.
        rows: the others.
    """
    pre, average = image.pre, image.pre.average
    if average is None:
        return 1.0
    here = tuple([slice(n) for n in pre.means.shape])
    even = pre.moments.copy()
    even[here] = np.maximum(even[here] / factor, pre.means**2 * (1 + _EVEN))
    others = replace(pre, moments=even, average=replace(average, of=rows))
    square = composed(Function(np.square), image)
    varied, without = (float(function_moments(square, u)[0].mean()) for u in (pre, others))
    return varied / without if without > 0 else 1.0


def inverse_square_of(x: Signal | None, free: float) -> tuple[float, Mapping[str, Any]]:
    """Return by how much E[1/s²] is larger for rows that differ in size, and swing and lengths of what comes back.

    Args:
        x: the rows; None for any that a norm does not divide one by one.
        free: as how many independent entries those of a row count.
    """
    swing, whole = (0.0, 0.0) if x is None else (x.swing, lengths.of_rows(x))
    by_swing, gain = inverse_square(swing, free), inverse_square(whole, free)
    return gain, {"swing": 1 - by_swing, "lengths": 1 - gain / by_swing}


def inverse_square(swing: float, free: float) -> float:
    """Return by how much E[1/s²] is larger for rows of this swing.

    Args:
        swing: of the rows.
        free: as how many independent entries those of a row count.

    >>> inverse_square(0.5, 1e9)
    2.0
    """
    if swing <= 0:
        return 1.0
    whole = max(1 / (1 / free + swing / 2), _FEWEST)
    return round(max(whole / (whole - 2) * (free - 2) / free, 1.0), 6)


def few(swing: float) -> bool:
    """Whether rows of this swing are made of fewer numbers than 1/s² needs to have an expectation worth the name.

    >>> few(0.5), few(1.0)
    (False, True)
    """
    return swing * _FEWEST > 2


def seen(swing: float) -> float:
    """Return the share of a gradient at the numbers that make a row's size which a norm sees: 1 − 1/ν.

    >>> seen(-1.0)
    0.75
    """
    return 0.5 + 0.5 / (1 - min(swing, 0.0))
