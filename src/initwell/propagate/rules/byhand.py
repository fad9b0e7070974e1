"""Normalization written by hand: x − mean(x), x·rsqrt(mean(x²) + ε), (x − mean(x))/√(var(x) + ε), x/‖x‖.

Taken op by op, x and its own mean would count as independent. Where a value is known to be the average of x or of its
squares over some dimensions, what is made of both is the normalization rule itself. The scale is any function k of the
average that goes as 1/√(v + ε) there; ε and the constant in front are read off k and its slope: of k = c/√(v + ε),

    d log k / d log v = −v / (2(v + ε))        so        ε = v·(−1/(2·slope) − 1)        c = k·√(v + ε)

A slope between −1/2 and 0 is one of such a scale; any other is not, and the product is no norm.

Backward, a norm of squares takes off the gradient g·k what lies along x̂: b = −x̂·mean(g x̂)·k, whose size ``radial``
knows. Over a row the average of g·k·b is −b², so that the sum of both has E[(g·k + b)²] = E[(g·k)²] − E[b²]: what is
taken off is a part of the whole, as in ``norm``. By way of x̄ comes −Σ g/n: both together are g less its own average.
And of p = x/S, S = Σ x, the gradient is (g − Σ p g)/S: by way of S comes an average of g, and E[g_j Σ p g'] is that of
E[g_j g'_k] over k.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from initwell.propagate.laws.averages import of_factor
from initwell.propagate.laws.functions import Function, as_image, function_moments
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.centring import centred, over_all
from initwell.propagate.moments.remembered import Average
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Image, Signal, merged_fidelity, replace
from initwell.propagate.rules.branch import added, scaled
from initwell.propagate.rules.norm import normalized
from initwell.propagate.table import Call
from initwell.trace.trace import Op, ValueRef

Way = Callable[[Call, str, str], Signal | None]

# What is left where almost all of a gradient lies along its row.
_LEAST = 1e-3


def centred_by_hand(x: Signal, mean: Signal, beta: float) -> Signal | None:
    """Return x + beta·mean where that is x less its own mean over some dimensions; else None.

    Args:
        x: any signal.
        mean: what is added, an ``average`` of x or not.
        beta: its factor: -1 where it is taken off.
    """
    average = mean.average
    if beta != -1.0 or average is None or average.kind != "mean" or average.of is not x:
        return None
    found = x.changed(centred(x, x.axes(average.dims)), 0.0, gaussian=x.gaussian)
    return replace(found, centred_of=average, joint=True)


def normalized_by_hand(x: Signal, scale: Signal, tag: int) -> Signal | None:
    """Return x·scale where scale is 1/√(the average square of x, or its variance, + ε); else None.

    Args:
        x: any signal; either of the two may be the scale.
        scale: a function of an ``average`` of x or not.
        tag: under which later sums remember the normalized value.
    """
    one, two = _normalized(x, scale, tag), _normalized(scale, x, tag)
    return one if one is not None else two


def _same_centred(one: Average | None, two: Average | None) -> bool:
    return one is not None and two is not None and one.of is two.of and one.dims == two.dims


def _normalized(x: Signal, scale: Signal, tag: int) -> Signal | None:
    image = as_image(scale)
    average = image.pre.average
    if image.base is not None or average is None or average.kind == "mean":
        return None
    about = x.centred_of
    is_variance = average.kind == "variance" and about is not None and about.of is average.of
    is_square = average.kind == "square" and (average.of is x or _same_centred(average.of.centred_of, about))
    if not (is_variance or is_square):
        return None
    v, step = image.pre.mean, 1e-4
    if v <= 0:
        return None
    k, above, below = (float(image.phi.fn(np.array([v * math.exp(d)]))[0]) for d in (0.0, step, -step))
    if not (k > 0 and above > 0 and below > 0):
        return None
    slope = (math.log(above) - math.log(below)) / (2 * step)
    if not -0.5001 <= slope < -1e-6:
        return None
    with np.errstate(divide="ignore"):
        most = float(image.phi.fn(np.zeros(1))[0])
    # A divisor that is kept above a floor makes 0 of rows that are 0, as of padding: so does an ε as small.
    eps = max(v * (-0.5 / slope - 1.0), v * (k / most) ** 2 if math.isfinite(most) else 0.0)
    found = normalized(x, average.dims, eps, centred=False, tag=tag)
    return replace(merged_fidelity(scaled(found, k * math.sqrt(v + eps)), scale), joint=True)


def gradient_by_hand(call: Call, first: str, second: str) -> Signal | None:
    """Add a gradient and what its own mean or the scale of a norm takes off it; None where neither operand is that.

    Args:
        call: of a sum.
        first: one operand's name.
        second: the other's.
    """
    return either_way(call, first, second, (_less_mean, _less_scale, _less_sum))


def either_way(call: Call, first: str, second: str, ways: Sequence[Way]) -> Signal | None:
    """Return what the first of several ways makes of two gradients that are added, either of which may come first.

    Args:
        call: of a sum. None where it is of the forward, or where an operand has no signal.
        first: one operand's name.
        second: the other's.
        ways: each gets the call and both names; None where it is none of its own.
    """
    if call.op.phase == "forward" or not (call.has(first) and call.has(second)):
        return None
    for way in ways:
        for one, two in ((first, second), (second, first)):
            if (found := way(call, one, two)) is not None:
                return found
    return None


def _less_mean(call: Call, one: str, two: str) -> Signal | None:
    """Add a gradient at x − x̄ and what comes by way of x̄, the second: the first less its own average."""
    found = _by_way_of_mean(call, two)
    if found is None:
        return None
    dims, deviations = found
    parts = _summands(call, call[one].id, deviations)
    if not deviations <= parts or any(part not in call.known for part in parts):
        return None
    whole = call.known.get(_whole(call, call[one].id, deviations)) or _added_up(call, deviations)
    rest = _added_up(call, parts - deviations)
    if whole is None or whole.shape != call.shape():
        return None
    centred_part = whole.changed(centred(whole, whole.axes(dims)), 0.0, gaussian=whole.gaussian)
    if rest is not None:
        centred_part = added(*together(centred_part, rest, call.shape()))
    return replace(centred_part, joint=True)


def _by_way_of_mean(call: Call, name: str) -> tuple[tuple[int, ...], frozenset[int]] | None:
    """Return of −Σ g/n, spread over x again, the dimensions of the sum and which values g is the sum of; else None."""
    trace, ref = call.trace, call[name]
    share = trace.producer(ref.id) if isinstance(ref, ValueRef) else None
    if share is None or share.phase == "forward" or share.functional != "aten.div" or len(share.inputs) != 1:
        return None
    wide = trace.producer(share.inputs[0])
    if wide is None or wide.functional != "aten.expand":
        return None
    dims, found, ahead = set[tuple[int, ...]](), set[int](), list(wide.inputs)
    while ahead:
        made = trace.producer(ahead.pop())
        if made is not None and made.functional == "aten.add" and len(made.inputs) == 2:
            ahead += made.inputs
            continue
        turned = None if made is None or made.functional != "aten.sum" else trace.producer(made.inputs[0])
        if made is None or turned is None or turned.functional != "aten.neg":
            return None
        rank = len(trace.values[made.inputs[0]].shape)
        dims.add(tuple(sorted(int(d) % rank for d in made.arguments["dim"])))
        found.add(turned.inputs[0])
    if len(dims) != 1:
        return None
    over = dims.pop()
    count = math.prod(trace.values[ref.id].shape[d] for d in over)
    return (over, frozenset(found)) if share.arguments.get("other") == count else None


def _summands(call: Call, value: int, wanted: frozenset[int]) -> frozenset[int]:
    """Return what a gradient is the sum of, in which those that are wanted are not taken apart."""
    made = call.trace.producer(value)
    if value in wanted or made is None or made.phase == "forward" or made.functional != "aten.add":
        return frozenset({value})
    return frozenset[int]().union(*(_summands(call, i, wanted) for i in made.inputs))


def _whole(call: Call, value: int, wanted: frozenset[int]) -> int:
    """Return the value that is the sum of just those, among what a gradient is the sum of; -1 if there is none."""
    if _summands(call, value, wanted) == wanted:
        return value
    made = call.trace.producer(value)
    if value in wanted or made is None or made.phase == "forward" or made.functional != "aten.add":
        return -1
    return max(_whole(call, i, wanted) for i in made.inputs)


def _added_up(call: Call, values: frozenset[int]) -> Signal | None:
    found = None
    for part in (call.known[i] for i in sorted(values)):
        found = part if found is None else added(*together(found, part, found.shape))
    return found


def _less_scale(call: Call, one: str, two: str) -> Signal | None:
    """Add a gradient and what a norm of squares takes off it, the second."""
    norm = _norm_behind(call, two)
    if norm is None:
        return None
    a, b = together(call.signal(one), call.signal(two), call.shape())
    least = np.where(b.diagonal > 0, (1 - _LEAST) * a.diagonal / np.where(b.diagonal > 0, b.diagonal, 1.0), 0.0)
    share = np.minimum(on_segments(b, *_one_size(call, norm)), least)
    found = a.changed(a.moments - over_pairs(b.atoms, np.sqrt(share)) * b.moments, a.means, gaussian=a.gaussian)
    kept = replace(found, peak=a.peak, crest=a.crest, profile=a.profile, lengths=a.lengths, joint=True)
    return merged_fidelity(kept, b)


def _less_sum(call: Call, one: str, two: str) -> Signal | None:
    """Add a gradient g/S at x, p = x/S, and what comes by way of S, the second: the first less its average by p."""
    dims = _by_way_of_sum(call, one, two)
    if dims is None:
        return None
    a, b = together(call.signal(one), call.signal(two), call.shape())
    axes = a.axes(dims)
    if any(a.atoms[i].parts for i in axes):
        return None
    left = np.maximum(a.moments + b.moments - 2 * over_all(a, a.moments, axes), 0.0)
    return merged_fidelity(replace(a.changed(left, 0.0), joint=True), b)


def _by_way_of_sum(call: Call, one: str, two: str) -> tuple[int, ...] | None:
    """Return the dimensions of a sum by which a value was divided, if the operands are its gradient's two parts."""
    trace, refs = call.trace, (call[one], call[two])
    share, total = trace.producer(refs[0].id), trace.producer(trace.shown(refs[1].id))
    if share is None or total is None or share.of is None or share.of != total.of or share.phase == "forward":
        return None
    division = trace.ops[share.of]
    names = (division.functional, share.functional, total.functional)
    x, divisor = division.arguments.get("self"), division.arguments.get("other")
    if (
        names != ("aten.div", "aten.div", "aten.sum")
        or not isinstance(x, ValueRef)
        or not isinstance(divisor, ValueRef)
    ):
        return None
    made = trace.producer(trace.shown(divisor.id))
    if made is None or made.functional != "aten.sum" or made.inputs != (x.id,):
        return None
    rank = len(trace.values[x.id].shape)
    dims = made.arguments.get("dim")
    return tuple(int(d) % rank for d in dims) if dims else None


