"""Sums of terms that hold one value: x + s·(f − x), x + bn(x), bn(x) − bn(x), and gradients that come back from them.

Batch norm of one value, taken twice, is one and the same x̂; and of x with x̂ = (x − x̄)/s,

    E[x x̂'] = E[(x − x̄)(x' − x̄')]/s

Backward, dx = Pg/s with P a projection, so that E[Pg (Pg)'] is E[g (Pg)'], and E[g dx'] = E[1/s]/E[1/s²]·E[dx dx'].
Sums and differences are taken apart into such terms; all others, which fresh weights make independent, count as that.
A step x + s·(f − x) of a learned length s, made of weights alone, holds x twice: E[x (s x)'] = E[s] E[x x'], and so do
its gradients.
Assumption: sizes of channels differ little, as lognormal ones.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.by_pairs import product_of_means
from initwell.propagate.moments.centring import centred
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.branch import fixed
from initwell.propagate.shared.pairs import Pair, Stretch, picked
from initwell.propagate.shared.reuse import CUTS, Reuse, indices_of
from initwell.propagate.table import Call
from initwell.trace.trace import Op, Trace, ValueRef

_EVEN = "a value and its own normalized one, all channels of one size"
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
    """

    factor: float
    value: int
    of: int | None = None
    gradient: int | None = None
    inner: float = 1.0


def common(call: Call, first: str, second: str, beta: float, whole: Signal) -> tuple[Array, bool] | None:
    """Return E[a b'] + E[b a'] of a + βb, as far as the two hold one value; None where they hold none.

    Args:
        call: of the sum.
        first: name of a.
        second: name of b.
        beta: factor of b.
        whole: the sum, its terms taken as independent.

    Returns:
        The moments, by the patterns of the sum, and whether a normalized value was among those that both hold.
    """
    refs = call.tensors(first, second)
    if refs is None:
        return None
    a, b = refs
    shape = tuple(call.shape())
    if any(tuple(call.trace.values[ref.id].shape) != shape for ref in (a, b)):
        return None
    if call.values.once(f"apart {call.op.index} {first}", lambda: _apart(call.trace, a.id, b.id)):
        return None
    ends = [call.trace.shown(ref.id) for ref in (a, b)]
    one, two = (_terms(call, ref.id, 1.0, end) for ref, end in zip((a, b), reversed(ends), strict=True))
    # A sum as a whole may be what was normalized, what came back as a gradient, or a term; else its terms are.
    one, two = _whole(ends[0], one, two), _whole(ends[1], two, one)
    # Where weights are used more than once, terms that vary together are looked for elsewhere: see ``covariance``.
    alone = not call.values.once("reuse", lambda: Reuse(call.trace)).any
    pairs = [(_pair(call, s, t, alone=alone), s, t) for s in one for t in two]
    fitted = [(_fitted(call, found, s, whole), s.of is not None or t.of is not None) for found, s, t in pairs]
    known = [(found, norm) for found, norm in fitted if found is not None]
    if not known or len(known) < sum(found is not None for found, _, _ in pairs):
        return None
    return 2 * beta * np.sum([found for found, _ in known], axis=0), any(norm for _, norm in known)


def _apart(trace: Trace, one: int, two: int) -> bool:
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
    if op is not None and op.functional in _TERMS:
        left += op.inputs
    elif op is not None and op.functional in _NORMS:
        found.add(trace.shown(op.arguments["input"].id))
        gradient = op.arguments.get("grad_out")
        left += [] if gradient is None else [gradient.id]


def _whole(value: int, terms: list[Term], others: list[Term]) -> list[Term]:
    return [Term(1.0, value)] if any(value in (_source(t), t.value) for t in others) else terms


def _source(term: Term) -> int | None:
    return term.of if term.gradient is None else term.gradient


def _pair(call: Call, one: Term, two: Term, *, alone: bool) -> Array | None:
    """Return E[a b'] of two terms; None where they have nothing in common, or what is not looked for here."""
    if one.of is None and two.of is None:
        x = call.known.get(one.value) if alone and one.value == two.value else None
        found = _between_parts(call, one.value, two.value) if x is None and alone else None if x is None else x.moments
        return None if found is None else one.factor * two.factor * found
    if one.of is None or two.of is None:
        plain, made = (one, two) if one.of is None else (two, one)
        return _direct(call, plain, made) if plain.of is None and made.of is not None else None
    return _between(call, one, two)


def _fitted(call: Call, moments: Array | None, term: Term, whole: Signal) -> Array | None:
    """Return what a term has in common with another by the patterns of the sum, such as the first place and the rest.

    Args:
        call: of the sum.
        moments: by the patterns of the term.
        term: one of the two.
        whole: the sum.
    """
    x = call.known.get(term.value)
    if moments is None or x is None or x.dims == whole.dims or moments.shape != x.moments.shape:
        return moments if moments is not None and x is not None and moments.shape == whole.moments.shape else None
    found, _ = together(x.changed(moments, 0.0), whole, whole.shape)
    return found.moments if found.dims == whole.dims else None


