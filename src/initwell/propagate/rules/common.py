"""Sums of terms that hold one normalized value: x + bn(x), bn(x) − bn(x), and the gradients that come back from them.

Batch norm of one value, taken twice, is one and the same x̂; and of x with x̂ = (x − x̄)/s,

    E[x x̂'] = E[(x − x̄)(x' − x̄')]/s

Backward, dx = Pg/s with P a projection, so that E[Pg (Pg)'] is E[g (Pg)'], and E[g dx'] = E[1/s]/E[1/s²]·E[dx dx'].
Sums and differences are taken apart into such terms; all others, which fresh weights make independent, count as that.
Assumption: sizes of channels differ little, as lognormal ones.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from initwell.propagate.centring import centred
from initwell.propagate.rules.branch import fixed
from initwell.propagate.rules.contraction import base
from initwell.propagate.segments import Array
from initwell.propagate.signal import Signal, replace
from initwell.propagate.table import Call
from initwell.trace.trace import Op, ValueRef

_EVEN = "a value and its own normalized one, all channels of one size"
_MOST = 12
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
    """

    factor: float
    value: int
    of: int | None = None
    gradient: int | None = None
    inner: float = 1.0


def common(call: Call, first: str, second: str, beta: float) -> Array | None:
    """Return E[a b'] + E[b a'] of a + βb, as far as the two hold one normalized value; None where they hold none.

    Args:
        call: of the sum.
        first: name of a.
        second: name of b.
        beta: factor of b.
    """
    a, b = call[first], call[second]
    if not isinstance(a, ValueRef) or not isinstance(b, ValueRef):
        return None
    shape = tuple(call.shape())
    if any(tuple(call.trace.values[ref.id].shape) != shape for ref in (a, b)):
        return None
    one, two = (_terms(call, ref.id, 1.0) for ref in (a, b))
    # A sum as a whole may be what was normalized, or what came back as a gradient; else its terms are.
    one, two = _whole(call, a.id, one, two), _whole(call, b.id, two, one)
    found = [_pair(call, s, t) for s in one for t in two]
    known = [f for f in found if f is not None]
    return 2 * beta * np.sum(known, axis=0) if known else None


def _whole(call: Call, value: int, terms: list[Term], others: list[Term]) -> list[Term]:
    value = base(call.trace, value)
    return [Term(1.0, value)] if any(_source(t) == value for t in others) else terms


def _source(term: Term) -> int | None:
    return term.of if term.gradient is None else term.gradient


def _pair(call: Call, one: Term, two: Term) -> Array | None:
    """Return E[a b'] of two terms; None where they have nothing in common."""
    if one.of is None or two.of is None:
        plain, made = (one, two) if one.of is None else (two, one)
        return _direct(call, plain, made) if plain.of is None and made.of is not None else None
    return _between(call, one, two)


def _terms(call: Call, value: int, factor: float) -> list[Term]:
    """Take a value apart into terms; itself, if it is no sum."""
    op, trace = call.trace.producer(value), call.trace
    value = base(trace, value) if op is not None and len(op.outputs) == 1 and _plain(call, value) else value
    op = trace.producer(value)
    if op is None or (op.mutates and value not in op.outputs and value not in (new for _, new in op.mutates)):
        return [Term(factor, value)]
    if op.functional in ("aten.add", "aten.sub"):
        refs = [op.arguments["self"], op.arguments["other"]]
        if not isinstance(refs[1], ValueRef):
            return _terms(call, refs[0].id, factor)
        if all(isinstance(r, ValueRef) and trace.values[r.id].shape == trace.values[value].shape for r in refs):
            alpha = float(op.arguments.get("alpha") or 1.0) * (-1.0 if op.functional == "aten.sub" else 1.0)
            found = _terms(call, refs[0].id, factor) + _terms(call, refs[1].id, factor * alpha)
            return found if len(found) <= _MOST else [Term(factor, value)]
    if op.functional == "aten.neg":
        return _terms(call, op.inputs[0], -factor)
    if op.functional == "aten.mul" and (scale := _scale(call, op)) is not None:
        return _terms(call, op.inputs[0], factor * scale)
    if op.functional in _NORMS and op.arguments.get(_NORMS[op.functional]) and value == op.outputs[0]:
        gradient = op.arguments.get("grad_out")
        of = base(trace, op.arguments["input"].id)
        if gradient is None:
            return [Term(factor, value, of)]
        inner = _terms(call, gradient.id, 1.0)
        if len(inner) == 1:
            return [Term(factor, value, of, inner[0].value, inner[0].factor)]
        return [Term(factor, value, of, base(trace, gradient.id))]
    return [Term(factor, value)]


