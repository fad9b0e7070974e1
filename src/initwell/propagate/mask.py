"""Masks: which entries of a row of scores are shut, so that their weights are 0.

A causal mask, padding, the windows of Swin: they depend on nothing random, so their numbers are known, and with them
how many entries n_i each row leaves open and how often two rows are open at the same place. At equal scores the
weights are the known matrix (open/n_i), whose moments are measured like those of any tensor.

Rows that leave unlike numbers open become segments, within which these differ by a factor of two at most: of a causal
mask 1, 1, 2, 4, …, 2^k. Where samples or heads have masks of their own, rows are averaged over.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from initwell.propagate.measured import measured
from initwell.propagate.segments import Array, patterns
from initwell.propagate.signal import Atom, Dims, Signal

# Known scores at or below this are shut: e^(−50) is 0 beside anything that a model computes. Swin writes −100.
SHUT = -50.0
_SIZES = 12


@dataclass(frozen=True, eq=False)
class Mask:
    """Which entries are open.

    Attributes:
        open: of as many dimensions as the scores, of length 1 where all indices have the same mask.
        samples: whether its first dimension counts samples.
        level: what stands where they are shut, on average.
    """

    open: NDArray[np.bool_]
    samples: bool = False
    level: float = -math.inf

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How many entries each row, along the last dimension, leaves open."""
        return np.asarray(self.open.sum(-1))

    @cached_property
    def sizes(self) -> tuple[tuple[int, float], ...]:
        """(open entries, share of the rows) of rows with any; if there are many sizes, of groups of them."""
        return _grouped(self.counts)

    @cached_property
    def shut(self) -> float:
        """The share of entries that are shut."""
        return float(1.0 - self.open.mean())

    @cached_property
    def parts(self) -> tuple[int, ...]:
        """Segments of the rows whose open entries differ at most by a factor of two, where all samples and heads agree.

        Of a causal mask 1, 1, 2, 4, …: the first row has one entry, the last all. Empty where rows are alike, or where
        their sizes do not rise or fall along the axis.
        """
        if any(n > 1 for n in self.open.shape[:-2]) or self.open.ndim < 2 or self.open.shape[-2] < 2:
            return ()
        level = np.ceil(np.log2(np.maximum(self.counts.ravel(), 1))).astype(int)
        borders = np.nonzero(np.diff(level))[0] + 1
        if borders.size == 0 or borders.size > _SIZES:
            return ()
        return tuple(int(n) for n in np.diff([0, *borders, level.size]))

    def sizes_of(self, start: int, stop: int) -> tuple[tuple[int, float], ...]:
        """(open entries, share of these rows) of some rows of a mask that all samples and heads have."""
        return _grouped(self.counts.ravel()[start:stop])

    @cached_property
    def even(self) -> Signal:
        """The weights at equal scores; their rows by segments, where there are any."""
        even = self.open / np.maximum(self.counts, 1)[..., None]
        if not self.parts:
            return measured(torch.from_numpy(even), sample=0 if self.samples else None)
        count = int(even.shape[-1])
        rows: Array = even.reshape(-1, count)
        found = patterns(self.parts)
        segment = np.repeat(np.arange(len(self.parts)), self.parts)
        member = np.eye(len(self.parts))[segment]
        products = rows @ rows.T / count
        alone = np.diag(products) @ member
        pairs = member.T @ products @ member - np.diag(alone)
        agree = np.concatenate([alone, pairs.ravel()]) / np.maximum(found.counts, 1)
        # A segment of one row has no pair that differs within it.
        agree = np.where(found.counts > 0, agree, agree[found.first])
        # Each row adds up to 1, so that the product of two adds up to 1 over all pairs of entries.
        differ = (1 / count - agree) / (count - 1)
        outer: Dims = ((),) * (even.ndim - 2)
        dims: Dims = (*outer, (Atom(len(segment), False, self.parts),), (Atom(count),))
        return Signal(dims, np.stack([agree, differ], 1), np.asarray(1 / count))

    def scaled(self, factor: float) -> "Mask | None":
        """Return the mask of scores times a number; None where what is shut would no longer be."""
        level = self.level * factor
        return Mask(self.open, self.samples, level) if level <= SHUT else None

    def seen_as(self, shape: tuple[int, ...], new: tuple[int, ...]) -> "Mask":
        """Return the mask of the same scores under another shape."""
        whole = np.broadcast_to(self.open, shape)
        return Mask(np.ascontiguousarray(whole.reshape(new)), self.samples and shape[0] == new[0], self.level)


def _grouped(counts: NDArray[np.int64]) -> tuple[tuple[int, float], ...]:
    found, times = np.unique(counts[counts > 0], return_counts=True)
    groups = np.array_split(np.arange(found.size), min(_SIZES, max(found.size, 1)))
    rows = [(found[g], times[g]) for g in groups if g.size]
    return tuple((round(float(n @ t / t.sum())), float(t.sum() / times.sum())) for n, t in rows)


def both(a: Mask | None, b: Mask | None) -> Mask | None:
    """Return what two masks leave open together.

    >>> both(Mask(np.array([[True, False]])), Mask(np.array([[True], [True]]))).open.tolist()
    [[True, False], [True, False]]
    """
    if a is None or b is None or a is b:
        return a if b is None else b
    rank = max(a.open.ndim, b.open.ndim)
    one, two = (m.open.reshape((1,) * (rank - m.open.ndim) + m.open.shape) for m in (a, b))
    return Mask(one & two, a.samples or b.samples, a.level + b.level)


def of_rank(shut: Tensor, rank: int, level: float, *, samples: bool = False) -> Mask:
    """Make a mask of the entries that are shut, with dimensions of length 1 in front.

    Where a dimension only repeats what its first index has, it gets length 1.
    """
    found: NDArray[np.bool_] = ~shut.detach().cpu().bool().numpy()
    found = found.reshape((1,) * (rank - found.ndim) + found.shape)
    for axis in range(rank - 1):
        first = found.take([0], axis)
        if found.shape[axis] > 1 and bool((found == first).all()):
            found = first
    return Mask(found, samples and found.shape[0] > 1, level)


def filled(tensor: Tensor, shut: Tensor) -> Array:
    """Return known scores with the average of the open ones in place of what is shut."""
    values: Array = tensor.detach().cpu().double().numpy()
    closed = shut.detach().cpu().bool().numpy()
    level = float(values[~closed].mean()) if not closed.all() else 0.0
    return np.where(closed, level, values)
