"""Functions of rows of unlike size, such as a layer makes of points of two or three coordinates.

Given the relative size S of its row, of mean 1, an entry of u = W x is Gaussian of the variance S·σ²; S is |x|², which
of d Gaussian coordinates varies by 2/d. So two entries of one row have

    E[f f'] = E_S[M(√S u)]        M the moments of f of a Gaussian

and rows of f are of unlike size themselves, by the variance of what M(√S u) is of one entry. Two rows are of sizes of
their own; what they have in common is taken as that of rows of average size. Assumption: S has a gamma law.
"""

import math
from functools import lru_cache

import numpy as np

from initwell.propagate.laws.averages import law_of_sizes
from initwell.propagate.laws.functions import function_moments
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import UNLIKE, Pointwise, Signal, replace

WHY = "a function of rows of unlike size, which few inputs made"
_NODES = 64
# Of a mean square: what makes a size of which the hundredth part is another.
_SEEN = 0.02


@lru_cache(maxsize=64)
def _sizes(varies: float, rows: int) -> tuple[Array, Array]:
    """Return sizes, and how probable they are, that are no rarer than so many rows show.

    >>> points, weights = _sizes(1.0, 1000)
    >>> [round(float(weights @ points**k), 1) for k in (1, 2)]
    [1.0, 2.0]
    """
    points, weights = law_of_sizes(1.0, varies)
    count = max(min(rows, _NODES), 2)
    places = np.minimum((np.cumsum(weights) - weights / 2) * count, count - 1).astype(int)
    chance = np.asarray(np.bincount(places, weights, count), float)
    average = np.bincount(places, weights * points, count) / np.maximum(chance, 1e-300)
    return average / float(chance @ average), chance


def of_unlike_rows(phi: Pointwise, u: Signal, found: Signal) -> Signal:
    """Return φ(u) of rows of unlike size.

    Args:
        phi: any function.
        u: its argument, features along the last dimension.
        found: as if all rows were of one size.

    >>> from initwell.propagate.laws.functions import Function
    >>> from initwell.propagate.moments.signal import independent
    >>> u = replace(independent((1000, 4), 1.0), gaussian=True, lengths=1.0)
    >>> round(of_unlike_rows(Function(np.square), u, independent((1000, 4), 3.0, 1.0)).q / 3, 1)  # E[S²]
    2.0
    """
    if not u.gaussian or u.segmented or found.dims != u.dims or not u.dims:
        return found.approximate(WHY)
    points, weights = _sizes(u.lengths, math.prod(u.shape[:-1]))
    sizes = [u.changed(u.moments * s, u.means * math.sqrt(s), gaussian=True) for s in points]
    made = [function_moments(phi, one) for one in sizes]
    means = sum(w * mean for w, (mean, _) in zip(weights, made, strict=True))
    moments = found.moments.copy()
    rows = len(u.atoms) - len(u.dims[-1])
    same = (slice(0, 1),) * rows
    moments[same] = sum(w * part[same] for w, (_, part) in zip(weights, made, strict=True))
    squares = np.array([float(part[(0,) * part.ndim]) for _, part in made])
    average = float(weights @ squares)
    varies = float(weights @ squares**2) / average**2 - 1 if average > 0 else 0.0
    lengths = varies if varies > UNLIKE else 0.0
    return replace(found, moments=moments, means=np.asarray(means), lengths=lengths).approximate(WHY)


def of_few_channels(phi: Pointwise, u: Signal, found: Signal, count: int) -> Signal:
    """Return φ(u), marked where it is another at places of unlike size: channels have no law of their sizes.

    Args:
        phi: any function.
        u: what a convolution made.
        found: as if all places were of one size.
        count: inputs that it sums at each place, taken as Gaussian.
    """
    if 2 / count <= UNLIKE or found.q <= 0:
        return found
    apart = math.sqrt(2 / count)
    ends = [u.changed(u.moments * s, u.means * math.sqrt(s), gaussian=True) for s in (max(1 - apart, 0.0), 1 + apart)]
    made = [found.changed(moments, means).q for means, moments in (function_moments(phi, one) for one in ends)]
    return found.approximate(WHY) if abs(sum(made) / 2 / found.q - 1) > _SEEN else found
