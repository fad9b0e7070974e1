"""Channels of unlike sizes, since a nonlinearity bends what all samples have in common of each.

Let u = m + e be Gaussian, m what all samples and positions of a channel have in common and e the rest, and x = φ(u). A
channel of x has the variance s²(m) = Var φ(m + e) over samples and positions, which is of one size for all channels
where φ is a line, and not else: a ReLU leaves nothing of a channel whose m is far below 0. Batch norm divides each by
its own s², and E[1/s²] over m can be much larger than 1/E[s²]. What comes back is large where s² is small, which is
where m is, so that it goes with u:

    E[1/s² | u] = E[1/s²(m) | m + e = u],   m given u ~ N(ρ(u − E u), c(1 − ρ)),   c the variance of m, ρ its share

and multiplied by φ′(u) it is smaller than the two averages say. Of x = b·φ(u), as of a gated linear unit, with n what
all have in common of b and v the variance of the rest of b,

    s² = n² Var φ + v E[φ²],   both over e

Where φ is flat, as below 0, all N entries of a channel can lie there, by the chance P(flat | m)^N. It is s² = 0 then,
and none of them lets a gradient through.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from initwell.propagate.laws.echoes import Echo
from initwell.propagate.laws.functions import Function, as_image, combined, function_moments
from initwell.propagate.moments.copies import worked_out
from initwell.propagate.moments.segments import Array, Indices
from initwell.propagate.moments.signal import Image, Signal, replace

# Of a share in common below this channels are next to alike.
_LEAST = 0.02
_WITHIN = np.linspace(-7.0, 7.0, 281)
_ABOUT = np.linspace(-6.0, 6.0, 97)
_REACH = np.linspace(-8.0, 8.0, 129)
# Of log s², by which those of like size are put together.
_BIN = 0.2
_SMALLEST = 1e-9
_ALIKE = 1e-6


@dataclass(frozen=True, eq=False)
class Channels:
    """How unlike channels are; tables go by m in steps of ``_ABOUT``, and by n.

    Attributes:
        made: what they are a function of.
        common: variance of m.
        own: variance of e.
        sizes: s² over E[s²], where not all entries are flat.
        levels: x̄² over E[x̄²].
        chances: of n.
        squares: E[b²] over its average, by n.
        dead: of all entries being flat, by m.
        kinds: behind few weights, what they make of s² = 1 and x̄² = r, for some r; see ``scatter``.
        together: φ as they have it of what adds up over all places, in place of that of one place.
        of_means: which share of E[s²] behind them is made of x̄².
    """

    made: Image
    common: float
    own: float
    sizes: Array
    levels: Array
    chances: Array
    squares: Array
    dead: Array
    kinds: tuple[tuple[float, tuple[float, ...]], ...] = ()
    together: tuple[tuple[float, ...], ...] = ()
    of_means: float = 0.0

    @worked_out
    def alike(self) -> bool:
        """Whether all s² are of one size."""
        return float(np.ptp(self.sizes)) < _ALIKE

    @worked_out
    def binned(self) -> tuple[Array, Indices, Array]:
        """Return values of s², which of them each entry of the tables has, and the weight that each has by kind."""
        _, found = np.unique(np.floor(np.log(self.sizes) / _BIN), return_inverse=True)
        place: Indices = found.reshape(-1)
        weights = np.outer(_normal(_ABOUT) * (1 - self.dead), self.chances).ravel()
        mass = np.bincount(place, weights)
        values = np.bincount(place, weights * self.sizes.ravel()) / np.where(mass > 0, mass, 1.0)
        by_kind = np.array([np.bincount(place, weights * part.ravel()) for part in self.parts])
        return np.where(mass > 0, values, 1.0), np.asarray(place.reshape(self.sizes.shape), dtype=np.int64), by_kind

    @worked_out
    def parts(self) -> list[Array]:
        """Tables of how much each entry counts to each kind: to the two whose r are next to its own."""
        if not self.kinds:
            return [np.ones_like(self.sizes)]
        known = np.log([r for r, _ in self.kinds])
        place = np.log(np.clip(self.levels / self.sizes, _SMALLEST, None))
        return [np.interp(place, known, row) for row in np.eye(len(known))]

    @worked_out
    def gone(self) -> float:
        """How many channels have nothing left."""
        return float(_normal(_ABOUT) @ self.dead)

    def divided(self, inverse: Array, floor: float) -> tuple[Function, Function]:
        """Return what a gradient that was divided by s of its channel goes with: √E[1/(s² + ε) | u], as a table.

        And √E[b²/(s² + ε) | u], in units of b, which multiplies it on its way to a gate.

        Args:
            inverse: 1/(s² + ε) as tables have it.
            floor: ε.
        """
        return self._given(inverse @ self.chances, floor), self._given(inverse @ (self.chances * self.squares), floor)

    def _given(self, live: Array, floor: float) -> Function:
        """Return √E[· | u] of what is known by m."""
        whole = self.common + self.own
        u = _REACH * np.sqrt(whole)
        centre, width = self.common / whole * u, np.sqrt(self.common * self.own / whole)
        weights = np.exp(-(((_ABOUT * np.sqrt(self.common) - centre[:, None]) / width) ** 2) / 2)
        weights /= weights.sum(axis=1)[:, None]
        grid, phi = self.made.pre.mean + u, self.made.phi
        bent, flat = (np.sqrt(weights @ f) for f in (live, (1 - self.dead) * live + self.dead / floor))
        if not self.dead.any():
            return Function(lambda v: np.interp(v, grid, bent))
        least = phi.fn(grid).min()

        def table(v: Array) -> Array:
            return np.asarray(np.where(phi.fn(v) > least, np.interp(v, grid, bent), np.interp(v, grid, flat)))

        return Function(table, phi.kinks)


def sent_back(g: Signal, u: Signal, with_u: tuple[Function, Function]) -> Signal:
    """Say of a gradient that it was divided by sizes of channels, which go with what was bent.

    Args:
        g: at what was bent.
        u: what that is a function of.
        with_u: what it was divided by, given u, and so once it is multiplied by what u is the gate of.
    """
    if g.dims != u.dims or g.segmented:
        return g
    rest, echoes = g.moments, []
    for echo in g.echoes:
        if echo.pre is not u:
            continue
        size = echo.moments * function_moments(echo.phi, u)[1]
        rest = rest - size
        echoes.append(_resized([combined(echo.phi, f, np.multiply) for f in with_u], u, size))
    return replace(g, gates=(), image=None, echoes=(*echoes, _resized(with_u, u, rest))).approximate(_BENT)


def _resized(functions: Sequence[Function], u: Signal, moments: Array) -> Echo:
    """Return an echo that goes with u by these functions, without and with what u is the gate of: of these moments."""
    phi, gated = functions
    pairs = function_moments(phi, u)[1]
    return Echo(phi, u, np.asarray(moments / np.where(pairs != 0, pairs, 1.0)), gated)


_BENT = "channels of unlike sizes, by what of them all samples and positions have in common"


def normal() -> Array:
    """Return how often m is what tables go by."""
    return _normal(_ABOUT)


def _normal(z: Array) -> Array:
    found = np.exp(-z * z / 2)
    return np.asarray(found / found.sum())


@lru_cache(maxsize=8)
def unlike_channels(x: Signal) -> Channels | None:
    """Return how unlike the channels of x are in size and in mean; None where they are much alike.

    Args:
        x: dimensions (sample, channel, …).

    >>> from initwell.propagate.moments.signal import independent
    >>> unlike_channels(independent((4, 3), 1.0))
    """
    made = as_image(x)
    if x.segmented or len(x.dims) < 2 or made.pre.dims != x.dims or not made.pre.gaussian:
        return None
    common, own, centre = _in_common(made.pre)
    base, spread, mean = (0.0, 0.0, 1.0) if made.base is None else _in_common(made.base)
    if made.base is not None and not (made.base.gaussian and made.base.dims == x.dims):
        return None
    if common < _LEAST * (common + own) or own <= 0:
        return None
    m, chances = centre + np.sqrt(common) * _ABOUT, _normal(_WITHIN)
    values = made.phi.fn((m[:, None] + np.sqrt(own) * _WITHIN).ravel()).reshape(len(m), -1)
    count = math.prod([*x.shape[:1], *x.shape[2:]])
    dead = ((values == values.min(axis=1, keepdims=True)) @ chances) ** count
    once, twice = values @ chances, values**2 @ chances
    points, weights = (_ABOUT[::6], _normal(_ABOUT[::6])) if base > 0 else (np.zeros(1), np.ones(1))
    squares = (mean + np.sqrt(base) * points) ** 2
    gates = (squares + spread) / (weights @ (squares + spread))
    sizes = np.maximum(twice - once**2, 0.0)[:, None] * squares + spread * twice[:, None]
    levels = once[:, None] ** 2 * squares
    size, level = (float(_normal(_ABOUT) @ table @ weights) for table in (sizes, levels))
    if size <= 0:
        return None
    sizes = np.maximum(sizes / size / np.maximum(1 - dead, _SMALLEST)[:, None], _SMALLEST)
    return Channels(made, common, own, sizes, levels / max(level, _SMALLEST), weights, gates, dead)


def _in_common(u: Signal) -> tuple[float, float, float]:
    """Return the variance of what all samples and positions of a channel have in common, of the rest, and the mean."""
    others, channels = {*u.axes([0]), *u.axes(range(2, len(u.dims)))}, set(u.axes([1]))
    level = u.averaged(others | channels)
    common = max(u.averaged(others) - level, 0.0)
    return common, max(u.q - level - common, 0.0), u.mean
