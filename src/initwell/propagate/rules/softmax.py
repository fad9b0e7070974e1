"""Softmax: p_t = e^(s_t)/Σ e^s over an axis of length T, and its backward.

What all entries share cancels, so only v = q − moments[differ along T] matters; the moments of weights of independent
scores, of one row or of two whose centred scores correlate by ρ, are those of ``rows``. The mean is 1/T, and since p
sums to 1 over T, E[p_t p'_u] for t ≠ u is (1/T − E[p_t p'_t])/(T−1).

Weights and values come from the same rows, and so do weights and the gradients that arrive at them. How strongly they
follow those rows, of which a contraction asks (see ``gram``), are moments of weights times their scores.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import accumulate

import numpy as np

from initwell.propagate.given.mask import Mask
from initwell.propagate.laws.concentration import Weights, between
from initwell.propagate.laws.rows import SMALL, Moment, Open, all_open, known_variance, stepped
from initwell.propagate.laws.swing import of_weights
from initwell.propagate.moments import gram
from initwell.propagate.moments.alike import merged, plain, refined, replaced_atoms
from initwell.propagate.moments.among import shared_by
from initwell.propagate.moments.atoms import joined, permuted, together
from initwell.propagate.moments.centring import centred
from initwell.propagate.moments.gram import rescaled, shared_out, strength
from initwell.propagate.moments.segments import Array, common
from initwell.propagate.moments.signal import Signal, merged_fidelity, replace
from initwell.propagate.rules.hull import back, hull, opened, surrounded, within
from initwell.propagate.rules.keys import Keys
from initwell.propagate.rules.noise import with_gumbel_noise
from initwell.propagate.rules.sinks import beside
from initwell.propagate.rules.uneven import Uneven, coupling_of_two_kinds, uneven
from initwell.propagate.table import Call, Rule, UnknowableError

_WHY = "softmax: scores as Gaussian, and independent of the gradient"
# What the weights of two rows, and gradients that come back from them, are made of: found together.
_POWERS: Sequence[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((1,), (1,)),
    ((2,), (1,)),
    ((2,), (2,)),
    ((1, 1), (1, 1)),
]


def _one_axis(s: Signal, dim: int, *, segments: bool) -> tuple[Signal, int]:
    """Return the signal with one atom along ``dim``, of one segment unless they are wanted, and its axis."""
    while len(s.dims[dim]) > 1:
        s = joined(s, s.axes([dim])[0])
    s = s if segments else plain(s, dim)
    return s, s.axes([dim])[0]


def _split(s: Signal, mask: Mask | None, dim: int) -> tuple[Signal, int, Keys | None]:
    """Return scores with one atom along a dimension, its axis, and how its columns are open, where they are unlike.

    Only then they keep segments along it.
    """
    s, axis = _one_axis(s, dim, segments=True)
    keys = _keys(mask, s, axis)
    if keys is None:
        return plain(s, dim), axis, None
    return refined(s, axis, keys.parts), axis, keys


def _without(s: Signal, axis: int, keys: Keys | None) -> Signal:
    """Return the signal at one index of an atom, centred along it, over what is open."""
    dims = replaced_atoms(s.dims, axis, 1, ())
    if keys is not None and len(s.atoms[axis].parts) > 1:
        return s.changed(keys.at_one(s), 0.0, dims=dims)
    moments = np.asarray(s.moments.take(0, axis) - s.moments.take(1, axis))
    return s.changed(moments, 0.0, dims=dims)


def weights_of(s: Signal, axis: int) -> Weights:
    """Return what is known of rows of scores beside their variance.

    A row of scores is q·k_t: |q|² varies from row to row, and so does |W_kᵀ q|.
    """
    atom = s.atoms[axis]
    curved = sum(source.level * source.strength**2 for source in atom.follows)
    return Weights(atom.size, stepped(2 * s.spread), stepped(1 / curved) if curved > 0 else math.inf)


def open_rows(mask: Mask | None, s: Signal, axis: int, keys: Keys | None) -> Open:
    """Return what is open of scores whose rows have the mask's segments, where they can."""
    count = s.atoms[axis].size
    if mask is None:
        return all_open(count)
    at = _row_axis(mask, s)
    even = plain(_even(mask, s), len(s.dims) - 1)
    agree = keys.same if keys is not None else np.asarray(even.moments.take(0, axis))
    if at is None:
        return Open(agree, count, mask.sizes, lambda _: mask.sizes, mask.uneven)
    ends, k = [0, *accumulate(s.atoms[at].patterns.parts)], at - (at > axis)
    return Open(agree, count, mask.sizes, lambda place: mask.sizes_of(ends[place[k]], ends[place[k] + 1]), mask.uneven)


