"""Masks: which entries of a row of scores are shut, so that their weights are 0.

A causal mask, padding, the windows of Swin: they depend on nothing random, so their numbers are known, and with them
how many entries n_i each row leaves open and how often two rows are open at the same place. At equal scores the
weights are the known matrix (open/n_i), whose moments are measured like those of any tensor. With a known bias, such as
ALiBi's, they are the softmax w of it, and a row counts as its 1/Σ w² entries.

Rows that leave unlike numbers open become segments, within which these differ by a factor of two at most: of a causal
mask 1, 1, 2, 4, …, 2^k; and so do columns that get unlike shares of the rows' weights. Rows of a window that slides
leave as many open, but not the same: a segment holds those that have more than 1/√2 in common with its first (the
cosine of their weights), as a row and one of twice its entries have; less, where that makes too many segments. Where
samples or heads have masks of their own, they are averaged over.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from initwell.propagate.given.measured import in_parts, measured
from initwell.propagate.moments.segments import Array, stretches
from initwell.propagate.moments.signal import Signal

T = TypeVar("T", bound=np.generic)
# Known scores at or below this are shut: e^(−50) is 0 beside anything that a model computes. Swin writes −100.
SHUT = -50.0
# Groups of rows by how many entries they leave open: of all rows, of those of a segment.
_SIZES, _OF_SEGMENT = 8, 3
_BORDERS = 12
# What rows of a segment have in common, if so many segments will do: as much as if one read twice as many as the other.
_ALIKE = (math.sqrt(0.5), 0.5, 0.25, 0.0)
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Mask:
    """Which entries are open.

    Attributes:
        open: of as many dimensions as the scores, of length 1 where all indices have the same mask.
        samples: whether its first dimension counts samples.
        level: what stands where they are shut, on average.
        bias: what is added to the open ones, where that is known, of as many dimensions.
        added: whether the level was added to the scores there, and not put in their place.
    """

    open: NDArray[np.bool_]
    samples: bool = False
    level: float = -math.inf
    bias: Array | None = None
    added: bool = False

    @cached_property
    def weights(self) -> Array:
        """The weights at equal scores.

        A row with nothing open, as of padding in front of a text, has alike scores, shut by the same number: its
        weights are 1/T; 0 where that number is −∞.
        """
        if self.bias is None:
            found = self.open / np.maximum(self.open.sum(-1, keepdims=True), 1)
        else:
            scores = np.where(self.open, self.bias, -np.inf)
            high = scores.max(-1, keepdims=True)
            found = np.exp(scores - np.where(np.isfinite(high), high, 0.0))
            found = found / np.maximum(found.sum(-1, keepdims=True), 1e-300)
        alike = 1 / found.shape[-1] if math.isfinite(self.level) else 0.0
        return np.where(self._closed[..., None], alike, found)

    @cached_property
    def counts(self) -> Array:
        """How many entries each row, along the last dimension, has weights for: of unequal weights, 1/Σ w²."""
        if self.bias is None:
            alike = self.open.shape[-1] if math.isfinite(self.level) else 0
            return np.where(self._closed, alike, self.open.sum(-1)).astype(float)
        squares = (self.weights**2).sum(-1)
        return np.where(squares > 0, 1 / np.maximum(squares, 1e-9), 0.0)

    @cached_property
    def _closed(self) -> NDArray[np.bool_]:
        """Which rows have nothing open."""
        return np.asarray(~self.open.any(-1))

    @cached_property
    def uneven(self) -> tuple[float, float]:
        """What unequal weights leave of how Σ p² grows with the scores' variance, and of Σ d², d_j = p_j(x_j − Σ p x).

        With S_k = Σ w^k they are v·(S₂ − 4 S₃ + 3 S₂²) and S₂ − 2 S₃ + S₂², both S₂(1 − S₂) for n equal weights.
        """
        if self.bias is None:
            return 1.0, 1.0
        two, three = ((self.weights**k).sum(-1) for k in (2, 3))
        even = float((two * (1 - two)).sum())
        found = (two - 4 * three + 3 * two**2).sum(), (two - 2 * three + two**2).sum()
        return (float(found[0]) / even, float(found[1]) / even) if even > 0 else (1.0, 1.0)

    @cached_property
    def biases(self) -> Signal | None:
        """The bias, measured."""
        if self.bias is None:
            return None
        return measured(torch.from_numpy(np.ascontiguousarray(self.bias)), sample=0 if self.samples else None)

    @cached_property
    def sizes(self) -> tuple[tuple[float, float], ...]:
        """(open entries, share of all rows) of rows with any; if there are many sizes, of groups of them."""
        return _grouped(self.counts, _SIZES)

    @cached_property
    def shut(self) -> float:
        """The share of entries that are shut."""
        return float(1.0 - self.open.mean())

    @cached_property
    def _unlike(self) -> list[int]:
        """The axes, from the last, along which rows differ."""
        return [axis - self.weights.ndim for axis, n in enumerate(self.weights.shape[:-1]) if n > 1]

    @cached_property
    def rows(self) -> int | None:
        """The axis, from the last, that gets segments of rows: -2 or the only other one; never that of samples."""
        found = [axis for axis in self._unlike if not (self.samples and axis == -self.weights.ndim)]
        return -2 if -2 in found else found[0] if len(found) == 1 else None

    @cached_property
    def parts(self) -> tuple[int, ...]:
        """Segments of the rows that read alike, and as many entries but for a factor of two.

        Heads and samples are averaged over. Of a causal mask 1, 1, 2, 4, …: the first row has one entry, the last all.
        Empty where rows are alike, or where they do not get more or less so along the axis.
        """
        if self.rows is None:
            return ()
        counts = np.where(self._closed, 0.0, self.counts)
        kinds = _kinds(np.maximum(self._by_row(counts).mean(1), 1))
        # A bias that falls off leaves the nearest entries to all.
        for least in _ALIKE if self.bias is None else (0.0,):
            found = self._read_alike(kinds, least)
            if len(found) <= _BORDERS + 1:
                return found if len(found) > 1 else ()
        return ()

    def _read_alike(self, kinds: NDArray[np.int64], least: float) -> tuple[int, ...]:
        """Return segments of rows of one kind which have at least this in common with their first row, as cosines."""
        rows = np.moveaxis(self.weights, self.rows or -2, 0)
        rows = rows / np.maximum(np.sqrt((rows**2).sum(-1, keepdims=True)), 1e-300)
        first, numbers = 0, list[int]()
        for i, row in enumerate(rows):
            in_common, whole = (float((other * rows[first]).sum(-1).mean()) for other in (row, rows[first]))
            far = in_common < least * whole * (1 - _ROUNDING)
            first = i if kinds[i] != kinds[first] or far else first
            numbers.append(first)
        return stretches(np.array(numbers))

    def _by_row(self, counts: Array) -> Array:
        """Return the counts of each row, and those of other heads and samples at its place."""
        rows = np.moveaxis(counts, (self.rows or -2) + 1, 0)
        return rows.reshape(len(rows), -1)

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """Segments of the columns by how much of the rows' weights they get; empty where they are alike.

        The first key of a causal mask is read by all rows, the last by one. Of as many columns as rows their segments
        are the same, for they count the same positions.
        """
        if self.rows is None and self._unlike:
            return ()
        squares = (self.weights**2).reshape(-1, self.weights.shape[-1]).sum(0)
        high, low = float(squares.max()), float(squares.min())
        if high <= 2 * low:
            return ()
        more = squares.size - sum(self.parts)
        if self.rows == -2 and len(self.parts) > 1 and more >= 0:
            both = [(*self.parts, more), (more, *self.parts)] if more else [self.parts]
            return min(both, key=lambda parts: _within(squares, parts))
        # What gets little is as good as what gets less, but for nothing.
        return _levels(np.where(squares > 0, np.maximum(squares, squares.mean() / 4), squares.mean() / 64))

    def sizes_of(self, start: int, stop: int) -> tuple[tuple[float, float], ...]:
        """(open entries, share of these rows) of some rows, those of all heads and samples."""
        return _grouped(self._by_row(self.counts)[start:stop].ravel(), _OF_SEGMENT)

    @cached_property
    def even(self) -> Signal:
        """The weights at equal scores; their rows and columns by segments, where there are any."""
        even = self.weights
        if not self.parts and not self.columns:
            return measured(torch.from_numpy(even), sample=0 if self.samples else None)
        parts: list[tuple[int, ...]] = [(n,) for n in even.shape]
        for axis, found in ((self.rows, self.parts), (-1, self.columns)):
            if axis is not None and found:
                parts[axis] = found
        return in_parts(even, parts, sample=0 if self.samples else None)

    def rms(self, open_rms: float, mean: float) -> float:
        """Return the rms of all scores, of this rms and mean where they are open; what is shut counts as it stands."""
        if self.shut == 0:
            return open_rms
        spread = math.sqrt(max(open_rms**2 - mean**2, 0.0))
        level = math.hypot(self.level + mean, spread) if self.added else self.level
        return math.hypot(math.sqrt(1 - self.shut) * open_rms, math.sqrt(self.shut) * level)

    def scaled(self, factor: float) -> "Mask | None":
        """Return the mask of scores times a number; None where what is shut would no longer be."""
        level = self.level * factor
        bias = None if self.bias is None else self.bias * factor
        return Mask(self.open, self.samples, level, bias, self.added) if level <= SHUT else None

    def seen_as(self, shape: tuple[int, ...], new: tuple[int, ...]) -> "Mask":
        """Return the mask of the same scores under another shape."""
        whole = _once(np.broadcast_to(self.open, shape).reshape(new))
        bias = None if self.bias is None else _once(np.broadcast_to(self.bias, shape).reshape(new))
        return Mask(whole, self.samples and whole.shape[0] == shape[0], self.level, bias, self.added)

    def permuted(self, order: Sequence[int]) -> "Mask":
        """Return the mask of the same scores with their dimensions in another order, of which each names its old place.

        >>> Mask(np.array([[True, False], [True, True]])).permuted([1, 0]).open.tolist()
        [[True, True], [False, True]]
        """
        lengthened = (1,) * (len(order) - self.open.ndim)
        open_ = self.open.reshape(lengthened + self.open.shape).transpose(order)
        bias = None if self.bias is None else self.bias.reshape(lengthened + self.bias.shape).transpose(order)
        # Only what stands first can count samples, one mask for each.
        first = self.samples and order[0] == 0
        return Mask(np.ascontiguousarray(open_), first, self.level, bias, self.added)


def _levels(values: Array) -> tuple[int, ...]:
    """Return segments within which values differ at most by a factor of two; empty of one or too many."""
    found = stretches(_kinds(values))
    return found if 1 < len(found) <= _BORDERS + 1 else ()


def _kinds(values: Array) -> NDArray[np.int64]:
    """Number values so that those of one number differ at most by a factor of two."""
    return np.asarray(np.ceil(np.log2(values)).astype(np.int64))


def _within(values: Array, parts: tuple[int, ...]) -> float:
    """Return what is left of the variance of values within segments."""
    ends = [0, *accumulate(parts)]
    return float(sum(((x - x.mean()) ** 2).sum() for x in (values[a:b] for a, b in pairwise(ends))))


def _grouped(counts: Array, most: int) -> tuple[tuple[float, float], ...]:
    """Return (open entries, share of all rows) in a few groups of those with any, each with the average of 1/n."""
    found, times = np.unique(counts[counts > 0].round(2), return_counts=True)
    groups = np.array_split(np.arange(found.size), min(most, max(found.size, 1)))
    rows = [(found[g], times[g]) for g in groups if g.size]
    return tuple((float(t.sum() / (t / n).sum()), float(t.sum() / counts.size)) for n, t in rows)


def both(a: Mask | None, b: Mask | None) -> Mask | None:
    """Return what two masks leave open together; where both shut an entry, what the second adds comes on top.

    >>> once = Mask(np.array([[True, False]]), level=-100.0, added=True)
    >>> both(once, Mask(np.array([[True], [True]]))).open.tolist(), both(once, once).level
    ([[True, False], [True, False]], -200.0)
    """
    if a is None or b is None or (a is b and not b.added):
        return a if b is None else b
    rank = max(a.open.ndim, b.open.ndim)
    one, two = (m.open.reshape((1,) * (rank - m.open.ndim) + m.open.shape) for m in (a, b))
    biases = [m.bias.reshape((1,) * (rank - m.bias.ndim) + m.bias.shape) for m in (a, b) if m.bias is not None]
    bias = np.asarray(sum(biases)) if biases else None
    return Mask(one & two, a.samples or b.samples, _level(a, b, one, two), bias, a.added and b.added)


def side_by_side(masks: Sequence[Mask | None], lengths: Sequence[int], rank: int) -> Mask | None:
    """Return the mask of scores that are joined along their last dimension, such as those of an attention sink.

    Args:
        masks: of each part; None where all of it is open.
        lengths: of the parts' last dimensions.
        rank: how many dimensions they have.

    >>> causal = Mask(np.tril(np.ones((2, 2), dtype=bool)))
    >>> side_by_side([causal, None], [2, 1], 2).open.astype(int).tolist()
    [[1, 0, 1], [1, 1, 1]]
    """
    given = [m for m in masks if m is not None]
    if not given:
        return None
    shape = np.broadcast_shapes(*((1,) * (rank - m.open.ndim) + m.open.shape[:-1] for m in given), (1,) * (rank - 1))
    open_, bias = list[NDArray[np.bool_]](), list[Array]()
    for mask, n in zip(masks, lengths, strict=True):
        open_.append(np.broadcast_to(True if mask is None else mask.open, (*shape, n)))
        nothing = mask is None or mask.bias is None
        bias.append(np.broadcast_to(0.0 if nothing or mask is None else np.asarray(mask.bias), (*shape, n)))
    first = given[0]
    biased = np.concatenate(bias, -1) if any(m.bias is not None for m in given) else None
    whole = np.concatenate(open_, -1)
    return Mask(whole, first.samples and shape[0] > 1, first.level, biased, first.added)


def _level(a: Mask, b: Mask, one: NDArray[np.bool_], two: NDArray[np.bool_]) -> float:
    """Return the size, with a minus, of what stands where either of two masks shuts."""
    levels = (b.level, a.level, b.level + a.level if b.added else b.level)
    shares = [float(x.mean()) for x in (one & ~two, ~one & two, ~one & ~two)]
    found = [share * level**2 for share, level in zip(shares, levels, strict=True) if share > 0]
    return -math.sqrt(sum(found) / sum(shares)) if found else -math.inf


def of_rank(shut: Tensor, rank: int, level: float, *, samples: bool = False, added: bool = False) -> Mask:
    """Make a mask of the entries that are shut, with dimensions of length 1 in front.

    Where a dimension only repeats what its first index has, it gets length 1.
    """
    found: NDArray[np.bool_] = ~shut.detach().cpu().bool().numpy()
    found = _once(found.reshape((1,) * (rank - found.ndim) + found.shape))
    return Mask(found, samples and found.shape[0] > 1, level, None, added)


def _once(found: NDArray[T]) -> NDArray[T]:
    """Give dimensions that only repeat what their first index has the length 1, all but the last."""
    for axis in range(found.ndim - 1):
        first = found.take([0], axis)
        if found.shape[axis] > 1 and bool((found == first).all()):
            found = first
    return np.ascontiguousarray(found)


def filled(tensor: Tensor, shut: Tensor) -> Array:
    """Return known scores with the average of the open ones in place of what is shut."""
    values: Array = tensor.detach().cpu().double().numpy()
    closed = shut.detach().cpu().bool().numpy()
    level = float(values[~closed].mean()) if not closed.all() else 0.0
    return np.where(closed, level, values)