def _norm_behind(call: Call, name: str) -> Op | None:
    """Return the norm whose rows get a value of the backward by way of their squares; None where it is no such."""
    ref = call[name]
    maker = call.trace.producer(ref.id) if isinstance(ref, ValueRef) else None
    if maker is None or maker.phase == "forward" or maker.functional != "aten.mul" or maker.of is None:
        return None
    square = call.trace.ops[maker.of]
    if square.functional != "aten.pow" or square.arguments.get("exponent") != 2:
        return None
    # The deviations may be taken twice, once for their squares.
    made = call.trace.producer(square.inputs[0])
    twins = call.trace.consumers(made.inputs[0]) if made is not None and made.functional == "aten.sub" else ()
    rows = [op.outputs[0] for op in twins if made is not None and op.inputs == made.inputs] or [square.inputs[0]]
    return next((op for row in rows for op in call.trace.consumers(row) if _is_norm(call, op)), None)


def _is_norm(call: Call, op: Op) -> bool:
    if op.functional not in ("aten.mul", "aten.div") or op.phase != "forward" or op.outputs[0] not in call.known:
        return False
    made = call.known[op.outputs[0]]
    return made.joint and any(tag == op.outputs[0] for tag, _ in made.roots)


def _one_size(call: Call, norm: Op) -> tuple[Array, Signal | None]:
    """Return E[k²]/(E[1/k²]·E[k⁴]): x times what goes as k³/k, as of independents, and as x̂·k; and what k is made of.

    They differ where rows of few entries scatter in size; of rows that lie in segments, those of each.
    """
    for value in norm.inputs:
        scale = as_image(call.known[value]) if value in call.known else None
        if scale is None or scale.base is not None or scale.pre.average is None or scale.pre.average.kind == "mean":
            continue
        one, two, three = (_power(scale, n if norm.functional == "aten.mul" else -n) for n in (2, -2, 4))
        apart = two * three
        return _at_most_1(one, apart), scale.pre
    return np.ones(()), None


