"""Products of two images of one value's rows, by weights of their own, as in (A h)·(B h), a gated layer, before a sum.

Given h, two entries of A h in one column have the covariance h_i·h_j times what A says, and so have those of B h. So

    E[a_i a_j b_i b_j] = E[a_i a_j] E[b_i b_j] + ∂_a ∂_b var(h_i·h_j)

∂ being how the moment of each changes with h_i·h_j: of A h itself as it is, of φ(A h) by E[φ′(u_i) φ′(u_j)]. Of
q = E[h_i²] and m = E[h_i h_j], var(h_i·h_j) is q²/C for independent features, and (q² − m²)²/q² of that where all rows
are of one length. It is small of one entry, 1/C of its square; a mean over T of them, whose square is 1/T of theirs
else, has T/C more. A row with itself has what its squared length varies by, ``lengths``, in the same way: 2q²/C where
nothing else is known of it, and nothing of normalized ones. Moments of φ(A h) go with |h_i|² and |h_j|², too; of
Gaussian features that overlap by r = m/q, cor(h_i·h_j, |h_i|²) = r·√(2/(1 + r²)) and cor(|h_i|², |h_j|²) = r².
Assumption: A and B are independent of each other and of h, and h_i·h_j varies little.
"""

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.laws.functions import function_moments, is_line
from initwell.propagate.laws.swing import copied
from initwell.propagate.moments import gram
from initwell.propagate.moments.axes import Source
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace

_TINY = 1e-300
_HEAVY = "products of two sums of few products, which are large and small together, as of Gaussian ones"
_FEW = "products of two layers of one value, whose places are of unlike size, as of Gaussian ones"
# Of the covariances of u: so small that the moments of φ(u) are a straight line there.
STEP = 1e-3


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
    if all(x.excess or image_of_rows(x).excess for x in (a, b)):
        found = found.approximate(_HEAVY)
    few = [_of_few_terms(x, rows, value) for x in (a, b)]
    if not all(
        one or x.gaussian or (x.image is not None and x.image.pre.gaussian) for one, x in zip(few, (a, b), strict=True)
    ):
        return gram.multiplied(found, a, b)
    differ = reduce(np.logical_or, [gram.differs(a, i) for i in rows])
    between, own = zip(*(_varied(x, rows, value, differ) for x in (a, b)), strict=True)
    alike = np.where(differ, np.clip(image_of_rows(a).moments / max(image_of_rows(a).q, _TINY), -1, 1), 1.0)
    # Of Gaussian features: the correlation of h_i·h_j with h_i·h_i, and of this with h_j·h_j.
    with_own, of_own = np.sqrt(2 / (1 + alike**2)) * alike, alike**2
    more = between[0] * between[1] + with_own * (between[0] * own[1] + own[0] * between[1])
    more = more + (1 + of_own) / 2 * own[0] * own[1]
    found = gram.multiplied(replace(found, moments=np.asarray(found.moments + more)), a, b)
    return found.approximate(_FEW) if any(few) else found


def source_along(x: Signal, rows: Sequence[int], value: int) -> Source:
    """Return what a value that rows follow is to them."""
    return next(s for s in x.atoms[rows[0]].follows if s.value == value)


def _of_few_terms(x: Signal, rows: list[int], value: int) -> bool:
    """Whether a fresh layer made a value as sums of few terms, which is no Gaussian."""
    return x.law is not None and x.image is None and math.isclose(x.spread, source_along(x, rows, value).strength ** 2)


def image_of_rows(x: Signal) -> Signal:
    """Return the image of rows that a value is a function of."""
    image = x.image
    bent = image is not None and image.base is None and image.pre.dims == x.dims and not is_line(image.phi)
    return image.pre if image is not None and bent else x


def _varied(x: Signal, rows: list[int], value: int, differ: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return by pattern how moments go with products of two rows of a value, and with what both rows are of length.

    Args:
        x: an image, or a function of one.
        rows: its axes that count rows.
        value: that they follow.
        differ: where two entries are of unlike rows.
    """
    u = image_of_rows(x)
    # A value by itself is what its own rows are, whatever function it is.
    u = u if any(s.value == value for s in u.atoms[rows[0]].follows) else x
    between = np.where(differ, _between(u, rows, value), 0.0)
    own = np.where(differ, 0.0, u.moments * math.sqrt(_lengths(u, rows, value)))
    if u is x or x.image is None:
        return between, own
    phi, flat = x.image.phi, function_moments(x.image.phi, u)[1]
    moved = [function_moments(phi, replace(u, moments=u.moments + STEP * by))[1] for by in (between, own)]
    return np.asarray((moved[0] - flat) / STEP), np.asarray((moved[1] - flat) / STEP)


def _lengths(u: Signal, rows: list[int], value: int) -> float:
    """Return what a row's squared length varies by: 2/C where products of two vary by 1/C, 0 of normalized ones.

    What is known of it leaves out what rows of inputs vary by, which a layer in between passes on.
    """
    source, known = source_along(u, rows, value), max(u.lengths, 0.0)
    if source.level > 0 or (known and len(u.atoms[rows[0]].follows) == 1):
        return known
    return max(known, 2 * (source.strength * (1 - u.averaged(rows) / u.q)) ** 2) if u.q > 0 else known


def _between(u: Signal, rows: list[int], value: int) -> Array:
    """Return by pattern what moments vary by between unlike rows; ``gram.varied`` says it of what they have apart."""
    source = source_along(u, rows, value)
    common, size = u.moments, gram.varied(u, rows, value)
    whole = np.abs(common) * source.strength + np.abs(size)
    along = source.strength * size * common / np.where(whole > 0, whole, 1.0)
    return np.asarray(size + (1 - source.level) * source.strength * common + source.level * along)
