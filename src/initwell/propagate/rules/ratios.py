"""Quotients of two sums with the same weights, N/D = Σ w v/Σ w, whose parts go together: kernel attention.

Where few weights make D, N is large where D is. With N = o·D and D log-normal, o independent of D, and z = 1/D, c the
covariance of log D between two entries and σ² that of one with itself:

    forward     E[N N' z z'] = E[N N']/E[D D'] = E[N N'] E[z z'] e^(−2σ² − 2c)
    backward    what z gets goes as N, and what D gets as N z² = o z: E[N N'] E[z² z'²] e^(−4σ² − 4c)
"""

import numpy as np

from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.positive import LOG_NORMAL
from initwell.propagate.table import Call
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, Trace, ValueRef

_THROUGH = frozenset({*VIEWS, *COPIES, "aten.expand", "aten.unsqueeze", "aten.squeeze"})
_PRODUCTS = frozenset({"aten.bmm", "aten.mm"})
_LONGEST = 16


def of_ratio(call: Call, found: Signal, inverse: Signal) -> Signal:
    """Return a quotient, or what its divisor gets, of parts that go together.

    Args:
        call: of a product with an inverse, or of a quotient; in the backward, of one with the inverse's square.
        found: it, as of independents.
        inverse: the inverse, or its square.
    """
    if LOG_NORMAL not in inverse.reasons or not (inverse.means > 0).all():
        return found
    forward = call.op.phase == "forward"
    if not (_is_ratio(call.trace, call.op) if forward else _comes_of_ratio(call)):
        return found
    inverse, _ = together(inverse, found, found.shape)
    if inverse.dims != found.dims:
        return found
    spread = inverse.moments / over_pairs(inverse.atoms, inverse.means)
    own = spread[tuple([slice(n) for n in inverse.means.shape])]
    by = spread * over_pairs(inverse.atoms, np.sqrt(own))
    return replace(found, moments=found.moments / (by**2 if forward else by), image=None, joint=True)


def _is_ratio(trace: Trace, op: Op) -> bool:
    """Whether a product, or a quotient, divides a sum by that of the same weights."""
    one, two = op.arguments.get("self"), op.arguments.get("other")
    if not isinstance(one, ValueRef) or not isinstance(two, ValueRef):
        return False
    ways = ((one.id, two.id),) if op.functional == "aten.div" else ((one.id, two.id), (two.id, one.id))
    for above, below in ways:
        made = trace.producer(_root(trace, above))
        weights = _weights(trace, below, inverted=op.functional == "aten.div")
        if made is not None and made.functional in _PRODUCTS and weights & {_root(trace, i) for i in made.inputs}:
            return True
    return False


def _comes_of_ratio(call: Call) -> bool:
    """Whether a gradient came to the inverse of a divisor from the quotient itself."""
    made = call.trace.ops[call.op.of] if call.op.of is not None else None
    if made is None or made.functional != "aten.reciprocal":
        return False
    value = made.outputs[0]
    for _ in range(_LONGEST):
        later = [op for op in call.trace.consumers(value) if op.phase == "forward" and op.functional != "aten.detach"]
        if len(later) != 1:
            return False
        if later[0].functional == "aten.mul" and len(later[0].inputs) > 1:
            return _is_ratio(call.trace, later[0])
        value = later[0].outputs[0]
    return False


def _weights(trace: Trace, value: int, *, inverted: bool) -> set[int]:
    """Return the values that a divisor is a sum, or a product, of; none if the value is no inverse of one."""
    for _ in range(_LONGEST):
        op = trace.producer(value)
        if op is None or op.phase != "forward" or not op.inputs:
            return set()
        if op.functional in _PRODUCTS or len(op.inputs) > 1 or op.functional == "aten.sum":
            break
        inverted = inverted or op.functional == "aten.reciprocal"
        value = op.inputs[0]
    else:
        return set()
    found = {_root(trace, i) for i in op.inputs}
    if op.functional == "aten.sum" and (inner := trace.producer(_root(trace, op.inputs[0]))) is not None:
        found |= {_root(trace, i) for i in inner.inputs} if inner.functional == "aten.mul" else set()
    return found if inverted else set()


def _root(trace: Trace, value: int) -> int:
    """Return what a value shows, however it is turned or spread."""
    while (op := trace.producer(value)) is not None and op.functional in _THROUGH and op.inputs:
        value = op.inputs[0]
    return value
