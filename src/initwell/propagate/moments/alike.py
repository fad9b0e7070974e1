"""Segments that are split further, or taken as alike: those that differ least where there are too many."""

from collections.abc import Sequence

import numpy as np

from initwell.propagate.moments.axes import Atom, Dims
from initwell.propagate.moments.remembered import Law
from initwell.propagate.moments.segments import MOST, Indices, merging, refinement
from initwell.propagate.moments.signal import Signal, replace

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
    dims = replaced_atoms(signal.dims, axis, 1, (replace(atom, parts=parts),))
    rows = np.arange(signal.means.size).reshape(signal.means.shape).take(old, axis).ravel()
    law = of_segments(signal.law, rows)
    moments, means = signal.moments.take(places, axis), signal.means.take(old, axis)
    return replace(signal, dims=dims, moments=moments, means=means, law=law)


def of_segments(law: Law | None, rows: Indices) -> Law | None:
    """Return the law of these segments, in this order."""
    if law is None:
        return None
    near = None if law.near is None else np.zeros(())
    fields = (law.values[rows], law.weights[rows], law.variance[rows])
    return Law(*fields, law.image, law.factor[rows], law.offset[rows], near, law.parts)


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
    merge = merging(atom.patterns.parts, tuple(groups))
    moments, means, parts = merge.moments(signal.moments, axis), merge.means(signal.means, axis), merge.parts
    new = replace(atom, parts=parts if len(parts) > 1 else ())
    dims = replaced_atoms(signal.dims, axis, 1, (new,))
    found = replace(signal, dims=dims, moments=moments, means=means, image=None, law=None, gates=())
    places, old = refinement(parts, atom.patterns.parts)
    there = atom.patterns.counts > 0
    scale = 1e-9 * max(abs(signal.q), 1e-300)
    lost = np.abs(moments.take(places, axis) - signal.moments).compress(there, axis).max()
    drift = np.abs(means.take(old, axis) - signal.means).max() ** 2
    return found, bool(lost <= scale and drift <= scale)


def plain(signal: Signal, *dims: int) -> Signal:
    """Take all segments along these dimensions as alike; marked approximate unless they are.

    >>> from initwell.propagate.moments.signal import independent
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


def bounded(signal: Signal) -> Signal:
    """Settle every axis of more than ``MOST`` segments, as where gradients of very many slices were added up."""
    for axis, atom in enumerate(signal.atoms):
        if len(atom.parts) > MOST:
            signal = settled(signal, axis)
    return signal


def _alike(signal: Signal, axis: int, place: int) -> bool:
    one, two = (signal.diagonal.take(i, axis) for i in (place, place + 1))
    return bool((np.abs(one - two) <= 1e-8 * np.abs(two) + 1e-10 * abs(signal.q)).all())


def replaced_atoms(dims: Dims, axis: int, count: int, parts: tuple[Atom, ...]) -> Dims:
    """Return dimensions with other atoms in place of some.

    Args:
        dims: of a signal.
        axis: the first atom that goes.
        count: how many go, all of one dimension.
        parts: what comes in their place.
    """
    found, start = [], 0
    for dim in dims:
        here = axis - start
        inside = here >= 0 and here + count <= len(dim)
        found.append((*dim[:here], *parts, *dim[here + count :]) if inside else dim)
        start += len(dim)
    return tuple(found)
