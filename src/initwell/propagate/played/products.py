"""Ops around which attention is played, whose scores are no sums of products of independents.

**Rows times themselves.** On the diagonal of h hᵀ, with one value for queries and keys, is Σ h_i², which is not like
the rest, and softmax of such scores gives most to it. What it sends to h by way of either factor goes together there.

**Averages by positive scores.** In Σ_u a_tu v_u/Σ_u a_tu, with a = φ(q)·φ(k) of positive features, a, its sum and the
average go together: a gradient of a is (v_u − o_t)·g_t over the sum, what is left of two terms many times as large, and
so again at q and k, as Σ_u a_tu (v_u − o_t) = 0. Where the sum of keys is taken ahead of the product with queries and
nothing can be played, ``quotients`` serves; running sums, as of causal attention, have first rows of few terms.
"""

from collections.abc import Container, Iterable, Iterator

from initwell.propagate.rules.own_products import PRODUCTS, is_itself
from initwell.propagate.shared.twins import Twins
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, Trace, ValueRef

_SPREAD = frozenset({*VIEWS, *COPIES, "aten.expand", "aten.unsqueeze", "aten.squeeze"})
# What lies between a sum and what is divided by it; between scores and their sum.
_BELOW = frozenset({*_SPREAD, "aten.reciprocal", "aten.add", "aten.mul", "aten.clamp", "aten.clamp_min"})
_KEPT = frozenset({*_SPREAD, "aten.tril", "aten.masked_fill", "aten.mul", "aten.div"})
_POSITIVE = frozenset({"aten.exp", "aten.softplus", "aten.sigmoid", "aten.square", "aten.relu"})
_LINES = frozenset({"aten.add", "aten.mul", "aten.div"})
_SUMS = frozenset({"aten.sum", "aten.cumsum", "aten.mean"})
_STEPS = 12


def products(trace: Trace, values: Container[int]) -> Iterator[Op]:
    """Go over the products of rows and themselves, and the sums of positive scores that something is divided by.

    Args:
        trace: from ``record``.
        values: ids of what has real numbers.
    """
    twins = Twins(trace)
    for op in trace.forward_ops:
        if op.functional in PRODUCTS:
            if op.outputs[0] not in values and (is_own(trace, op, twins) or _divides(trace, op, op)):
                yield op
        elif op.functional == "aten.sum":
            made = _behind(trace, op.inputs[0], values)
            if made is not None and _divides(trace, made, op):
                yield op


def without_rules(trace: Trace, values: Container[int], left: Iterable[Op]) -> Iterator[int]:
    """Go over the indices of ops that no rule serves where nothing is played.

    Args:
        trace: from ``record``.
        values: ids of what has real numbers.
        left: sums around which no stretch has an end.
    """
    for op in left:
        made = _behind(trace, op.inputs[0], values) if op.functional == "aten.sum" else None
        if made is not None and made.functional in PRODUCTS:
            yield op.index
        elif made is not None and any(_runs(trace, i) for i in made.inputs):
            yield from (back.index for back in trace.backward_ops if back.of == op.index)


def _runs(trace: Trace, value: int) -> bool:
    op = _producer(trace, value)
    return op is not None and op.functional == "aten.cumsum"


def is_own(trace: Trace, op: Op, twins: Twins) -> bool:
    """Whether an op multiplies rows by themselves."""
    if op.functional not in PRODUCTS:
        return False
    one, two = (op.arguments[name].id for name in ("self", "mat2"))
    rows, columns = trace.values[one].shape[-2], trace.values[two].shape[-1]
    return one != two and rows == columns > 1 and is_itself(trace, twins, one, two)


def _divides(trace: Trace, product: Op, whole: Op) -> bool:
    """Whether a product, or a sum of its entries, is of positive features, and something is divided by it."""
    if product.functional not in {*PRODUCTS, "aten.mul"} or len(product.inputs) < 2:
        return False
    return all(_is_positive(trace, i, _STEPS) for i in product.inputs) and _is_divisor(trace, whole.outputs[0])


def _behind(trace: Trace, value: int, values: Container[int]) -> Op | None:
    """Return the product that scores are, ahead of a mask and of numbers that they are multiplied by."""
    for _ in range(_STEPS):
        op = trace.producer(value)
        moving = [] if op is None else [i for i in op.inputs if i not in values]
        if op is None or op.functional not in _KEPT or len(moving) != 1:
            return op
        value = moving[0]
    return None


def _producer(trace: Trace, value: int) -> Op | None:
    """Return what made a value, however it is turned or spread since."""
    while (op := trace.producer(value)) is not None and op.functional in _SPREAD and op.inputs:
        value = op.inputs[0]
    return op


def _is_positive(trace: Trace, value: int, steps: int) -> bool:
    """Whether a value is positive, or 0, by how it was made."""
    op = _producer(trace, value)
    if op is None or steps == 0:
        return False
    if op.functional in _POSITIVE or (op.functional == "aten.pow" and op.arguments.get("exponent") == 2):
        return True
    other = op.arguments.get("other")
    if isinstance(other, int | float) and op.functional in _LINES:
        inner = _producer(trace, op.inputs[0])
        if op.functional == "aten.add" and inner is not None and inner.functional == "aten.elu":
            return other >= 1
        return other >= 0 and _is_positive(trace, op.inputs[0], steps - 1)
    return op.functional in _SUMS and _is_positive(trace, op.inputs[0], steps - 1)


def _is_divisor(trace: Trace, value: int) -> bool:
    """Whether something is divided by a value, or multiplied by its inverse."""
    inverse = False
    for _ in range(_STEPS):
        later = [op for op in trace.consumers(value) if op.phase == "forward" and op.functional != "aten.detach"]
        for op in later:
            other = op.arguments.get("other")
            if op.functional == "aten.div" and isinstance(other, ValueRef) and other.id == value:
                return True
            if inverse and op.functional == "aten.mul" and len(op.inputs) > 1:
                return True
        below = [op for op in later if op.functional in _BELOW and len(op.inputs) == 1]
        if not below:
            return False
        inverse = inverse or below[0].functional == "aten.reciprocal"
        value = below[0].outputs[0]
    return False