def _even(mask: Mask, s: Signal) -> Signal:
    """Return the weights at equal scores, of the atoms of the scores, with segments of rows if these have them."""
    even = mask.even if _row_axis(mask, s) is not None else plain(mask.even, *range(len(mask.even.dims) - 1))
    return together(even, s, s.shape)[0]


def _keys(mask: Mask | None, s: Signal, axis: int) -> Keys | None:
    """Return how the columns of scores are open, where they are so unlike each other."""
    if mask is None or not mask.columns:
        return None
    return Keys(_even(mask, s), axis)


def _rows(mask: Mask | None, s: Signal) -> int | None:
    """Return the atom of the rows, where the mask has segments of them."""
    if mask is None or not mask.parts or mask.rows is None or len(s.dims) < -mask.rows:
        return None
    axes = s.axes([len(s.dims) + mask.rows])
    return axes[0] if len(axes) == 1 else None


def _row_axis(mask: Mask, s: Signal) -> int | None:
    """Return the atom of the rows, if the mask's segments are among its own."""
    axis = _rows(mask, s)
    if axis is None:
        return None
    own = s.atoms[axis].patterns.parts
    return axis if common(own, mask.parts) == own else None


def by_rows(s: Signal, mask: Mask | None) -> Signal:
    """Give scores the segments of their mask's rows."""
    axis = _rows(mask, s)
    if mask is None or axis is None:
        return s
    own = s.atoms[axis].patterns.parts
    if common(own, mask.parts) != mask.parts:
        # Segments of the rows that are none of the mask's: its own count here.
        s = merged(s, axis, (0,) * len(own))
    return refined(s, axis, mask.parts)


def _own(s: Signal, mask: Mask | None) -> Signal:
    """Return scores without the known bias of their mask, which is in the weights at equal scores."""
    if mask is None or mask.biases is None:
        return s
    scores, bias = together(s, mask.biases, s.shape)
    return scores.changed(scores.moments - bias.moments, scores.mean, dims=scores.dims)


@lru_cache(maxsize=4096)
def _pair(count: float, v: float, correlation: float) -> float:
    return float(between(v, count, correlation, _POWERS)[0])


_SQUARE = Moment(lambda weights, v: float(weights.moments(v, [(2,)])[0]), _pair)


def softmaxed(s: Signal, dim: int) -> Signal:
    """Apply softmax along a dimension."""
    if not s.dims[dim]:
        return s.changed(np.ones_like(s.moments), 1.0)
    mask = s.mask if dim == len(s.dims) - 1 else None
    if mask is not None and (spans := hull(s)) is not None:
        return surrounded(softmaxed(opened(s), dim), spans, s.shape)
    if mask is None and (rows := uneven(s, dim)) is not None:
        return _of_two_kinds(s, rows)
    s, axis, keys = _split(by_rows(_own(s, mask), mask), mask, dim)
    left, scores, weights = open_rows(mask, s, axis, keys), _without(s, axis, keys), weights_of(s, axis)
    by_columns, s = s, plain(s, dim)
    agree = _SQUARE.over(scores, weights, left)
    if keys is None:
        differ = (1 / left.count - agree) / (left.count - 1)
        found = s.changed(np.stack([agree, differ], axis), 1 / left.count).approximate(_WHY)
    else:
        found = keys.weights(s, agree).approximate(_WHY)
        if mask is not None:
            found = beside(found, by_columns, scores, keys, left, _SQUARE.shapes(scores, left), mask)
    rates = {k + (k >= axis): rate for k, rate in enumerate(_SQUARE.rates(scores, weights, left))}
    rates[axis] = left.pairs(lambda n: weights.of(n).coupled(known_variance(scores.q * left.uneven[0]), (1, 1)))
    apart = _apart(found, scores, axis, weights, left)
    for i, rate in rates.items():
        varies = gram.apart(found, i)
        factor = rate / varies if varies > 0 else 0.0
        found = rescaled(found, i, factor, apart / rate if i == axis and rate > 0 else 1.0)
    v = known_variance(scores.q * left.uneven[0])
    return replace(found, swing=left.by_row(lambda n: of_weights(replace(weights, count=n), v)), floor=0.0)


def _of_two_kinds(s: Signal, rows: Uneven) -> Signal:
    """Apply softmax to rows of scores of two kinds."""
    scores, left = rows.scores(s), all_open(rows.typical)
    found = rows.weights(s, _SQUARE.shapes(scores, left).ravel()).approximate(_WHY)
    whole, apart = rows.ends()
    rates = {i: (whole - apart) * _SQUARE.steep(scores, left, k) for k, i in enumerate(rows.axes[1])}
    for i, rate in rates.items():
        varies = found.averaged(()) - found.averaged([i])
        found = rescaled(found, i, rate / varies if varies > 0 else 0.0)
    return rows.following(found, lambda kind: kind.coupled((1, 1)))