def _between_parts(call: Call, one: int, two: int) -> Array | None:
    """Return Cov(a, b') of two parts of one value, cut along one dimension: that of entries which differ there.

    As heads that read the same values do, in differential attention.
    """
    first, second = (_part(call.trace, value) for value in (one, two))
    if first is None or second is None or first[:2] != second[:2]:
        return None
    value, dim, (begin, end) = first
    whole, a, b = (call.known.get(v) for v in (value, one, two))
    apart = end <= second[2][0] or second[2][1] <= begin
    if whole is None or a is None or b is None or not apart or a.dims != b.dims or not whole.dims[dim]:
        return None
    if len(a.dims) < len(whole.dims) and len(whole.dims[dim]) > 1:
        return None
    axis, outer = whole.axes([dim])[0], whole.dims[dim][0]
    if outer.parts:
        return _between_segments(whole, dim, (first[2], second[2]), (a, b))
    inner = whole.shape[dim] // outer.size
    if any(place % inner for place in (begin, end, *second[2])):
        return None
    found = whole.moments.take(1, axis) if end - begin == inner else whole.moments.take([1, 1], axis)
    return np.asarray(found - product_of_means(a, b)) if found.shape == a.moments.shape else None


def _between_segments(
    whole: Signal, dim: int, places: tuple[Stretch, Stretch], parts: tuple[Signal, Signal]
) -> Array | None:
    """Return Cov(a, b'), half of it the other way round, of parts that lie in a segment each: as of two tokens."""
    dropped = len(parts[0].dims) < len(whole.dims)
    pair = picked(Pair(whole.dims, whole.moments), dim, *places, drop=dropped)
    if pair is None or pair.dims != parts[0].dims:
        return None
    return np.asarray(pair.plus(pair.swapped()).moments / 2 - product_of_means(*parts))


def _part(trace: Trace, value: int) -> tuple[int, int, tuple[int, int]] | None:
    """Return what a value is a part of, along which dimension, and from where to where; None if it is none."""
    op = trace.producer(value)
    if op is None or op.functional not in CUTS:
        return None
    whole = op.inputs[0]
    dim = (op.arguments.get("dim") or 0) % len(trace.values[whole].shape)
    found = indices_of(trace, value, dim)
    return None if found is None else (whole, dim, found)


def _terms(call: Call, value: int, factor: float, end: int) -> list[Term]:
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
            return _terms(call, refs[0].id, factor, end)
        if all(isinstance(r, ValueRef) and trace.values[r.id].shape == trace.values[value].shape for r in refs):
            alpha = float(op.arguments.get("alpha") or 1.0) * (-1.0 if op.functional == "aten.sub" else 1.0)
            found = _terms(call, refs[0].id, factor, end) + _terms(call, refs[1].id, factor * alpha, end)
            return found if len(found) <= _MOST else sorted(found, key=lambda term: -abs(term.factor))[:_MOST]
    if op.functional == "aten.neg":
        return _terms(call, op.inputs[0], -factor, end)
    if op.functional == "aten.mul" and (times := _times(call, op)) is not None:
        return _terms(call, times[1], factor * times[0], end)
    if op.functional in _NORMS and op.arguments.get(_NORMS[op.functional]) and value == op.outputs[0]:
        gradient = op.arguments.get("grad_out")
        of = trace.shown(op.arguments["input"].id)
        if gradient is None:
            return [Term(factor, value, of)]
        inner = _terms(call, gradient.id, 1.0, end)
        if len(inner) == 1:
            return [Term(factor, value, of, inner[0].value, inner[0].factor)]
        return [Term(factor, value, of, trace.shown(gradient.id))]
    return [Term(factor, value)]


def _times(call: Call, op: Op) -> tuple[float, int] | None:
    """Return the factor that an op multiplies a value by, on average, and that value; None if it depends on another.

    The factor is a number, one that is the same everywhere, or made of weights alone, other than those of the value.
    """
    shape = call.trace.values[op.outputs[0]].shape
    for one, other in (("self", "other"), ("other", "self")):
        x, factor = op.arguments[one], op.arguments[other]
        if not isinstance(x, ValueRef) or call.trace.values[x.id].shape != shape:
            continue
        if isinstance(factor, (int, float)):
            return float(factor), x.id
        known = call.known.get(factor.id) if isinstance(factor, ValueRef) else None
        if known is None or known.mean == 0:
            continue
        if (one == "self" and fixed(known)) or (known.shape != shape and _of_weights(call, factor.id, _STEPS)):
            return known.mean, x.id
    return None


def _of_weights(call: Call, value: int, steps: int) -> bool:
    """Whether a value is made of parameters alone, in few steps."""
    op = call.trace.producer(value)
    if op is None:
        return call.trace.values[value].kind == "parameter"
    return steps > 0 and bool(op.inputs) and all(_of_weights(call, v, steps - 1) for v in op.inputs)


def _plain(call: Call, value: int) -> bool:
    source = call.trace.shown(value)
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


def joined(found: Signal, common: tuple[Array, bool] | None, parts: Sequence[Signal] = ()) -> Signal:
    """Add what two terms of a sum have in common to its moments.

    Args:
        found: the sum, its terms taken as independent.
        common: from the function of that name.
        parts: the terms, where it has their patterns and not those of the sum.
    """
    if common is None or common[0].shape != found.moments.shape or any(p.dims != found.dims for p in parts):
        return found
    moments = found.moments + common[0]
    own = tuple([slice(n) for n in found.means.shape])
    rounding = moments[own] < 1e-9 * found.moments[own]
    if rounding.all():
        moments = np.zeros_like(moments)
    moments[own] = np.where(rounding, 0.0, moments[own])
    found = replace(found, moments=moments, joint=True, law=None)
    return found.approximate(_EVEN) if common[1] else found
