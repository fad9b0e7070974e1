"""Sums taken apart into terms: values, each with a factor, of what sums, multiples, products and moves are made of.

Of any independent x and s, s·x = E[s]·x + E[x]·s and a rest that goes with neither; what batch norm made of a value is
a term that remembers that value, and what was moved along a dimension one that remembers where from.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from initwell.propagate.rules.branch import fixed
from initwell.propagate.rules.moved import MOVES, Move, moves
from initwell.propagate.shared.partners import partners_of
from initwell.propagate.table import Call
from initwell.trace.trace import Op, Trace, ValueRef

# Terms of one sum; of more, those with the largest factors count, and the rest as independent.
_MOST = 256
# So many ops lie between a weight and the factor that is made of it.
_STEPS = 6
_TERMS = frozenset({"aten.add", "aten.sub", "aten.neg", "aten.mul"})
_NORMS: Mapping[str, str] = {
    "aten.native_batch_norm": "training",
    "aten._native_batch_norm_legit": "training",
    "aten.native_batch_norm_backward": "train",
}


class Term(NamedTuple):
    """One term of a sum.

    Attributes:
        factor: with which it enters.
        value: its id.
        of: of a normalized value, what was normalized; of a gradient that comes back from it, that too.
        gradient: the gradient that went in, if it is one.
        inner: the factor of that.
        move: where its entries come from, if along a dimension from elsewhere.
        less: of a product, the factors and values that count as terms of their own.
        gated: whether it was multiplied by what is not made of weights alone.
    """

    factor: float
    value: int
    of: int | None = None
    gradient: int | None = None
    inner: float = 1.0
    move: Move | None = None
    less: tuple[tuple[float, int], ...] = ()
    gated: bool = False


def apart(trace: Trace, one: int, two: int) -> bool:
    """Whether no term of one value can be, or be made from, a term of the other.

    A residual stream has all of its blocks for terms, and what is added to it only a few. So both are gone through side
    by side until one has no more; the other need not be followed behind the first of these, for ids go by time.
    """
    sides = [(set[int](), [one]), (set[int](), [two])]
    while all(left for _, left in sides):
        for found, left in sides:
            _step(trace, found, left)
    few, other = sides if not sides[0][1] else sides[::-1]
    first = min(few[0])
    while other[1]:
        if other[1][-1] < first:
            other[1].pop()
        else:
            _step(trace, *other)
    return few[0].isdisjoint(other[0])


def _step(trace: Trace, found: set[int], left: list[int]) -> None:
    """Look at one value, and note what its terms may name, whatever their factors are."""
    here = left.pop() if left else None
    if here is None or here in found:
        return
    found.add(here)
    op = trace.producer(here)
    left.append(trace.shown(here))
    if op is not None and (op.functional in _TERMS or op.functional in MOVES):
        left += op.inputs
    elif op is not None and op.functional in _NORMS:
        found.add(trace.shown(op.arguments["input"].id))
        gradient = op.arguments.get("grad_out")
        left += [] if gradient is None else [gradient.id]


def terms_of(call: Call, value: int, factor: float, end: int) -> list[Term]:
    """Take a value apart into terms; itself, if it is no sum, or if it is ``end``."""
    op, trace = call.trace.producer(value), call.trace
    value = trace.shown(value) if op is not None and len(op.outputs) == 1 and _plain(call, value) else value
    op = trace.producer(value)
    if (
        op is None
        or value == end
        or (op.mutates and value not in op.outputs and value not in (new for _, new in op.mutates))
    ):
        return [Term(factor, value)]
    if op.functional in ("aten.add", "aten.sub"):
        refs = [op.arguments["self"], op.arguments["other"]]
        if not isinstance(refs[1], ValueRef):
            return terms_of(call, refs[0].id, factor, end)
        if all(isinstance(r, ValueRef) and trace.values[r.id].shape == trace.values[value].shape for r in refs):
            alpha = float(op.arguments.get("alpha") or 1.0) * (-1.0 if op.functional == "aten.sub" else 1.0)
            found = terms_of(call, refs[0].id, factor, end) + terms_of(call, refs[1].id, factor * alpha, end)
            return found if len(found) <= _MOST else sorted(found, key=lambda term: -abs(term.factor))[:_MOST]
    if op.functional == "aten.neg":
        return terms_of(call, op.inputs[0], -factor, end)
    part = op.functional == "aten.slice" and tuple(trace.values[value].shape) == tuple(call.shape())
    if op.functional in MOVES and not part and (moved := moves(trace, op)):
        return _moved(call, moved, factor, end)
    if op.functional == "aten.mul" and (times := _multiples(call, op)):
        return _product(call, Term(factor, value), times, end)
    if op.functional in _NORMS and op.arguments.get(_NORMS[op.functional]) and value == op.outputs[0]:
        gradient = op.arguments.get("grad_out")
        of = trace.shown(op.arguments["input"].id)
        if gradient is None:
            return [Term(factor, value, of)]
        inner = terms_of(call, gradient.id, 1.0, end)
        if len(inner) == 1 and inner[0].move is None and not inner[0].less:
            return [Term(factor, value, of, inner[0].value, inner[0].factor)]
        return [Term(factor, value, of, trace.shown(gradient.id))]
    return [Term(factor, value)]


def _product(call: Call, whole: Term, times: Sequence["_Multiple"], end: int) -> list[Term]:
    """Take apart a product into the values that it holds, and a rest unless it is one with a number."""
    found = list[Term]()
    for number, x, kind in times:
        terms = terms_of(call, x, whole.factor * number, end)
        found += [term._replace(gated=True) for term in terms] if kind == "gate" else terms
    return found if times[0].kind == "number" else [*found, whole._replace(less=tuple(t[:2] for t in times))]


def _moved(call: Call, parts: Sequence[tuple[int, Move]], factor: float, end: int) -> list[Term]:
    """Take apart what an op moved."""
    found = list[Term]()
    for value, move in parts:
        for term in terms_of(call, value, factor, end):
            whole = move.after(term.move)
            found += [] if whole is None else [term._replace(move=whole)]
    return found


class _Multiple(NamedTuple):
    """A value that a product holds, the average of its other factor, and what that is: a number, weights or a gate."""

    factor: float
    value: int
    kind: str


def _multiples(call: Call, op: Op) -> list[_Multiple]:
    """Return the values that a product holds.

    The other factor is a number, one that is the same everywhere, or made of weights alone, other than those of the
    value, or of what has no origin in common with it.
    """
    shape, found = call.trace.values[op.outputs[0]].shape, list[_Multiple]()
    shared = call.values.once("partners", lambda: partners_of(call.trace, call.values)).shared
    for one, other in (("self", "other"), ("other", "self")):
        x, factor = op.arguments[one], op.arguments[other]
        if not isinstance(x, ValueRef) or call.trace.values[x.id].shape != shape:
            continue
        if isinstance(factor, (int, float)):
            return [_Multiple(float(factor), x.id, "number")]
        known = call.known.get(factor.id) if isinstance(factor, ValueRef) else None
        if known is None or known.mean == 0:
            continue
        if one == "self" and fixed(known):
            return [_Multiple(known.mean, x.id, "number")]
        if known.shape != shape and _of_weights(call, factor.id, _STEPS):
            found.append(_Multiple(known.mean, x.id, "weights"))
        elif factor.id not in call.values and op.index not in shared:
            found.append(_Multiple(known.mean, x.id, "gate"))
    return found


def _of_weights(call: Call, value: int, steps: int) -> bool:
    """Whether a value is made of parameters alone, in few steps."""
    op = call.trace.producer(value)
    if op is None:
        return call.trace.values[value].kind == "parameter"
    return steps > 0 and bool(op.inputs) and all(_of_weights(call, v, steps - 1) for v in op.inputs)


def _plain(call: Call, value: int) -> bool:
    source = call.trace.shown(value)
    return tuple(call.trace.values[source].shape) == tuple(call.trace.values[value].shape)
