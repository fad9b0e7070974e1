"""Softmax: p_t = e^(s_t)/Σ e^s over an axis of length T, and its backward.

What all entries share cancels, so only v = q − moments[differ along T] matters. With independent Gaussian s the moments
of p are exact in one integral over x, from 1/S^k = ∫ x^(k−1) e^(−xS) dx / (k−1)!:

    E[p^k] = ∫ x^(k−1)/(k−1)! · E[e^(ks) e^(−x e^s)] · E[e^(−x e^s)]^(T−1) dx

The mean is 1/T, and since p sums to 1 over T, E[p_t p'_u] for t ≠ u is (1/T − E[p_t p'_t])/(T−1). Between two softmaxes
whose centred scores correlate by ρ, E[p_t p'_t] grows as e^(ρv) − 1 does. Assumption: Gaussian scores.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from initwell.propagate.atoms import centred, joined, plain, together
from initwell.propagate.concentration import weight_moments
from initwell.propagate.gram import rescaled
from initwell.propagate.segments import Array
from initwell.propagate.signal import Signal, merged_fidelity, over_pairs
from initwell.propagate.table import Call, Rule, UnknownSignalError

_WHY = "softmax: scores as Gaussian, and independent of the gradient"


def concentration(variance: float, count: int, *powers: int, spread: float = 0.0) -> float:
    """Compute E[p_1^a p_2^b …] of softmax weights of ``count`` independent N(0, variance) scores.

    Args:
        variance: of a score.
        count: T.
        *powers: a, b, …: one for each of as many different weights.
        spread: relative variance of the rows' variances.

    >>> round(concentration(0.0, 8, 2) * 64, 6), round(concentration(1e-8, 5, 2, 2) * 625, 5)
    (1.0, 1.0)
    """
    return float(weight_moments(variance, count, [powers], spread)[0])


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


def softmaxed(s: Signal, dim: int) -> Signal:
    """Apply softmax along a dimension."""
    if not s.dims[dim]:
        return s.changed(np.ones_like(s.moments), 1.0)
    s, axis = _one_axis(s, dim, segments=False)
    count = s.atoms[axis].size
    scores = _without(s, axis)
    spread = 2 * s.spread
    agree = _shares(scores, scores.moments, lambda v: concentration(v, count, 2, spread=spread), 1 / count**2)
    differ = (1 / count - agree) / (count - 1)
    found = s.changed(np.stack([agree, differ], axis), 1 / count).approximate(_WHY)
    return rescaled(found, dim, _forward_strength(scores.q, count, spread))


def _forward_strength(v: float, count: int, spread: float) -> float:
    if v < 1e-9: return 1.0
    two, one, three, four = weight_moments(v, count, [(2,), (1, 1), (2, 1), (2, 2)], spread)
    return float(v * (one - 4 * three + 6 * four) / (two - one))


def softmax_backward(g: Signal, s: Signal, dim: int) -> Signal:
    """Take a gradient back through p(g − Σ p g): it sums to zero over T, and so do its moments.

    At equal weights it is (g − ḡ)/T; each entry's square grows as the concentration of the weights says.
    """
    if not s.dims[dim]:
        return s.changed(np.zeros_like(s.moments), 0.0)
    s, axis = _one_axis(s, dim, segments=False)
    g, s = together(g, s, s.shape)
    g, axis = _one_axis(g, dim, segments=True)
    count = g.atoms[axis].size
    spread = 2 * s.spread

    def weight(v: float) -> float:
        # g_t(p_t − p_t²) and, for each other u, −g_u p_t p_u.
        two, three, four, pair = weight_moments(v, count, [(2,), (3,), (4,), (2, 2)], spread)
        return float(two - 2 * three + four + (count - 1) * pair)

    s, axis = _one_axis(s, dim, segments=False)
    scores = _without(s, axis)
    flat = (1 - 1 / count) / count**2
    factors = _shares(scores, scores.moments, weight, flat) / flat / count**2
    moments = centred(g, [axis]) * np.expand_dims(factors, axis)
    found = merged_fidelity(g.changed(np.asarray(moments), 0.0), s).approximate(_WHY)
    v = scores.q
    return rescaled(found, dim, _backward_strength(v, count, spread) / weight(v) * (1 - 1 / count) if v > 1e-9 and count > 2 else 1.0)


def _backward_strength(v: float, count: int, spread: float) -> float:
    pows = [(1, 1), (2, 1), (2, 2), (3, 1), (2, 1, 1), (4, 1), (3, 2), (2, 2, 1), (4, 2), (2, 2, 2)]
    c11, c21, c22, c31, c211, c41, c32, c221, c42, c222 = weight_moments(v, count, pows, spread)
    n = count - 2
    one = 2 * c31 + n * c211
    two = c41 + c32 + n * c221
    three = 2 * c42 + n * c222
    return c11 - 2 * c21 + 2 * c22 + v * (one - 4 * c21 - 8 * two + 10 * c31 + 12 * c22 + 20 * three - 40 * c32)


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