def _power(scale: Image, power: int) -> Array:
    phi = scale.phi.fn
    return _expected(lambda v: phi(v) ** power, scale.pre)


def _expected(f: Callable[[Array], Array], v: Signal) -> Array:
    """Return the mean of a function of a value, by segment."""
    return np.asarray(function_moments(Function(f), v)[0])


def _at_most_1(found: Array, apart: Array) -> Array:
    there = (apart > 0) & (apart < math.inf)
    return np.where(there, np.minimum(found / np.where(there, apart, 1.0), 1.0), 1.0)


def on_segments(x: Signal, shares: Array, rows: Signal | None) -> Array:
    """Return what belongs to the segments of rows along the axes of a value that has these segments.

    Args:
        x: the value.
        shares: by segment of the rows.
        rows: a number for each row.
    """
    if rows is None or shares.size == 1:
        return np.full((1,) * x.means.ndim, float(shares.mean()))
    places, wanted = [], [(i, atom.parts) for i, atom in enumerate(rows.atoms) if atom.parts]
    for _, parts in wanted:
        places += [i for i, atom in enumerate(x.atoms) if atom.parts == parts and i not in places][:1]
    if len(places) < len(wanted):
        return np.full((1,) * x.means.ndim, rows.changed(rows.moments, shares).mean)
    axes = [i for i, _ in wanted]
    inner = shares.transpose([*axes, *(i for i in range(shares.ndim) if i not in axes)]).reshape(
        [shares.shape[i] for i in axes]
    )
    order = np.argsort(places)
    return inner.transpose(order).reshape([x.means.shape[i] if i in places else 1 for i in range(x.means.ndim)])


