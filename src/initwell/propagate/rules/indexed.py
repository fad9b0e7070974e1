"""Advanced indexing, index_select, gather and their backward: which look-up each of them is.

``lookup`` derives what a look-up does, ``overwritten`` what a write over other entries does.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from initwell.propagate.given.agreement import places
from initwell.propagate.moments.atoms import expanded
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.branch import shifted
from initwell.propagate.rules.experts import rows_looked_up, rows_put_back
from initwell.propagate.rules.lookup import Lookup, looked_up, lookup, picked, put_back, put_down, scattered, shuffled
from initwell.propagate.rules.overwritten import rows_named, rows_of, rows_written, written_over
from initwell.propagate.rules.staggered import staggered
from initwell.propagate.rules.tables import as_often_as_shown
from initwell.propagate.table import Call, Rule, UnknownSignalError
from initwell.trace.trace import ValueRef

_UNLIKE = "rows that are looked up unlike often, taken as alike"


def _given(call: Call) -> dict[int, ValueRef]:
    """Return the index of each indexed dimension."""
    return {d: ref for d, ref in enumerate(call["indices"]) if isinstance(ref, ValueRef)}


def _real(call: Call, given: Mapping[int, ValueRef]) -> tuple[dict[int, Tensor], int | None]:
    """Return known indices, a mask being the places where it is 1, and which dimension of places counts samples."""
    found, ahead = dict[int, Tensor](), 0
    for d, ref in given.items():
        index = call.value_of(ref)
        if index is None:
            raise UnknownSignalError("an index that is not known")
        axes = index.nonzero(as_tuple=True) if index.dtype in (torch.bool, torch.uint8) else (index,)
        found |= {d + ahead + i: axis for i, axis in enumerate(axes)}
        ahead += len(axes) - 1
    rank = max(t.ndim for t in found.values())
    return found, next((rank - found[d].ndim for d, r in given.items() if call.values.sample(r.id) == 0), None)


def _is_shuffle(call: Call, ref: object) -> bool:
    return isinstance(ref, ValueRef) and call.values.drawn(ref.id)


def _named(g: Signal, found: Lookup) -> Signal:
    return g if found.least == found.most else g.approximate(_UNLIKE)


def _lies_empty(call: Call, name: str) -> bool:
    """Whether gradients are added to nothing but zeros."""
    ref = call[name]
    if call.value(name) is not None:
        return call.values.range(ref.id) == (0.0, 0.0)
    return call.has(name) and call.signal(name).q == 0


def _index(call: Call) -> Sequence[Signal | None]:
    x, given = call.signal("self"), _given(call)
    if len(given) == 1 and 0 in given and (rows := rows_looked_up(call, given[0])):
        return rows
    if len(given) == 1 and _is_shuffle(call, ref := next(iter(given.values()))):
        (dim,) = given
        if len(call.trace.values[ref.id].shape) == 1:
            return [shuffled(x, dim, call.shape()[dim])]
    if list(given) == [0] and (named := rows_named(call, given[0], x.shape)) and len(call.shape()) == 2:
        of_written = rows_of(x, named)
        if of_written is not None:
            return [of_written]
    real, sample = _real(call, given)
    found = looked_up(x, lookup(x.dims, real, sample))
    return [as_often_as_shown(call, call["self"], found, real[0]) if list(real) == [0] else found]


def _index_put(call: Call) -> Sequence[Signal | None]:
    """The backward of an index, and a write of rows into zeros or over others."""
    given, shape = _given(call), call.shape()
    if not _lies_empty(call, "self"):
        return [_written(call, given)]
    if len(given) == 1 and 0 in given and (rows := rows_put_back(call, given[0])):
        return rows
    if len(given) == 1 and _is_shuffle(call, ref := next(iter(given.values()))):
        (dim,) = given
        if len(call.trace.values[ref.id].shape) == 1:
            return [scattered(call.signal("values"), dim, shape[dim])]
    real, sample = _real(call, given)
    return [_put(call, call.signal("values"), lookup(places(shape), real, sample), real)]


def _put(call: Call, values: Signal, found: Lookup, real: Mapping[int, Tensor]) -> Signal:
    """Write values among zeros."""
    if not call["accumulate"] and found.most > 1:
        raise UnknownSignalError("rows written over each other")
    rest = [n for d, n in enumerate(call.shape()) if d not in found.dims]
    whole = torch.broadcast_shapes(*(t.shape for t in real.values()))  # type: ignore[no-untyped-call]
    g = expanded(values, (*rest[: found.first], *whole, *rest[found.first :]))
    return _named(put_back(g, found, call.shape()), found)


def _written(call: Call, given: Mapping[int, ValueRef]) -> Signal:
    """Write values over others."""
    if call["accumulate"]:
        raise UnknownSignalError("rows added to others")
    x, v, (real, sample) = call.signal("self"), call.signal("values"), _real(call, given)
    if any(index.numel() == 0 for index in real.values()):
        return x
    rows = rows_named(call, given[0], x.shape) if list(given) == [0] else None
    if rows is not None and (found := rows_written(x, v, rows)) is not None:
        return found
    least = shifted(v, -v.mean)
    put = None if least.q <= 1e-12 * v.q else _put(call, least, lookup(places(x.shape), real, sample), real)
    return written_over(x, put, v.mean, real)


def _index_select(call: Call) -> Sequence[Signal]:
    x, ref = call.signal("self"), call["index"]
    dim = call["dim"] % max(len(x.dims), 1)
    if _is_shuffle(call, ref):
        return [shuffled(x, dim, call.shape()[dim])]
    if (moved := staggered(call)) is not None:
        return [moved]
    real, sample = _real(call, {dim: ref})
    return [looked_up(x, lookup(x.dims, real, sample))]


def _index_add(call: Call) -> Sequence[Signal]:
    """The backward of index_select."""
    g, shape, ref = call.signal("source"), call.shape(), call["index"]
    dim = call["dim"] % max(len(shape), 1)
    if not _lies_empty(call, "self") or call["alpha"] != 1:
        raise UnknownSignalError("rows added to others")
    if _is_shuffle(call, ref):
        return [scattered(g, dim, shape[dim])]
    real, sample = _real(call, {dim: ref})
    found = lookup(places(shape), real, sample)
    return [_named(put_back(g, found, shape), found)]


def _whole(call: Call, ref: ValueRef, dim: int, other: Sequence[int]) -> None:
    mine = call.trace.values[ref.id].shape
    if any(n != mine[d] for d, n in enumerate(other) if d != dim):
        raise UnknownSignalError("an index for a part of the other axes")


def _gather(call: Call) -> Sequence[Signal]:
    x, ref = call.signal("self"), call["index"]
    dim = call["dim"] % max(len(x.dims), 1)
    _whole(call, ref, dim, x.shape)
    if _is_shuffle(call, ref):
        return [shuffled(x, dim, call.shape()[dim])]
    real, sample = _real(call, {dim: ref})
    return [picked(x, dim, lookup(x.dims, real, sample))]


def _scatter_add(call: Call) -> Sequence[Signal]:
    """The backward of gather."""
    g, shape, ref = call.signal("src"), call.shape(), call["index"]
    dim = call["dim"] % max(len(shape), 1)
    _whole(call, ref, dim, shape)
    if not _lies_empty(call, "self") or g.shape != call.trace.values[ref.id].shape:
        raise UnknownSignalError("entries added to others")
    if _is_shuffle(call, ref):
        return [scattered(g, dim, shape[dim])]
    real, sample = _real(call, {dim: ref})
    found = lookup(places(shape), real, sample)
    return [_named(put_down(g, found, dim, shape[dim]), found)]


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("aten.index", "aten._unsafe_index"), _index),
    **dict.fromkeys(("aten.index_put", "aten._unsafe_index_put", "aten._index_put_impl"), _index_put),
    "aten.index_select": _index_select,
    "aten.index_add": _index_add,
    "aten.gather": _gather,
    "aten.scatter_add": _scatter_add,
}
