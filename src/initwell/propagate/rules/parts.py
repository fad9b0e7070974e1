"""Parts of an axis: selecting, slicing, joining, padding; with segments, all of it is bookkeeping.

What is kept of exchangeable indices is exchangeable, so a slice takes some of each segment. Signals that are joined
become segments of one axis; between two of them E[x y'] is the product of their means, as they are independent, or,
where the same value is joined with itself, its own moment over all pairs. A gradient that fills a slice is joined with
zeros before and after it.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.laws.rectified import discrete, joined_laws, marginal
from initwell.propagate.laws.swing import floor_of
from initwell.propagate.moments.alike import UNLIKE, merged, of_segments, settled
from initwell.propagate.moments.among import beside, cut, is_apart
from initwell.propagate.moments.atoms import joined, matched, viewed
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.by_pairs import by_pattern
from initwell.propagate.moments.gram import averaged
from initwell.propagate.moments.remembered import Gate, Law
from initwell.propagate.moments.segments import MOST, Array, Indices, patterns, repeated
from initwell.propagate.moments.signal import Image, Signal, constant, merged_fidelity, replace
from initwell.propagate.moments.slots import slot_axis
from initwell.propagate.rules.branch import fixed
from initwell.propagate.table import Call, Rule, UnknowableError, UnknownSignalError
from initwell.trace.trace import ValueRef

MOVED = "rows written at places of each sample's own, as if those at one end"
MOVED_TO_END = "padded rows, as many in each sample as on average"
IN_ORDER = "rows times known numbers of unlike size, as if in the order of these"


def one_atom(signal: Signal, dim: int) -> Signal:
    """Join all atoms of a dimension."""
    while len(signal.dims[dim]) > 1:
        signal = joined(signal, signal.axes([dim])[0])
    return signal


def _segment(atom: Atom, index: int) -> int:
    return int(np.searchsorted(np.cumsum(atom.patterns.parts), index, side="right"))


def selected(signal: Signal, dim: int, index: int) -> Signal:
    """Keep one index of a dimension, which goes; a negative index counts from the end.

    >>> from initwell.propagate.moments.signal import independent
    >>> selected(concatenated([constant((1, 3), 2.0), constant((4, 3), 0.0)], 0), 0, 0).q
    4.0
    """
    if slot_axis(signal, [dim]) is not None:
        raise UnknownSignalError("one of those that were chosen, by its rank")
    found, where = signal, index % max(signal.shape[dim], 1)
    for axis, atom in reversed(list(zip(signal.axes([dim]), signal.dims[dim], strict=True))):
        where, here = divmod(where, atom.size)
        place = _segment(atom, here)
        moments, means = found.moments.take(place, axis), found.means.take(place, axis)
        dims = [list(d) for d in found.dims]
        dims[dim].pop()
        found = found.regrouped(tuple(map(tuple, dims)), np.asarray(moments), np.asarray(means))
    return found.regrouped((*found.dims[:dim], *found.dims[dim + 1 :]), found.moments)


def sliced(signal: Signal, dim: int, start: int, stop: int, step: int = 1) -> Signal:
    """Keep the indices start, start + step, … below stop of a dimension.

    Args:
        signal: any signal.
        dim: the dimension.
        start: the first index, from 0.
        stop: above the last.
        step: 1 or more.

    >>> from initwell.propagate.moments.signal import independent
    >>> whole = concatenated([constant((1, 3), 2.0), independent((4, 3), 1.0)], 0)
    >>> sliced(whole, 0, 1, 3).q
    1.0
    """
    length = len(range(start, stop, step))
    if length == signal.shape[dim]:
        return signal
    if length == 1:
        one = selected(signal, dim, start)
        return one.regrouped((*one.dims[:dim], (), *one.dims[dim:]), one.moments)
    inner = math.prod(a.size for a in signal.dims[dim][1:])
    if len(signal.dims[dim]) > 1 and start // inner == (stop - 1) // inner:
        rest = (*signal.dims[:dim], signal.dims[dim][:1], signal.dims[dim][1:], *signal.dims[dim + 1 :])
        alone = selected(signal.regrouped(rest, signal.moments), dim, start // inner)
        return sliced(alone, dim, start % inner, (stop - 1) % inner + 1, step)
    if start % inner or stop % inner or step > 1:
        signal, inner = one_atom(signal, dim), 1
    return _kept(signal, dim, range(start // inner, stop // inner, step))


def _kept(signal: Signal, dim: int, indices: range) -> Signal:
    """Keep these indices of a dimension's first atom, more than one of the dimension."""
    axis, atom = signal.axes([dim])[0], signal.dims[dim][0]
    old = len(atom.patterns.parts)
    which = np.searchsorted(np.cumsum(atom.patterns.parts), np.array(indices), side="right")
    segments, counts = np.unique(which, return_counts=True)
    atoms = signal.dims[dim][1:]
    if len(indices) == 1:
        place = int(segments[0])
        moments, means = np.asarray(signal.moments.take(place, axis)), np.asarray(signal.means.take(place, axis))
    else:
        parts = tuple(int(n) for n in counts)
        new = patterns(parts)
        places = old + segments[new.first] * old + segments[new.second]
        places[: len(parts)] = segments
        atoms = (Atom(len(indices), atom.sample, parts if len(parts) > 1 else (), atom.follows), *atoms)
        moments, means = np.asarray(signal.moments.take(places, axis)), np.asarray(signal.means.take(segments, axis))
    dims = (*signal.dims[:dim], atoms, *signal.dims[dim + 1 :])
    found = signal.regrouped(dims, moments, means)
    found = cut(found, atom.parts, segments.tolist(), counts.tolist())
    joined = [gate for gate in signal.gates if gate.pre.law is not None and gate.pre.law.parts]
    if len(indices) == 1 or not joined:
        return found
    rows = np.arange(signal.means.size).reshape(signal.means.shape).take(segments, axis).ravel()
    same = [gate for gate in joined if gate.pre.dims == signal.dims and gate.moments.shape == signal.moments.shape]
    return replace(found, gates=tuple([_of_part(gate, dim, indices, places, rows) for gate in same]))