def of_gated_rows(call: Call) -> tuple[Array, Signal] | None:
    """Return what E[(g k h)²] is over that of independents, g k what comes back through a norm of rows x = h·f(u).

    By segment of the rows, and a number for each row; None of anything else.

    Where h is large so is x, and the row's k is small. Of factors without a law of their own that is taken as of x, the
    most that it can be: Σ x² k² over a row is its length, so that E[x² k²] = E[v k²], and not E[x²]·E[k²]. Rows of one
    function of one value, as of an activation that is written by hand, have no such factors: what comes back through
    them is that of the whole function.
    """
    for one, two in (("self", "other"), ("other", "self")):
        scale = _scale_behind(call, one, two)
        if scale is not None and scale.pre.mean > 0:
            shares = _of_rows(scale, call.signal(two))
            return None if (shares == 1).all() else (shares, scale.pre)
    return None


def _of_rows(scale: Image, factor: Signal) -> Array:
    phi, v = scale.phi.fn, scale.pre
    made = None if v.average is None else v.average.of.image
    if made is not None and made.base is None:
        return np.ones(())
    if (found := of_factor(scale.phi, v, factor)) is not None:
        return np.asarray(found)
    return _at_most_1(_expected(lambda u: u * phi(u) ** 2, v), v.means * _expected(lambda u: phi(u) ** 2, v))


def _scale_behind(call: Call, one: str, two: str) -> Image | None:
    """Return the scale of a norm whose rows got the first operand, a gradient, if the second is a factor of these."""
    trace, ref, factor = call.trace, call[one], call[two]
    both = trace.producer(trace.shown(ref.id)) if isinstance(ref, ValueRef) and isinstance(factor, ValueRef) else None
    if both is None or both.functional != "aten.add" or both.phase == "forward":
        return None
    add = Call(both, trace, call.known, call.values)
    norm = _norm_behind(add, "self") or _norm_behind(add, "other")
    rows = [] if norm is None else [(value, trace.producer(trace.shown(value))) for value in norm.inputs]
    for value, made in rows:
        if made is not None and made.functional == "aten.mul" and made.index == call.op.of and factor.id in made.inputs:
            scales = (as_image(call.known[v]) for v, _ in rows if v != value and v in call.known)
            return next((s for s in scales if s.base is None and s.pre.average is not None), None)
    return None
