"""Losses and their gradients: cross-entropy, squared and absolute errors, binary cross-entropy.

**Log-softmax**, y = s − L with L = log Σ e^s. What all classes share cancels; let the rest be independent Gaussians t
of variance v, with covariance r between two samples. By Stein's lemma and since ∂L/∂t = p,

    E[t L'] = r/C       d Cov(L, L')/dr = Σ E[p_c p'_c]       E[L] = log C + ½ ∫₀^v (1 − C·E[p²](w)) dw

E[p_c p'_c] is 1/C² at r = 0, where its slope is Σ_k E[∂p_c/∂t_k]², and E[p²] at r = v: between them it is taken to go
as e^(λr). The gradient g − p·Σg, for g independent of p, has moments

    G_cd − 2R/C + P_cd·C·R,      R = Σ_d G_cd

of which cross-entropy's p − y is the case g = −y. With w_i the weight of place i's target, 0 where it is left out
(``ignore_index``), and two places of N,

    E[y_ic y_jc] = E[w_i w_j, same target]/C        E[y_ic y_jd] = E[w_i w_j, others]/(C(C − 1))

and 1/Σw before it: counted of the targets where their numbers are known. Assumption: classes are exchangeable at the
start, and targets independent of the model's outputs; those that are not known are drawn at random, all as often.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from initwell.propagate.laws.concentration import Weights
from initwell.propagate.laws.functions import Function, function_moments
from initwell.propagate.moments.alike import plain
from initwell.propagate.moments.atoms import together, viewed
from initwell.propagate.moments.gram import forgotten, rescaled
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, independent, merged_fidelity, replace
from initwell.propagate.rules.branch import added, multiplied, scaled
from initwell.propagate.rules.parts import one_atom
from initwell.propagate.rules.pointwise import gated
from initwell.propagate.rules.responses import rise
from initwell.propagate.rules.shape import summed
from initwell.propagate.rules.softmax import softmaxed
from initwell.propagate.rules.targets import JUDGED, TARGETS, judged
from initwell.propagate.table import Call, Rule, UnknowableError, UnknownSignalError
from initwell.trace.trace import ValueRef

GAUSSIAN = "log-softmax: scores as Gaussian"
_SHUT = "weights e^(s − log Σ e^s) of scores of which a mask has shut some: of rows of few, both gradients are one"
_MEAN = 1


def one_axis(s: Signal, dim: int) -> tuple[Signal, int]:
    """Return a signal with one atom of one segment along a dimension, and its axis."""
    s = plain(one_atom(s, dim), dim)
    return s, s.axes([dim])[0]


def log_sum(scores: Array, weights: Weights) -> tuple[float, Array]:
    """Return E[L] and Cov(L, L'), L the log of the sum of e^t over independent Gaussians.

    Args:
        scores: covariances of t with t' by pattern; the first is the variance.
        weights: of as many scores.

    Raises:
        UnknownSignalError: the variance is that of a mask and not of scores.

    >>> mean, spread = log_sum(np.array([1e-6, 0.0]), Weights(10))
    >>> round(mean - math.log(10), 9), round(float(spread[0]) * 1e6, 4)
    (4.5e-07, 0.1)
    """
    v, count = float(scores.flat[0]), weights.count
    if v > 300:
        raise UnknownSignalError("a log-softmax of scores with a mask added to them")
    x, w = np.polynomial.legendre.leggauss(12)
    drop = [1 - count * float(weights.moments(max(v, 0.0) * (u + 1) / 2, [(2,)])[0]) for u in x]
    mean = math.log(count) + float(w @ np.array(drop)) * max(v, 0.0) / 4
    if v <= 0:
        return mean, scores / count
    square = float(weights.moments(v, [(2,)])[0])
    slope = (1 / count - square) ** 2 * count / max(count - 1, 1)
    rate = _rate((square - 1 / count**2) / slope, v)
    grown = (np.expm1(rate * scores) / rate - scores) / rate
    return mean, np.asarray(scores / count + count * slope * grown)


def _rate(ratio: float, v: float) -> float:
    """Solve (e^(λv) − 1)/λ = ratio."""
    low, high = 1e-9 / v, 100 / v
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if math.expm1(middle * v) / middle < ratio else (low, middle)
    return low


def log_softmaxed(s: Signal, dim: int) -> Signal:
    """Apply log-softmax along a dimension."""
    if not s.dims[dim]:
        return s.changed(np.zeros_like(s.moments), 0.0)
    s, axis = one_axis(s, dim)
    count = s.atoms[axis].size
    scores = np.asarray(s.moments.take(0, axis) - s.moments.take(1, axis))
    mean, spread = log_sum(scores, Weights(count))
    agree = scores - 2 * scores / count + spread + mean**2
    found = s.changed(np.stack([agree, agree - scores], axis), -mean, gaussian=s.gaussian)
    return found.approximate(GAUSSIAN)


def log_softmax_backward(g: Signal, s: Signal, dim: int) -> Signal:
    """Take a gradient back through log-softmax: g − p·Σ g.

    Args:
        g: the gradient at the log-softmax.
        s: the scores.
        dim: the dimension of the classes.
    """
    if not s.dims[dim]:
        return g.changed(np.zeros_like(g.moments), 0.0)
    p = softmaxed(s, dim)
    p, g = together(p, g, p.shape)
    (p, axis), (g, _) = one_axis(p, dim), one_axis(g, dim)
    count = g.atoms[axis].size
    row = g.moments.take([0], axis) + (count - 1) * g.moments.take([1], axis)
    moments = g.moments - 2 * row / count + p.moments * count * row
    # What the scores' rows follow, the targets do not.
    dims = tuple(forgotten(atoms) for atoms in g.dims)
    # One score goes as itself in its own weight alone.
    answer = g.mean * (p.q * count - 1)
    return merged_fidelity(g.changed(np.asarray(moments), 0.0, dims=dims, answer=answer), p)


def _log_softmax(call: Call) -> Sequence[Signal]:
    s = call.signal("self")
    return [log_softmaxed(s, call["dim"] % len(s.dims))]


def _log_softmax_backward(call: Call) -> Sequence[Signal]:
    s = call.of(call.forward().arguments["self"])
    return [log_softmax_backward(call.signal("grad_output"), s, call["dim"] % len(s.dims))]


def _logsumexp(call: Call) -> Sequence[Signal]:
    """What all share stays, and L is added to it."""
    s = call.signal("self")
    dims = [d % len(s.dims) for d in call["dim"]]
    if len(dims) != 1 or not s.dims[dims[0]]:
        raise UnknownSignalError("a logsumexp of no axis or several")
    s, axis = one_axis(s, dims[0])
    scores = np.asarray(s.moments.take(0, axis) - s.moments.take(1, axis))
    mean, spread = log_sum(scores, Weights(s.atoms[axis].size))
    moments = s.moments.take(1, axis) + 2 * s.mean * mean + mean**2 + spread
    kept = (*s.dims[: dims[0]], *([()] if call["keepdim"] else []), *s.dims[dims[0] + 1 :])
    found = s.changed(np.asarray(moments), s.mean + mean, dims=kept, gaussian=s.gaussian)
    return [found.approximate(GAUSSIAN)]


def weights_by_hand(call: Call) -> Signal | None:
    """Return e^(s − log Σ e^s), which are softmax weights: they sum to 1; None of another exponential.

    Its own L is in each of them: as e^s and e^(−L) of their own they would be too large, e.g. as the gradient of L.
    """
    trace, ref = call.trace, call["self"]
    less = trace.producer(ref.id)
    if less is None or less.functional != "aten.sub" or less.arguments.get("alpha") not in (1, None):
        return None
    s, total = less.arguments["self"], less.arguments["other"]
    made = trace.producer(trace.shown(total.id)) if isinstance(total, ValueRef) else None
    if made is None or made.functional != "aten.logsumexp" or made.arguments["self"] != s:
        return None
    shape = trace.values[s.id].shape
    dims = [d % len(shape) for d in made.arguments["dim"]]
    one = tuple(1 if d in dims else n for d, n in enumerate(shape))
    if len(dims) != 1 or trace.values[total.id].shape != one:
        return None
    scores = call.of(s)
    if scores.mask is not None and call.op.phase == "forward":
        raise UnknowableError(_SHUT)
    return replace(softmaxed(scores, dims[0]), closed=scores.mask)


@dataclass(frozen=True)
class _Targets:
    """The weights w of the targets of N places: E[w], E[w²], E[w w'] of two places with one target and with two, Σw."""

    mean: float
    square: float
    same: float
    others: float
    total: float


def _targets(call: Call, places: int, classes: int) -> _Targets:
    mean, square = 1.0, 1.0
    weight, target = call.value("weight"), call.value("target")
    if call["weight"] is not None and (weight is None or target is None):
        mean, square = call.signal("weight").mean, call.signal("weight").q
    if target is None:
        return _Targets(mean, square, mean**2 / classes, mean**2 * (1 - 1 / classes), places * mean)
    kept = target[target != call["ignore_index"]].flatten()
    w = np.ones(len(kept)) if weight is None else weight[kept].double().numpy()
    total, squares = float(w.sum()), float(np.sum(w * w))
    if total == 0:
        raise UnknownSignalError("a loss without a target that counts")
    alike = float(np.sum(np.bincount(kept.numpy(), w) ** 2)) - squares
    pairs = max(places * (places - 1), 1)
    others = max(total**2 - squares - alike, 0.0) / pairs
    return _Targets(
        mean * total / places, square * squares / places, mean**2 * alike / pairs, mean**2 * others, mean * total
    )


def _reduced(call: Call, loss: Signal) -> Signal:
    if call["reduction"] == 0:
        return loss
    return summed(loss, range(len(loss.dims)), keep=False, mean=call["reduction"] == _MEAN)


def _nll(call: Call) -> Sequence[Signal | None]:
    """Pick the target's entry, times its weight: of two places the same class, or two classes."""
    y = call.signal("self")
    # What places of unlike kinds, as behind a causal mask, have on average is all that their sum needs.
    y = plain(y, *range(len(y.dims))) if y.segmented else y
    dim = 1 if len(y.dims) > 1 else 0
    others = [d for d in range(len(y.dims)) if d != dim]
    places = math.prod(y.shape[d] for d in others)
    w = _targets(call, places, y.shape[dim])
    over = w.total / places if call["reduction"] == _MEAN else 1.0
    if not y.dims[dim]:
        agree = differ = y.moments
    else:
        y, axis = one_axis(y, dim)
        agree, differ = (np.asarray(y.moments.take(i, axis)) for i in (0, 1))
    moments = np.asarray(w.same * agree + w.others * differ)
    moments[(0,) * moments.ndim] = w.square * agree[(0,) * agree.ndim]
    loss = y.changed(moments / over**2, -y.means * w.mean / over, dims=tuple(y.dims[d] for d in others))
    return [_reduced(call, loss).approximate(TARGETS), None]


def _nll_backward(call: Call) -> Sequence[Signal]:
    """Give −w/Σw to the target's entry, and nothing to the others of its sample."""
    shape = call.shape()
    dim = 1 if len(shape) > 1 else 0
    classes, places = shape[dim], math.prod(n for d, n in enumerate(shape) if d != dim)
    w = _targets(call, places, classes)
    size = 1 / w.total if call["reduction"] == _MEAN else 1.0
    y = independent(shape, w.square / classes, w.mean / classes, sample=0)
    moments = np.full_like(y.moments, w.same / classes)
    if classes > 1:
        axis = y.axes([dim])[0]
        differ = tuple(slice(1, None) if i == axis else slice(None) for i in range(moments.ndim))
        moments[differ] = w.others / (classes * (classes - 1))
        moments[tuple(int(i == axis) for i in range(moments.ndim))] = 0.0
    moments[(0,) * moments.ndim] = w.square / classes
    g = call.signal("grad_output")
    if call["reduction"] == 0:
        g = viewed(g, tuple(1 if d == dim else n for d, n in enumerate(shape)))
    found = scaled(multiplied(*together(y.changed(moments, y.mean), g, shape)), -size)
    return [found.approximate(TARGETS)]


def _difference(call: Call) -> Signal:
    x, target = call.signal("self"), call.signal("target")
    shape = np.broadcast_shapes(x.shape, target.shape)
    x, target = together(x, target, shape)
    d = added(x, target, 1.0, -1.0, gaussian=x.gaussian).approximate(TARGETS)
    share = (x.q - x.mean**2) / max(d.q - d.mean**2, 1e-300)
    for axis in range(len(d.atoms)):
        # Its rows follow what the output's follow in so far as they are the output.
        d = rescaled(d, axis, share)
    return d


def _huber(width: float, height: float) -> tuple[Function, Function]:
    """Return the loss that is d²·height/2 within ±width and straight beyond, and its derivative."""

    def loss(d: Array) -> Array:
        a = np.minimum(np.abs(d), width)
        return height * (a * a / 2 + width * (np.abs(d) - a))

    def slope(d: Array) -> Array:
        return height * np.clip(d, -width, width)

    return Function(loss, (-width, width)), Function(slope, (-width, width))


def _squared(call: Call) -> tuple[Function, Function]:
    return Function(lambda d: d * d), Function(lambda d: 2 * d, (), (2.0, 0.0))


def _smooth(call: Call) -> tuple[Function, Function]:
    beta = float(call["beta"])
    if beta == 0:
        return Function(np.abs, (0.0,)), Function(np.sign, (0.0,))
    return _huber(beta, 1 / beta)


def _of_difference(curves: Callable[[Call], tuple[Function, Function]]) -> tuple[Rule, Rule]:
    """Return the forward and backward rules of a loss that is a function of output − target."""

    def forward(call: Call) -> Sequence[Signal]:
        d = _difference(call)
        means, moments = function_moments(curves(call)[0], d)
        return [_reduced(call, d.changed(moments, means))]

    def backward(call: Call) -> Sequence[Signal]:
        d = _difference(call)
        g, _ = together(call.signal("grad_output"), d, d.shape)
        size = 1 / math.prod(d.shape) if call["reduction"] == _MEAN else 1.0
        slope = curves(call)[1]
        return [replace(scaled(gated(slope, d, g), size), dims=d.dims, answer=g.mean * size * rise(slope, d))]

    return forward, backward


def _judged(call: Call) -> Sequence[Signal]:
    """Losses of known targets, entry by entry, and their gradients."""
    found = judged(call, None)
    if found is None and call.op.functional == "aten.binary_cross_entropy_with_logits":
        found = _binary(call)
    if found is None:
        raise UnknownSignalError("a loss of targets that are not known, or of what is no function of one Gaussian")
    return [found if call.op.phase == "backward" else _reduced(call, found)]


def _binary(call: Call) -> Signal:
    """Binary cross-entropy of logits, softplus(x) − x·y: a function of x at y's mean, and x times the rest of y."""
    if call["weight"] is not None or call["pos_weight"] is not None:
        raise UnknownSignalError("a binary cross-entropy with weights")
    x, y = call.signal("self"), call.signal("target")
    x, y = together(x, y, x.shape)
    mean = y.mean
    means, moments = function_moments(Function(lambda u: np.logaddexp(0.0, u) - mean * u), x)
    return x.changed(moments + (y.moments - mean**2) * x.moments, means).approximate(TARGETS)


_CURVES: Mapping[str, Callable[[Call], tuple[Function, Function]]] = {
    "aten.mse_loss": _squared,
    "aten.smooth_l1_loss": _smooth,
    "aten.huber_loss": lambda call: _huber(float(call["delta"]), 1.0),
}
_DIFFERENCES = {name: _of_difference(curves) for name, curves in _CURVES.items()}

RULES: Mapping[str, Rule] = {
    "aten._log_softmax": _log_softmax,
    "aten._log_softmax_backward_data": _log_softmax_backward,
    "aten.logsumexp": _logsumexp,
    **dict.fromkeys(("aten.nll_loss_forward", "aten.nll_loss2d_forward"), _nll),
    **dict.fromkeys(("aten.nll_loss_backward", "aten.nll_loss2d_backward"), _nll_backward),
    **{name: rules[0] for name, rules in _DIFFERENCES.items()},
    **{f"{name}_backward": rules[1] for name, rules in _DIFFERENCES.items()},
    **dict.fromkeys(JUDGED, _judged),
}
