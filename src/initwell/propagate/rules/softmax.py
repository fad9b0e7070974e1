"""Softmax: p_t = e^(s_t)/Σ e^s over an axis of length T, and its backward.

What all entries share cancels, so only v = q − moments[differ along T] matters; the moments of weights of independent
scores, of one row or of two whose centred scores correlate by ρ, are those of ``rows``. The mean is 1/T, and since p
sums to 1 over T, E[p_t p'_u] for t ≠ u is (1/T − E[p_t p'_t])/(T−1).

Weights and values come from the same rows, and so do weights and the gradients that arrive at them. How strongly they
follow those rows, of which a contraction asks (see ``gram``), are derivatives by Stein's lemma.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from initwell.propagate.atoms import centred, joined, plain, refined, together
from initwell.propagate.concentration import Weights, between
from initwell.propagate.gram import multiplied, rescaled, strength
from initwell.propagate.mask import Mask
from initwell.propagate.rows import SMALL, Moment, Open, all_open, stepped
from initwell.propagate.segments import common
from initwell.propagate.signal import Signal, merged_fidelity, replace
from initwell.propagate.table import Call, Rule

_WHY = "softmax: scores as Gaussian, and independent of the gradient"


def _one_axis(s: Signal, dim: int, *, segments: bool) -> tuple[Signal, int]:
    """Return the signal with one atom along ``dim``, of one segment unless they are wanted, and its axis."""
    while len(s.dims[dim]) > 1:
        s = joined(s, s.axes([dim])[0])
    s = s if segments else plain(s, dim)
    return s, s.axes([dim])[0]


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
    return Weights(atom.size, stepped(2 * s.spread), stepped(1 / curved) if curved > 0 else math.inf)


def _open(mask: Mask | None, s: Signal, axis: int) -> Open:
    """Return what is open of scores whose rows have the mask's segments, where they can."""
    count = s.atoms[axis].size
    if mask is None:
        return all_open(count)
    at = _row_axis(mask, s)
    even = mask.even if at is not None else plain(mask.even, *range(len(mask.even.dims)))
    agree = np.asarray(together(even, s, s.shape)[0].moments.take(0, axis))
    typical = max(round(sum(n * share for n, share in mask.sizes)), 1)
    if at is None:
        return Open(agree, lambda _: mask.sizes, count, typical)
    ends, k = [0, *accumulate(s.atoms[at].patterns.parts)], at - (at > axis)
    return Open(agree, lambda place: mask.sizes_of(ends[place[k]], ends[place[k] + 1]), count, typical)


def _row_axis(mask: Mask, s: Signal) -> int | None:
    """Return the atom of the rows, if the mask's segments are among its own."""
    axes = s.axes([len(s.dims) - 2]) if len(s.dims) > 1 else ()
    if not mask.parts or len(axes) != 1:
        return None
    own = s.atoms[axes[0]].patterns.parts
    return axes[0] if common(own, mask.parts) == own else None


def _by_rows(s: Signal, mask: Mask | None) -> Signal:
    """Give scores the segments of their mask's rows."""
    axes = s.axes([len(s.dims) - 2]) if len(s.dims) > 1 else ()
    if mask is None or not mask.parts or len(axes) != 1:
        return s
    own = s.atoms[axes[0]].patterns.parts
    if common(own, mask.parts) != mask.parts:
        # Segments of the rows that are none of the mask's: its own count here.
        s = plain(s, len(s.dims) - 2)
    return refined(s, axes[0], mask.parts)


def _pair(count: int, v: float, correlation: float) -> float:
    return float(between(v, count, correlation, [((1,), (1,))])[0])


_SQUARE = Moment(lambda weights, v: float(weights.moments(v, [(2,)])[0]), _pair)


def softmaxed(s: Signal, dim: int) -> Signal:
    """Apply softmax along a dimension."""
    if not s.dims[dim]:
        return s.changed(np.ones_like(s.moments), 1.0)
    mask = s.mask if dim == len(s.dims) - 1 else None
    s, axis = _one_axis(_by_rows(s, mask), dim, segments=False)
    left, scores = _open(mask, s, axis), _without(s, axis)
    weights = replace(_weights(s, axis), count=left.typical)
    agree = _SQUARE.over(scores, weights, left)
    differ = (1 / left.count - agree) / (left.count - 1)
    found = s.changed(np.stack([agree, differ], axis), 1 / left.count).approximate(_WHY)
    v = stepped(scores.q)
    found = rescaled(found, axis, forward_strength(weights, v), _apart(found, scores, axis, weights))
    for i in range(len(s.atoms)):
        if i != axis:
            found = rescaled(found, i, _SQUARE.slope(left.typical, v, _correlation(scores, i - (i > axis))))
    return found


