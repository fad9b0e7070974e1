"""Reshapes on atoms: cutting, joining, matching; exact wherever lengths divide one another."""

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from initwell.errors import ShapeError
from initwell.propagate.moments.alike import merged, of_segments, refined, replaced_atoms
from initwell.propagate.moments.axes import Atom, Dims
from initwell.propagate.moments.segments import Array, Indices, common, patterns, repeated
from initwell.propagate.moments.signal import Signal, replace

_JOINED = "a reshape across axes whose lengths do not divide one another: their moments were averaged"
# An atom whose segments end amid blocks is cut into cells of so many kinds; beyond that, segments are taken as alike.
_CELLS = 6
# Those whose squares differ by no more than this factor are so anyway: what is no padding with zeros.
_UNLIKE = 4.0
# And so are those of which two entries go together by no more than this much more, of E[x²].
_LIKER = 0.5


def cut(signal: Signal, axis: int, inner: int) -> Signal:
    """Cut one atom into (outer, inner); exact, as indices agree on it when they agree on both parts.

    Args:
        signal: any signal.
        axis: which of its atoms.
        inner: length of the inner part; divides the atom's.

    Returns:
        The same signal with one atom more.

    >>> from initwell.propagate.moments.signal import independent
    >>> cut(independent((12,), 1.0), 0, 4).moments.tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    atom = signal.atoms[axis]
    if any(n % inner for n in atom.parts):
        # Where all that are unlike make too many cells, those of unlike squares alone.
        for unlike in ((_UNLIKE, _LIKER), (_UNLIKE, math.inf)):
            found = merged(signal, axis, _groups(signal, axis, inner, *unlike))
            blocks, within = _crossings(found.atoms[axis].patterns.parts, inner)
            if len(within) > 1 and len(blocks) * len(within) <= _CELLS:
                return _cut_across(found, axis, blocks, within)
        signal = merged(found, axis, _groups(found, axis, inner, math.inf, math.inf))
        atom = signal.atoms[axis]
    outer = replace(atom, size=atom.size // inner, parts=tuple(n // inner for n in atom.parts), slots=None)
    moments = signal.moments.take(_cut_patterns(outer.segments), axis)
    means = repeated(signal.means, [(axis + 1, 1)])
    dims = replaced_atoms(signal.dims, axis, 1, (outer, Atom(inner, atom.sample, follows=atom.follows)))
    return replace(signal, dims=dims, moments=moments, means=means)


@cache
def _cut_patterns(segments: int) -> Indices:
    """Return by pattern of the outer part, and by whether the inner ones differ, the pattern of the whole."""
    s = segments
    found = np.stack([np.arange(s + s * s)] * 2, 1)
    found[:s, 1] = s + np.arange(s) * (s + 1)
    return found


def _groups(signal: Signal, axis: int, inner: int, unlike: float, liker: float) -> list[int]:
    """Group neighbouring segments whose border lies amid a block, unless they are unlike.

    Args:
        signal: any signal.
        axis: which of its atoms.
        inner: length of a block.
        unlike: the factor between squares beyond which they are.
        liker: how much more two entries of the one may have in common than two of the other, of E[x²]: what stands at
            padding after a layer of attention is the same everywhere.
    """
    count, ends = signal.means.shape[axis], np.cumsum(signal.atoms[axis].patterns.parts)
    sizes = signal.diagonal.swapaxes(0, axis).reshape(count, -1).mean(axis=1)
    low, high = np.minimum(sizes[1:], sizes[:-1]), np.maximum(sizes[1:], sizes[:-1])
    kept = (ends[:-1] % inner == 0) | (high > unlike * np.maximum(low, 1e-300))
    if math.isfinite(liker):
        kept = kept | (np.abs(np.diff(_likeness(signal, axis, sizes))) > liker)
    return [0, *np.cumsum(kept).tolist()]


def _likeness(signal: Signal, axis: int, sizes: Array) -> Array:
    """Return by segment how far two of its entries are the same: E[x x'] over E[x²], 0 where that is 0."""
    count = len(sizes)
    own = count + np.arange(count) * (count + 1)
    others = tuple(slice(n) for i, n in enumerate(signal.means.shape) if i != axis)
    pairs = np.moveaxis(signal.moments.take(own, axis), axis, -1)[others].reshape(-1, count).mean(axis=0)
    return np.asarray(np.where(sizes > 0, pairs / np.maximum(sizes, 1e-300), 0.0))


def _crossings(parts: Sequence[int], inner: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the segments of both parts of an atom that is cut, so that each cell lies within one old segment.

    A border amid a block of ``inner`` is one within blocks, and makes that block a segment of its own: windows of 7
    over 16 rows and 5 of padding are two whole ones and one of 2 rows and 5 of padding.

    >>> _crossings((16, 5), 7)
    ((2, 1), (2, 5))
    """
    ends = list(accumulate(parts))
    blocks = sorted({end // inner for end in ends} | {-(-end // inner) for end in ends} | {0})
    offsets = sorted({end % inner for end in ends} | {0, inner})
    return tuple(b - a for a, b in pairwise(blocks)), tuple(b - a for a, b in pairwise(offsets))


def _cut_across(signal: Signal, axis: int, outer: tuple[int, ...], within: tuple[int, ...]) -> Signal:
    """Cut an atom into two of these segments, each cell of which lies within one of its own."""
    atom, inner = signal.atoms[axis], sum(within)
    starts = np.array([0, *accumulate(outer)][:-1])[:, None] * inner + np.array([0, *accumulate(within)][:-1])
    cells, s = np.searchsorted(np.cumsum(atom.parts), starts, side="right"), len(atom.parts)
    one, two = patterns(outer), patterns(within)
    first, second = cells[np.ix_(one.first, two.first)], cells[np.ix_(one.second, two.second)]
    places = s + first * s + second
    places[: len(outer), : len(within)] = first[: len(outer), : len(within)]
    moments = signal.moments.take(places, axis)
    atoms = (
        replace(atom, size=sum(outer), parts=outer if len(outer) > 1 else ()),
        Atom(inner, atom.sample, within if len(within) > 1 else (), follows=atom.follows),
    )
    dims = replaced_atoms(signal.dims, axis, 1, atoms)
    return replace(signal, dims=dims, moments=moments, means=signal.means.take(cells, axis))


def joined(signal: Signal, axis: int) -> Signal:
    """Join an atom with the next one: "differ" becomes the average over the pairs that differ in either.

    Of segments, a single block's inner ones stay, and several blocks that are alike become one.

    Args:
        signal: any signal.
        axis: the outer of two atoms of the same dimension.

    Returns:
        The signal with one atom less, marked approximate unless nothing was lost.

    >>> from initwell.propagate.moments.signal import independent
    >>> joined(cut(independent((12,), 1.0, 0.5), 0, 4), 0).moments.tolist()
    [1.0, 0.25]
    """
    outer, inner = signal.atoms[axis], signal.atoms[axis + 1]
    one, two = outer.patterns, inner.patterns
    parts, cells = _blocks(one.parts, two.parts)
    s, agree = len(parts), (len(one.parts), len(two.parts))
    first, second = cells[np.ix_(one.first, two.first)], cells[np.ix_(one.second, two.second)]
    places = s + first * s + second
    places[: agree[0], : agree[1]] = first[: agree[0], : agree[1]]
    counts = np.outer(one.counts, two.counts)
    found, there = _over_places(signal.moments, axis, places, counts, s * (s + 1))
    whole = patterns(parts)
    # A segment of length 1 has no pair that differs within it.
    found = np.where(there.reshape(-1, *[1] * (found.ndim - 1)), found, found[whole.first])
    lost = np.abs(found[places] - np.moveaxis(signal.moments, (axis, axis + 1), (0, 1)))[counts > 0].max(initial=0.0)
    lengths = np.outer(one.parts, two.parts).astype(float)
    means, _ = _over_places(signal.means, axis, cells, lengths, s)
    other = {s.value: s.strength for s in inner.follows}
    follows = tuple(s.of((s.strength + other[s.value]) / 2) for s in outer.follows if s.value in other)
    atom = Atom(outer.size * inner.size, outer.sample or inner.sample, parts if s > 1 else (), follows)
    dims = replaced_atoms(signal.dims, axis, 2, (atom,))
    whole_moments, whole_means = np.moveaxis(found, 0, axis), np.moveaxis(means, 0, axis)
    made = replace(signal, dims=dims, moments=np.ascontiguousarray(whole_moments), means=whole_means)
    lossless = lost <= 1e-5 * abs(signal.q) + 1e-8
    return made if lossless else made.approximate(_JOINED)


def _blocks(outer: Sequence[int], inner: Sequence[int]) -> tuple[tuple[int, ...], Indices]:
    """Return the segments of two joined atoms, and which of them each of their cells is in."""
    parts, cells = list[int](), np.zeros((len(outer), len(inner)), dtype=np.int64)
    for place, blocks in enumerate(outer):
        apart = blocks == 1 and len(inner) > 1
        cells[place] = len(parts) + (np.arange(len(inner)) if apart else 0)
        parts += inner if apart else [blocks * sum(inner)]
    return tuple(parts), cells


def _over_places(
    array: Array, axis: int, places: Indices, weights: Array, count: int
) -> tuple[Array, NDArray[np.bool_]]:
    """Average two neighbouring axes of an array by place, in front; and say which places there are."""
    moved = np.moveaxis(array, (axis, axis + 1), (0, 1))
    flat = (moved * weights.reshape(*weights.shape, *[1] * (moved.ndim - 2))).reshape(weights.size, -1)
    sums = np.zeros((count, flat.shape[1]))
    np.add.at(sums, places.ravel(), flat)
    totals = np.bincount(places.ravel(), weights.ravel(), count)
    found = sums / np.where(totals > 0, totals, 1.0)[:, None]
    return found.reshape(count, *moved.shape[2:]), totals > 0


def viewed(signal: Signal, shape: Sequence[int]) -> Signal:
    """Show the same entries, in the same order, under another shape.

    Args:
        signal: any signal.
        shape: with the same number of entries; one length may be -1.

    Returns:
        The signal with its atoms regrouped, cut where a dimension needs a part of one.

    Raises:
        ShapeError: the number of entries is another.

    >>> from initwell.propagate.moments.signal import independent
    >>> [len(dim) for dim in viewed(independent((8, 16, 64), 1.0), (128, 4, 16)).dims]
    [2, 1, 1]
    """
    lengths = _lengths(signal.shape, tuple(shape))
    if lengths == signal.shape:
        return signal
    steps, ends = _regrouping(tuple([a.size for a in signal.atoms]), lengths)
    flat = replace(signal, dims=(signal.atoms,)) if steps else signal
    for axis, inner in steps:
        flat = cut(flat, axis, inner) if inner else joined(flat, axis)
    atoms = flat.atoms
    return flat.regrouped(tuple([atoms[a:b] for a, b in pairwise(ends)]), flat.moments, flat.means, lengths)


@lru_cache(maxsize=4096)
def _lengths(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    total = math.prod(old)
    lengths = tuple([n if n >= 0 else total // -math.prod(new) for n in new])
    if math.prod(lengths) != total:
        raise ShapeError("shape", f"{new} for {old}", "A view keeps the number of entries.")
    return lengths


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
    axes, dims, shape = signal.axes(order), signal.dims, signal.shape
    moments, means = signal.moments.transpose(axes), signal.means.transpose(axes)
    return signal.regrouped(tuple([dims[d] for d in order]), moments, means, tuple([shape[d] for d in order]))


def expanded(signal: Signal, shape: Sequence[int], like: Signal | None = None) -> Signal:
    """Repeat along new dimensions in front and along those of length 1: an axis whose "differ" equals its "agree".

    Args:
        signal: any signal.
        shape: the whole new shape; -1 keeps a length.
        like: a signal whose atoms new dimensions get, where it has them.

    Returns:
        The signal with one atom for each dimension that is new, or those of ``like``.

    >>> from initwell.propagate.moments.signal import independent
    >>> expanded(independent((4,), 1.0), (3, 4)).moments.tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """
    if signal.shape == tuple(shape):
        return signal
    extra = len(shape) - len(signal.dims)
    given = ((),) * (len(shape) - len(like.dims)) + like.dims if like is not None else ((),) * len(shape)
    dims: list[tuple[Atom, ...]] = []
    place, new = 0, list[tuple[int, int]]()
    for i, length in enumerate(shape):
        old = signal.dims[i - extra] if i >= extra else ()
        if not old and length > 1:
            old = tuple([x.following(()) if x.follows else x for x in given[i]]) or (Atom(length),)
            new += [(axis, atom.segments) for axis, atom in enumerate(old, place)]
        dims.append(old)
        place += len(old)
    if tuple(dims) == signal.dims:
        return signal
    moments = repeated(signal.moments, [(axis, n + n * n) for axis, n in new])
    found = signal.regrouped(tuple(dims), moments, repeated(signal.means, new))
    if found.law is None:
        return found
    rows = np.arange(signal.means.size).reshape(signal.means.shape)
    return replace(found, law=of_segments(found.law, repeated(rows, new).ravel()))


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
    if [x.sample for x in one.atoms] != [x.sample for x in two.atoms]:
        one, two = replace(one, dims=_sampled(one.dims, two.dims)), replace(two, dims=_sampled(two.dims, one.dims))
    return _remembered(one, a, two), _remembered(two, b, one)


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
