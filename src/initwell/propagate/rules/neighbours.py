"""Sums of a value and of averages over its neighbours: pool(x) − x, x + pool(x̂) − x̂, and gradients that come back.

All terms are f·M x, with M a known matrix along each axis, or the same of x̂ = (x − m)/s, s the size of a whole sample,
which is a number. So the sum is one known matrix of x, and its covariance Σ f_t f_u M_t K M_uᵀ, K that of x. Where
s = 1, x + pool(x̂) − x̂ is the average alone. Backward it is the transposed sum, and the gradient of x̂ comes back as
(g − ḡ − …)/s, of which only the mean is of a size. Of a covariance that is no product over the axes each axis keeps
what two of its places have in common where they agree in the others.
Assumption: that of ``places``; what a norm takes off besides the mean is one of very many directions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from initwell.propagate.moments.centring import centred
from initwell.propagate.moments.places import even, off_average, parted
from initwell.propagate.moments.segments import Array, along
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.average import matrices_of
from initwell.propagate.rules.branch import fixed
from initwell.propagate.rules.reading import read_places
from initwell.propagate.table import Call
from initwell.trace.trace import Op, ValueRef

_WHY = "a value and averages over its neighbours, places along one axis as where they agree in the others"
_MOST = 40
# A share of what is added or taken off below which it is rounding error.
_LEAST = 1e-9
# Directions that a norm takes off, of so many, are no matter.
_MANY = 64


@dataclass(frozen=True, eq=False)
class _Term:
    """One term of a sum: factor·M x, x the value of this id.

    Attributes:
        factor: a number.
        value: the id of x.
        maps: M along each axis of space; none for what leaves it.
        centred: whether the mean was taken off.
    """

    factor: float
    value: int
    maps: tuple[Array, ...] = ()
    centred: bool = False


def of_neighbours(call: Call, first: str, second: str, beta: float) -> Signal | None:
    """Return a + βb where both are known matrices of one value, and not both the same; else None.

    Args:
        call: of the sum.
        first: name of a.
        second: name of b.
        beta: factor of b.
    """
    if not call.values.once("neighbours", lambda: any(_pools(op) for op in call.trace.ops)):
        return None
    refs = call.tensors(first, second)
    if refs is None or len(call.shape()) < 3:
        return None
    a, b = refs
    if any(tuple(call.trace.values[ref.id].shape) != tuple(call.shape()) for ref in refs):
        return None
    seen: tuple[set[int], set[int]] = (set(), set())
    for ref, values in zip((a, b), seen, strict=True):
        _terms(call, ref.id, -1, seen=values)
    # What both are made of first is most often the same from place to place in each axis by itself.
    for end in sorted(seen[0] & seen[1]):
        terms = _terms(call, a.id, end) + [_scaled(t, beta) for t in _terms(call, b.id, end)]
        if all(t.value == end for t in terms) and any(t.maps for t in terms) and end in call.known:
            return _summed(call.known[end], _collected(terms))
    return None


def _pools(op: Op) -> bool:
    """Whether an op averages over neighbours and leaves as many places as there were."""
    return op.functional in _POOLS and set(op.arguments["stride"] or op.arguments["kernel_size"]) == {1}


def _scaled(term: _Term, factor: float) -> _Term:
    return replace(term, factor=term.factor * factor)


def _mapped(term: _Term, maps: Sequence[Array]) -> _Term:
    both = [m @ before for m, before in zip(maps, term.maps, strict=True)] if term.maps else maps
    return replace(term, maps=tuple(both))


def _collected(terms: Sequence[_Term]) -> list[_Term]:
    """Add up the factors of terms that are the same."""
    found: list[_Term] = []
    for term in terms:
        for i, other in enumerate(found):
            same = term.centred == other.centred and len(term.maps) == len(other.maps)
            if same and all(np.allclose(m, n) for m, n in zip(term.maps, other.maps, strict=True)):
                found[i] = replace(other, factor=other.factor + term.factor)
                break
        else:
            found.append(term)
    return found


def _terms(call: Call, value: int, end: int, room: int = _MOST, seen: set[int] | None = None) -> list[_Term]:
    """Take a value apart into terms; itself, if it is no sum, or if it is ``end``.

    Args:
        call: of the sum.
        value: the id.
        end: where to stop.
        room: how many terms at most, or so.
        seen: gets all values that were come by.
    """
    value = _shown(call, value)
    op, seen = call.trace.producer(value), set() if seen is None else seen
    seen.add(value)
    if value == end or op is None or op.mutates or room <= 0:
        return [_Term(1.0, value)]
    name, given = op.functional, op.arguments
    if name in ("aten.add", "aten.sub") and all(_whole(call, given[n], value) for n in ("self", "other")):
        alpha = float(given.get("alpha") or 1.0) * (-1.0 if name == "aten.sub" else 1.0)
        one = _terms(call, given["self"].id, end, room - 1, seen)
        return one + [_scaled(t, alpha) for t in _terms(call, given["other"].id, end, room - len(one), seen)]
    factor = (-1.0, op.inputs[0]) if name == "aten.neg" else _factor(call, op) if name == "aten.mul" else None
    if factor is not None:
        return [_scaled(t, factor[0]) for t in _terms(call, factor[1], end, room, seen)]
    if _pools(op) and (maps := matrices_of(Call(op, call.trace, call.known, call.values))) is not None:
        return [_mapped(t, maps) for t in _terms(call, op.inputs[0], end, room, seen)]
    if name in _NORMS and value == op.outputs[0] and (size := _size(call, op)) is not None:
        inner = _terms(call, given[_NORMS[name]].id, end, room, seen)
        return [replace(t, factor=t.factor / size, centred=True) for t in inner]
    return [_Term(1.0, value)]


def _shown(call: Call, value: int) -> int:
    """Return the value that a view of the same shape shows."""
    source = call.trace.shown(value)
    return source if call.trace.values[source].shape == call.trace.values[value].shape else value


def _whole(call: Call, ref: object, value: int) -> bool:
    shapes = call.trace.values
    return isinstance(ref, ValueRef) and tuple(shapes[ref.id].shape) == tuple(shapes[value].shape)


def _factor(call: Call, op: Op) -> tuple[float, int] | None:
    """Return the number that an op multiplies a value by, and that value."""
    for one, other in (("self", "other"), ("other", "self")):
        x, by = op.arguments[one], op.arguments[other]
        if not _whole(call, x, op.outputs[0]):
            continue
        if isinstance(by, (int, float)):
            return float(by), x.id
        known = call.known.get(by.id) if isinstance(by, ValueRef) else None
        if known is not None and fixed(known):
            return known.mean, x.id
    return None


def _size(call: Call, op: Op) -> float | None:
    """Return what a norm over whole samples divides by, its weight counted in; None of any other norm."""
    x, weight = call.known.get(op.arguments["input"].id), op.arguments["weight"]
    scale = call.known.get(weight.id) if isinstance(weight, ValueRef) else None
    forward = op if op.of is None else call.trace.ops[op.of]
    if x is None or op.arguments["group"] != 1 or (scale is not None and (not fixed(scale) or scale.mean <= 0)):
        return None
    dims = range(1, len(x.dims))
    variance = float(centred(x, x.axes(dims)).flat[0])
    if variance <= 0 or x.segmented or math.prod(x.shape[1:]) < _MANY:
        return None
    return math.sqrt(variance + float(forward.arguments["eps"])) / (1.0 if scale is None else scale.mean)


def _summed(x: Signal, terms: Sequence[_Term]) -> Signal | None:
    """Return Σ f M x of one value, and how its positions go together."""
    maps = next(t.maps for t in terms if t.maps)
    first = len(x.dims) - len(maps)
    axes = x.axes(range(first, len(x.dims)))
    if not axes and len(maps) and first >= 1:
        terms, maps = [_at_one_place(t) for t in terms], ()
    if x.segmented or first < 1 or len(axes) != len(maps) or any(len(m) != len(m.T) for m in maps):
        return None
    level = centred(x, x.axes(range(1, len(x.dims))))
    known, moments = read_places(x, len(maps)), np.zeros_like(x.moments)
    tables = [np.zeros_like(places) for places in known]
    if any(places.ndim == 1 for places in known):
        return None
    for one in terms:
        for two in terms:
            raw = level if one.centred or two.centred else x.moments
            factor = one.factor * two.factor
            pair = [_pair(one, two, i, places) for i, places in enumerate(known)]
            moments = moments + factor * _through(raw, pair, axes)
            for i, axis in enumerate(axes):
                # Along the other axes first: what is left there is what places of this one agree in.
                others = [p for j, p in enumerate(pair) if j != i]
                there = _through(raw, others, [a for a in axes if a != axis])
                own = np.array([there.flat[0], there[tuple(int(a == axis) for a in range(there.ndim))]])
                tables[i] += factor * (parted(known[i]) @ own)[:, None, None] * pair[i][1]
    if moments.flat[0] < _LEAST * x.q * sum(t.factor**2 for t in terms):
        moments = np.zeros_like(moments)
    means = x.means * sum(t.factor for t in terms if not t.centred)
    found = replace(x.changed(moments, means, gaussian=x.gaussian), profile=tuple(map(_places, tables)), joint=True)
    return found.approximate(_WHY)


def _at_one_place(term: _Term) -> _Term:
    """Return a term of images of a single place, of which an average over neighbours is a number times it."""
    return replace(term, factor=term.factor * math.prod(float(m.item()) for m in term.maps), maps=())


def _pair(one: _Term, two: _Term, axis: int, places: Array) -> tuple[Array, Array]:
    """Return the matrix from (agree, differ) of x to that of a pair of terms along an axis, and both tables."""
    tables = places
    if one.maps:
        tables = one.maps[axis] @ tables
    if two.maps:
        tables = tables @ two.maps[axis].T
    size = np.array([table.trace() / len(table) for table in tables])
    return np.stack([size, [off_average(table) for table in tables]]) @ parted(places), tables


def _through(moments: Array, pair: Sequence[tuple[Array, Array]], axes: Sequence[int]) -> Array:
    for (matrix, _), axis in zip(pair, axes, strict=True):
        moments = along(moments, matrix, axis)
    return moments


def _places(tables: Array) -> Array:
    """Return S and L of what positions have in common and of their own."""
    size = (tables[0] + tables[1]).diagonal()
    mean, level = float(size.mean()), off_average(tables[0])
    if mean <= 0:
        return even(len(size))
    # Where one of the two is rounding error, such as their own part of positions that are all alike, it has no shape.
    level = level if level > _LEAST * mean else 0.0
    own = mean - level
    shared = tables[0] / level if level > 0 else np.ones_like(tables[0])
    found = np.stack([shared, tables[1] / own if own > _LEAST * mean else np.eye(len(size))])
    for table in found:
        np.fill_diagonal(table, np.maximum(size, 0.0) / mean)
    return found


_POOLS = frozenset({"aten.avg_pool2d", "aten.avg_pool3d", "aten.avg_pool2d_backward", "aten.avg_pool3d_backward"})
_NORMS: Mapping[str, str] = {"aten.native_group_norm": "input", "aten.native_group_norm_backward": "grad_out"}
