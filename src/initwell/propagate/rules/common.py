"""Sums of terms that hold one value: x + s·(f − x), x + bn(x), bn(x) − bn(x), and gradients that come back from them.

Batch norm of one value, taken twice, is one and the same x̂; and of x with x̂ = (x − x̄)/s,

    E[x x̂'] = E[(x − x̄)(x' − x̄')]/s

Backward, dx = Pg/s with P a projection, so that E[Pg (Pg)'] is E[g (Pg)'], and E[g dx'] = E[1/s]/E[1/s²]·E[dx dx'].
Sums and differences are taken apart into such terms; all others, which fresh weights make independent, count as that.
A step x + s·(f − x) of a learned length s, made of weights alone, holds x twice: E[x (s x)'] = E[s] E[x x'], and so do
its gradients. Of any independent x and s, s·x = E[s]·x + E[x]·s and a rest that goes with neither, for which

    Cov(rest, rest') = Cov(s x, s'x') − E[s]² Cov(x, x') − E[x]² Cov(s, s')

What was moved along a dimension, as by a token shift, is a term too: see ``moved``.
Assumption: sizes of channels differ little, as lognormal ones.
"""

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np

from initwell.propagate.moments.by_pairs import product_of_means
from initwell.propagate.moments.centring import centred
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.moved import APART, across
from initwell.propagate.rules.terms import Term, apart, terms_of
from initwell.propagate.shared.pairs import Pair, Stretch, aligned, of, picked, total
from initwell.propagate.shared.reuse import CUTS, Reuse, indices_of
from initwell.propagate.table import Call
from initwell.trace.trace import Trace

_EVEN = "a value and its own normalized one, all channels of one size"
_GATED = "a value and a product that holds it, its other factor as independent"
# What two terms of a sum have in common, and why it is approximate.
Found = tuple[Array, Sequence[str]]


def common(call: Call, found: Signal, first: str, second: str, beta: float) -> Found | None:
    """Return Cov(a, b') + Cov(b, a') of a + βb, as far as the two hold one value; None where they hold none.

    Args:
        call: of the sum.
        found: the sum, its terms taken as independent.
        first: name of a.
        second: name of b.
        beta: factor of b.

    Returns:
        The covariances by the sum's patterns, and the assumptions that they rest on.
    """
    refs = call.tensors(first, second)
    if refs is None:
        return None
    a, b = refs
    shape = tuple(call.shape())
    if any(tuple(call.trace.values[ref.id].shape) != shape for ref in (a, b)) or _of_one_base(call.of(a), call.of(b)):
        return None
    if call.values.once(f"apart {call.op.index} {first}", lambda: apart(call.trace, a.id, b.id)):
        return None
    ends = [call.trace.shown(ref.id) for ref in (a, b)]
    one, two = (terms_of(call, ref.id, 1.0, end) for ref, end in zip((a, b), reversed(ends), strict=True))
    # A sum as a whole may be what was normalized, what came back as a gradient, or a term; else its terms are.
    one, two = _whole(ends[0], one, two), _whole(ends[1], two, one)
    # Where weights are used more than once, terms that vary together are looked for elsewhere: see ``covariance``.
    alone = not call.values.once("reuse", lambda: Reuse(call.trace)).any
    pairs = [(_pair(call, found, s, t, alone=alone), s, t) for s in one for t in two]
    known = [(pair.moments, _why(s, t)) for pair, s, t in pairs if pair is not None and pair.dims == found.dims]
    if not known:
        return None
    return 2 * beta * np.sum([moments for moments, _ in known], axis=0), sum((why for _, why in known), ())


def _of_one_base(a: Signal, b: Signal) -> bool:
    """Whether two values are g·x and g·y, of one g: what they have in common is counted where they are added."""
    one, two = a.image, b.image
    return one is not None and two is not None and one.base is not None and one.base is two.base


def _why(one: Term, two: Term) -> tuple[str, ...]:
    """Return the assumptions of what two terms have in common."""
    lags = [0 if term.move is None else term.move.lag for term in (one, two)]
    norm, gated, apart = one.of is not None or two.of is not None, one.gated or two.gated, lags[0] != lags[1]
    return tuple(why for why, holds in ((_EVEN, norm), (_GATED, gated), (APART, apart)) if holds)


