"""Products of two images of one value's rows, by weights of their own, as in (A h)·(B h), a gated layer, before a sum.

Given h, two entries of A h in one column have the covariance h_i·h_j times what A says, and so have those of B h. So

    E[a_i a_j b_i b_j] = E[a_i a_j] E[b_i b_j] + ∂_a ∂_b var(h_i·h_j)

∂ being how the moment of each changes with h_i·h_j: of A h itself as it is, of φ(A h) by E[φ′(u_i) φ′(u_j)]. Of
q = E[h_i²] and m = E[h_i h_j], var(h_i·h_j) is q²/C for independent features, and (q² − m²)²/q² of that where all rows
are of one length. It is small of one entry, 1/C of its square; a mean over T of them, whose square is 1/T of theirs
else, has T/C more. A row with itself has what its squared length varies by, ``lengths``, in the same way.
Assumption: A and B are independent of each other and of h, and h_i·h_j varies little.
"""

import math
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.laws.functions import function_moments, is_line
from initwell.propagate.laws.swing import copied
from initwell.propagate.moments import gram
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace

# Of the covariances of u: so small that the moments of φ(u) are a straight line there.
_STEP = 1e-3


def multiplied(found: Signal, a: Signal, b: Signal) -> Signal:
    """Return the product of two values, its rows following what those of both followed.

    Args:
        found: the product as of independents, with the atoms of a.
        a: one factor.
        b: the other.
    """
    rows, value = gram.in_common(a, b, [(i, i) for i in range(len(a.atoms))])
    # Rows times one number each swing: that is said there.
    if not rows or a.swing or b.swing or copied(a) or copied(b):
        return gram.multiplied(found, a, b)
    if not all(x.gaussian or (x.image is not None and x.image.pre.gaussian) for x in (a, b)):
        return gram.multiplied(found, a, b)
    differ = reduce(np.logical_or, [gram.differs(a, i) for i in rows])
    one, two = (_varied(x, rows, value, differ) for x in (a, b))
    return gram.multiplied(replace(found, moments=np.asarray(found.moments + one * two)), a, b)


def _varied(x: Signal, rows: list[int], value: int, differ: NDArray[np.bool_]) -> Array:
    """Return by pattern how the moments of an image, or of a function of one, go with products of a value's rows.

    Args:
        x: the image.
        rows: its axes that count rows.
        value: that they follow.
        differ: where two entries are of unlike rows; else what a row's squared length varies by counts.
    """
    image = x.image
    bent = image is not None and image.base is None and image.pre.dims == x.dims and not is_line(image.phi)
    u = image.pre if image is not None and bent else x
    by = np.where(differ, _between(u, rows, value), u.moments * math.sqrt(max(u.lengths, 0.0)))
    if image is None or not bent:
        return np.asarray(by)
    moved = function_moments(image.phi, replace(u, moments=u.moments + _STEP * by))[1]
    return np.asarray((moved - function_moments(image.phi, u)[1]) / _STEP)


def _between(u: Signal, rows: list[int], value: int) -> Array:
    """Return by pattern what moments vary by between unlike rows; ``gram.varied`` says it of what they have apart."""
    source = next(s for s in u.atoms[rows[0]].follows if s.value == value)
    common, size = u.moments, gram.varied(u, rows, value)
    whole = np.abs(common) * source.strength + np.abs(size)
    along = source.strength * size * common / np.where(whole > 0, whole, 1.0)
    return np.asarray(size + (1 - source.level) * source.strength * common + source.level * along)
