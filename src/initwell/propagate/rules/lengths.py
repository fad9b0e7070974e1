"""Rows that are divided by their own length, where that length is made by so few terms that 1/s² has no law.

A row y_i = Σ_j w_ij v_j has the length of Σ_j w_ij² about, up to that of v; of independent weights it counts as

    ν = K·E[w²]²/E[w⁴]

terms. What comes back through y/|y| is multiplied by 1/|y|, then by w again, and at right angles to y: of one large
weight, w²/|y|² is 1 and what its value gets of the gradient is nothing, where both as independent of w would be large.
Weights such as (1 − arccos(q·k)/π)^9, of unit queries and keys, are like that: gradients came out three times too
large. A softmax's weights are another matter: they are normalized by themselves.
"""

from initwell.propagate.laws.functions import Function, composed, function_moments
from initwell.propagate.table import Call, UnknowableError
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, ValueRef

_PASSED = VIEWS.keys() | COPIES.keys() | {"aten.clamp_min", "aten.clamp"}
_PRODUCTS = frozenset({"aten.bmm", "aten.mm"})
_MULTIPLES = frozenset({"aten.mul", "aten.div", "aten.neg", "aten.view"})
_STEPS = 8
# Of rows of fewer free terms 1/s² has next to no expectation.
_FEWEST = 3.0


def by_length_of_few(call: Call) -> bool:
    """Whether an op divides a gradient by the lengths of rows that are sums of too few terms."""
    ref = call["other"]
    if call.op.phase == "forward" or not isinstance(ref, ValueRef):
        return False
    length = _maker(call, ref.id)
    if length is None or length.functional != "aten.linalg_vector_norm":
        return False
    made = _maker(call, length.inputs[0])
    return made is not None and made.functional in _PRODUCTS and _terms(call, made) < _FEWEST


def _maker(call: Call, value: int) -> Op | None:
    op = call.trace.producer(value)
    while op is not None and op.functional in _PASSED and op.inputs:
        op = call.trace.producer(op.inputs[0])
    return op


def _terms(call: Call, made: Op) -> float:
    """Return as how many independent terms each sum of a product counts, by the law of its first factor."""
    weights = call.known.get(made.inputs[0])
    image = None if weights is None or weights.gaussian else weights.image
    if weights is None or image is None or image.base is not None:
        return float("inf")
    mean, moments = function_moments(composed(Function(lambda w: w * w), image), image.pre)
    size = float(mean.mean())
    largest = float(moments.flat[0])
    return weights.shape[-1] * size * size / largest if largest > 0 else float("inf")


def refuse_two_ways(call: Call, first: str, second: str) -> None:
    """Refuse the sum of what two factors of a row send to its length, which both are functions of.

    As in squash, x·|x|/(1 + |x|²) written as (|x|²/(1 + |x|²))·(x/|x|): each factor is sent R = Σ g y over itself, with
    one and the same R, so that they add up or cancel.

    Args:
        call: of a sum.
        first: one operand's name.
        second: the other's.

    Raises:
        UnknowableError: so it is.
    """
    if call.op.phase == "forward" or not (call.has(first) and call.has(second)):
        return
    for one, two in ((first, second), (second, first)):
        a, b = call.signal(one).image, call.signal(two).image
        average = None if a is None or a.base is None else a.pre.average
        apart = a is not None and (b is None or b.base is not a.base)
        if average is not None and average.kind != "mean" and apart and _summed(call, call[two]):
            raise UnknowableError("what several factors of a row, all functions of its length, send to that length")


def _summed(call: Call, ref: object) -> bool:
    """Whether a gradient is a multiple of a sum over rows."""
    op = call.trace.producer(ref.id) if isinstance(ref, ValueRef) else None
    for _ in range(_STEPS):
        if op is None or op.phase == "forward" or not op.inputs:
            return False
        if op.functional == "aten.sum":
            return True
        if op.functional not in _MULTIPLES:
            return False
        op = call.trace.producer(op.inputs[0])
    return False
