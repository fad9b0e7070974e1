"""What ε leaves of rows that a norm divides by √(s² + ε), where s² is about as small, or differs from row to row.

With e = ε/E[s²] and m = s²/E[s²], a normalized row has the mean square m/(m + e), and what comes back through it is
divided by m + e. Neither is what it is at m = 1: m is taken to have the law of sizes (``averages``) of

    1 + Var m = (1 + 2/ν)(1 + swing)(1 + lengths)

for ν free entries a row and rows whose sizes swing, none of them below their floor. With e = 0, E[1/m] is ν/(ν − 2), as
in ``swing``. Rows of different m that are alike by ρ stay alike by ρ E[√(m/(m + e))]². The backward takes the share w(2
− w) of x̂·mean(g x̂) off, w = m/(m + e), as in ``norm``, weighted by 1/(m + e).

Assumption: how alike two rows are does not go with their sizes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from initwell.propagate.laws.averages import law_of_rows, shown
from initwell.propagate.laws.lengths import of_rows
from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace

# Of so small a share, ε makes less than a thousandth of what rows of nearly one size are normalized to.
_LEAST = 3e-4
# Rows that vary by more than this have no E[1/s²] but for what ε leaves of it.
_WIDEST = 0.6
_FEWEST = 0.5


@dataclass(frozen=True)
class Left:
    """What a norm leaves of rows whose mean squares average 1, with e in place of ε.

    Attributes:
        same: of two entries of one row, E[m/(m + e)].
        other: of two rows, E[√(m/(m + e))]².
        swing: relative variance of the normalized rows' mean squares.
        back: of what comes back, E[1/(m + e)].
        taken: of what lies of a gradient along x̂, how much is taken off.
    """

    same: float
    other: float
    swing: float
    back: float
    taken: float


@lru_cache(maxsize=256)
def left(e: float, varies: float, rows: int, swing: float = 0.0, floor: float = 0.0) -> Left:
    """Return what a norm leaves of rows whose mean squares average 1.

    Args:
        e: ε over their average.
        varies: Var m.
        rows: how many there are: what is rarer than one in them, none of a tensor shows.
        swing: what of Var m is above a floor.
        floor: what all rows have.

    >>> left(1.0, 0.0, 100).same
    0.5
    >>> round(left(1.0, 2.0, 10**6).same, 4)  # m = z²: 1 − √(π e/2)·erfc(1/√2)
    0.3443
    """
    points, weights = law_of_rows(varies, swing, floor) if varies > 0 else (np.ones(1), np.ones(1))
    kept, inverse = points / (points + e), 1 / (points + e)
    same, back = float(weights @ kept), shown(inverse, weights, rows)
    return Left(
        same=same,
        other=float(weights @ np.sqrt(kept)) ** 2,
        swing=max(float(weights @ kept**2) / same**2 - 1, 0.0),
        back=back,
        taken=float(weights @ (inverse * kept * (2 - kept)) / (weights @ inverse)),
    )


def matters(x: Signal | None, variance: Array, eps: float) -> bool:
    """Whether ε, or how much rows differ in size, makes a norm another one than that of rows of one size.

    Args:
        x: the rows; None for any that a norm does not divide one by one.
        variance: of rows, by segment.
        eps: of the norm.
    """
    wide = x is not None and of_rows(x) > _WIDEST
    least = float(variance.min()) if variance.size else 0.0
    return least > 0 and (wide or eps > _LEAST * least)


def by_segment(x: Signal | None, dims: Sequence[int], variance: Array, eps: float, free: Array) -> "Lefts":
    """Return what a norm leaves of the rows of each segment.

    Args:
        x: the rows; None for any that a norm does not divide one by one.
        dims: that it normalizes over.
        variance: of rows, by segment.
        eps: of the norm.
        free: as how many independent entries those of a row count, by segment.
    """
    return _lefts(_NONE if x is None else _sizes(x), _rows(x, dims), variance, eps, free)


class Lefts(NamedTuple):
    """What a norm leaves of the rows of each segment, in the order of their variances."""

    shape: tuple[int, ...]
    each: tuple[Left, ...]

    def of(self, name: str) -> Array:
        """Return one of the numbers, by segment."""
        return np.array([getattr(one, name) for one in self.each]).reshape(self.shape)


def _rows(x: Signal | None, dims: Sequence[int]) -> int:
    return 1 if x is None else math.prod(n for d, n in enumerate(x.shape) if d not in dims)


class _Sizes(NamedTuple):
    """How much rows vary in size: in all, by swing alone, and what all of them have."""

    whole: float
    swing: float
    floor: float


_NONE = _Sizes(0.0, 0.0, 0.0)


def _sizes(x: Signal) -> _Sizes:
    return _Sizes(of_rows(x), max(x.swing, 0.0), x.floor)


def _lefts(sizes: _Sizes, rows: int, variance: Array, eps: float, free: Array) -> Lefts:
    v, f = np.broadcast_arrays(variance, np.maximum(free, _FEWEST))
    whole, *swing = sizes
    each = tuple(
        left(eps / a, (1 + 2 / b) * (1 + whole) - 1, rows, *swing) for a, b in zip(v.flat, f.flat, strict=True)
    )
    return Lefts(v.shape, each)


def shrunk(found: Signal, x: Signal, dims: Sequence[int], variance: Array, eps: float, free: Array) -> Signal:
    """Return normalized rows, or what was multiplied by such, at the sizes that ε leaves of them.

    Args:
        found: as if all rows were of one size; its first dimension is normalized over only with all others' rows.
        x: what was normalized; the others as of ``by_segment``.
        dims: as there.
        variance: as there.
        eps: as there.
        free: as there.
    """
    whole = 0 in dims
    lefts = by_segment(None if whole else x, dims, variance, eps, free)
    same, other = (lefts.of(name) * (variance + eps) / variance for name in ("same", "other"))
    moments = np.asarray(found.moments * over_pairs(found.atoms, np.sqrt(other)))
    axes = found.axes(dims)
    rows = tuple([slice(None) if i in axes else slice(n) for i, n in enumerate(found.means.shape)])
    moments[rows] *= same / other
    swing = found.swing if whole else float(lefts.of("swing").mean())
    return replace(found, moments=moments, means=found.means * np.sqrt(other), swing=swing, floor=0.0)


def grown(x: Signal, dims: Sequence[int], variance: Array, eps: float, free: Array) -> Mapping[str, float]:
    """Return swing and lengths of what comes back, as ``swing.inverse_square_of`` does; arguments as there."""
    if 0 in dims or not (x.swing > 0 or x.lengths > 0):
        return {}
    rows = _rows(x, dims)
    known = _sizes(x)
    sizes = (_NONE, known._replace(whole=known.swing), known)
    by_size = [float(_lefts(s, rows, variance, eps, free).of("back").mean()) for s in sizes]
    return {"swing": 1 - by_size[1] / by_size[0], "lengths": 1 - by_size[2] / by_size[1]}
