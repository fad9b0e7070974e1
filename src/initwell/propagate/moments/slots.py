"""The experts that tokens are sent to, and the pairs of rows that one of them, or two, see.

A router sends each of N tokens to k of E experts; all that follows has a row for each of these N·k, whether in the
tokens' order or sorted by expert: a sort gives rows other places, and as rows are told apart by token and expert it
changes nothing here. The atom that counts a token's k experts is read otherwise than others: rows *agree* along it
where they went to one expert, and differ where they went to two, so that weights looked up by expert are

    moments(W by row)[tokens, slot, rest] = moments(W)[slot, rest]

and values behind them are functions of Gaussians that each pair of rows has for itself. Two slots of one token are two
experts. Of two tokens k² pairs of rows meet, and a share s of them has one expert: about 1/E for tokens that have
nothing in common, 1/k for equal ones; see ``choices``. What sums over slots, or over all rows of an expert, counts so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace

_APART = "rows of experts whose tokens were put together otherwise: pairs with one expert taken as equally frequent"


@dataclass(frozen=True, eq=False)
class Slots:
    """How often two rows have one expert.

    Attributes:
        experts: E.
        tokens: lengths of the tokens' atoms.
        same: by whether two tokens agree in each of these, the share of pairs of their rows with one expert.
    """

    experts: int
    tokens: tuple[int, ...]
    same: Array


def slot_axis(signal: Signal, dims: Sequence[int] | None = None) -> int | None:
    """Return the axis of the moments, of these dimensions or of all, that counts a token's experts."""
    for d in range(len(signal.dims)) if dims is None else dims:
        for place, atom in enumerate(signal.dims[d]):
            if atom.slots is not None:
                return signal.spans[d][place]
    return None


def marked(signal: Signal, dim: int, slots: Slots) -> Signal:
    """Say that the last atom of a dimension counts a token's experts."""
    last = len(signal.dims[dim]) - 1
    atoms = tuple(replace(a, slots=slots if i == last else None) for i, a in enumerate(signal.dims[dim]))
    return replace(signal, dims=(*signal.dims[:dim], atoms, *signal.dims[dim + 1 :]))


def pair_counts(signal: Signal, axis: int) -> tuple[int, Array, Array, bool]:
    """Count the pairs of rows with one expert, and those with two.

    Args:
        signal: whose rows they are.
        axis: of its moments that counts a token's experts.

    Returns:
        The first axis of the tokens; both counts by pattern of the tokens' axes and of the slots'; and whether the
        tokens are those that were sent.
    """
    first, share = _shares(signal, axis)
    known = share is not None
    atoms, k = signal.atoms[first:axis], signal.atoms[axis].size
    counts = np.ones(())
    for atom in atoms:
        counts = np.multiply.outer(counts, atom.patterns.counts)
    itself = np.ones((), dtype=bool)
    for atom in atoms:
        here = np.arange(atom.patterns.counts.size) < len(atom.patterns.parts)
        itself = np.multiply.outer(itself, here)
    slots = signal.atoms[axis].slots
    if share is None:
        share = np.full(counts.shape, slots.same.mean() if slots is not None else 1 / k)
    one = np.where(itself, k, k * k * share) * counts
    two = np.where(itself, k * (k - 1), k * k * (1 - share)) * counts
    nothing = np.zeros_like(one)
    return first, np.stack([one, nothing], -1), np.stack([nothing, two], -1), known


def _shares(signal: Signal, axis: int) -> tuple[int, Array | None]:
    """Return where the tokens' axes begin, and by their patterns the share of pairs of rows with one expert."""
    slots = signal.atoms[axis].slots
    if slots is None:
        return axis, None
    groups, place = list[tuple[int, int]](), axis
    for size in reversed(slots.tokens):
        end, have = place, 1
        while have < size and place > 0:
            place -= 1
            have *= signal.atoms[place].size
        if have != size:
            return _before(signal, axis, math.prod(slots.tokens)), None
        groups.insert(0, (place, end))
    index = []
    for a, b in groups:
        differ = np.zeros((1,) * (b - a), dtype=bool)
        for i, atom in enumerate(signal.atoms[a:b]):
            apart = np.arange(atom.patterns.counts.size) >= len(atom.patterns.parts)
            differ = differ | apart.reshape([-1 if j == i else 1 for j in range(b - a)])
        before, after = a - groups[0][0], axis - b
        index.append(differ.astype(int).reshape((1,) * before + differ.shape + (1,) * after))
    return place, np.asarray(slots.same[tuple(np.broadcast_arrays(*index))] if index else slots.same)