def _back_through_two_kinds(g: Signal, s: Signal, rows: Uneven) -> Signal:
    """Take a gradient back through the weights of rows of scores of two kinds."""
    scores, left, inner = rows.scores(s), all_open(rows.typical), rows.scores(g)
    first = rows.axes[0][0]
    shared, level = strength(g, first, s, first), max((x.level for x in s.atoms[first].follows), default=0.0)
    moment = Moment(lambda w, v: gradient_size(w, v, shared, level), _gradient_pair)
    growth = moment.shapes(scores, left)
    moments = rows.gradients(g, growth.ravel(), shared, level)
    found = merged_fidelity(g.changed(moments, 0.0), s).approximate(_WHY)
    whole, apart = rows.gradient_ends()
    grown = scores.changed(growth, 0.0)
    for k, i in enumerate(rows.axes[1]):
        rate = (whole - apart) * moment.steep(scores, left, k)
        found = _following(found, inner, s, (i, k), apart + grown.averaged([k]) * (whole - apart), rate)
    return rows.following(found, lambda kind: coupling_of_two_kinds(kind, common=shared > 0), inner)


def _apart(p: Signal, s: Signal, axis: int, weights: Weights, left: Open) -> float:
    """Say how strongly E[p_j p'_l] of rows that differ goes with G_jl, as it would be at E[p_j p_l]'s own range.

    It does by ρ·v·E[∂p_j/∂s_j]² at a small correlation ρ of their scores, and as E[p_j p_l] at ρ = 1.
    """
    rows = [i for i, atom in enumerate(p.atoms) if atom.follows and i != axis]
    size = p.averaged(rows) - p.averaged([*rows, axis])
    if not rows or size <= 0 or s.q <= 0:
        return 0.0
    v, c = known_variance(s.q * left.uneven[0]), s.averaged([i - (i > axis) for i in rows]) / s.q

    def strength(n: float) -> float:
        row = weights.of(n)
        (square,) = row.moments(v, [(2,)])
        return float(c * ((1 - c) * v * (1 / n - square) ** 2 + c * row.coupled(v, (1, 1))))

    return left.pairs(strength) * (p.averaged(()) - p.averaged([axis])) / size


@lru_cache(maxsize=4096)
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


@lru_cache(maxsize=4096)
def gradient_coupling(weights: Weights, v: float, *, common: bool) -> float:
    """Say how strongly E[d_j d_l], of the same d_j, goes with the average product of x_j and x_l.

    Args:
        weights: of the rows.
        v: variance of a score.
        common: whether scores and x come from the same rows, so that the weights go with those products too.
    """
    pair, three, four = weights.moments(v, [(1, 1), (2, 1), (2, 2)])
    found = float(pair - 2 * three + 2 * four)
    if not common or weights.count < 3:
        return found
    # E[d_j d_l] at independent x: p_j p_l (Σ p² − p_j − p_l).
    others = (weights.count - 2) * weights.coupled(v, (1, 1, 2))
    return found + 2 * weights.coupled(v, (3, 1)) + others - 2 * weights.coupled(v, (2, 1))


@lru_cache(maxsize=4096)
def _gradient_pair(count: float, v: float, correlation: float) -> float:
    """Return E[d_j d'_j] of the same x of variance 1 in two rows of Gaussian scores."""
    if count <= 1:
        return 0.0
    one, mixed, both, others = between(v, count, correlation, _POWERS)
    return float(one - 2 * mixed + both + (count - 1) * others)