def _scale(call: Call, op: Op) -> float | None:
    """Return the number that an op multiplies its first operand by, everywhere; None where it does anything else."""
    other, shapes = op.arguments["other"], [call.trace.values[v].shape for v in (*op.inputs[:1], *op.outputs[:1])]
    if shapes != shapes[:1] * 2 or not isinstance(op.arguments["self"], ValueRef):
        return None
    if isinstance(other, (int, float)):
        return float(other)
    known = call.known.get(other.id) if isinstance(other, ValueRef) else None
    return known.mean if known is not None and fixed(known) else None


def _plain(call: Call, value: int) -> bool:
    source = base(call.trace, value)
    return tuple(call.trace.values[source].shape) == tuple(call.trace.values[value].shape)


def _direct(call: Call, plain: Term, term: Term) -> Array | None:
    """Return the moments of a value with what was made of it itself."""
    made, x = call.known.get(term.value), call.known.get(term.of) if term.of is not None else None
    if (
        _source(term) != plain.value
        or made is None
        or x is None
        or made.dims != x.dims
        or made.segmented
        or x.segmented
    ):
        return None
    dims, factor = [0, *range(2, len(x.dims))], plain.factor * term.factor
    parts = centred(x, x.axes(dims))
    here = (0,) * parts.ndim
    variance = float(parts[here])
    if variance <= 0:
        return None
    if term.gradient is None:
        return np.asarray(factor * parts / math.sqrt(variance))
    g = call.known.get(term.gradient)
    if g is None or g.dims != made.dims or g.segmented:
        return None
    power = float(centred(g, g.axes(dims))[here]) * term.inner**2
    if power <= 0 or made.q <= 0:
        return None
    # E[1/s] is E[1/s²]^(3/8) in units of E[s²], as of a lognormal s.
    inverse = made.q * variance / power
    return np.asarray(factor / term.inner * made.moments * math.sqrt(variance) * inverse ** (-5 / 8))


def _between(call: Call, one: Term, two: Term) -> Array | None:
    """Return the moments of two values that are normalized from one, or of two gradients that are one."""
    if one.of is None or one.of != two.of or one.gradient != two.gradient:
        return None
    a, b = call.known.get(one.value), call.known.get(two.value)
    if a is None or b is None or a.dims != b.dims or a.q <= 0 or b.q <= 0:
        return None
    sign = math.copysign(1.0, one.inner * two.inner)
    return np.asarray(sign * one.factor * two.factor * a.moments * math.sqrt(b.q / a.q))


def joined(found: Signal, cross: Array | None, parts: Sequence[Signal]) -> Signal:
    """Add what two terms of a sum have in common to its moments.

    Args:
        found: the sum, its terms taken as independent.
        cross: from ``common``.
        parts: the terms.
    """
    if cross is None or cross.shape != found.moments.shape or any(p.dims != found.dims for p in parts):
        return found
    moments = found.moments + cross
    here = (0,) * moments.ndim
    if moments[here] < 1e-9 * found.moments[here]:
        moments = np.zeros_like(moments)
    return replace(found, moments=moments, joint=True, law=None).approximate(_EVEN)
