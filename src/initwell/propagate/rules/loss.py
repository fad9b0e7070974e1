"""Losses: cross-entropy's gradient, p − y over the number of targets."""

from collections.abc import Mapping, Sequence

from initwell.propagate.atoms import together
from initwell.propagate.rules.softmax import softmaxed
from initwell.propagate.signal import Signal, independent
from initwell.propagate.table import Call, Rule, UnknownSignalError


def _log_softmax_backward(call: Call) -> Sequence[Signal]:
    """Cross-entropy's gradient (p − y)/N, y the target's one-hot: independent at initialization, E[p y'] = 1/C²."""
    s = call.of(call.forward().arguments["self"])
    dim = call["dim"] % len(s.dims)
    g = call.signal("grad_output")
    if dim != 1 or len(s.dims) != 2 or not g.reasons or _TARGETS not in g.reasons:
        raise UnknownSignalError("a log-softmax whose gradient is no cross-entropy's")
    p = softmaxed(s, dim)
    p, g = together(p, g, p.shape)
    classes = p.shape[1]
    # g is −y/N: its mean is −1/(N·C).
    per = abs(g.mean) * classes
    return [p.changed(p.moments * per**2 - 2 * per**2 / classes**2 + g.moments, 0.0).approximate(_TARGETS)]


_TARGETS = "cross-entropy: targets as drawn at random"


def _nll_loss_backward(call: Call) -> Sequence[Signal]:
    shape = call.shape()
    if len(shape) != 2 or call["reduction"] not in (1, 2):
        raise UnknownSignalError("an nll loss of more than one axis, or unreduced")
    n, classes = shape
    per = call.signal("grad_output").mean / (n if call["reduction"] == 1 else 1)
    y = independent(shape, per**2 / classes, -per / classes, sample=0)
    moments = y.moments.copy()
    if classes > 1:
        moments[(0,) * (moments.ndim - 1) + (1,)] = 0.0
    return [y.changed(moments, y.mean).approximate(_TARGETS)]


RULES: Mapping[str, Rule] = {
    "aten._log_softmax_backward_data": _log_softmax_backward,
    "aten.nll_loss_backward": _nll_loss_backward,
}
