"""Softmax: p_t = e^(s_t)/Σ e^s over an axis of length T, and its backward.

What all entries share cancels, so only v = q − moments[differ along T] matters; the moments of weights of independent
scores, of one row or of two whose centred scores correlate by ρ, are those of ``concentration``. The mean is 1/T, and
since p sums to 1 over T, E[p_t p'_u] for t ≠ u is (1/T − E[p_t p'_t])/(T−1).

Weights and values come from the same rows, and so do weights and the gradients that arrive at them. How strongly they
follow those rows, of which a contraction asks (see ``gram``), are derivatives by Stein's lemma.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.atoms import centred, joined, plain, together
from initwell.propagate.concentration import Weights, between
from initwell.propagate.gram import differs, multiplied, rescaled, strength
from initwell.propagate.segments import Array
from initwell.propagate.signal import Signal, merged_fidelity, over_pairs
from initwell.propagate.table import Call, Rule, UnknownSignalError
from initwell.records import Record

_WHY = "softmax: scores as Gaussian, and independent of the gradient"
_SMALL = 1e-3


def _known(v: float) -> float:
    # Beyond this exp(variance) is no number: a mask that was added to the scores, which are then no Gaussian.
    if v > 300:
        raise UnknownSignalError("a softmax of scores with a mask added to them")
    return max(v, 0.0)


def _one_axis(s: Signal, dim: int, *, segments: bool) -> tuple[Signal, int]:
    """Return the signal with one atom along ``dim``, of one segment unless they are wanted, and its axis."""
    while len(s.dims[dim]) > 1:
        s = joined(s, s.axes([dim])[0])
    s = s if segments else plain(s, dim)
    return s, s.axes([dim])[0]


@dataclass(frozen=True)
class _Rows(Record):
    """A second moment of two rows' weights that are alike.

    Attributes:
        alone: variance of a score → the moment of a row with itself.
        pair: variance, correlation of two rows' scores → their moment, of Gaussian rows of one variance.
    """

    alone: Callable[[float], float]
    pair: Callable[[float, float], float]

    def growth(self, v: float, correlation: float) -> float:
        """Return how far the moment has come at a correlation, from 0 for independent rows to 1 for equal ones."""
        if v < _SMALL:
            return correlation
        apart = self.pair(v, 0.0)
        return (self.pair(v, correlation) - apart) / (self.pair(v, 1.0) - apart)

    def over(self, s: Signal) -> Array:
        """Return the moment by pattern of signals of centred scores.

        The correlation of two rows is itself random where they share their keys: G of the queries fluctuates.
        """
        v = s.diagonal
        kinds, which = np.unique(v.round(12), return_inverse=True)
        ends = np.array([[self.alone(_known(x)), self.pair(_known(x), 0.0)] for x in kinds])[which.reshape(v.shape)]
        same, apart = (over_pairs(s.atoms, np.sqrt(np.maximum(ends[..., i], 0.0))) for i in range(2))
        size = over_pairs(s.atoms, np.sqrt(np.maximum(v, 0.0)))
        correlation = np.clip(np.where(size > 0, s.moments / np.where(size > 0, size, 1.0), 1.0), -1.0, 1.0)
        wide = np.where(_fluctuates(s), math.sqrt(3 * s.spread) * (1 - correlation**2), 0.0)
        rows = np.stack(np.broadcast_arrays(size, correlation, wide), -1).round(9).reshape(-1, 3)
        cases, places = np.unique(rows, axis=0, return_inverse=True)
        shapes = np.array([self._averaged(*case) for case in cases])[places].reshape(s.moments.shape)
        return np.asarray(apart + shapes * (same - apart))

    def slope(self, s: Signal, axis: int) -> float:
        """Say how strongly the moment of rows that differ along an axis goes with their correlation, over its range."""
        v, other = s.q, s.averaged([axis])
        if v < _SMALL or other >= v * (1 - 1e-6):
            return 1.0
        c, step = other / v, 0.01 * (1 - other / v)
        derivative = (self.growth(v, c + step) - self.growth(v, c - step)) / (2 * step)
        return derivative * (1 - c) / (1 - self.growth(v, c))

    def _averaged(self, v: float, correlation: float, wide: float) -> float:
        if wide == 0:
            return self.growth(v, correlation)
        either = [self.growth(v, float(np.clip(correlation + x, -1.0, 1.0))) for x in (-wide, wide)]
        return 2 / 3 * self.growth(v, correlation) + sum(either) / 6


def _fluctuates(s: Signal) -> NDArray[np.bool_]:
    """Say by pattern whether two rows differ, and only along axes that follow something."""
    found = fixed = np.zeros((1,) * len(s.atoms), dtype=bool)
    for i, atom in enumerate(s.atoms):
        found, fixed = (found | differs(s, i), fixed) if atom.follows else (found, fixed | differs(s, i))
    return np.asarray(found & ~fixed)


def _without(s: Signal, axis: int) -> Signal:
    """Return the signal at one index of an atom of one segment, centred along it."""
    dims = tuple(tuple(a for i, a in zip(s.axes([d]), dim, strict=True) if i != axis) for d, dim in enumerate(s.dims))
    moments = np.asarray(s.moments.take(0, axis) - s.moments.take(1, axis))
    return s.changed(moments, 0.0, dims=dims)


def _weights(s: Signal, axis: int) -> Weights:
    """Return what is known of rows of scores beside their variance.

    A row of scores is q·k_t: |q|² varies from row to row, and so does |W_kᵀ q|.
    """
    atom = s.atoms[axis]
    curved = sum(source.level * source.strength**2 for source in atom.follows)
    return Weights(atom.size, 2 * s.spread, 1 / curved if curved > 0 else math.inf)


def softmaxed(s: Signal, dim: int) -> Signal:
    """Apply softmax along a dimension."""
    if not s.dims[dim]:
        return s.changed(np.ones_like(s.moments), 1.0)
    s, axis = _one_axis(s, dim, segments=False)
    count, weights, scores = s.atoms[axis].size, _weights(s, axis), _without(s, axis)
    rows = _Rows(
        lambda v: float(weights.moments(v, [(2,)])[0]), lambda v, c: float(between(v, count, c, [((1,), (1,))])[0])
    )
    agree = rows.over(scores)
    differ = (1 / count - agree) / (count - 1)
    found = s.changed(np.stack([agree, differ], axis), 1 / count).approximate(_WHY)
    found = rescaled(found, axis, forward_strength(weights, scores.q), _apart(found, scores, axis, weights))
    for i in range(len(s.atoms)):
        if i != axis:
            found = rescaled(found, i, rows.slope(scores, i - (i > axis)))
    return found


def _apart(p: Signal, s: Signal, axis: int, weights: Weights) -> float:
    """Say how much of ``forward_strength`` is left between rows that differ, as their scores correlate by ρ.

    E[p_j p'_l] goes with G_jl by ρ·v·E[∂p_j/∂s_j]² at a small ρ, and as E[p_j p_l] at ρ = 1.
    """
    rows = [i for i, atom in enumerate(p.atoms) if atom.follows and i != axis]
    v, size = s.q, p.averaged(rows) - p.averaged([*rows, axis])
    if v < _SMALL or not rows or size <= 0 or weights.count < 2:
        return 1.0
    c = s.averaged([i - (i > axis) for i in rows]) / v
    square, pair = weights.moments(v, [(2,), (1, 1)])
    same = weights.coupled(v, (1, 1))
    there = c * ((1 - c) * v * (1 / weights.count - square) ** 2 + c * same)
    return float(there / size * (square - pair) / same)


def forward_strength(weights: Weights, v: float) -> float:
    """Say how strongly E[p_j p_l] goes with the correlation of scores j and l, over E[p²] − E[p_j p_l]."""
    if v < _SMALL or weights.count < 2:
        return 1.0
    square, pair = weights.moments(v, [(2,), (1, 1)])
    return float(weights.coupled(v, (1, 1)) / (square - pair))


def gradient_size(weights: Weights, v: float, common: float, level: float = 0.0) -> float:
    """Return E[d²] of d_j = p_j(x_j − Σ p x) for x of variance 1, on average over rows.

    Args:
        weights: of the rows.
        v: variance of a score.
        common: relative variance of the average product of two rows, where scores and x come from the same ones.
        level: how much of one length those rows are.
    """
    two, three, four, pair = weights.moments(v, [(2,), (3,), (4,), (2, 2)])
    others = weights.count - 1
    # x_j(p_j − p_j²) and, for each other l, −x_l p_j p_l.
    alone = float(two - 2 * three + four + others * pair)
    if v < _SMALL or weights.count < 3 or common == 0:
        return alone
    products = 2 * weights.coupled(v, (3, 1)) - 2 * weights.coupled(v, (2, 1))
    products += (others - 1) * weights.coupled(v, (1, 1, 2))
    itself = [weights.coupled_itself(v, p) for p in ((2,), (3,), (4,), (2, 2))]
    squares = (1 - level) * (itself[0] - 2 * itself[1] + itself[2] + others * itself[3])
    return alone + common * (others * products + squares)


def backward_strength(weights: Weights, v: float, *, common: bool) -> float:
    """Say how strongly E[d_j d_l], of the same d_j, goes with the average product of x_j and x_l; 1 at equal weights.

    Args:
        weights: of the rows.
        v: variance of a score.
        common: whether scores and x come from the same rows, so that the weights go with those products too.
    """
    if v < _SMALL or weights.count < 3:
        return 1.0
    pair, three, four = weights.moments(v, [(1, 1), (2, 1), (2, 2)])
    found = float(pair - 2 * three + 2 * four)
    if common:
        # E[d_j d_l] at independent x: p_j p_l (Σ p² − p_j − p_l).
        others = (weights.count - 2) * weights.coupled(v, (1, 1, 2))
        found += 2 * weights.coupled(v, (3, 1)) + others - 2 * weights.coupled(v, (2, 1))
    return found / gradient_size(weights, v, 0.0) * (1 - 1 / weights.count)


def _gradient_pair(v: float, count: int, correlation: float) -> float:
    """Return E[d_j d'_j] of the same x of variance 1 in two rows of Gaussian scores."""
    powers: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((1,), (1,)), ((2,), (1,)), ((2,), (2,)), ((1, 1), (1, 1))]
    one, mixed, both, others = between(v, count, correlation, powers)
    return float(one - 2 * mixed + both + (count - 1) * others)


def softmax_backward(g: Signal, s: Signal, dim: int) -> Signal:
    """Take a gradient back through p(g − Σ p g): it sums to zero over T, and so do its moments.

    At equal weights it is (g − ḡ)/T; each entry's square grows as the concentration of the weights says.
    """
    if not s.dims[dim]:
        return s.changed(np.zeros_like(s.moments), 0.0)
    s, _ = _one_axis(s, dim, segments=False)
    g, s = together(g, s, s.shape)
    g, axis = _one_axis(g, dim, segments=True)
    s, _ = _one_axis(s, dim, segments=False)
    count, weights, scores = s.atoms[axis].size, _weights(s, axis), _without(s, axis)
    common = strength(g, axis, s, axis)
    level = max((source.level for source in s.atoms[axis].follows), default=0.0)
    rows = _Rows(lambda v: gradient_size(weights, v, common, level), lambda v, c: _gradient_pair(v, count, c))
    sizes = rows.over(scores) / (1 - 1 / count)
    inner = g.changed(centred(g, [axis]), 0.0)
    found = merged_fidelity(inner.changed(inner.moments * np.expand_dims(sizes, axis), 0.0), s).approximate(_WHY)
    for i in range(len(g.atoms)):
        if i != axis:
            k = i - (i > axis)
            found = _following(found, inner, s, scores.changed(sizes, 0.0), (i, k), rows.slope(scores, k))
    return rescaled(found, axis, backward_strength(weights, scores.q, common=common > 0))


def _following(found: Signal, g: Signal, s: Signal, sizes: Signal, axes: tuple[int, int], strength: float) -> Signal:
    """Let rows follow what the gradient followed, and what the scores did, each by its share of how rows vary.

    Args:
        found: g times sizes, which follows what g does.
        g: the gradient.
        s: the scores.
        sizes: what the weights do to the gradient, without the softmax axis.
        axes: the axis of g, and of sizes.
        strength: of what the scores follow, in the sizes.
    """
    (a, b), (p, q) = ((x.averaged(()), x.averaged([i])) for x, i in zip((g, sizes), axes, strict=True))
    total = a * p - b * q
    if total <= 0:
        return found
    return multiplied(found, s, axes[0], (a - b) * q / total, max(b * (p - q), 0.0) * strength / total)


def _softmax(call: Call) -> Sequence[Signal]:
    s = call.signal("self")
    return [softmaxed(s, call["dim"] % len(s.dims))]


def _softmax_backward(call: Call) -> Sequence[Signal]:
    s = call.of(call.forward().arguments["self"])
    return [softmax_backward(call.signal("grad_output"), s, call["dim"] % len(s.dims))]


RULES: Mapping[str, Rule] = {
    "aten._softmax": _softmax,
    "aten._safe_softmax": _softmax,
    "aten._softmax_backward_data": _softmax_backward,
}