def _correlation(s: Signal, axis: int) -> float:
    return s.averaged([axis]) / s.q if s.q > 0 else 1.0


def _apart(p: Signal, s: Signal, axis: int, weights: Weights) -> float:
    """Say how much of ``forward_strength`` is left between rows that differ, as their scores correlate by ρ.

    E[p_j p'_l] goes with G_jl by ρ·v·E[∂p_j/∂s_j]² at a small ρ, and as E[p_j p_l] at ρ = 1.
    """
    rows = [i for i, atom in enumerate(p.atoms) if atom.follows and i != axis]
    v, size = stepped(s.q), p.averaged(rows) - p.averaged([*rows, axis])
    if v < SMALL or not rows or size <= 0 or weights.count < 2:
        return 1.0
    c = s.averaged([i - (i > axis) for i in rows]) / s.q
    square, pair = weights.moments(v, [(2,), (1, 1)])
    same = weights.coupled(v, (1, 1))
    there = c * ((1 - c) * v * (1 / weights.count - square) ** 2 + c * same)
    return float(there / size * (square - pair) / same)


def forward_strength(weights: Weights, v: float) -> float:
    """Say how strongly E[p_j p_l] goes with the correlation of scores j and l, over E[p²] − E[p_j p_l]."""
    if v < SMALL or weights.count < 2:
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
    if v < SMALL or weights.count < 3 or common == 0:
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
    if v < SMALL or weights.count < 3:
        return 1.0
    pair, three, four = weights.moments(v, [(1, 1), (2, 1), (2, 2)])
    found = float(pair - 2 * three + 2 * four)
    if common:
        # E[d_j d_l] at independent x: p_j p_l (Σ p² − p_j − p_l).
        others = (weights.count - 2) * weights.coupled(v, (1, 1, 2))
        found += 2 * weights.coupled(v, (3, 1)) + others - 2 * weights.coupled(v, (2, 1))
    return found / gradient_size(weights, v, 0.0) * (1 - 1 / weights.count)


def _gradient_pair(count: int, v: float, correlation: float) -> float:
    """Return E[d_j d'_j] of the same x of variance 1 in two rows of Gaussian scores."""
    if count == 1:
        return 0.0
    powers: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((1,), (1,)), ((2,), (1,)), ((2,), (2,)), ((1, 1), (1, 1))]
    one, mixed, both, others = between(v, count, correlation, powers)
    return float(one - 2 * mixed + both + (count - 1) * others)


def softmax_backward(g: Signal, s: Signal, dim: int) -> Signal:
    """Take a gradient back through p(g − Σ p g): it sums to zero over T, and so do its moments.

    At equal weights it is (g − ḡ)/T; each entry's square grows as the concentration of the weights says.
    """
    if not s.dims[dim]:
        return s.changed(np.zeros_like(s.moments), 0.0)
    mask = s.mask if dim == len(s.dims) - 1 else None
    s, _ = _one_axis(_by_rows(s, mask), dim, segments=False)
    g, s = together(g, s, s.shape)
    g, axis = _one_axis(g, dim, segments=True)
    s, _ = _one_axis(s, dim, segments=False)
    left, scores, shared = _open(mask, s, axis), _without(s, axis), strength(g, axis, s, axis)
    weights, v = replace(_weights(s, axis), count=left.typical), stepped(scores.q)
    level = max((source.level for source in s.atoms[axis].follows), default=0.0)
    moment = Moment(lambda w, v: gradient_size(w, v, shared, level), _gradient_pair)
    sizes = moment.over(scores, weights, left) / (1 - 1 / left.count)
    inner = g.changed(centred(g, [axis]), 0.0)
    found = merged_fidelity(inner.changed(inner.moments * np.expand_dims(sizes, axis), 0.0), s).approximate(_WHY)
    for i in range(len(g.atoms)):
        if i != axis:
            k = i - (i > axis)
            slope = moment.slope(left.typical, v, _correlation(scores, k))
            found = _following(found, inner, s, scores.changed(sizes, 0.0), (i, k), slope)
    found = rescaled(found, axis, backward_strength(weights, v, common=shared > 0))
    return found if mask is None else replace(found, closed=mask)


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
