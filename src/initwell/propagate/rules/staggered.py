"""Rows that are shifted, each by one more than the row before: relative positions by padding, viewing and cutting.

Transformer-XL's shift puts a column of zeros before the scores of T rows and 2T − 1 distances, views them in rows of
T, leaves out the first and views them again, which moves row t by T − 1 − t. XLNet's has one more distance in the place
of the zeros, and looks up the first T columns. A view that cuts across rows mixes what agrees and what differs; but all
of it together only moves entries, each within its row. So entries are counted where they end: of pairs in the pattern
(row agrees or differs, column likewise) so many were of each pattern before, and

    moments(y)[b] = Σ_b' N[b, b'] moments(x)[b'] / N[b]        N[b, b']: pairs of entries moved; N[b]: all pairs of y

What a row adds up to is the same as before: 0 for the gradient of a softmax's scores, whose product with distances that
are nearly alike is small. Assumption: x is exchangeable along both axes, and so is what
it is multiplied by next. Distances of one row are nearer to each other than those of all rows: what comes of gradients
of queries is up to a quarter too large.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.parts import one_atom
from initwell.propagate.table import Call
from initwell.trace.trace import Op, Trace

_VIEWS = frozenset({"aten.view", "aten._unsafe_view", "aten.reshape"})
_MOVES = _VIEWS | {
    f"aten.{n}" for n in ["clone", "slice", "slice_backward", "constant_pad_nd", "index_select", "index_add"]
}
_FURTHEST = 8
_WHY = "rows that are shifted: entries of all rows and columns as alike"


def staggered(call: Call) -> Signal | None:
    """Return what an op makes that ends a shift of rows; None where there is none.

    Args:
        call: of a slice, a padding or a look-up behind a view, or of a view of a padding that a slice's backward is.
    """
    made = call.trace.producer(call["self"].id)
    if call.op.functional in _VIEWS:
        made = call.op if made is not None and made.functional == "aten.slice_backward" else None
    if made is None or made.functional not in _VIEWS or not _cuts_rows(call.trace, made):
        return None
    way = _way(call.trace, call.op)
    x = call.known.get(_read(way[0])) if way else None
    if x is None or len(x.shape) < 2 or x.mask is not None:
        return None
    x = one_atom(one_atom(x, len(x.dims) - 1), len(x.dims) - 2)
    if any(len(dim) != 1 or dim[0].parts or dim[0].slots is not None for dim in x.dims[-2:]):
        return None
    found = _places(call, way)
    return None if found is None else moved(x, found)


def _cuts_rows(trace: Trace, op: Op) -> bool:
    before, after = (trace.values[i].shape for i in (op.inputs[0], op.outputs[0]))
    if len(before) != len(after) or len(before) < 2 or before[:-2] != after[:-2] or before[-1] == after[-1]:
        return False
    return before[-1] % after[-1] != 0 or before[-2] * before[-1] != after[-2] * after[-1]


def _read(op: Op) -> int:
    """Return the value whose entries an op moves."""
    given = op.arguments
    return int(next(given[name] for name in ("source", "self", "grad_output") if name in given).id)


def _way(trace: Trace, op: Op) -> list[Op]:
    """Return the ops from rows to as many rows of which the last is this one; none where rows do not come back."""
    rows, found, most = trace.values[op.outputs[0]].shape[:-1], list[Op](), list[Op]()
    made: Op | None = op
    while made is not None and made.functional in _MOVES and len(found) < _FURTHEST:
        found = [made, *found]
        if sum(o.functional in _VIEWS for o in found) > 1 and trace.values[_read(made)].shape[:-1] == rows:
            most = found
        made = trace.producer(_read(made))
    return most


def _places(call: Call, way: Sequence[Op]) -> NDArray[np.int64] | None:
    """Return from which column each entry comes, −1 where nothing does; None where one leaves its row."""
    trace = call.trace
    rows, columns = trace.values[_read(way[0])].shape[-2:]
    found = torch.arange(1, rows * columns + 1).reshape(rows, columns)
    for op in way:
        shape, rank = trace.values[op.outputs[0]].shape, len(trace.values[_read(op)].shape)
        after = _once(call, op, found, shape[-2:], rank) if len(shape) == rank else None
        if after is None:
            return None
        found = after
    places = found.numpy() - 1
    row = np.arange(rows)[:, None]
    inside = (places < 0) | (places // columns == row)
    return np.where(places < 0, -1, places % columns) if places.shape[0] == rows and inside.all() else None


def _once(call: Call, op: Op, x: Tensor, shape: Sequence[int], rank: int) -> Tensor | None:
    if op.functional in _VIEWS:
        return x.reshape(*shape) if x.numel() == shape[0] * shape[1] else None
    if op.functional == "aten.clone":
        return x
    if op.functional == "aten.constant_pad_nd":
        pads = [int(p) for p in op.arguments["pad"]]
        return None if len(pads) > 4 or op.arguments["value"] else torch.nn.functional.pad(x, pads)
    dim = int(op.arguments["dim"] or 0) % rank - rank + 2
    if dim < 0:
        return None
    if op.functional in ("aten.index_select", "aten.index_add"):
        return _indexed(call, op, x, shape, dim)
    whole = x if op.functional == "aten.slice" else x.new_zeros(*shape)
    part = whole[(slice(None),) * dim + (slice(op.arguments["start"], op.arguments["end"], op.arguments["step"]),)]
    if op.functional == "aten.slice":
        return part
    return None if part.shape != x.shape else (part.copy_(x), whole)[1]


def _indexed(call: Call, op: Op, x: Tensor, shape: Sequence[int], dim: int) -> Tensor | None:
    """Look entries up, or put those that were back among zeros."""
    index = call.value_of(op.arguments["index"])
    if index is None or len({*index.tolist()}) != index.numel():
        return None
    if op.functional == "aten.index_select":
        return x.index_select(dim, index)
    zeros = call.known.get(op.arguments["self"].id)
    return None if zeros is None or zeros.q else x.new_zeros(*shape).index_copy_(dim, index, x)


def moved(x: Signal, places: NDArray[np.int64]) -> Signal:
    """Move entries of the last dimension within their rows, the last dimension but one.

    Args:
        x: any signal that is exchangeable along both.
        places: from which column each entry comes, −1 where it is 0.

    >>> from initwell.propagate.moments.signal import independent
    >>> moved(independent((2, 2), 1.0), np.array([[0, 1, -1], [-1, 0, 1]])).q.__round__(3)
    0.667
    """
    rows, columns = places.shape
    there = places >= 0
    r, s = np.nonzero(there)[1], places[there]
    entries = len(s)
    inside = float((there.sum(1) ** 2).sum()) - entries
    # Of pairs in two rows: all, those of one column, those that came from one, and both.
    every = float(entries**2) - inside - entries
    column, source, both = (
        float((np.unique(k, return_counts=True)[1] ** 2).sum()) - entries
        for k in (r, s, r * (int(s.max(initial=0)) + 1) + s)
    )
    axes = x.axes(range(len(x.dims) - 2, len(x.dims)))
    same, within, across, apart = (
        x.moments.take(a, axes[0]).take(b, axes[1] - 1) for a, b in ((0, 0), (0, 1), (1, 0), (1, 1))
    )
    found: list[Array] = [
        same * (entries / (rows * columns)),
        within * (inside / max(rows * columns * (columns - 1), 1)),
        (across * both + apart * (column - both)) / max(rows * (rows - 1) * columns, 1),
        (across * (source - both) + apart * (every - column - source + both))
        / max(rows * (rows - 1) * columns * (columns - 1), 1),
    ]
    moments = np.stack([np.stack(found[:2], -1), np.stack(found[2:], -1)], -2)
    atom = replace(x.dims[-1][0], size=columns)
    return x.changed(moments, x.means * (entries / (rows * columns)), dims=(*x.dims[:-1], (atom,))).approximate(_WHY)
