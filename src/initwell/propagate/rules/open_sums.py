"""log Σ e^s over the scores that a mask leaves open, row by row.

Of n open scores, what they share stays and L of the rest t is added, as in ``loss``, with E[L] that of n. Two rows i
and j of different samples or places have of the covariances r of their scores

    Cov(L, L') = r Σ_c w_ic w_jc + …,      w = open/n

what the known weights at equal scores have in common, to first order; beyond it, rows count as of the n of either on
average. How many are open varies within a segment of rows: by the variance of E[L] there. Rows with nothing open, and
scores with a known bias of their own, have no such law.
"""

import numpy as np

from initwell.propagate.given.mask import Mask
from initwell.propagate.laws.concentration import Weights
from initwell.propagate.laws.rows import Sizes
from initwell.propagate.moments.by_pairs import by_pattern, over_pairs
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.loss import GAUSSIAN, log_sum, one_axis
from initwell.propagate.rules.softmax import by_rows, open_rows
from initwell.propagate.table import Call, UnknowableError

_BIASED = "a log-sum-exp of scores with a known bias behind a mask, or of rows with nothing open"


def log_sum_of_open(call: Call, mask: Mask) -> Signal:
    """Return the log-sum-exp of scores along their last dimension, over what is open.

    Args:
        call: of a log-sum-exp.
        mask: of its scores.
    """
    s = call.signal("self")
    last = len(s.dims) - 1
    if [d % len(s.dims) for d in call["dim"]] != [last] or not s.dims[last]:
        raise UnknowableError("a log-sum-exp of scores behind a mask, along another dimension than the last")
    if mask.bias is not None or not mask.open.any(-1).all():
        raise UnknowableError(_BIASED)
    s, axis = one_axis(by_rows(replace(s, mask=None), mask), last)
    left = open_rows(mask, s, axis, None)
    scores = np.asarray(s.moments.take(0, axis) - s.moments.take(1, axis))
    shape = tuple(n for i, n in enumerate(s.means.shape) if i != axis)
    atoms = [atom for i, atom in enumerate(s.atoms) if i != axis]
    means, varies, curved = np.empty(shape), np.empty(shape), np.empty((*shape, scores.size))
    for place in np.ndindex(shape):
        means[place], varies[place], curved[place] = _of_row(scores, float(scores[place]), left.sizes(place))
    linear = scores * left.even * left.count
    bent = np.zeros_like(scores)
    for i, index in enumerate(np.ndindex(scores.shape)):
        first, second = (by_pattern(atoms, curved[..., i], second=other) for other in (False, True))
        bent[index] = np.broadcast_to((first + second) / 2, scores.shape)[index]
    shared = s.means.mean(axis)
    whole = over_pairs(atoms, means) + over_pairs(atoms, shared, means) + over_pairs(atoms, means, shared)
    moments = s.moments.take(1, axis) + whole + linear + bent
    moments[tuple([slice(n) for n in shape])] += varies
    dims = (*s.dims[:last], *([()] if call["keepdim"] else []))
    return s.changed(moments, shared + means, dims=dims, gaussian=s.gaussian).approximate(GAUSSIAN)


def _of_row(scores: Array, variance: float, sizes: Sizes) -> tuple[float, float, Array]:
    """Return E[L], how it varies with the number of open scores, and Cov(L, L') beyond its first order, by pattern."""
    total = sum(share for _, share in sizes)
    mean, square, bent = 0.0, 0.0, np.zeros(scores.size)
    for n, share in sizes:
        if n > 1:
            one, spread = log_sum(np.append(variance, scores), Weights(n))
            mean, square = mean + share / total * one, square + share / total * one * one
            bent += share / total * (spread[1:] - scores.ravel() / n)
    return mean, max(square - mean**2, 0.0), bent
