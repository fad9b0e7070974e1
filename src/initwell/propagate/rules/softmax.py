"""Softmax: p_t = e^(s_t)/Σ e^s over an axis of length T, and its backward.

What all entries share cancels, so only v = q − moments[differ along T] matters; the moments of weights of independent
scores are those of ``concentration``. The mean is 1/T, and since p sums to 1 over T, E[p_t p'_u] for t ≠ u is
(1/T − E[p_t p'_t])/(T−1). Between two softmaxes whose centred scores correlate by ρ, E[p_t p'_t] grows as e^(ρv) − 1
does.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np

from initwell.propagate.atoms import centred, joined, plain, refined, together
from initwell.propagate.concentration import Weights
from initwell.propagate.gram import in_common, rescaled
from initwell.propagate.mask import Mask
from initwell.propagate.segments import Array, common
from initwell.propagate.signal import Signal, merged_fidelity, over_pairs, replace
from initwell.propagate.table import Call, Rule, UnknownSignalError

_WHY = "softmax: scores as Gaussian, and independent of the gradient"
_SMALL = 1e-9


def stepped(x: float) -> float:
    """Return the nearest of numbers 1 % apart, so that layers that hardly differ share their integrals.

    >>> stepped(2.0), stepped(0.0)
    (1.9937155332430823, 0.0)
    """
    return math.exp(round(math.log(x) * 100) / 100) if x > 0 else 0.0


def _known(v: float) -> float:
    # Beyond this exp(variance) is no number: a mask that was added to the scores, which are then no Gaussian.
    if v > 300:
        raise UnknownSignalError("a softmax of scores with a mask added to them")
    return stepped(max(v, 0.0))


def _one_axis(s: Signal, dim: int, *, segments: bool) -> tuple[Signal, int]:
    """Return the signal with one atom along ``dim``, of one segment unless they are wanted, and its axis."""
    while len(s.dims[dim]) > 1:
        s = joined(s, s.axes([dim])[0])
    s = s if segments else plain(s, dim)
    return s, s.axes([dim])[0]


def _shares(s: Signal, scores: Array, moment: Callable[[float], float], flat: float) -> Array:
    """Return, by pattern of the other axes, the moment of weights whose centred scores have these covariances.

    Args:
        s: the scores, whose softmax axis has been taken out of ``scores``.
        scores: covariances of the centred scores by pattern.
        moment: variance → the moment at full agreement.
        flat: the moment at variance 0.
    """
    size = tuple(n for n in s.means.shape)
    v = scores[tuple(slice(n) for n in size)]
    kinds, which = np.unique(v.round(12), return_inverse=True)
    above = np.array([max(moment(_known(x)) - flat, 0.0) for x in kinds])[which].reshape(v.shape)
    grown = np.expm1(np.maximum(v, 1e-12))
    atoms = s.atoms
    return np.asarray(flat + over_pairs(atoms, np.sqrt(above / grown)) * np.expm1(np.minimum(scores, 300.0)))


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


def _typical(mask: Mask) -> int:
    return max(round(sum(n * share for n, share in mask.sizes)), 1)


def _open_shares(
    mask: Mask, scores: Signal, axis: int, moment: Callable[[Weights, float], float], weights: Weights, s: Signal
) -> Array:
    """Return, by pattern of the other axes, a moment of weights along the softmax axis, 0 where they are shut.

    Over rows of n open entries of T, the average over all entries is that of n/T times the moment of n weights. How it
    goes with the other axes is measured from the weights at equal scores, and grows with their correlation.

    Args:
        mask: of the scores.
        scores: centred, without the softmax axis.
        axis: of ``s``, along which the softmax goes.
        moment: (weights of a row, variance of its scores) → the moment.
        weights: of rows of scores.
        s: the scores.
    """
    count = s.atoms[axis].size
    at = _row_axis(mask, s)
    even = mask.even if at is not None else plain(mask.even, *range(len(mask.even.dims)))
    even, _ = together(even, s, s.shape)
    ends = [] if at is None else [0, *accumulate(s.atoms[at].patterns.parts)]
    v = scores.moments[tuple(slice(n) for n in scores.means.shape)]
    whole, flat = np.empty(v.shape), np.empty(v.shape)
    for place in np.ndindex(v.shape):
        sizes = mask.sizes if at is None else mask.sizes_of(ends[place[at]], ends[place[at] + 1])
        rows = [(share * n / count, replace(weights, count=n)) for n, share in sizes]
        whole[place] = sum(share * moment(row, _known(float(v[place]))) for share, row in rows)
        flat[place] = sum(share * moment(row, 0.0) for share, row in rows)
    agree = np.asarray(even.moments.take(0, axis))
    level = agree[tuple(slice(n) for n in v.shape)]
    agree = agree * over_pairs(scores.atoms, np.sqrt(flat / np.where(level > 0, level, 1.0)))
    grown = np.sqrt(np.maximum(whole - flat, 0.0) / np.expm1(np.maximum(v, 1e-12)))
    return np.asarray(agree + over_pairs(scores.atoms, grown) * np.expm1(np.minimum(scores.moments, 300.0)))


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


def softmaxed(s: Signal, dim: int) -> Signal:
    """Apply softmax along a dimension."""
    if not s.dims[dim]:
        return s.changed(np.ones_like(s.moments), 1.0)
    mask = s.mask if dim == len(s.dims) - 1 else None
    s, axis = _one_axis(_by_rows(s, mask), dim, segments=False)
    count, weights = s.atoms[axis].size, _weights(s, axis)
    scores = _without(s, axis)
    if mask is not None:
        weights = replace(weights, count=_typical(mask))
        agree = _open_shares(mask, scores, axis, lambda w, v: float(w.moments(v, [(2,)])[0]), weights, s)
    else:
        agree = _shares(scores, scores.moments, lambda v: float(weights.moments(v, [(2,)])[0]), 1 / count**2)
    differ = (1 / count - agree) / (count - 1)
    found = s.changed(np.stack([agree, differ], axis), 1 / count).approximate(_WHY)
    return rescaled(found, dim, forward_strength(weights, scores.q))


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
    count, weights = s.atoms[axis].size, _weights(s, axis)
    rows, strength = in_common(g, s, [(axis, axis)])
    level = max((source.level for source in s.atoms[axis].follows), default=0.0)
    scores = _without(s, axis)
    flat = (1 - 1 / count) / count**2
    if mask is not None:
        weights = replace(weights, count=_typical(mask))
        size = _open_shares(mask, scores, axis, lambda w, v: gradient_size(w, v, strength, level), weights, s)
        factors = size / (1 - 1 / count)
    else:
        moment: Callable[[float], float] = lambda v: gradient_size(weights, v, strength, level)  # noqa: E731
        factors = _shares(scores, scores.moments, moment, flat) / flat / count**2
    moments = centred(g, [axis]) * np.expand_dims(factors, axis)
    found = merged_fidelity(g.changed(np.asarray(moments), 0.0), s).approximate(_WHY)
    found = rescaled(found, dim, backward_strength(weights, scores.q, common=bool(rows)))
    return found if mask is None else replace(found, closed=mask)


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
