"""Softmax over rows whose scores are of two kinds, as of windows that are cut from images padded with zeros.

A key that is zero has the score 0, or its bias: next to scores of size σ it gets less than 1/T of a row's weight. Which
keys are zero depends on the window, and so on the segments of the rows; those whose scores have less than half of the
largest square make the second kind, C = 2, and the others the first. So do those that have far less of it, as scores
of a bias alone next to scores of keys and a bias. Of one row all moments are those of ``mixtures``:

    E[p_i p_j],  i, j of either kind, the same or not

and of d = p·(g − Σ p g), for gradients g that share β = E[(γ_1 − γ_2)²] by kind and have W_C of their own beside,

    E[d_i d_j] = E[p_i p_j (δ_ij W_i − W_i p_i − W_j p_j + W_1 Q_1 + W_2 Q_2)] + β E[p_i p_j σ_i σ_j]

Q_C = Σ p² over a kind, P_C = Σ p, σ_1 = P_2 and σ_2 = −P_1. Between two rows they grow with the correlation of their
scores, as those of one kind do, from what independent rows have, E[p_i]E[p'_j] and E[∂p_i/∂s_a]E[∂p'_j/∂s_b].
Rows with other keys zero count as independent. Assumption: scores are Gaussian, and independent of the gradient.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.laws.mixtures import Monomial, TwoKinds
from initwell.propagate.laws.rows import known_variance, stepped
from initwell.propagate.moments.among import shared_by
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.by_pairs import by_pattern
from initwell.propagate.moments.segments import Array, Indices
from initwell.propagate.moments.signal import Signal, replace

# What two entries of rows are: the same one of the first kind, two of it, the same and two of the second, one of each.
_ONE: tuple[Monomial, ...] = (((2,), ()), ((1, 1), ()), ((), (2,)), ((), (1, 1)), ((1,), (1,)))
# Of which kinds these two are.
_ENDS = ((0, 0), (0, 0), (1, 1), (1, 1), (0, 1))
# Scores whose square is less than this share of the largest are of the second kind, and those that have so much less
# of it: there e^(2s) is less by a factor of e^(1/2), on average.
_LOW, _APART = 0.5, 0.25


@dataclass(frozen=True, eq=False)
class Uneven:
    """Rows of scores of two kinds.

    Attributes:
        axes: the atoms of the rows' entries, and of the rows.
        atoms: of the entries, and of the rows.
        second: by kind of rows and cell of entries, whether these are of the second kind.
        kinds: what rows there are.
        which: by segments of the rows, which kind they are.
    """

    axes: tuple[tuple[int, ...], tuple[int, ...]]
    atoms: tuple[tuple[Atom, ...], tuple[Atom, ...]]
    second: NDArray[np.bool_]
    kinds: tuple[TwoKinds, ...]
    which: Indices

    def averaged(self, value: Callable[[TwoKinds], float]) -> float:
        """Average over rows what entries of the first kind have, as a share of all."""
        lengths = _lengths(self.atoms[1])
        each = np.array([value(kind) * kind.counts[0] / sum(kind.counts) for kind in self.kinds])
        return float(lengths @ each[self.which.ravel()] / lengths.sum())

    @cached_property
    def typical(self) -> int:
        """Entries of the first kind of a row, on average."""
        return max(round(self.averaged(lambda kind: sum(kind.counts))), 1)

    def ends(self) -> tuple[float, float]:
        """Return E[p p'] of entries of the first kind of one row, and of two independent ones, as shares of all."""
        whole = self.averaged(lambda kind: kind.moment(_ONE[0]))
        return whole, self.averaged(lambda kind: kind.moment(((1,), ())) ** 2)

    def gradient_ends(self) -> tuple[float, float]:
        """Return E[d d'] as of ``ends``, for gradients of variance 1."""
        whole, apart = (lambda kind, of=of: float(of(kind)[0, 0]) for of in (_own, _apart))
        return self.averaged(whole), self.averaged(apart)

    def following(self, found: Signal, value: Callable[[TwoKinds], float], inner: Signal | None = None) -> Signal:
        """Return the result as strongly going with what scores or gradients follow as its entries of the first kind do.

        Args:
            found: the result, of the same atoms: of its entries, the share that is no other's.
            value: how strongly E[y_i y_j] goes with it, of a kind of rows.
            inner: what it is to be multiplied by, by row.
        """
        alone = [np.arange(len(atom.patterns.parts)) for atom in self.atoms[1]]
        five = self.averages(self.split(found.moments)).reshape(*(a.patterns.counts.size for a in self.atoms[1]), 5)
        own = (five[..., 0] - five[..., 1])[np.ix_(*alone)].reshape(self.which.shape)
        factors = np.array([value(kind) for kind in self.kinds])[self.which]
        if inner is not None:
            factors = factors * inner.diagonal.reshape(self.which.shape)
        pairs = np.array([kind.counts[0] ** 2 for kind in self.kinds])[self.which]
        for i in self.axes[0]:
            found = shared_by(found, i, self.axes[1], pairs * factors, pairs * own)
        return found

    def split(self, moments: Array) -> Array:
        """Return moments with one axis of all patterns of rows, and one of all patterns of entries."""
        moved = np.transpose(moments, (*self.axes[1], *self.axes[0]))
        return moved.reshape(-1, _patterns(self.atoms[0])[0].size)

    def whole(self, found: Array, like: Signal) -> Array:
        """Return what ``split`` has split in its old order."""
        order = (*self.axes[1], *self.axes[0])
        shape = tuple(like.moments.shape[i] for i in order)
        return np.ascontiguousarray(np.transpose(found.reshape(shape), np.argsort(order)))

    def pairs(self) -> tuple[Indices, Indices]:
        """Return which kinds two rows are, by pattern."""
        one, two = (by_pattern(self.atoms[1], self.which, second=second) for second in (False, True))
        shape = tuple(atom.patterns.counts.size for atom in self.atoms[1])
        return np.broadcast_to(one, shape).ravel(), np.broadcast_to(two, shape).ravel()

    def places(self, first: int, second: int) -> Indices:
        """Return by pattern of entries which of the five they are, of rows of two kinds."""
        one, two, agree = _patterns(self.atoms[0])
        a, b = self.second[first][one], self.second[second][two]
        return np.where(a != b, 4, 2 * a + ~agree)

    def averages(self, moments: Array) -> Array:
        """Average moments over the patterns of entries that are one of the five: shape (patterns of rows, 5).

        What the one entry of a kind has in common with others of it, of which there are none, is free: all that a
        second one has, as of a sink, and of a first one what it has in common with the second kind.
        """
        counts, found = _counts(self.atoms[0]), np.zeros((len(moments), 5))
        first, second = self.pairs()
        for a, b in {*zip(first.tolist(), second.tolist(), strict=True)}:
            rows, places = (first == a) & (second == b), self.places(a, b)
            weights = np.where(places[:, None] == np.arange(5), counts[:, None], 0.0)
            pairs = weights.sum(axis=0)
            five = moments[rows] @ (weights / np.maximum(pairs, 1.0))
            five[:, 1] = five[:, 1 if pairs[1] > 0 else 4]
            five[:, 3] = five[:, 3 if pairs[3] > 0 else 2]
            found[rows] = five
        return found

    def scores(self, s: Signal) -> Signal:
        """Return the scores of the first kind at one entry, less what they share."""
        five = self.averages(self.split(s.moments))
        shape = tuple(atom.patterns.counts.size for atom in self.atoms[1])
        return s.changed((five[:, 0] - five[:, 1]).reshape(shape), 0.0, dims=(self.atoms[1],))

    def weights(self, s: Signal, growth: Array) -> Signal:
        """Return the weights.

        Args:
            s: the scores.
            growth: by pattern of rows, how far their moments have come from those of independent rows.
        """
        means = np.array([[rows.moment(((1,), ())), rows.moment(((), (1,)))] for rows in self.kinds])
        own = np.array([[rows.moment(powers) for powers in _ONE] for rows in self.kinds])
        low = np.stack([means[:, i] * means[:, j] for i, j in ((0, 0), (0, 0), (1, 1), (1, 1), (0, 1))], 1)
        moments = self._filled(low, own, growth, np.ones((len(growth), 1)))
        cells = np.where(self.second, means[:, 1:], means[:, :1])[self.which]
        found = cells.reshape(*self.which.shape, *(len(a.patterns.parts) for a in self.atoms[0]))
        order = np.argsort((*self.axes[1], *self.axes[0]))
        return s.changed(self.whole(moments, s), np.transpose(found, order))

    def gradients(self, g: Signal, growth: Array, common: float, level: float) -> Array:
        """Return the moments of p·(g − Σ p g).

        Args:
            g: of the same atoms as the scores.
            growth: as of ``weights``.
            common: relative variance of the average product of two rows that scores and gradients come from.
            level: how much of one length those rows are.
        """
        five = self.averages(self.split(g.moments))
        shares = [five[:, 0] - five[:, 1], five[:, 2] - five[:, 3], five[:, 1] + five[:, 3] - 2 * five[:, 4]]
        own, low = (np.array([found(rows) for rows in self.kinds]) for found in (_own, _apart))
        for k, rows in enumerate(self.kinds):
            extra = common * _extra(rows, level)
            own[k, :, 0] *= 1 + extra / own[k, 0, 0] if own[k, 0, 0] > 0 else 1.0
        return self.whole(self._filled(low, own, growth, np.stack(shares, 1)), g)

    def _filled(self, low: Array, own: Array, growth: Array, shares: Array) -> Array:
        """Put the five moments where they belong.

        Args:
            low: of independent rows, by kind of rows, five, and shares, if there are several.
            own: of one row.
            growth: from the one to the other, by pattern of rows.
            shares: what they are multiplied by, by pattern of rows.
        """
        low, own = low.reshape(len(low), 5, -1), own.reshape(len(low), 5, -1)
        first, second = self.pairs()
        found = np.zeros((len(growth), _patterns(self.atoms[0])[0].size))
        for a, b in {*zip(first.tolist(), second.tolist(), strict=True)}:
            rows = (first == a) & (second == b)
            level, rise = (low[a] + low[b]) / 2, (own[a] - low[a]) if a == b else np.zeros_like(low[a])
            five = shares[rows] @ level.T + growth[rows, None] * (shares[rows] @ rise.T)
            found[rows] = five[:, self.places(a, b)]
        return found


def uneven(s: Signal, dim: int, g: Signal | None = None) -> Uneven | None:
    """Return rows of scores of two kinds; None where all entries of a row are alike.

    Args:
        s: scores.
        dim: along which the softmax is taken.
        g: a gradient of the same atoms: it tells the kinds of rows whose scores are all alike, as those of zeros are.
    """
    axes = s.axes([dim])
    if not any(s.atoms[i].parts for i in axes):
        return None
    rows = tuple(i for i in range(len(s.atoms)) if i not in axes)
    atoms = tuple(s.atoms[i] for i in axes), tuple(s.atoms[i] for i in rows)
    sizes = np.transpose(s.diagonal, (*rows, *axes))
    shape = sizes.shape[: len(rows)]
    sizes = sizes.reshape(-1, math.prod(sizes.shape[len(rows) :]))
    second = low(sizes)
    if not second.any():
        return None
    if g is not None and g.diagonal.shape == s.diagonal.shape:
        met = np.transpose(g.diagonal, (*rows, *axes)).reshape(sizes.shape)
        second |= ~second.any(axis=1, keepdims=True) & (met < _LOW * met.max(axis=1, keepdims=True))
    first = Uneven((axes, rows), atoms, second, (), np.arange(len(sizes)).reshape(shape))
    five = first.averages(first.split(s.moments)).reshape(*(a.patterns.counts.size for a in atoms[1]), 5)
    alone = five[tuple(slice(len(a.patterns.parts)) for a in atoms[1])].reshape(-1, 5)
    counts = _lengths(atoms[0])
    curved = max(sum(source.level * source.strength**2 for source in atom.follows) for atom in atoms[0])
    width = stepped(1 / curved) if curved > 0 else math.inf
    made: dict[tuple[tuple[bool, ...], TwoKinds], int] = {}
    which = []
    for found, zero in zip(alone, second, strict=True):
        kind = _kind(found, (float(counts[~zero].sum()), float(counts[zero].sum())), s, width)
        which.append(made.setdefault((tuple(zero.tolist()), kind), len(made)))
    whole = np.array([zero for zero, _ in made])
    return replace(first, second=whole, kinds=tuple(kind for _, kind in made), which=np.array(which).reshape(shape))


def low(sizes: Array) -> NDArray[np.bool_]:
    """Return which scores of rows are of the second kind, by their squares: shape (rows, cells)."""
    most = sizes.max(axis=1, keepdims=True)
    return np.asarray(sizes < np.maximum(_LOW * most, most - _APART))


def _kind(five: Array, counts: tuple[float, float], s: Signal, width: float) -> TwoKinds:
    alone, shared, other, common, across = five.tolist()
    if counts[1] == 0:
        other = common = across = shared
    v, w = (known_variance(x) for x in (alone - shared, other - common))
    offset, spread = stepped(max(shared + common - 2 * across, 0.0)), stepped(2 * s.spread)
    return TwoKinds(counts, (v, w), offset, spread, width)


def _patterns(atoms: Sequence[Atom]) -> tuple[Indices, Indices, NDArray[np.bool_]]:
    """Return by pattern of entries the cells of both, and whether they are the same entry."""
    one = two = np.zeros(1, dtype=np.int64)
    agree = np.ones(1, dtype=bool)
    for atom in atoms:
        found, n = atom.patterns, len(atom.patterns.parts)
        one = (one[:, None] * n + found.first).ravel()
        two = (two[:, None] * n + found.second).ravel()
        agree = (agree[:, None] & (np.arange(found.counts.size) < n)).ravel()
    return one, two, agree


def _counts(atoms: Sequence[Atom]) -> Array:
    counts = np.ones(1)
    for atom in atoms:
        counts = np.outer(counts, atom.patterns.counts).ravel()
    return counts


def _lengths(atoms: Sequence[Atom]) -> Array:
    lengths = np.ones(1)
    for atom in atoms:
        lengths = np.outer(lengths, np.array(atom.patterns.parts, float)).ravel()
    return lengths


def _own(rows: TwoKinds) -> Array:
    """Return the five E[d d'] of one row for W_1, W_2 and β: shape (5, 3)."""
    found = np.zeros((5, 3))
    for place, (powers, ends) in enumerate(zip(_ONE, _ENDS, strict=True)):
        for kind in (0, 1):
            # p_i p_j (δ_ij W_i − W_i p_i − W_j p_j + W Q), for i and j of this kind as far as they are.
            same = float(place == 2 * kind)
            along = -2.0 * same - (0.0 if same else ends.count(kind))
            found[place, kind] = same * rows.moment(powers) + rows.sum(rows.summed({powers: 1.0}, kind, 2))
            found[place, kind] += along * rows.moment(_raised(powers, kind)) if along else 0.0
        one, two = (1 - kind for kind in ends)
        sign = 1.0 if one == two else -1.0
        found[place, 2] = sign * rows.sum(rows.summed(rows.summed({powers: 1.0}, one, 1), two, 1))
    return found


def _raised(powers: Monomial, kind: int) -> Monomial:
    """Return a monomial with one power of a kind raised by one."""
    here = (powers[kind][0] + 1, *powers[kind][1:])
    return (here, powers[1]) if kind == 0 else (powers[0], here)


def _extra(rows: TwoKinds, level: float) -> float:
    """Return by how much E[d²] of the first kind is larger where scores and gradients come from the same rows."""
    n = rows.counts[0]
    products = 2 * rows.coupled((3, 1)) - 2 * rows.coupled((2, 1)) + max(n - 2, 0.0) * rows.coupled((1, 1, 2))
    itself = [rows.coupled_itself(powers) for powers in ((2,), (3,), (4,), (2, 2))]
    squares = (1 - level) * (itself[0] - 2 * itself[1] + itself[2] + (n - 1) * itself[3])
    return (n - 1) * products + squares


def coupling_of_two_kinds(rows: TwoKinds, *, common: bool) -> float:
    """Say how strongly E[d_i d_j] of the first kind goes with the average product of what gives their gradients.

    Args:
        rows: of what kind.
        common: whether scores and gradients come from the same rows, so that the weights go with those products too.
    """
    found = rows.sum({((1, 1), ()): 1.0, ((1, 2), ()): -2.0, ((2, 2), ()): 2.0})
    if not common:
        return found
    others = max(rows.counts[0] - 2, 0.0) * rows.coupled((1, 1, 2))
    return found + 2 * rows.coupled((3, 1)) + others - 2 * rows.coupled((2, 1))


def _apart(rows: TwoKinds) -> Array:
    """Return the five E[d d'] of two independent rows for W_1, W_2 and β: shape (5, 3)."""
    n = np.array(rows.counts)
    mean = np.array([rows.moment(((1,), ())), rows.moment(((), (1,)))])
    square, others, squares, rest, across = (rows.moment(powers) for powers in _ONE)
    # Of p_i by s_a: of the same entry, of another of its kind, and of one of the other kind.
    same, near = mean - np.array([square, squares]), -np.array([others, rest])
    near = np.where(n > 1, near, 0.0)
    found = np.zeros((5, 3))
    for x, y in ((0, 1), (1, 0)):
        found[2 * x, x] = same[x] ** 2 + (n[x] - 1) * near[x] ** 2
        found[2 * x + 1, x] = 2 * same[x] * near[x] + (n[x] - 2) * near[x] ** 2
        found[2 * x : 2 * x + 2, y] = n[y] * across**2
        found[4, x] = -across * (same[x] + (n[x] - 1) * near[x])
        found[2 * x : 2 * x + 2, 2] = (n[y] * across) ** 2
    found[4, 2] = -n[0] * n[1] * across**2
    return found
