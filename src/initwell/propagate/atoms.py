"""Reshapes on atoms: cutting, joining, matching; exact wherever lengths divide one another."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from initwell.errors import ShapeError
from initwell.propagate.signal import Array, Atom, Dims, Signal

_JOINED = "a reshape across axes whose lengths do not divide one another: their moments were averaged"


def cut(signal: Signal, axis: int, inner: int) -> Signal:
    """Cut one atom into (outer, inner); exact, as indices agree on it when they agree on both parts.

    Args:
        signal: any signal.
        axis: which of its atoms.
        inner: length of the inner part; divides the atom's.

    Returns:
        The same signal with one atom more.
    """
    atom = signal.atoms[axis]
    agree, differ = (signal.moments.take(i, axis) for i in (0, 1))
    moments = np.stack([np.stack([agree, differ], axis), np.stack([differ, differ], axis)], axis)
    parts = (Atom(atom.size // inner, atom.sample), Atom(inner, atom.sample))
    return replace(signal, dims=_replaced(signal.dims, axis, 1, parts), moments=moments)


def joined(signal: Signal, axis: int) -> Signal:
    """Join an atom with the next one: "differ" becomes the average over the pairs that differ in either.

    Args:
        signal: any signal.
        axis: the outer of two atoms of the same dimension.

    Returns:
        The signal with one atom less, marked approximate unless nothing was lost.
    """
    outer, inner = signal.atoms[axis], signal.atoms[axis + 1]
    m = np.moveaxis(signal.moments, (axis, axis + 1), (0, 1))
    one, two = outer.size - 1, inner.size - 1
    differ = (m[1, 0] * one + m[0, 1] * two + m[1, 1] * one * two) / (one + two + one * two)
    lossless = np.allclose(m[1, 0], m[1, 1]) and np.allclose(m[0, 1], m[1, 1])
    atom = Atom(outer.size * inner.size, outer.sample or inner.sample)
    dims = _replaced(signal.dims, axis, 2, (atom,))
    found = replace(signal, dims=dims, moments=np.stack([m[0, 0], differ], axis))
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
    """
    total = math.prod(signal.shape)
    lengths = [n if n >= 0 else total // -math.prod(shape) for n in shape]
    if math.prod(lengths) != total:
        raise ShapeError("shape", f"{tuple(shape)} for {signal.shape}", "A view keeps the number of entries.")
    if tuple(lengths) == signal.shape:
        return signal
    flat = replace(signal, dims=(signal.atoms,))
    groups: list[int] = []
    done = 0
    for length in lengths:
        flat, count = _taken(flat, done, length)
        groups.append(count)
        done += count
    ends = np.cumsum([0, *groups])
    atoms = flat.atoms
    return _renamed(flat, signal).regrouped(tuple(atoms[a:b] for a, b in pairwise(ends)), flat.moments)


def _renamed(flat: Signal, signal: Signal) -> Signal:
    return replace(signal, dims=flat.dims, moments=flat.moments, fidelity=flat.fidelity, reasons=flat.reasons)


def _taken(flat: Signal, start: int, length: int) -> tuple[Signal, int]:
    """Make the atoms from ``start`` on begin with a group of ``length`` entries; return how many atoms that is."""
    count, have = 0, 1
    while have < length:
        size = flat.atoms[start + count].size
        need = length // have
        if length % have == 0 and size <= need and need % size == 0:
            have, count = have * size, count + 1
        elif length % have == 0 and size > need and size % need == 0:
            flat = cut(flat, start + count, size // need)
        else:
            flat = joined(flat, start + count) if count == 0 else joined(flat, start + count - 1)
            have, count = 1, 0
    return flat, count


def permuted(signal: Signal, order: Sequence[int]) -> Signal:
    """Permute the dimensions: ``order[i]`` is the old place of the new dimension i."""
    moments = signal.moments.transpose(signal.axes(order))
    return signal.regrouped(tuple(signal.dims[d] for d in order), moments)


def expanded(signal: Signal, shape: Sequence[int]) -> Signal:
    """Repeat along new dimensions in front and along those of length 1: an axis whose "differ" equals its "agree".

    Args:
        signal: any signal.
        shape: the whole new shape; -1 keeps a length.
    """
    extra = len(shape) - len(signal.dims)
    dims: list[tuple[Atom, ...]] = []
    moments = signal.moments
    for i, length in enumerate(shape):
        old = signal.dims[i - extra] if i >= extra else ()
        if not old and length > 1:
            moments = np.repeat(np.expand_dims(moments, axis := sum(map(len, dims))), 2, axis)
            old = (Atom(length),)
        dims.append(old)
    return signal.regrouped(tuple(dims), moments) if tuple(dims) != signal.dims else signal


def matched(a: Signal, b: Signal, pairs: Sequence[tuple[int, int]]) -> tuple[Signal, Signal]:
    """Cut the atoms of paired dimensions, of equal lengths, until both have the same.

    Args:
        a: one signal.
        b: another.
        pairs: (dimension of a, dimension of b).
    """
    for da, db in pairs:
        if a.shape[da] != b.shape[db]:
            cure = "Contracted, batched and added dimensions must have equal lengths."
            raise ShapeError("shapes", f"{a.shape} dim {da} and {b.shape} dim {db}", cure)
        cuts = sorted(_inner_lengths(a.dims[da]) | _inner_lengths(b.dims[db]))
        if any(large % small for small, large in pairwise(cuts)):
            cuts = []
        a, b = _recut(a, da, cuts), _recut(b, db, cuts)
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
    """Broadcast two signals to one shape with the same atoms."""
    a, b = matched(expanded(a, shape), expanded(b, shape), [(d, d) for d in range(len(shape))])
    dims = tuple(
        tuple(Atom(x.size, x.sample or y.sample) for x, y in zip(p, q, strict=True))
        for p, q in zip(a.dims, b.dims, strict=True)
    )
    return replace(a, dims=dims), replace(b, dims=dims)


def totals(moments: Array, axes: Sequence[int], sizes: Sequence[int]) -> Array:
    """Average ``moments`` over all pairs along several axes, keeping them with length 1."""
    for axis, size in zip(axes, sizes, strict=True):
        agree, differ = moments.take([0], axis), moments.take([1], axis)
        moments = agree / size + differ * (1 - 1 / size)
    return moments
