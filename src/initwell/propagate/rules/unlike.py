"""Products of two images of rows that differ in size, as in state-space duality: h·φ(z), both from rows Σ a_l b_l x_l.

Softmax weights a times other numbers b, of mean 0, are the coefficients of few values x_l: a row is as large as
t = Σ a_l² b_l², and given a, for Gaussian b,

    var(t)/E[t]² = 2 Σ a_l⁴/(Σ a_l²)² ≥ 2 Σ a_l²        as Σ a_l = 1, by Jensen

Values of one row go with its size: E[h² φ(z)²] is about E[t²], and not E[t]². Where that bound is large, so are the
fourth moments of all that is made of it, which the largest rows are made of alone: nothing is known of them.
"""

from initwell.propagate.moments.signal import Signal
from initwell.propagate.table import Call, UnknowableError
from initwell.trace.ops import ACTIVATIONS
from initwell.trace.trace import Op, ValueRef

_PARTS = frozenset({"aten.split", "aten.split_with_sizes", "aten.chunk", "aten.slice", "aten.narrow"})
_LINEAR = {"aten.convolution": "input", "aten.mm": "self", "aten.addmm": "mat1", "aten.bmm": "self"}
_STEPS = 8
# Of t's relative variance: products would be an eighth too small.
_MOST = 0.25


def refuse_unlike(call: Call) -> None:
    """Refuse the product of two functions of rows of unlike sizes.

    Args:
        call: of the product.

    Raises:
        UnknowableError: it is one, and the sizes differ by much.
    """
    refs = call.tensors("self", "other")
    if call.op.phase != "forward" or refs is None:
        return
    if not call.values.once("softmax", lambda: any(op.functional == "aten._softmax" for op in call.trace.forward_ops)):
        return
    layer, other = (_layer(call, ref.id) for ref in refs)
    if layer is None or other is not layer:
        return
    rows = call.trace.producer(call.trace.shown(layer.arguments[_LINEAR[layer.functional]].id))
    if rows is not None and rows.functional == "aten.bmm" and _spread(call, rows) > _MOST:
        raise UnknowableError("a product of two values of rows Σ a·b·x that differ much in size, a softmax weights")


def _layer(call: Call, value: int) -> Op | None:
    """Return the layer that a value is a part of, or a function of a part."""
    for _ in range(_STEPS):
        op = call.trace.producer(call.trace.shown(value))
        if op is None or op.phase != "forward":
            return None
        if op.functional in _LINEAR:
            return op
        if op.functional not in _PARTS and op.functional not in ACTIVATIONS:
            return None
        value = op.inputs[0]
    return None


def _spread(call: Call, rows: Op) -> float:
    """Return the least that rows Σ a b x vary by in size, a softmax weights; 0 of any other."""
    for name in ("self", "mat2"):
        made = call.trace.producer(call.trace.shown(rows.arguments[name].id))
        if made is None or made.functional != "aten.mul":
            continue
        refs = [made.arguments["self"], made.arguments["other"]]
        for one, two in (refs, refs[::-1]):
            a, b = (call.known.get(r.id) if isinstance(r, ValueRef) else None for r in (one, two))
            terms = int(call.trace.values[rows.arguments["mat2"].id].shape[1])
            if a is not None and b is not None and a.shape == b.shape and _weighs(call, one.id, terms) and _centred(b):
                return 2 * terms * a.q
    return 0.0


def _weighs(call: Call, value: int, terms: int) -> bool:
    """Whether a value is softmax weights of so many terms."""
    op = call.trace.producer(call.trace.shown(value))
    if op is None or op.functional != "aten._softmax":
        return False
    return bool(call.trace.values[op.outputs[0]].shape[op.arguments["dim"]] == terms)


def _centred(b: Signal) -> bool:
    return b.mean**2 < b.q / 2
