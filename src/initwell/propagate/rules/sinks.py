"""Sinks: columns of a masked softmax that all rows leave open and whose scores hardly vary, as learned ones of a head.

A row has n open scores of keys, of variance v, and m sinks, which take their share of the weights and are read by
nothing. Next to scores that vary a sink gets less than 1/(n + m), and of Σ p² far less. So the moments of both kinds
are those of ``mixtures``, for each segment of rows by how many scores are open, in place of those of one kind: with
N = n + m and growth γ from rows without correlation, γ = 0, to one row, γ = 1,

    E[p_i p'_j] = even_ij · N N' (μ_k μ'_l + γ (√(E[p_i p_j] E[p'_i p'_j]) − μ_k μ'_l))        μ_k = E[p] of a kind

at entries of the kinds k and l; even_ij is what it is at equal scores, known number by number. Gradients of scores
count sinks as the others. Assumption: what sinks differ by from head to head is Gaussian, and one number a row.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.given.mask import Mask
from initwell.propagate.laws.mixtures import Monomial, TwoKinds
from initwell.propagate.laws.rows import Open, known_variance, stepped
from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.keys import Keys
from initwell.propagate.rules.uneven import low

# An entry and itself, and two of a kind, of the first kind and of the second; one of each.
_PAIRS: Sequence[Monomial] = [((2,), ()), ((1, 1), ()), ((), (2,)), ((), (1, 1)), ((1,), (1,))]
_MEANS: Sequence[Monomial] = [((1,), ()), ((), (1,))]


def beside(weights: Signal, s: Signal, scores: Signal, keys: Keys, left: Open, growth: Array, mask: Mask) -> Signal:
    """Return masked weights, with those of sinks for what they are.

    Args:
        weights: as of scores of one kind.
        s: the scores, with the columns' segments.
        scores: at one place of a row.
        keys: how the columns are open.
        left: what is open, and in how many rows.
        growth: γ, by pattern of the rows.
        mask: of the scores.
    """
    sizes = np.moveaxis(s.diagonal, keys.axis, -1).reshape(-1, len(keys.parts)).mean(0)
    second = low(sizes[None])[0]
    columns = np.repeat(second, keys.parts)
    if not second.any() or s.atoms[keys.axis].parts != keys.parts or mask.open.shape[-1] != columns.size:
        return weights
    if not mask.open[..., columns].all():
        return weights
    v, w, offset = _variances(s, keys, second)
    if v <= w:
        return weights
    shape, m = scores.diagonal.shape, float(columns.sum())
    own, means = np.empty((*shape, 5)), np.empty((*shape, 2))
    for place in np.ndindex(shape):
        own[place] = means[place] = 0.0
        total = sum(share for _, share in left.sizes(place)) or 1.0
        for count, share in left.sizes(place):
            row = TwoKinds((max(count - m, 0.0), m), (v, w), offset, stepped(2 * s.spread))
            own[place] += share / total * _of(row, _PAIRS) * count**2
            means[place] += share / total * _of(row, _MEANS) * count
    return _filled(weights, keys, second, scores, growth, own, means)


def _of(row: TwoKinds, powers: Sequence[Monomial]) -> Array:
    """Return moments, and those at equal scores where a row has too few of a kind."""
    even, counts = float(sum(row.counts)) or 1.0, row.counts
    enough = [all(len(p) <= n for p, n in zip(power, counts, strict=True)) for power in powers]
    flat = [even ** -sum(map(sum, power)) for power in powers]
    return np.array([row.moment(p) if has else e for p, has, e in zip(powers, enough, flat, strict=True)])


def _variances(s: Signal, keys: Keys, second: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return the variance of scores of both kinds, and that of what only one of them shares."""
    moments = np.moveaxis(s.moments, keys.axis, -1)
    for i in reversed([i for i in range(len(s.atoms)) if i != keys.axis]):
        moments = np.tensordot(s.atoms[i].patterns.agree, moments, (0, i - (i > keys.axis)))
    n, counts = len(second), s.atoms[keys.axis].patterns.counts
    ends = np.repeat(second, n), np.tile(second, n)

    def over(chosen: NDArray[np.bool_], part: slice, default: float) -> float:
        total = float(counts[part][chosen].sum())
        return float(counts[part][chosen] @ moments[part][chosen]) / total if total > 0 else default

    alone, other = (over(kind, slice(n), 0.0) for kind in (~second, second))
    shared = over(~ends[0] & ~ends[1], slice(n, None), alone)
    common, across = (
        over(of, slice(n, None), by) for of, by in ((ends[0] & ends[1], other), (ends[0] != ends[1], 0.0))
    )
    v, w = (known_variance(x) for x in (alone - shared, other - common))
    return v, w, stepped(max(shared + common - 2 * across, 0.0))


def _filled(
    weights: Signal, keys: Keys, second: NDArray[np.bool_], scores: Signal, growth: Array, own: Array, means: Array
) -> Signal:
    """Put moments of both kinds where they belong: own ones and means, times N² and N, by segments of rows."""
    kinds = second.astype(int)
    highs = [over_pairs(scores.atoms, np.sqrt(own[..., k])) for k in range(5)]
    one, two = (over_pairs(scores.atoms, means[..., k]) for k in range(2))
    lows = [one, one, two, two, np.sqrt(one * two)]
    grown = np.stack([a + growth * (b - a) for a, b in zip(lows, highs, strict=True)], -1)
    pairs = np.where(kinds[:, None] != kinds[None, :], 4, 2 * kinds[:, None] + 1).ravel()
    moments = np.moveaxis(keys.even.moments, keys.axis, -1) * grown[..., [*(2 * kinds), *pairs]]
    centre = np.moveaxis(keys.even.means, keys.axis, -1) * means[..., kinds]
    return weights.changed(np.moveaxis(moments, -1, keys.axis), np.moveaxis(centre, -1, keys.axis))