def _before(signal: Signal, axis: int, count: int) -> int:
    place, have = axis, 1
    while have < count and place > 0:
        place -= 1
        have *= signal.atoms[place].size
    return place


def resolved(signal: Signal, dims: Sequence[int]) -> Signal:
    """Return the same entries with the slots along these dimensions read as any other axis.

    Of two tokens any pair of slots has then one expert with probability s, and two else.

    Args:
        signal: any signal.
        dims: those that are about to be summed over.
    """
    axis = slot_axis(signal, dims)
    if axis is None:
        return signal
    first, one, two, known = pair_counts(signal, axis)
    total = one[..., 0] + two[..., 1]
    share = np.where(total > 0, one[..., 0] / np.where(total > 0, total, 1.0), 0.0)
    rest = signal.moments.ndim - axis - 1
    share = share.reshape((1,) * first + share.shape + (1,) * rest)
    agree, differ = signal.moments.take(0, axis), signal.moments.take(1, axis)
    mixed = share * agree + (1 - share) * differ
    itself = np.zeros(agree.shape, dtype=bool)
    itself[(slice(None),) * first + tuple(slice(len(a.patterns.parts)) for a in signal.atoms[first:axis])] = True
    moments = np.stack([np.where(itself, agree, mixed), np.where(itself, differ, mixed)], axis)
    found = _unmarked(replace(signal, moments=moments, image=None, law=None, gates=()))
    return found if known else found.approximate(_APART)


def _unmarked(signal: Signal) -> Signal:
    dims = tuple(tuple(replace(a, slots=None) if a.slots else a for a in dim) for dim in signal.dims)
    return replace(signal, dims=dims)


def by_row(table: Signal, rows: tuple[Atom, ...], slots: Slots) -> Signal:
    """Show for every row what a table has for its expert.

    Args:
        table: its first dimension counts experts, all alike.
        rows: the atoms of the rows, the last of which counts a token's experts.
        slots: of these.

    >>> from initwell.propagate.moments.signal import independent
    >>> rows = (Atom(4), Atom(2))
    >>> by_row(independent((8, 3), 1.0), rows, Slots(8, (4,), np.array([0.5, 0.2]))).moments.tolist()
    [[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]]
    """
    moments, means = table.moments, table.means
    if not table.dims[0]:
        moments, means = np.stack([moments, moments]), means[None]
    tokens = rows[:-1]
    for atom in reversed(tokens):
        moments = np.repeat(moments[None], atom.patterns.counts.size, 0)
        means = np.repeat(means[None], len(atom.patterns.parts), 0)
    found = table.regrouped((rows, *table.dims[1:]), moments, means)
    return marked(found, 0, slots)


def summed_by_expert(signal: Signal) -> Signal:
    """Add up the rows of each expert.

    Args:
        signal: its first dimension counts rows, the last atom of it a token's experts.

    Returns:
        Experts in the place of the rows.
    """
    axis = len(signal.dims[0]) - 1
    slots = signal.atoms[axis].slots
    if slots is None:
        raise ValueError("rows without experts")
    _, one, two, known = pair_counts(signal, axis)
    total = range(axis + 1)
    agree, differ = (np.tensordot(c, signal.moments, (total, total)) for c in (one, two))
    e = slots.experts
    moments = np.stack([agree / e, differ / (e * (e - 1))]) if e > 1 else agree
    rows = signal.shape[0]
    average = signal.means
    for i in reversed(range(axis + 1)):
        atom = signal.atoms[i]
        weights = atom.patterns.agree[: average.shape[i]] if average.shape[i] > 1 else np.ones(1)
        average = np.tensordot(average, weights, ([i], [0]))
    means = np.asarray(average * rows / e)
    dims = (((Atom(e),) if e > 1 else ()), *signal.dims[1:])
    found = signal.changed(np.asarray(moments), means[None] if e > 1 else means, dims=dims, gaussian=True)
    return found if known else found.approximate(_APART)
