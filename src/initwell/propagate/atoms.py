"""Reshapes on atoms: cutting, joining, matching; exact wherever lengths divide one another."""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from initwell.errors import ShapeError
from initwell.propagate.segments import MOST, common, merging, refinement
from initwell.propagate.signal import Atom, Dims, Signal, replace

_JOINED = "a reshape across axes whose lengths do not divide one another: their moments were averaged"
UNLIKE = "parts of unlike size along one axis, taken as alike"


def refined(signal: Signal, axis: int, parts: tuple[int, ...]) -> Signal:
    """Split the segments of an atom further; nothing changes but the bookkeeping.

    Args:
        signal: any signal.
        axis: which of its atoms.
        parts: lengths of the new segments; every old border is among theirs.
    """
    atom = signal.atoms[axis]
    if (atom.parts or (atom.size,)) == parts:
        return signal
    places, old = refinement(atom.patterns.parts, parts)
    dims = _replaced(signal.dims, axis, 1, (replace(atom, parts=parts),))
    return replace(signal, dims=dims, moments=signal.moments.take(places, axis), means=signal.means.take(old, axis))


def merged(signal: Signal, axis: int, groups: Sequence[int]) -> Signal:
    """Take neighbouring segments of an atom as alike; marked approximate unless they are.

    Args:
        signal: any signal.
        axis: which of its atoms.
        groups: for each segment, the number of its new one: 0, 0, 1, …

    Returns:
        The signal with averages over what was merged; without what it remembered, unless nothing was merged.
    """
    if groups[-1] == len(groups) - 1:
        return signal
    found, lossless = _merged(signal, axis, groups)
    return found if lossless else found.approximate(UNLIKE)


def _merged(signal: Signal, axis: int, groups: Sequence[int]) -> tuple[Signal, bool]:
    atom = signal.atoms[axis]
    merge = merging(atom.patterns.parts, groups)
    moments, means, parts = merge.moments(signal.moments, axis), merge.means(signal.means, axis), merge.parts
    new = replace(atom, parts=parts if len(parts) > 1 else ())
    dims = _replaced(signal.dims, axis, 1, (new,))
    found = replace(signal, dims=dims, moments=moments, means=means, image=None, law=None, gates=())
    places, old = refinement(parts, atom.patterns.parts)
    there = atom.patterns.counts > 0
    scale = 1e-9 * max(abs(signal.q), 1e-300)
    lost = np.abs(moments.take(places, axis) - signal.moments).compress(there, axis).max()
    drift = np.abs(means.take(old, axis) - signal.means).max() ** 2
    return found, bool(lost <= scale and drift <= scale)


def plain(signal: Signal, *dims: int) -> Signal:
    """Take all segments along these dimensions as alike; marked approximate unless they are.

    >>> from initwell.propagate.signal import independent
    >>> plain(refined(independent((4,), 1.0), 0, (1, 3)), 0).fidelity
    'exact'
    """
    for axis in signal.axes(dims) if signal.segmented else ():
        signal = merged(signal, axis, (0,) * signal.means.shape[axis])
    return signal


def settled(signal: Signal, axis: int) -> Signal:
    """Merge neighbouring segments that are alike, and, beyond ``segments.MOST``, those that differ least.

    Args:
        signal: any signal.
        axis: which of its atoms.

    Returns:
        The signal with at most ``MOST`` segments there; marked approximate where unlike ones were merged.
    """
    place = 0
    while place < signal.means.shape[axis] - 1:
        found, lossless = signal, False
        if _alike(signal, axis, place):
            groups = [i - (i > place) for i in range(signal.means.shape[axis])]
            found, lossless = _merged(signal, axis, groups)
        signal, place = (found, place) if lossless else (signal, place + 1)
    while (count := signal.means.shape[axis]) > MOST:
        sizes = np.sqrt(signal.diagonal.swapaxes(0, axis).reshape(count, -1).mean(axis=1))
        place = int(np.argmin(np.abs(np.diff(sizes))))
        signal = merged(signal, axis, [i - (i > place) for i in range(count)])
    return signal