def _of_part(gate: Gate, dim: int, indices: range, places: Indices, rows: Indices) -> Gate:
    """Return the mask that some indices of a gradient met, of what several values were joined to: one of these was."""
    pre = replace(_kept(gate.pre, dim, indices), law=of_segments(gate.pre.law, rows))
    moments = np.asarray(gate.moments.take(places, gate.pre.axes([dim])[0]))
    return replace(
        gate, pre=pre, moments=moments, grid=gate.grid[rows], power=gate.power[rows], passed=gate.passed[rows]
    )


# A part is a value times a factor; parts of one value vary together.
Multiple = tuple[int, float]


def concatenated(parts: Sequence[Signal], dim: int, of: Sequence[Multiple] = ()) -> Signal:
    """Join signals along a dimension: each becomes segments of it.

    Args:
        parts: independent of each other but for those that ``of`` gives one value.
        dim: the dimension.
        of: for each part, the value that it is a multiple of, and the factor.

    >>> from initwell.propagate.moments.signal import independent
    >>> found = concatenated([independent((2, 3), 1.0), independent((1, 3), 4.0)], 0)
    >>> found.q, found.atoms[0].parts
    (2.0, (2, 1))
    """
    of = of or [(i, 1.0) for i in range(len(parts))]
    others = [(d, d) for d in range(len(parts[0].dims)) if d != dim]
    whole = [_with_atom(one_atom(p, dim), dim) for p in parts]
    for _ in range(2):
        for i in range(1, len(whole)):
            whole[0], whole[i] = matched(whole[0], whole[i], others)
    if len(whole) == 1:
        return parts[0]
    axis = whole[0].axes([dim])[0]
    sizes = [n for p in whole for n in p.atoms[axis].patterns.parts]
    owner = [(i, j) for i, p in enumerate(whole) for j in range(p.means.shape[axis])]
    pairs, s = patterns(tuple(sizes)), len(sizes)
    columns: list[Array] = [np.asarray(whole[i].moments.take(j, axis)) for i, j in owner]
    for a, b in zip(pairs.first[s:].tolist(), pairs.second[s:].tolist(), strict=True):
        columns.append(_between(whole, owner[a], owner[b], axis, of))
    means = np.concatenate([p.means for p in whole], axis)
    # A dimension of length 1 in the first part has no atom there, but has one in the whole.
    sample = any(p.atoms[axis].sample for p in whole)
    rows = [(p.shape[dim], p.atoms[axis].follows) for p in whole if p.q > 0]
    dims = (*whole[0].dims[:dim], (Atom(sum(sizes), sample, tuple(sizes), averaged(rows)),), *whole[0].dims[dim + 1 :])
    moments = np.stack(np.broadcast_arrays(*columns), axis)
    found = whole[0].changed(moments, means, dims=dims, gaussian=all(p.gaussian for p in parts))
    found = replace(found, spread=max(p.spread for p in parts))
    found = beside(merged_fidelity(found, *parts), [whole[i] for i, _ in owner], axis)
    done = found if s <= MOST and is_apart(found, axis) else settled(found, axis)
    law = _law(found, parts, whole, axis)
    return done if law is None else replace(done, law=_of_like_ones(law, sizes, done.atoms[axis]))