def _whole(value: int, terms: list[Term], others: list[Term]) -> list[Term]:
    return [Term(1.0, value)] if any(value in (_source(t), t.value) for t in others) else terms


def _source(term: Term) -> int | None:
    return term.of if term.gradient is None else term.gradient


def _pair(call: Call, found: Signal, one: Term, two: Term, *, alone: bool) -> Pair | None:
    """Return Cov(a, b') of two terms; None where they have nothing in common, or what is not looked for here."""
    if one.of is None and two.of is None:
        pair = _of_one(call, found, one, two) if alone and one.value == two.value else None
        if pair is None and alone and one.move == two.move is None:
            parts = _between_parts(call, one.value, two.value)
            pair = None if parts is None or parts.shape != found.moments.shape else Pair(found.dims, parts)
        return None if pair is None else pair.times(one.factor * two.factor)
    if one.move is not None or two.move is not None:
        return None
    if one.of is None or two.of is None:
        plain, made = (one, two) if one.of is None else (two, one)
        return _direct(call, plain, made) if plain.of is None and made.of is not None else None
    return _between(call, one, two)


def _of_one(call: Call, found: Signal, one: Term, two: Term) -> Pair | None:
    """Return the covariance of a value with itself, moved or not."""
    if any(value not in call.known for value in (one.value, *(value for _, value in one.less))):
        return None
    pair: Pair | None = total((1.0, of(call.known[one.value])), *((-c * c, of(call.known[x])) for c, x in one.less))
    if pair is not None and (one.move is not None or two.move is not None):
        dim = next(term.move.dim for term in (one, two) if term.move is not None)
        atoms = found.dims[dim]
        pair = across(pair.signal(), one.move, two.move, atoms[0].patterns.parts) if len(atoms) == 1 else None
        pair = None if pair is None else pair.plus(pair.swapped()).times(0.5)
    if pair is None or pair.dims == found.dims or pair.signal().shape != found.shape:
        return pair
    fitted = aligned(pair.signal(), found)[0]
    return Pair(fitted.dims, fitted.moments)


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


def _direct(call: Call, plain: Term, term: Term) -> Pair | None:
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
        return Pair(made.dims, factor * parts / math.sqrt(variance))
    g = call.known.get(term.gradient)
    if g is None or g.dims != made.dims or g.segmented:
        return None
    power = float(centred(g, g.axes(dims))[here]) * term.inner**2
    if power <= 0 or made.q <= 0:
        return None
    # E[1/s] is E[1/s²]^(3/8) in units of E[s²], as of a lognormal s.
    inverse = made.q * variance / power
    return Pair(made.dims, factor / term.inner * made.moments * math.sqrt(variance) * inverse ** (-5 / 8))


def _between(call: Call, one: Term, two: Term) -> Pair | None:
    """Return the moments of two values that are normalized from one, or of two gradients that are one."""
    if one.of is None or one.of != two.of or one.gradient != two.gradient:
        return None
    a, b = call.known.get(one.value), call.known.get(two.value)
    if a is None or b is None or a.dims != b.dims or a.q <= 0 or b.q <= 0:
        return None
    sign = math.copysign(1.0, one.inner * two.inner)
    return Pair(a.dims, sign * one.factor * two.factor * a.moments * math.sqrt(b.q / a.q))


def joined(found: Signal, common: Found | None, parts: Sequence[Signal] = ()) -> Signal:
    """Add what two terms of a sum have in common to its moments.

    Args:
        found: the sum, its terms taken as independent.
        common: from the function of that name.
        parts: the terms, where it has their patterns and not those of the sum.
    """
    if common is None or common[0].shape != found.moments.shape or any(p.dims != found.dims for p in parts):
        return found
    moments = np.array(found.moments + common[0])
    own = tuple([slice(n) for n in found.means.shape])
    rounding = moments[own] < 1e-9 * found.moments[own]
    if rounding.all():
        moments = np.zeros_like(moments)
    moments[own] = np.where(rounding, 0.0, moments[own])
    found = replace(found, moments=moments, joint=True, law=None)
    return reduce(Signal.approximate, common[1], found)
