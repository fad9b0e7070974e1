"""Where an unknown function is not smooth: found by bisecting whatever a polynomial cannot follow."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from initwell.theory.activation import Array, Function

# Searched: |x| up to 8 in cells of 1/64 with 17 points each, so that a feature wider than about 1/300 is seen; then
# coarser, up to 128.
SEARCHED = 128.0
DENSE = 16.0
_SHARP = 1e-4
_FINEST = 1e-12
_MOST_CELLS = 4096
_EPS = float(np.finfo(np.float64).eps)
_ORDER = 8


@dataclass(frozen=True)
class Kinks:
    """What was found.

    Attributes:
        kinks: places where the function or a low derivative breaks, and edges of features narrower than 1e-4.
        jumps: those where the function itself jumps.
    """

    kinks: tuple[float, ...]
    jumps: tuple[float, ...]


@cache
def _stencil() -> tuple[Array, Array]:
    # Points of a cell on [−1, 1] that a polynomial is put through, then points it is checked at; and the map between.
    # The last two lie outside, so that cells overlap and no kink hides on the edge between two.
    nodes = np.cos(np.pi * (np.arange(_ORDER) + 0.5) / _ORDER)
    tests = np.cos(np.pi * np.arange(1, _ORDER) / _ORDER)
    tests = np.concatenate([tests, [-1.03, 1.03]])
    vandermonde = np.polynomial.chebyshev.chebvander(nodes, _ORDER - 1)
    to_tests = np.polynomial.chebyshev.chebvander(tests, _ORDER - 1) @ np.linalg.inv(vandermonde)
    return np.concatenate([nodes, tests]), to_tests


def _rough(fn: Function, low: Array, high: Array, scale: float, tolerance: float) -> Array:
    # Which cells a polynomial of degree 7 does not follow to rounding; ``scale`` is the size of φ near 0.
    points, to_tests = _stencil()
    half, middle = (high - low) / 2, (high + low) / 2
    x = middle[:, None] + half[:, None] * points
    y = fn(x.ravel()).reshape(x.shape)
    # Far out an overflow is not a kink; whether it matters is for the integral to say.
    finite = np.all(np.isfinite(y), axis=1)
    y = np.where(finite[:, None], y, 0.0)
    miss = np.max(np.abs(y[:, _ORDER:] - y[:, :_ORDER] @ to_tests.T), axis=1)
    span = np.max(y, axis=1) - np.min(y, axis=1)
    size = np.max(np.abs(y), axis=1)
    # Rounding of the values, and of x carried through the slope.
    slack = tolerance * (scale + size) + 16 * _EPS * span / half * np.abs(middle)
    return np.asarray(finite & (miss > slack))


def _base_cells() -> tuple[Array, Array]:
    # Off the round numbers, so that a kink at 0 or 1/2 lies inside a cell and not between two.
    near = np.arange(0, 8, 1 / 64) + 0.00237
    middle = np.arange(8, DENSE, 1 / 16) + 0.00237
    far = DENSE * 1.05 ** np.arange(0.1, np.log(SEARCHED / DENSE) / np.log(1.05))
    side = np.concatenate([near, middle, far])
    # The negative side a little further out, so that 0 is no midpoint either.
    edges = np.concatenate([-side[::-1] - 0.00311, side])
    return edges[:-1], edges[1:]


def _listed(low: Array, high: Array) -> list[tuple[float, float]]:
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _brackets(fn: Function, scale: float, tolerance: float) -> list[tuple[float, float]]:
    # Finest rough cells, one for each run of neighbours, of every feature that stays rough below the width _SHARP.
    low, high = _base_cells()
    found: list[tuple[float, float]] = []
    rough = _rough(fn, low, high, scale, tolerance)
    low, high = low[rough], high[rough]
    while low.size:
        if low.size > _MOST_CELLS:
            found += _listed(low, high)
            break
        middle = (low + high) / 2
        halves = np.concatenate([low, middle]), np.concatenate([middle, high])
        rough = _rough(fn, *halves, scale, tolerance)
        # A cell neither half of which is rough is as near as rounding lets the place be known.
        last = ~rough.reshape(2, -1).any(axis=0) & (high - low <= _SHARP)
        finest = high - low < _FINEST * np.maximum(1.0, np.abs(low))
        found += _listed(low[last | finest], high[last | finest])
        more = np.concatenate([~finest, ~finest]) & rough
        low, high = halves[0][more], halves[1][more]
    found.sort()
    merged: list[tuple[float, float]] = []
    for a, b in ((a - 0.05 * (b - a), b + 0.05 * (b - a)) for a, b in found):
        if merged and a <= merged[-1][1] + 1e-9 * max(1.0, abs(a)):
            # Of cells that touch, all rough for the same reason, the narrowest knows the place best.
            merged[-1] = min(merged[-1], (a, b), key=lambda cell: cell[1] - cell[0])
        else:
            merged.append((a, b))
    return merged


def _shortest(low: float, high: float) -> float:
    # All that is known is that it lies in the bracket; the number of fewest digits there is the likeliest meant.
    for digits in range(17):
        candidate = round((low + high) / 2, digits)
        if low <= candidate <= high:
            return candidate + 0.0
    return (low + high) / 2


def find_kinks(fn: Function, resolution: float) -> Kinks:
    """Search |x| ≤ 128 for places where ``fn`` is not smooth.

    Args:
        fn: a finite function of float64 arrays.
        resolution: relative precision of its values, 2.2e-16 for float64.

    Returns:
        Kinks and jumps, ascending. A break of the slope by less than about 1e-4 of the values' size may go unnoticed
        and costs the quadrature that much less; a feature narrower than 1/300 may fall between two samples.

    >>> find_kinks(lambda x: np.clip(x, -0.3, 0.7), 2.2e-16).kinks
    (-0.3, 0.7)
    """
    # As fine as the cells are searched, so that a narrow feature is not taken for rounding of nothing.
    x = np.linspace(-4, 4, 4097)
    size = float(np.sqrt(np.mean(np.square(fn(x)))))
    kinks: list[float] = []
    jumps: list[float] = []
    for low, high in _brackets(fn, size, max(256 * _EPS, 8 * resolution)):
        place = _shortest(low, high)
        wide = high - low > _SHARP
        kinks += [low, place, high] if wide else [place]
        if not wide and _jumps_at(fn, place, high - low, 1e-5 * size):
            jumps.append(place)
    return Kinks(tuple(sorted(set(kinks))), tuple(sorted(set(jumps))))


def _jumps_at(fn: Function, place: float, width: float, least: float) -> bool:
    # Across a jump the difference stays however near the two sides; across a cusp, however steep, it shrinks.
    near = width + 1e-11 * max(1.0, abs(place))
    steps = np.array([near, 1000 * near])
    close, apart = np.abs(fn(place + steps) - fn(place - steps)).tolist()
    return bool(close > least and close > 0.5 * apart)
