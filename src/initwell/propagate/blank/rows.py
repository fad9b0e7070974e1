"""Which rows are blank, and how large a value is in each of them and elsewhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace
from initwell.records import Record

# Rows of which none is more than this much larger or smaller than the others are as all others.
_ALIKE = 1.25


@dataclass(frozen=True, eq=False)
class Tokens(Record):
    """Which tokens are padding.

    Attributes:
        padded: shape (samples, places).
    """

    padded: NDArray[np.bool_]

    @cached_property
    def at(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample and place of each blank row."""
        samples, places = np.nonzero(self.padded)
        return samples, places

    @property
    def count(self) -> int:
        """How many blank rows there are."""
        return len(self.at[0])

    @cached_property
    def share(self) -> float:
        """How many of all rows those are."""
        return self.count / self.padded.size


@dataclass(frozen=True, eq=False)
class Rows(Record):
    """How large a value is in blank rows and elsewhere.

    Attributes:
        tokens: which rows are blank.
        sizes: E[x²] in each of them.
        rest: E[x²] of all others.
        turned: whether the rows are its last dimension, and not the last but one.
        pairs: whether it has one entry for each two rows, as scores have.
        level: whether it is one positive number a row, made of its average square; sizes are then those of its mean.
        whole: of such a number, what its size would be if all rows were as their average.
        open: of pairs, which rows each row may see: of shape (samples or 1, places or 1, places); None for all.
        weights: whether those are weights.
        columns: of pairs of rows and values, how large the blank rows' values are, in units of the others'.
    """

    tokens: Tokens
    sizes: Array
    rest: float
    turned: bool = False
    pairs: bool = False
    level: bool = False
    whole: float = 0.0
    open: NDArray[np.bool_] | None = None
    weights: bool = False
    columns: Array | None = None

    @property
    def average(self) -> float:
        """E[x²] over all rows."""
        share = self.tokens.share
        return float(share * self.sizes.mean() + (1 - share) * self.rest)

    @property
    def alike(self) -> float:
        """What the rules took E[x²] for."""
        return self.whole if self.level else self.average

    @property
    def even(self) -> bool:
        """Whether all rows are of about one size."""
        return bool((self.sizes <= _ALIKE * self.rest).all() and (self.sizes * _ALIKE >= self.rest).all())

    @cached_property
    def seen(self) -> NDArray[np.bool_]:
        """Which rows each blank one may see: shape (blank rows, places)."""
        samples, places = self.tokens.at
        if self.open is None:
            return np.ones((self.tokens.count, self.tokens.padded.shape[1]), bool)
        several, rows = (n > 1 for n in self.open.shape[:2])
        found: NDArray[np.bool_] = self.open[samples * several, places * rows]
        return found

    @cached_property
    def many(self) -> Array:
        """How many those are, at least 1."""
        return np.asarray(np.maximum(self.seen.sum(1), 1), float)


def scaled(rows: Rows, factor: float) -> Rows:
    """Multiply E[x²] of all rows alike."""
    return replace(rows, sizes=rows.sizes * factor, rest=rows.rest * factor, level=False)


def inverse(rows: Rows) -> Rows:
    """Return 1/x: its size is one over that of x."""
    sizes, rest, whole = (1 / np.maximum(x, 1e-300) for x in (rows.sizes, rows.rest, rows.alike))
    return replace(rows, sizes=np.asarray(sizes), rest=float(rest), whole=float(whole), level=True)


def counted(signal: Signal, rows: Rows) -> Signal:
    """Return a signal of which blank rows have their own size."""
    if signal.q <= 0 or rows.average <= 0:
        return signal
    # Of one number a row, how it scatters from row to row is in the signal alone.
    return times(signal, rows.average / (rows.whole if rows.level else signal.q), row_axes(signal, rows))


def times(signal: Signal, factor: float, axes: Sequence[int]) -> Signal:
    """Multiply E[x x'] where indices agree along these axes; the rest follows where there are none."""
    if not math.isfinite(factor) or factor <= 0 or abs(factor - 1) < 1e-9:
        return signal
    if not axes:
        return replace(signal, moments=signal.moments * factor, means=signal.means * math.sqrt(factor), image=None)
    at = tuple(slice(len(atom.patterns.parts)) if i in axes else slice(None) for i, atom in enumerate(signal.atoms))
    moments = signal.moments.copy()
    moments[at] *= factor
    return replace(signal, moments=moments)


def row_axes(signal: Signal, rows: Rows) -> tuple[int, ...]:
    """Return the atoms that count samples and places; none where they are not found."""
    last, length = len(signal.dims) - 1, rows.tokens.padded.shape[1]
    ahead = [last] if rows.turned else [last - 1, *range(last - 1), *([last] if last == 0 else [])]
    samples = [i for i, atom in enumerate(signal.atoms) if atom.sample]
    for d in ahead:
        places = [i for i in signal.axes([d]) if signal.atoms[i].size == length and i not in samples] if d >= 0 else []
        if places:
            return (*samples, places[0])
    return tuple(samples) if length == 1 else ()
