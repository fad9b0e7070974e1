"""Ops that make no new entry, and plain sums and means: with atoms, views are bookkeeping."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.atoms import expanded, joined, matched, permuted, viewed
from initwell.propagate.signal import Array, Atom, Signal, constant, merged_fidelity
from initwell.propagate.table import Call, Rule


def _same(call: Call) -> Sequence[Signal]:
    return [call.signal("self")]


def _view(call: Call) -> Sequence[Signal]:
    return [viewed(call.signal("self"), call.shape())]


def _t(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    return [permuted(x, range(len(x.dims) - 1, -1, -1))]


def _transpose(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    order = list(range(len(x.dims)))
    i, j = call["dim0"], call["dim1"]
    order[i], order[j] = order[j], order[i]
    return [permuted(x, order)]


def _permute(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    return [permuted(x, [d % len(x.dims) for d in call["dims"]])]


def _expand(call: Call) -> Sequence[Signal]:
    return [expanded(call.signal("self"), call.shape())]


def without(signal: Signal, dims: Sequence[int]) -> Signal:
    """Keep one index of each of these dimensions: the atoms go, at "agree"."""
    axes = signal.axes(dims)
    moments = signal.moments[tuple(0 if i in axes else slice(None) for i in range(signal.moments.ndim))]
    kept = tuple(d for i, d in enumerate(signal.dims) if i not in dims)
    return signal.regrouped(kept, np.asarray(moments))


def _select(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    return [without(x, [call["dim"] % len(x.dims)])]


def shortened(signal: Signal, dim: int, length: int) -> Signal:
    """Keep ``length`` of a dimension's indices: exchangeable ones stay exchangeable."""
    if signal.shape[dim] == length:
        return signal
    atoms = signal.dims[dim]
    if len(atoms) > 1:
        inner = math.prod(a.size for a in atoms[1:])
        if length % inner == 0:
            first = (Atom(length // inner, atoms[0].sample),) if length > inner else ()
            dims = (*signal.dims[:dim], (*first, *atoms[1:]), *signal.dims[dim + 1 :])
            moments = signal.moments if first else signal.moments.take(0, signal.axes([dim])[0])
            return signal.regrouped(dims, np.asarray(moments))
        signal = _one_atom(signal, dim)
    axis = signal.axes([dim])[0]
    atom = signal.dims[dim][0]
    dims = (*signal.dims[:dim], (Atom(length, atom.sample),) if length > 1 else (), *signal.dims[dim + 1 :])
    return signal.regrouped(dims, signal.moments if length > 1 else np.asarray(signal.moments.take(0, axis)))


def _one_atom(signal: Signal, dim: int) -> Signal:
    while len(signal.dims[dim]) > 1:
        signal = joined(signal, signal.axes([dim])[0])
    return signal


def _slice(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    dim = (call["dim"] or 0) % len(x.dims)
    return [shortened(x, dim, call.shape()[dim])]


def _split(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    dim = (call["dim"] or 0) % len(x.dims)
    return [shortened(x, dim, call.shape(i)[dim]) for i in range(len(call.op.outputs))]


def _unbind(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    return [without(x, [(call["dim"] or 0) % len(x.dims)])] * len(call.op.outputs)


def summed(signal: Signal, dims: Sequence[int], *, keep: bool, mean: bool) -> Signal:
    """Sum or average over dimensions: agree/n + differ·(1 − 1/n) for a mean, n² times that for a sum."""
    moments, count = signal.moments, 1
    for axis in sorted(signal.axes(dims), reverse=True):
        n = signal.atoms[axis].size
        moments = np.asarray(moments.take(0, axis) / n + moments.take(1, axis) * (1 - 1 / n))
        count *= n
    kept = tuple(() if i in dims else d for i, d in enumerate(signal.dims) if keep or i not in dims)
    factor = 1 if mean else count
    return signal.changed(moments * factor**2, signal.mean * factor, dims=kept, gaussian=True)


def _reduce(*, mean: bool) -> Rule:
    def rule(call: Call) -> Sequence[Signal]:
        x = call.signal("self")
        given = call["dim"]
        dims = range(len(x.dims)) if given is None or given == () else given
        whole = [dims] if isinstance(dims, int) else list(dims)
        return [summed(x, [d % len(x.dims) for d in whole], keep=bool(call["keepdim"]), mean=mean)]

    return rule


def _stack(call: Call) -> Sequence[Signal]:
    parts = [call.of(ref) for ref in call["tensors"]]
    rank = len(parts[0].dims)
    dim = call["dim"] % (rank + 1)
    for i in range(1, len(parts)):
        parts[0], parts[i] = matched(parts[0], parts[i], [(d, d) for d in range(rank)])
    parts = [matched(p, parts[0], [(d, d) for d in range(rank)])[0] for p in parts]
    n, mean = len(parts), sum(p.mean for p in parts) / len(parts)
    agree = sum((p.moments for p in parts), np.zeros_like(parts[0].moments)) / n
    if n == 1:
        return [viewed(parts[0], call.shape())]
    cross = (mean**2 * n * n - sum(p.mean**2 for p in parts)) / (n * (n - 1))
    axis = sum(len(d) for d in parts[0].dims[:dim])
    moments = np.stack([agree, np.full_like(agree, cross)], axis)
    dims = (*parts[0].dims[:dim], (Atom(n),), *parts[0].dims[dim:])
    found = merged_fidelity(parts[0].changed(moments, mean, dims=dims), *parts[1:])
    return [found if len({round(p.q, 12) for p in parts}) == 1 else found.approximate(_MIXED)]


def concatenated(parts: Sequence[Signal], dim: int) -> Signal:
    """Join independent signals along a dimension; its pairs within and across the parts are averaged.

    >>> from initwell.propagate.signal import independent
    >>> concatenated([independent((2, 3), 1.0), independent((1, 3), 4.0)], 0).q
    2.0
    """
    others = [d for d in range(len(parts[0].dims)) if d != dim]
    # A part of length 1 gets an atom whose pairs count nothing.
    first = _one_atom(parts[0], dim)
    for part in parts:
        first, _ = matched(first, part, [(d, d) for d in others])
    n = sum(p.shape[dim] for p in parts)
    mean = sum(p.mean * p.shape[dim] for p in parts) / n
    agree: Array | float = 0.0
    differ: Array | float = 0.0
    for part in parts:
        length = part.shape[dim]
        one, _ = matched(_one_atom(part, dim), first, [(d, d) for d in others])
        axis = sum(len(d) for d in one.dims[:dim])
        same = one.moments.take(0, axis) if length > 1 else one.moments
        other = one.moments.take(1, axis) if length > 1 else np.zeros_like(same)
        agree = agree + same * length / n
        differ = differ + other * length * (length - 1) + part.mean * length * (mean * n - part.mean * length)
    axis = sum(len(d) for d in first.dims[:dim])
    moments = np.stack([np.asarray(agree), np.asarray(differ) / (n * (n - 1))], axis)
    dims = (*first.dims[:dim], (Atom(n),), *first.dims[dim + 1 :])
    found = first.changed(moments, mean, dims=dims, gaussian=all(p.gaussian for p in parts))
    return merged_fidelity(found, *parts).approximate(_MIXED)


def _cat(call: Call) -> Sequence[Signal]:
    parts = [call.of(ref) for ref in call["tensors"]]
    return [concatenated(parts, call["dim"] % len(parts[0].dims))]


_MIXED = "parts of unlike size along one axis, taken as alike"


def _slice_backward(call: Call) -> Sequence[Signal]:
    """A gradient that fills part of an axis, zero elsewhere: averaged over the whole axis."""
    g, shape = call.signal("grad_output"), call.shape()
    rank = len(shape)
    dim = call["dim"] % rank
    part = 1 if call.op.functional == "aten.select_backward" else g.shape[dim]
    if part == 1 and len(g.dims) == rank - 1:
        g = viewed(g, (*shape[:dim], 1, *shape[dim + 1 :]))
    n = shape[dim]
    if part == n:
        return [g]
    whole = _one_atom(g, dim)
    axis = sum(len(d) for d in whole.dims[:dim])
    agree = whole.moments.take(0, axis) if part > 1 else whole.moments
    differ = whole.moments.take(1, axis) if part > 1 else np.zeros_like(agree)
    moments = np.stack([agree * part / n, differ * part * (part - 1) / (n * (n - 1))], axis)
    dims = (*whole.dims[:dim], (Atom(n),), *whole.dims[dim + 1 :])
    return [whole.changed(moments, whole.mean * part / n, dims=dims).approximate(_MIXED)]


def _filled(value: float) -> Rule:
    def rule(call: Call) -> Sequence[Signal]:
        return [constant(call.shape(), value)]

    return rule


def _full(call: Call) -> Sequence[Signal]:
    return [constant(call.shape(), float(call["fill_value"]))]


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        ("aten.detach", "aten.clone", "aten.alias", "aten._to_copy", "aten.contiguous", "aten.lift_fresh"), _same
    ),
    **dict.fromkeys(
        ("aten.view", "aten._unsafe_view", "aten.reshape", "aten.unsqueeze", "aten.squeeze", "aten._reshape_alias"),
        _view,
    ),
    "aten.t": _t,
    "aten.transpose": _transpose,
    "aten.permute": _permute,
    "aten.expand": _expand,
    "aten.select": _select,
    "aten.slice": _slice,
    "aten.split": _split,
    "aten.split_with_sizes": _split,
    "aten.unbind": _unbind,
    "aten.sum": _reduce(mean=False),
    "aten.mean": _reduce(mean=True),
    "aten.stack": _stack,
    "aten.cat": _cat,
    "aten.slice_backward": _slice_backward,
    "aten.select_backward": _slice_backward,
    "aten.zeros_like": _filled(0.0),
    "aten.ones_like": _filled(1.0),
    "aten.zeros": _filled(0.0),
    "aten.ones": _filled(1.0),
    "aten.full": _full,
    "aten.full_like": _full,
}
