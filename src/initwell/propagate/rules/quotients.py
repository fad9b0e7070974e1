"""Gradients of what is in both parts of a quotient: queries of kernel attention, o = q·S/(q·s), and the least entry of
rows y = (x − lo)/(hi − lo).

The gradient at lo is −Σ u, u = g/(hi − lo), by way of the numerator and Σ u y by way of the denominator. Both are sums
of the same u, so that E[(Σ u)(Σ u y)'] = E[y]·E[(Σ u)(Σ u)'].

With positive features of queries and keys, S = Σ_t k_t v_tᵀ and s = Σ_t k_t, the gradient at q comes by way of both,

    G_i = Σ_t k_ti (v_t − o)·g/(q·s)        k = μ + δ, δ of its own in each feature and key

and what all features have in common cancels, for o is an average of the v: of A_i = Σ_t k_ti v_t·g and of
B_i = Σ_t k_ti o·g are left

    a_i = Σ_t δ_ti (v_t − o)·g        E[A A'] where i agrees, less where it differs, less the same of B
    μ Σ_t (v_t − o)·g                 −Σ_j q_j a_j/(d E[q]), for d features, as weights q·k_t differ

so that of E[a²] for two features that agree 1 + c, and for others c are left, c = E[q²]/(d E[q]²) − 2/d. Taken as
independent, A and B are four times as large as their sum. At a key it is Σ_t q_t (v − o_t)·g_t/D_t, of which o_t holds
v by one weight w_t: E[(v·g)(o·g)] = E[w]E[v²] is Σ w² E[v²] = E[o²], so that E[(v − o)²] = E[v²] − E[o²]. Assumption:
weights are about even.
"""

import numpy as np

from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.centring import centred
from initwell.propagate.moments.signal import Signal, merged_fidelity, replace
from initwell.propagate.rules.byhand import either_way
from initwell.propagate.table import Call
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, Trace, ValueRef

_SPREAD = frozenset({"aten.expand", "aten.unsqueeze", "aten.squeeze"})
_THROUGH = frozenset({*VIEWS, *COPIES, *_SPREAD})
# What lies between a sum and the factor that a quotient is written with.
_INVERSE = frozenset({"aten.reciprocal", "aten.add", "aten.clamp", "aten.clamp_min", "aten.mul"})
_SHIFTS = frozenset({"aten.sub", "aten.add"})
_CONTRACTS = frozenset({"aten.bmm"})
# Keys are added up before queries read them.
_ADDED = _THROUGH | {"aten.sum", "aten.cumsum", "aten.flip"}
_WEIGHS = _CONTRACTS | {"aten.mul"}
_WHY = "a gradient of what is in both parts of a quotient, weights as about even"
_LONGEST = 12


def of_quotient(call: Call, first: str, second: str) -> Signal | None:
    """Add what comes back to a value by way of a quotient's two parts; None where that is not what happens.

    Args:
        call: of the sum.
        first: one operand's name.
        second: the other's.
    """
    return either_way(call, first, second, (_both_parts, _by_weights))


def _both_parts(call: Call, one: str, two: str) -> Signal | None:
    parts = _parts(call, one, two)
    return None if parts is None else _left(call, one, two, parts)


def _by_weights(call: Call, one: str, two: str) -> Signal | None:
    """Add what comes to keys by way of the numerator, the first, and of the denominator, the second; else None."""
    trace = call.trace
    made, below = (_forward_of(trace, call[name], _ADDED) for name in (one, two))
    if made is None or below is None or made.functional not in _WEIGHS or below.functional not in _WEIGHS:
        return None
    above = next((op for op in trace.consumers(_carried(trace, made.outputs[0], _ADDED)) if _multiplies(op)), None)
    if above is None or not _divides(trace, above, below):
        return None
    a, b = together(call.signal(one), call.signal(two), call.shape())
    moments = a.moments - b.moments
    own = moments[tuple([slice(n) for n in a.means.shape])]
    if not (own >= 0).all():
        return None
    found = replace(merged_fidelity(a.changed(moments, 0.0), b), joint=True)
    return found.approximate(_WHY)


def _multiplies(op: Op) -> bool:
    return op.phase == "forward" and op.functional in _CONTRACTS


def of_shift(call: Call, first: str, second: str) -> Signal | None:
    """Add what comes back to one number a row that is taken off the row and off its divisor; else None.

    Args:
        call: of the sum.
        first: one operand's name.
        second: the other's.
    """
    return either_way(call, first, second, (_shifted,))