def softmax_backward(g: Signal, s: Signal, dim: int) -> Signal:
    """Take a gradient back through p(g − Σ p g): it sums to zero over T, and so do its moments.

    At equal weights it is (g − ḡ)/T; each entry's square grows as the concentration of the weights says.
    """
    if not s.dims[dim]:
        return s.changed(np.zeros_like(s.moments), 0.0)
    mask = s.mask if dim == len(s.dims) - 1 else None
    if mask is not None and (spans := hull(s)) is not None:
        found = softmax_backward(within(g, spans), opened(s), dim)
        return replace(back(found, spans, g), closed=mask)
    if mask is not None:
        s = _split(by_rows(_own(s, mask), mask), mask, dim)[0]
    elif uneven(s, dim) is None:
        s, _ = _one_axis(s, dim, segments=False)
    g, s = together(g, s, s.shape)
    if mask is None and (rows := uneven(s, dim, g)) is not None:
        return _back_through_two_kinds(g, s, rows)
    g, axis = _one_axis(g, dim, segments=True)
    s, axis, keys = _split(s, mask, dim)
    left, scores, shared = open_rows(mask, s, axis, keys), _without(s, axis, keys), strength(g, axis, s, axis)
    s = plain(s, dim)
    weights, v = weights_of(s, axis), known_variance(scores.q * left.uneven[0])
    level = max((source.level for source in s.atoms[axis].follows), default=0.0)
    moment = Moment(lambda w, v: gradient_size(w, v, shared, level), _gradient_pair)
    factor = left.uneven[1] / (1 - 1 / left.count)
    sizes = factor * moment.over(scores, weights, left)
    inner = g.changed(centred(g, [axis]), 0.0)
    if keys is None:
        found = inner.changed(inner.moments * np.expand_dims(sizes, axis), 0.0)
    else:
        grown = sizes * (1 - 1 / left.count), _SQUARE.over(scores, weights, left)
        found = inner.changed(keys.gradient(g, *grown), 0.0)
    found = merged_fidelity(found, s).approximate(_WHY)
    whole = scores.changed(sizes, 0.0)
    for k, rate in enumerate(moment.rates(scores, weights, left)):
        i = k + (k >= axis)
        found = _following(found, inner, s, (i, i), whole.averaged([k]), factor * rate)
    if keys is None:
        others = [i for i in range(len(found.atoms)) if i != axis]
        part = _by_rows(scores, left, lambda n, v: gradient_coupling(weights.of(n), v, common=shared > 0))
        found = shared_by(found, axis, others, left.uneven[1] * (1 - 1 / left.count) * part, whole.diagonal)
    elif (varies := gram.apart(found, axis)) > 0:
        coupled = left.pairs(lambda n: gradient_coupling(weights.of(n), v, common=shared > 0))
        found = rescaled(found, axis, left.uneven[1] * coupled / whole.q * found.q / varies if whole.q > 0 else 0.0)
    return found if mask is None else replace(found, closed=mask)


def _by_rows(s: Signal, left: Open, value: Callable[..., float]) -> Array:
    """Return by segment of rows what a pair of a row's entries has, by how many are open and their scores' variance."""
    found = np.empty(s.diagonal.shape)
    for place in np.ndindex(found.shape):
        v = known_variance(float(s.diagonal[place]) * left.uneven[0])
        found[place] = left.pairs(partial(value, v=v), left.sizes(place))
    return found


def _following(found: Signal, g: Signal, s: Signal, axes: tuple[int, int], apart: float, rate: float) -> Signal:
    """Let rows follow what the gradient followed, and what the scores did, each by its share of how rows vary.

    Args:
        found: the product of g and of what the weights do to it, which follows what g does.
        g: the gradient.
        s: the scores.
        axes: of the rows, of the product and of the gradient.
        apart: what the weights do, of rows that differ.
        rate: how it goes with what the scores follow.
    """
    axis, place = axes
    varies = gram.apart(found, axis)
    one, two = g.averaged(()), g.averaged([place])
    if varies <= 0:
        return found
    return shared_out(found, s, axis, (one - two) * apart / varies, max(two, 0.0) * rate / varies)


def _softmax(call: Call) -> Sequence[Signal]:
    if with_gumbel_noise(call.trace, call["self"].id):
        raise UnknowableError("a softmax of scores with Gumbel noise, of which the largest entries decide")
    s = call.signal("self")
    s, dim, order = _turned(s, call["dim"] % len(s.dims))
    return [permuted(softmaxed(s, dim), order) if order else softmaxed(s, dim)]


def _softmax_backward(call: Call) -> Sequence[Signal]:
    s, g = call.of(call.forward().arguments["self"]), call.signal("grad_output")
    mask = s.mask
    s, dim, order = _turned(s, call["dim"] % len(s.dims))
    if not order:
        return [softmax_backward(g, s, dim)]
    return [replace(permuted(softmax_backward(permuted(g, order), s, dim), order), closed=mask)]


def _turned(s: Signal, dim: int) -> tuple[Signal, int, list[int]]:
    """Return scores behind a mask with the dimension that softmax sums over as the last, where it is, and the order."""
    last = len(s.dims) - 1
    if s.mask is None or dim == last:
        return s, dim, []
    order = list(range(last + 1))
    order[dim], order[last] = last, dim
    return replace(permuted(s, order), mask=s.mask.permuted(order)), last, order


RULES: Mapping[str, Rule] = {
    "aten._softmax": _softmax,
    "aten._safe_softmax": _softmax,
    "aten._softmax_backward_data": _softmax_backward,
}
