"""The largest and the smallest along whole dimensions, and where they are: max pooling with one window over all.

Their gradient reaches the entry that equals them. Along the dimensions one of K entries does, and which one is as for
``pool``; two entries that equal a continuous maximum at once have no probability. Assumption: that of ``pool``.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.laws.functions import Function
from initwell.propagate.moments.atoms import expanded, permuted, viewed
from initwell.propagate.moments.incidence import Axis, axis_of
from initwell.propagate.moments.signal import Image, Signal, constant, replace
from initwell.propagate.rules.branch import scaled
from initwell.propagate.rules.pool import largest, to_largest
from initwell.propagate.table import Call, Rule, UnknowableError, UnknownSignalError
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, Trace, ValueRef

_REACH, _POINTS = 8.0, 8001
_WIDE, _SOME = 4.0, 161
# Of fewer values than this the largest is no matter of the tail.
_MANY = 200
# Of values of which groups have less than this in common the largest is that of as many independent ones.
_TOGETHER = 0.2
_PASSED = frozenset({*VIEWS, *COPIES, "aten.add", "aten.mul"})
_SIGNS = {"aten.amax": 1.0, "aten.max": 1.0, "aten.amin": -1.0, "aten.min": -1.0}


def _last(rank: int, dims: Sequence[int]) -> list[int]:
    return [*(d for d in range(rank) if d not in dims), *dims]


def _whole(lengths: Sequence[int]) -> list[Axis]:
    return [axis_of(np.arange(n)[None, :], np.ones((1, n), dtype=bool), n) for n in lengths]


def _turned(x: Signal, order: Sequence[int], *, rearranged: bool = False) -> Signal:
    """Permute the dimensions; the result remembers the rising function that it is.

    Args:
        x: any signal.
        order: of the dimensions.
        rearranged: whether another function may be put in place of one that falls: what its values are it knows, but
            not at which entry the largest is.
    """
    found, image = permuted(x, order), x.image
    if image is None or image.base is not None or image.pre.dims != x.dims:
        return found
    phi, size = image.phi, max(image.pre.rms, 1e-150)
    if rearranged and (np.diff(phi.fn(image.pre.mean + np.linspace(-_WIDE, _WIDE, _SOME) * size)) < 0).any():
        phi = _rearranged(image)
    slope = phi.fn(image.pre.mean + np.array([-1.0, 1.0]) * size)
    if slope[0] > slope[1]:
        return replace(found, image=None)
    return replace(found, image=Image(phi, permuted(image.pre, order)))


def _rearranged(image: Image) -> Function:
    """Return the rising function of the same Gaussian whose values have the same distribution.

    Of independent entries the largest is the same; that entries go together is taken to be as of the Gaussian.
    """
    pre = image.pre
    size = math.sqrt(max(pre.q - pre.mean**2, 0.0))
    z = np.linspace(-_REACH, _REACH, _POINTS)
    values = np.asarray(image.phi.fn(pre.mean + size * z), float)
    order, density = np.argsort(values, kind="stable"), np.exp(-z * z / 2)
    share = np.cumsum(density[order]) - density[order] / 2
    even = np.cumsum(density) - density / 2
    rising = np.interp(even, share, values[order])
    return Function(lambda u: np.interp(np.asarray(u, float), pre.mean + size * z, rising))


def greatest(x: Signal, dims: Sequence[int]) -> Signal:
    """Take the largest entry along some dimensions, which stay with length 1."""
    order = _last(len(x.dims), dims)
    found = largest(_turned(x, order, rearranged=True), _whole([x.shape[d] for d in dims]))
    return permuted(found, [order.index(d) for d in range(len(order))])


def places(x: Signal, dims: Sequence[int]) -> Signal:
    """Return 1 where an entry is the largest along some dimensions, and 0 elsewhere."""
    order = _last(len(x.dims), dims)
    turned = _turned(x, order)
    lead = len(order) - len(dims)
    ones = constant((*turned.shape[:lead], *[1] * len(dims)), 1.0)
    found = to_largest(ones, turned, _whole(turned.shape[lead:]))
    return permuted(found, [order.index(d) for d in range(len(order))])


def _dims(op: Op, rank: int) -> list[int]:
    given = op.arguments.get("dim")
    dims = range(rank) if given is None or given == () else [given] if isinstance(given, int) else given
    return sorted(int(d) % rank for d in dims)


def _refuse_unknown(call: Call, x: Signal, dims: Sequence[int]) -> None:
    """Refuse the tail of a distribution that is not known: of what is no sum of many terms, or goes together in groups.

    Raises:
        UnknownSignalError: so it is.
    """
    source = x if x.gaussian or x.image is None or x.image.base is not None else x.image.pre
    if (not source.gaussian and source.law is None) or _is_looked_up(call.trace, call["self"].id):
        raise UnknownSignalError("the largest of many values whose distribution is not known")
    variance, axes = x.q - x.mean**2, x.axes(dims)
    common = x.averaged(axes) - x.mean**2
    if any(x.averaged([axis]) - x.mean**2 - common > _TOGETHER * variance for axis in axes):
        raise UnknownSignalError("the largest of many values that go together in groups")


def _is_looked_up(trace: Trace, value: int) -> bool:
    """Whether a value is an entry of a table, or a sum of such."""
    made = trace.producer(value)
    if made is None or made.functional not in _PASSED:
        return made is not None and made.functional == "aten.embedding"
    return any(_is_looked_up(trace, i) for i in made.inputs)


def _extreme(call: Call) -> Sequence[Signal | None]:
    if "other" in call.op.arguments:
        raise UnknownSignalError("the larger of two different values")
    x, sign = call.signal("self"), _SIGNS[call.op.packet]
    dims = [d for d in _dims(call.op, len(x.dims)) if x.shape[d] > 1]
    if math.prod(x.shape[d] for d in dims) > _MANY:
        _refuse_unknown(call, x, dims)
    found = scaled(greatest(scaled(x, sign), dims), sign) if dims else x
    gone = [] if call["keepdim"] else _dims(call.op, len(x.dims))
    kept = tuple(d for i, d in enumerate(found.dims) if i not in gone)
    return [found.regrouped(kept, found.moments), *[None] * (len(call.op.outputs) - 1)]


def where_extreme(call: Call) -> Signal | None:
    """Return the mask of x == max x, or of its two sides swapped; None if the comparison is another."""
    one, two = call["self"], call["other"]
    for x, top in ((one, two), (two, one)):
        if isinstance(x, ValueRef) and isinstance(top, ValueRef) and (op := _behind(call.trace, top.id)) is not None:
            source = op.arguments.get("self")
            if op.packet in ("aten.amax", "aten.amin") and source == x and x.id in call.known:
                signal = scaled(call.of(x), _SIGNS[op.packet])
                dims = [d for d in _dims(op, len(signal.dims)) if signal.shape[d] > 1]
                return places(signal, dims) if dims else constant(signal.shape, 1.0)
    return None


def _behind(trace: Trace, value: int) -> Op | None:
    op = trace.producer(value)
    while op is not None and (op.functional in VIEWS or op.functional in COPIES) and op.inputs:
        op = trace.producer(op.inputs[0])
    return op


def _scatter(call: Call) -> Sequence[Signal]:
    """Put a gradient where the largest entry was: the backward of a maximum along one dimension."""
    index = call["index"]
    op = _behind(call.trace, index.id) if isinstance(index, ValueRef) else None
    base, source = call.signal("self"), call.signal("src")
    if base.dims and base.shape[int(call["dim"]) % len(base.dims)] == 1 and source.shape == base.shape:
        return [source]
    if op is None or op.packet not in ("aten.max", "aten.min") or base.q != 0 or len(op.outputs) != 2:
        raise UnknownSignalError("an index that is not the place of a maximum")
    x = scaled(call.of(op.arguments["self"]), _SIGNS[op.packet])
    dim = int(call["dim"]) % len(x.dims)
    if x.shape != call.shape() or x.shape[dim] == 1 or source.shape[dim] != 1:
        return [expanded(source, call.shape())]
    order = _last(len(x.dims), [dim])
    found = to_largest(permuted(source, order), _turned(x, order), _whole([x.shape[dim]]))
    return [permuted(found, [order.index(d) for d in range(len(order))])]


def of_one(call: Call) -> Sequence[Signal | None] | None:
    """Return what is picked along a dimension of length 1: the one entry; None for other dimensions."""
    x = call.signal("self")
    dim = call.op.arguments.get("dim")
    one = isinstance(dim, int) and bool(x.dims) and x.shape[dim] == 1
    return [viewed(x, call.shape()), *[None] * (len(call.op.outputs) - 1)] if one else None


def _chosen(call: Call) -> Sequence[Signal | None]:
    found = of_one(call)
    if found is None:
        raise UnknowableError("the largest entries of what no router's scores are known for")
    return found


RULES: Mapping[str, Rule] = {"aten.topk": _chosen, **dict.fromkeys(_SIGNS, _extreme), "aten.scatter": _scatter}
