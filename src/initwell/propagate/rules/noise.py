"""Random numbers that a model draws: functions of a fresh Gaussian z, entry by entry.

With Φ the normal distribution, Φ(z) is uniform, so that floor(keep + rand) is the mask that it is, −log Φ(−z)
exponential, and −log of that a Gumbel number, as a Gumbel softmax adds to its logits. Such numbers are far from
Gaussian where the largest of them decides.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.given.measured import measured
from initwell.propagate.laws.functions import Function, evaluated
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Image, Signal, independent, replace
from initwell.propagate.table import Call, Rule, UnknowableError
from initwell.trace.trace import Trace

# So many values are looked at.
_MOST = 60
_ON_THE_WAY = frozenset({"aten.add", "aten.sub", "aten.neg", "aten.mul", "aten.div", "aten.log", "aten.detach"})
_RANDOM = "a mask that is drawn with probabilities that the model makes"
_DRAWN = frozenset({"aten.rand", "aten.rand_like", "aten.uniform", "aten.exponential"})


def with_gumbel_noise(trace: Trace, value: int) -> bool:
    """Whether a value is a sum with the logarithm of random numbers among its terms."""
    left, seen = [(value, False)], set[tuple[int, bool]]()
    while left and len(seen) < _MOST:
        here, logarithm = left.pop()
        op = trace.producer(here)
        if op is None or (here, logarithm) in seen:
            continue
        if logarithm and op.functional in _DRAWN:
            return True
        seen.add((here, logarithm))
        if op.functional in _ON_THE_WAY:
            left += [(i, logarithm or op.functional == "aten.log") for i in op.inputs]
    return False


def _fresh(call: Call) -> Signal:
    return replace(independent(call.shape(), 1.0), gaussian=True)


def _rand(call: Call) -> Sequence[Signal]:
    """Uniform, in (0, 1) if it does not say where."""
    low, high = (0.0 if call["from"] is None else call["from"]), (1.0 if call["to"] is None else call["to"])
    return [evaluated(Image(Function(lambda u: low + (high - low) * _uniform(u)), _fresh(call)))]


def _uniform(u: Array) -> Array:
    from scipy.special import ndtr

    return np.asarray(ndtr(u))


def _exponential(call: Call) -> Sequence[Signal]:
    """Exponential, of mean 1/λ."""
    scale = 1 / float(call["lambd"] or 1.0)
    return [evaluated(Image(Function(lambda u: -scale * _log_uniform(-u)), _fresh(call)))]


def _log_uniform(u: Array) -> Array:
    from scipy.special import log_ndtr

    return np.asarray(log_ndtr(u))


def _randn(call: Call) -> Sequence[Signal]:
    return [_fresh(call)]


def _bernoulli(call: Call) -> Sequence[Signal]:
    """A mask of independent ones: E[x] = p, E[x²] = p, and of two entries E[x x'] = p p'. Dropout's, before ÷ p."""
    # bernoulli(p) has its probabilities for itself; x.bernoulli_(p) may be given a number, or a tensor.
    ref = call.op.arguments.get("p", call.op.arguments["self"])
    if isinstance(ref, (int, float)):
        return [independent(call.shape(), float(ref), float(ref))]
    if (p := call.value_of(ref)) is None:
        raise UnknowableError(_RANDOM)
    each = measured(p.double().expand(call.shape()))
    moments = each.moments.copy()
    moments[(0,) * moments.ndim] = each.mean
    return [each.changed(moments, each.mean)]


RULES: Mapping[str, Rule] = {
    "aten.rand": _rand,
    "aten.rand_like": _rand,
    "aten.uniform": _rand,
    "aten.exponential": _exponential,
    "aten.randn": _randn,
    "aten.randn_like": _randn,
    "aten.bernoulli": _bernoulli,
}