def _of_like_ones(law: Law, sizes: Sequence[int], atom: Atom) -> Law:
    """Put the laws of segments together that were merged, of lengths ``sizes``: each counts by its length."""
    ends = np.cumsum(atom.patterns.parts)
    if len(ends) == len(sizes):
        return law
    rows = np.searchsorted(ends, np.cumsum(sizes) - 1, side="right")
    found = []
    for row in range(len(ends)):
        inside = rows == row
        shares = np.asarray(sizes, float)[inside, None] / np.sum(np.asarray(sizes)[inside])
        found.append(discrete(law.values[inside].reshape(1, -1), (law.weights[inside] * shares).reshape(1, -1)))
    return joined_laws(found, law.parts) or law


def _law(found: Signal, parts: Sequence[Signal], whole: Sequence[Signal], axis: int) -> Law | None:
    """Return how the entries of each part are distributed, if all are known and only this axis has segments."""
    if found.gaussian or found.means.size != found.means.shape[axis]:
        return None
    if any(one.means.size != two.means.size for one, two in zip(parts, whole, strict=True)):
        return None
    images = [part.image for part in parts if part.image is not None and part.image.base is None]
    return joined_laws([marginal(part) for part in parts], images)


def _with_atom(signal: Signal, dim: int) -> Signal:
    """Give a dimension of length 1 an atom all the same, whose pairs that differ count nothing."""
    if signal.dims[dim]:
        return signal
    axis = sum(len(d) for d in signal.dims[:dim])
    moments, means = repeated(signal.moments, [(axis, 2)]), repeated(signal.means, [(axis, 1)])
    return replace(signal, dims=(*signal.dims[:dim], (Atom(1),), *signal.dims[dim + 1 :]), moments=moments, means=means)


def _between(
    parts: Sequence[Signal], a: tuple[int, int], b: tuple[int, int], axis: int, of: Sequence[Multiple]
) -> Array:
    """Return the moments of pairs whose indices lie in two segments, (part, its segment) each."""
    (i, s), (j, t) = a, b
    one, two = parts[i], parts[j]
    own = one.means.shape[axis]
    if of[i][0] == of[j][0] and of[i][1] != 0:
        ratio, apart = of[j][1] / of[i][1], one.moments.take(own + s * own + t, axis)
        if i == j or s != t:
            return np.asarray(ratio * apart)
        n = one.atoms[axis].patterns.parts[s]
        return np.asarray(ratio * (one.moments.take(s, axis) / n + apart * (1 - 1 / n)))
    if i == j:
        return np.asarray(one.moments.take(own + s * own + t, axis))
    atoms = [x for k, x in enumerate(one.atoms) if k != axis]
    first, second = np.asarray(one.means.take(s, axis)), np.asarray(two.means.take(t, axis))
    shape = tuple([x.segments * (1 + x.segments) for x in atoms])
    if not first.any() or not second.any():
        return np.zeros(shape)
    product = by_pattern(atoms, first) * by_pattern(atoms, second, second=True)
    return np.broadcast_to(product, shape)