def _alike(signal: Signal, axis: int, place: int) -> bool:
    one, two = (signal.diagonal.take(i, axis) for i in (place, place + 1))
    return bool(np.allclose(one, two, rtol=1e-8, atol=1e-10 * abs(signal.q)))


def cut(signal: Signal, axis: int, inner: int) -> Signal:
    """Cut one atom into (outer, inner); exact, as indices agree on it when they agree on both parts.

    Args:
        signal: any signal.
        axis: which of its atoms.
        inner: length of the inner part; divides the atom's.

    Returns:
        The same signal with one atom more.

    >>> from initwell.propagate.signal import independent
    >>> cut(independent((12,), 1.0), 0, 4).moments.tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    atom = signal.atoms[axis]
    if any(n % inner for n in atom.parts):
        ends = np.cumsum(atom.parts)
        groups = np.concatenate([[0], np.cumsum(ends[:-1] % inner == 0)])
        signal = merged(signal, axis, [int(i) for i in groups])
        atom = signal.atoms[axis]
    outer = replace(atom, size=atom.size // inner, parts=tuple(n // inner for n in atom.parts), slots=None)
    s = len(outer.patterns.parts)
    other = np.arange(s + s * s)
    other[:s] = s + np.arange(s) * (s + 1)
    moments = np.stack([signal.moments, signal.moments.take(other, axis)], axis + 1)
    means = np.expand_dims(signal.means, axis + 1)
    dims = _replaced(signal.dims, axis, 1, (outer, Atom(inner, atom.sample, follows=atom.follows)))
    return replace(signal, dims=dims, moments=moments, means=means)


def joined(signal: Signal, axis: int) -> Signal:
    """Join an atom with the next one: "differ" becomes the average over the pairs that differ in either.

    Args:
        signal: any signal.
        axis: the outer of two atoms of the same dimension.

    Returns:
        The signal with one atom less, marked approximate unless nothing was lost.

    >>> from initwell.propagate.signal import independent
    >>> joined(cut(independent((12,), 1.0, 0.5), 0, 4), 0).moments.tolist()
    [1.0, 0.25]
    """
    for place in (axis, axis + 1):
        signal = merged(signal, place, (0,) * signal.means.shape[place])
    outer, inner = signal.atoms[axis], signal.atoms[axis + 1]
    m = np.moveaxis(signal.moments, (axis, axis + 1), (0, 1))
    one, two = outer.size - 1, inner.size - 1
    differ = (m[1, 0] * one + m[0, 1] * two + m[1, 1] * one * two) / (one + two + one * two)
    lossless = np.allclose(m[1, 0], m[1, 1]) and np.allclose(m[0, 1], m[1, 1])
    other = {s.value: s.strength for s in inner.follows}
    follows = tuple(replace(s, strength=(s.strength + other[s.value]) / 2) for s in outer.follows if s.value in other)
    atom = Atom(outer.size * inner.size, outer.sample or inner.sample, follows=follows)
    dims = _replaced(signal.dims, axis, 2, (atom,))
    means = np.asarray(signal.means.take(0, axis + 1))
    found = replace(signal, dims=dims, moments=np.stack([m[0, 0], differ], axis), means=means)
    return found if lossless else found.approximate(_JOINED)


def _replaced(dims: Dims, axis: int, count: int, parts: tuple[Atom, ...]) -> Dims:
    found, start = [], 0
    for dim in dims:
        here = axis - start
        inside = here >= 0 and here + count <= len(dim)
        found.append((*dim[:here], *parts, *dim[here + count :]) if inside else dim)
        start += len(dim)
    return tuple(found)


def viewed(signal: Signal, shape: Sequence[int]) -> Signal:
    """Show the same entries, in the same order, under another shape.

    Args:
        signal: any signal.
        shape: with the same number of entries; one length may be -1.

    Returns:
        The signal with its atoms regrouped, cut where a dimension needs a part of one.

    Raises:
        ShapeError: the number of entries is another.

    >>> from initwell.propagate.signal import independent
    >>> [len(dim) for dim in viewed(independent((8, 16, 64), 1.0), (128, 4, 16)).dims]
    [2, 1, 1]
    """
    total = math.prod(signal.shape)
    lengths = [n if n >= 0 else total // -math.prod(shape) for n in shape]
    if math.prod(lengths) != total:
        raise ShapeError("shape", f"{tuple(shape)} for {signal.shape}", "A view keeps the number of entries.")
    if tuple(lengths) == signal.shape:
        return signal
    steps, ends = _regrouping(tuple([a.size for a in signal.atoms]), tuple(lengths))
    flat = replace(signal, dims=(signal.atoms,)) if steps else signal
    for axis, inner in steps:
        flat = cut(flat, axis, inner) if inner else joined(flat, axis)
    atoms = flat.atoms
    return flat.regrouped(tuple([atoms[a:b] for a, b in pairwise(ends)]), flat.moments, flat.means)


@lru_cache(maxsize=4096)
def _regrouping(sizes: Sequence[int], lengths: Sequence[int]) -> tuple[Sequence[tuple[int, int]], Sequence[int]]:
    """Say how to make atoms of these sizes into groups of these lengths.

    Returns:
        Steps, (which atom to cut, its inner length) or (which to join with the next, 0); and where the groups end.
    """
    left, steps, ends = list(sizes), list[tuple[int, int]](), [0]
    for length in lengths:
        start = place = ends[-1]
        have = 1
        while have < length:
            size, need = left[place], length // have
            if length % have == 0 and size <= need and need % size == 0:
                have, place = have * size, place + 1
            elif length % have == 0 and size > need and size % need == 0:
                steps.append((place, size // need))
                left[place : place + 1] = [need, size // need]
            else:
                outer = max(place - 1, start)
                steps.append((outer, 0))
                left[outer : outer + 2] = [left[outer] * left[outer + 1]]
                have, place = 1, start
        ends.append(place)
    return tuple(steps), tuple(ends)


def permuted(signal: Signal, order: Sequence[int]) -> Signal:
    """Permute the dimensions: ``order[i]`` is the old place of the new dimension i."""
    axes = signal.axes(order)
    dims = tuple(signal.dims[d] for d in order)
    return signal.regrouped(dims, signal.moments.transpose(axes), signal.means.transpose(axes))


def expanded(signal: Signal, shape: Sequence[int], like: Signal | None = None) -> Signal:
    """Repeat along new dimensions in front and along those of length 1: an axis whose "differ" equals its "agree".

    Args:
        signal: any signal.
        shape: the whole new shape; -1 keeps a length.
        like: a signal whose atoms new dimensions get, where it has them.

    Returns:
        The signal with one atom for each dimension that is new, or those of ``like``.

    >>> from initwell.propagate.signal import independent
    >>> expanded(independent((4,), 1.0), (3, 4)).moments.tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """
    extra = len(shape) - len(signal.dims)
    given = ((),) * (len(shape) - len(like.dims)) + like.dims if like is not None else ((),) * len(shape)
    dims: list[tuple[Atom, ...]] = []
    moments, means = signal.moments, signal.means
    for i, length in enumerate(shape):
        old = signal.dims[i - extra] if i >= extra else ()
        if not old and length > 1:
            old = tuple([replace(x, follows=()) if x.follows else x for x in given[i]]) or (Atom(length),)
            for axis, atom in enumerate(old, sum(map(len, dims))):
                moments = np.repeat(np.expand_dims(moments, axis), atom.patterns.counts.size, axis)
                means = np.repeat(np.expand_dims(means, axis), len(atom.patterns.parts), axis)
        dims.append(old)
    return signal.regrouped(tuple(dims), moments, means) if tuple(dims) != signal.dims else signal


def matched(a: Signal, b: Signal, pairs: Sequence[tuple[int, int]]) -> tuple[Signal, Signal]:
    """Cut the atoms of paired dimensions, of equal lengths, until both have the same.

    Args:
        a: one signal.
        b: another.
        pairs: (dimension of a, dimension of b).

    Returns:
        Both, atoms and segments of paired dimensions alike; joined instead where their cuts do not nest.

    Raises:
        ShapeError: paired dimensions of unequal lengths.
    """
    for da, db in pairs:
        if a.shape[da] != b.shape[db]:
            cure = "Contracted, batched and added dimensions must have equal lengths."
            raise ShapeError("shapes", f"{a.shape} dim {da} and {b.shape} dim {db}", cure)
        if a.dims[da] == b.dims[db]:
            continue
        cuts = sorted(_inner_lengths(a.dims[da]) | _inner_lengths(b.dims[db]))
        if any(large % small for small, large in pairwise(cuts)):
            cuts = []
        a, b = _recut(a, da, cuts), _recut(b, db, cuts)
        for i, j in zip(a.axes([da]), b.axes([db]), strict=True) if a.segmented or b.segmented else ():
            parts = common(a.atoms[i].patterns.parts, b.atoms[j].patterns.parts)
            a, b = refined(a, i, parts), refined(b, j, parts)
    return a, b


def _inner_lengths(dim: tuple[Atom, ...]) -> set[int]:
    return {math.prod(x.size for x in dim[i:]) for i in range(1, len(dim))}


def _recut(signal: Signal, dim: int, cuts: Sequence[int]) -> Signal:
    while not cuts and len(signal.dims[dim]) > 1:
        signal = joined(signal, signal.axes([dim])[0])
    for length in cuts:
        inner = 1
        for place in range(len(signal.dims[dim]) - 1, -1, -1):
            size = signal.dims[dim][place].size
            if inner < length < inner * size:
                signal = cut(signal, signal.axes([dim])[place], length // inner)
                break
            inner *= size
    return signal


def together(a: Signal, b: Signal, shape: Sequence[int]) -> tuple[Signal, Signal]:
    """Broadcast two signals to one shape with the same atoms; an atom of either that counts samples does so in both.

    Args:
        a: one signal.
        b: another.
        shape: that both can be broadcast to.

    Raises:
        ShapeError: their lengths do not fit each other.
    """
    if a.dims == b.dims and a.shape == tuple(shape) and [x.sample for x in a.atoms] == [x.sample for x in b.atoms]:
        return a, b
    one, two = matched(expanded(a, shape, b), expanded(b, shape, a), [(d, d) for d in range(len(shape))])
    first, second = replace(one, dims=_sampled(one.dims, two.dims)), replace(two, dims=_sampled(two.dims, one.dims))
    return _remembered(first, a, second), _remembered(second, b, first)


def _remembered(cut: Signal, whole: Signal, other: Signal) -> Signal:
    """Let a value that was cut finer be the same object each time, and a function of what it was a function of.

    Args:
        cut: the value with finer atoms.
        whole: the value as it was.
        other: of the same atoms as ``cut``.
    """
    if cut.shape != whole.shape:
        return cut
    if cut.dims == whole.dims:
        return whole if [x.sample for x in cut.atoms] == [x.sample for x in whole.atoms] else cut
    image = whole.image
    if image is None:
        return whole.cuts.setdefault(cut.dims, cut)
    if image.base is not None or image.pre.dims != whole.dims:
        return cut
    return replace(cut, image=replace(image, pre=together(image.pre, other, cut.shape)[0]))


def _sampled(dims: Dims, others: Dims) -> Dims:
    return tuple(
        tuple([replace(x, sample=True) if y.sample and not x.sample else x for x, y in zip(p, q, strict=True)])
        for p, q in zip(dims, others, strict=True)
    )