def _shifted(call: Call, one: str, two: str) -> Signal | None:
    """Add what comes by way of the divisor, the first, and of the row, the second."""
    trace = call.trace
    (above, turned), (below, other) = (_summed(trace, call[name]) for name in (two, one))
    if above is None or below is None or below.functional != "aten.div" or above.functional not in _SHIFTS:
        return None
    if trace.shown(below.inputs[0]) != above.outputs[0] or below.outputs[0] not in call.known:
        return None
    a, b = together(call.signal(one), call.signal(two), call.shape())
    # What a quotient sends to its divisor is −Σ g·y.
    both = b.moments * call.known[below.outputs[0]].mean * (-turned * other)
    moments = np.maximum(a.moments + b.moments + 2 * both, 0.0)
    return replace(merged_fidelity(b.changed(moments, 0.0), a), joint=True)


def _summed(trace: Trace, ref: object) -> tuple[Op | None, int]:
    """Return the forward op whose operand a gradient is the sum of over a row, and the sign that it got since."""
    sign, op = 1, trace.producer(ref.id) if isinstance(ref, ValueRef) else None
    found: Op | None = None
    for _ in range(_LONGEST):
        if op is None or op.phase == "forward" or not op.inputs:
            break
        if op.functional == "aten.sum" and op.of is not None:
            found = trace.ops[op.of]
            if found.functional == "aten.div":
                return found, sign
        elif op.functional == "aten.neg":
            sign = -sign
        elif op.functional not in _THROUGH:
            break
        op = trace.producer(op.inputs[0])
    return found, sign


def _parts(call: Call, one: str, two: str) -> Signal | None:
    """Return the value that a numerator, through the first, and a denominator were made of; None if it is none."""
    trace = call.trace
    above, below = (_forward_of(trace, call[name]) for name in (one, two))
    if above is None or below is None or above.functional not in _CONTRACTS:
        return None
    if below.functional not in {"aten.mul", *_CONTRACTS} or not _divides(trace, above, below):
        return None
    roots = {_root(trace, i) for i in above.inputs}
    q = next((root for root in (_root(trace, i) for i in below.inputs) if root in roots), None)
    found = None if q is None else call.known.get(q)
    return found if found is not None and found.mean else None


def _root(trace: Trace, value: int) -> int:
    """Return what a value shows, however it is turned or spread."""
    while (op := trace.producer(value)) is not None and op.functional in _THROUGH and op.inputs:
        value = op.inputs[0]
    return value


def _forward_of(trace: Trace, ref: object, through: frozenset[str] = _THROUGH) -> Op | None:
    """Return the forward op through which a gradient came, ahead of views."""
    op = trace.producer(ref.id) if isinstance(ref, ValueRef) else None
    for _ in range(_LONGEST):
        if op is None or op.phase == "forward" or not (op.functional in through and op.inputs):
            break
        op = trace.producer(op.inputs[0])
    return None if op is None or op.phase == "forward" or op.of is None else trace.ops[op.of]


def _divides(trace: Trace, above: Op, below: Op) -> bool:
    """Whether what one op made is divided by a sum of what another made, or by that itself."""
    numerator = _carried(trace, above.outputs[0])
    for op in trace.consumers(numerator):
        if op.phase == "forward" and op.functional in ("aten.mul", "aten.div"):
            other = next((i for i in op.inputs if i != numerator), None)
            if other is not None and _is_of(trace, other, below, inverse=op.functional == "aten.mul"):
                return True
    return False


def _carried(trace: Trace, value: int, through: frozenset[str] = _THROUGH) -> int:
    for _ in range(_LONGEST):
        later = [op for op in trace.consumers(value) if op.phase == "forward" and op.functional in through]
        if len(later) != 1:
            break
        value = later[0].outputs[0]
    return value


def _is_of(trace: Trace, value: int, below: Op, *, inverse: bool) -> bool:
    inverted = not inverse
    for _ in range(_LONGEST):
        op = trace.producer(value)
        if op is None or op is below:
            return op is below and inverted
        if not (op.functional in _THROUGH or op.functional in _INVERSE or op.functional == "aten.sum"):
            return False
        if len(op.inputs) != 1:
            return False
        inverted = inverted or op.functional == "aten.reciprocal"
        value = op.inputs[0]
    return False


def _left(call: Call, one: str, two: str, q: Signal) -> Signal | None:
    a, b = together(call.signal(one), call.signal(two), call.shape())
    axes = a.axes([len(a.dims) - 1])
    if not axes or any(a.atoms[i].parts for i in axes):
        return None
    # Features have nothing in common but what they differ in together: n/(n − 1) of what their average leaves.
    count = a.shape[-1]
    here = tuple([slice(1) if i in axes else slice(None) for i in range(a.moments.ndim)])
    own = (centred(a, axes) - centred(b, axes))[here] * (count / (count - 1))
    if own[(0,) * own.ndim] <= 0:
        return None
    moments = np.zeros_like(a.moments)
    moments[here] = own
    found = a.changed(moments + own * ((q.q / q.mean**2 - 2) / count), 0.0)
    return replace(found, joint=True).approximate(_WHY)