def padded(signal: Signal, dim: int, before: int, after: int, value: float = 0.0) -> Signal:
    """Put a constant before and after; negative lengths take away.

    Args:
        signal: any signal.
        dim: the dimension.
        before: how many entries in front.
        after: how many behind.
        value: of them.

    >>> from initwell.propagate.moments.signal import independent
    >>> padded(independent((2, 3), 1.0), 0, 1, 1).q
    0.5
    """
    n = signal.shape[dim]
    if before < 0 or after < 0:
        signal = sliced(signal, dim, max(-before, 0), n - max(-after, 0))
    shapes = [tuple(k if d == dim else m for d, m in enumerate(signal.shape)) for k in (before, after)]
    ends = [[constant(shape, value)] if shape[dim] > 0 else [] for shape in shapes]
    return concatenated([*ends[0], signal, *ends[1]], dim)


def _filled(g: Signal, dim: int, start: int, length: int) -> Signal:
    """Put a gradient at ``start`` of a dimension of this length, zeros around it; inner atoms stay where they fit."""
    part = g.shape[dim]
    if len(g.dims[dim]) > 1 and part > 1 and length % part == 0 and start % part == 0:
        split = (*g.shape[:dim], 1, part, *g.shape[dim + 1 :])
        whole = padded(viewed(g, split), dim, start // part, length // part - 1 - start // part)
        return viewed(whole, (*g.shape[:dim], length, *g.shape[dim + 1 :]))
    return padded(g, dim, start, length - start - part)


def _beside(whole: Signal, g: Signal, dim: int) -> Signal:
    """Say that positions differ as those of the part do that is not 0, where another dimension was filled."""
    return replace(whole, profile=g.profile) if dim < len(whole.dims) - len(g.profile) else whole


def _select(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    dim, index = call["dim"] % len(x.dims), int(call["index"])
    return [selected(at_one_place(x, dim, index), dim, index)]


def at_one_place(x: Signal, dim: int, index: int) -> Signal:
    """Return a signal that one index is to be kept of.

    Raises:
        UnknowableError: some samples have one kind of row there and some another, or rows count as in another order.
    """
    parts = x.dims[dim][0].patterns.parts if len(x.dims[dim]) == 1 else ()
    if len(parts) > 1 and not {MOVED, MOVED_TO_END, IN_ORDER}.isdisjoint(x.reasons):
        first, last = index == 0, index in (-1, x.shape[dim] - 1)
        if not {MOVED, IN_ORDER}.isdisjoint(x.reasons) or not (first or last):
            raise UnknowableError("one place, at which some samples have rows that were written and others have not")
    return x


def bounds(call: Call, length: int) -> tuple[int, int, int]:
    """Return (start, stop, step) of a slice of a dimension of this length."""
    return slice(call["start"], call["end"], call["step"] or 1).indices(length)


def _unbind(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    dim = (call["dim"] or 0) % len(x.dims)
    return [selected(at_one_place(x, dim, i), dim, i) for i in range(len(call.op.outputs))]


def joined_tensors(call: Call) -> tuple[list[Signal], list[Multiple]]:
    """Return what is joined, but for tensors without entries, and what each is a multiple of."""
    refs = [ref for ref in call["tensors"] if isinstance(ref, ValueRef)]
    refs = [ref for ref in refs if 0 not in call.trace.values[ref.id].shape]
    return [call.of(ref) for ref in refs], [_multiple(call, ref.id) for ref in refs]


def _multiple(call: Call, value: int) -> Multiple:
    """Return the value that another is a multiple of, by minus signs and numbers that are the same everywhere."""
    factor = 1.0
    while (op := call.trace.producer(value)) is not None and not op.mutates:
        by = -1.0 if op.functional == "aten.neg" else None
        if op.functional == "aten.mul" and call.trace.values[op.inputs[0]].shape == call.trace.values[value].shape:
            other = op.arguments["other"]
            known = call.known.get(other.id) if isinstance(other, ValueRef) else None
            by = known.mean if known is not None and fixed(known) else other if isinstance(other, float) else None
        if by is None:
            break
        value, factor = op.inputs[0], factor * by
    return value, factor


def _stack(call: Call) -> Sequence[Signal]:
    parts, of = joined_tensors(call)
    dim = call["dim"] % (len(parts[0].dims) + 1)
    opened = [p.regrouped((*p.dims[:dim], (), *p.dims[dim:]), p.moments) for p in parts]
    swing, floor = sum(p.swing for p in parts) / len(parts), min(floor_of(p) for p in parts)
    return [replace(concatenated(opened, dim, of), swing=swing, floor=floor)]


def _slice_backward(call: Call) -> Sequence[Signal]:
    shape, part = call.shape(), call["grad_output"]
    if isinstance(part, ValueRef) and 0 in call.trace.values[part.id].shape:
        return [constant(shape, 0.0)]
    g = call.signal("grad_output")
    dim = call["dim"] % len(shape)
    start, stop, step = bounds(call, shape[dim])
    if step == 1:
        return [_beside(_filled(g, dim, start, shape[dim]), g, dim)]
    # Every step-th index of a stretch: its entries are zero or not by place, which is taken as chance.
    n, kept = stop - start, g.shape[dim]
    wide = padded(g, dim, 0, n - kept)
    axis = wide.axes([dim])[0]
    wide = merged(wide, axis, (0,) * wide.means.shape[axis])
    return [padded(wide, dim, start, shape[dim] - stop).approximate(UNLIKE)]


def _select_backward(call: Call) -> Sequence[Signal]:
    g, shape = call.signal("grad_output"), call.shape()
    dim = call["dim"] % len(shape)
    opened = g.regrouped((*g.dims[:dim], (), *g.dims[dim:]), g.moments)
    return [_beside(_filled(opened, dim, int(call["index"]) % shape[dim], shape[dim]), g, dim)]


def moved(signal: Signal) -> Signal:
    """Return a signal as that of its entries at other places: what they are functions of stands there, too.

    So h + h.flip(0) is no sum of two functions of one entry.
    """
    image = signal.image
    if image is not None:
        base = None if image.base is None else replace(image.base)
        image = Image(image.phi, replace(image.pre), base)
    return replace(signal, image=image, law=None, gates=())


def flipped(signal: Signal, dim: int) -> Signal:
    """Turn a dimension round: its segments come from the last to the first.

    >>> flipped(padded(constant((2,), 1.0), 0, 0, 3), 0).atoms[0].parts
    (3, 2)
    """
    for axis, atom in zip(signal.axes([dim]), signal.dims[dim], strict=True):
        if atom.parts:
            count = len(atom.parts)
            new = replace(atom, parts=atom.parts[::-1])
            order = np.arange(count)[::-1]
            places = count + order[new.patterns.first] * count + order[new.patterns.second]
            places[:count] = order
            atoms = tuple(new if i == axis else a for i, a in zip(signal.axes([dim]), signal.dims[dim], strict=True))
            dims = (*signal.dims[:dim], atoms, *signal.dims[dim + 1 :])
            signal = signal.regrouped(dims, signal.moments.take(places, axis), signal.means.take(order, axis))
    return signal


RULES: Mapping[str, Rule] = {
    "aten.select": _select,
    "aten.unbind": _unbind,
    "aten.stack": _stack,
    "aten.slice_backward": _slice_backward,
    "aten.select_backward": _select_backward,
}
