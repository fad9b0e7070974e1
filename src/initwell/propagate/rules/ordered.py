"""Running sums along an axis, and axes turned round: what stands where matters.

A running sum is the known matrix T of ones on and below its diagonal: with M the moments of each pair of places along
the axis,

    M(y) = T M(x) Tᵀ

Places get a segment each, so that what follows knows how large each is; of an axis longer than ``segments.MOST``
neighbours are taken as alike afterwards. The backward is the same sum from the end: two flips and a running sum.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from initwell.propagate.given.measured import measured
from initwell.propagate.moments.alike import UNLIKE, plain, settled
from initwell.propagate.moments.atoms import permuted, together
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.segments import MOST, Array
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.branch import multiplied
from initwell.propagate.rules.parts import IN_ORDER, flipped, moved, one_atom
from initwell.propagate.table import Call, Rule, UnknownSignalError

# Pairs of places, times the patterns of the other axes.
_MOST_PAIRS = 1 << 23


def mapped(signal: Signal, dim: int, matrix: Array) -> Signal:
    """Apply a known matrix along a dimension whose places differ afterwards.

    Args:
        signal: any signal.
        dim: the dimension.
        matrix: outputs × inputs, as many of each.

    Returns:
        The signal with a segment for each place, or, beyond ``segments.MOST``, for neighbours.

    Raises:
        UnknownSignalError: there are too many pairs of places.

    >>> from initwell.propagate.moments.signal import independent
    >>> mapped(independent((3,), 1.0), 0, np.tril(np.ones((3, 3)))).diagonal.tolist()
    [1.0, 2.0, 3.0]
    """
    signal = one_atom(signal, dim)
    if not signal.dims[dim]:
        return signal
    axis, n = signal.axes([dim])[0], signal.shape[dim]
    atom = signal.atoms[axis]
    if n * n * signal.moments.size / atom.patterns.counts.size > _MOST_PAIRS:
        raise UnknownSignalError("a running sum of more places than can be told apart")
    old = len(atom.patterns.parts)
    segment = np.repeat(np.arange(old), atom.patterns.parts)
    found = np.moveaxis(signal.moments, axis, 0)
    pairs = found[old + segment[:, None] * old + segment[None, :]]
    pairs[np.arange(n), np.arange(n)] = found[segment]
    pairs = np.tensordot(matrix, np.moveaxis(np.tensordot(matrix, pairs, (1, 1)), 0, 1), (1, 0))
    means = np.tensordot(matrix, np.moveaxis(signal.means, axis, 0)[segment], (1, 0))
    parts = tuple(int(b - a) for a, b in zip(_ends(n)[:-1], _ends(n)[1:], strict=True))
    columns, averages = _by_parts(pairs, means, parts)
    new = Atom(n, atom.sample, parts)
    dims = tuple((new,) if d == dim else atoms for d, atoms in enumerate(signal.dims))
    moments = np.ascontiguousarray(np.moveaxis(columns, 0, axis))
    result = signal.changed(moments, np.moveaxis(averages, 0, axis), dims=dims, gaussian=signal.gaussian)
    return settled(result if n <= MOST else result.approximate(UNLIKE), axis)


def _ends(n: int) -> list[int]:
    return list(range(n + 1)) if n <= MOST else [round(i * n / MOST) for i in range(MOST + 1)]


def _by_parts(pairs: Array, means: Array, parts: tuple[int, ...]) -> tuple[Array, Array]:
    """Average the moments of pairs of places, and means, over segments."""
    s, starts = len(parts), [0, *accumulate(parts)][:-1]
    lengths = np.array(parts, dtype=float)
    rest = (1,) * (pairs.ndim - 2)
    own = np.add.reduceat(np.einsum("ii...->i...", pairs), starts, 0)
    every = np.add.reduceat(np.add.reduceat(pairs, starts, 0), starts, 1)
    counts = np.outer(lengths, lengths) - np.diag(lengths)
    every[np.arange(s), np.arange(s)] -= own
    # A place by itself has no pair that differs within it; any value serves.
    differ = every / np.where(counts > 0, counts, 1.0).reshape(s, s, *rest)
    agree = own / lengths.reshape(s, *rest)
    alone = np.flatnonzero(lengths == 1)
    differ[alone, alone] = agree[alone]
    columns = np.concatenate([agree, differ.reshape(s * s, *pairs.shape[2:])])
    averages = np.add.reduceat(means, starts, 0) / lengths.reshape(s, *(1,) * (means.ndim - 1))
    return columns, averages


def cumulated(signal: Signal, dim: int) -> Signal:
    """Return running sums along a dimension; rows that count as in another order than theirs count as alike."""
    signal = plain(signal, dim) if IN_ORDER in signal.reasons else signal
    if not signal.dims:
        return signal
    n = signal.shape[dim]
    return mapped(signal, dim, np.tril(np.ones((n, n))))


def _flip(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    for dim in call["dims"]:
        x = flipped(x, dim % len(x.dims))
    return [moved(x)]


def _rot90(call: Call) -> Sequence[Signal]:
    """Turn two dimensions by quarters: a flip of one and a swap, or a flip of both."""
    x, (i, j), quarters = call.signal("self"), call["dims"], call["k"] % 4
    i, j = i % len(x.dims), j % len(x.dims)
    order = list(range(len(x.dims)))
    order[i], order[j] = order[j], order[i]
    for dim in {0: (), 1: (j,), 2: (i, j), 3: (i,)}[quarters]:
        x = flipped(x, dim)
    return [moved(permuted(x, order) if quarters % 2 else x)]


def _triangle(how: Callable[..., Tensor]) -> Rule:
    """Set what lies above a diagonal, or below it, to 0: a mask of known places."""

    def rule(call: Call) -> Sequence[Signal]:
        x = call.signal("self")
        mask = measured(how(torch.ones(x.shape[-2:]), int(call["diagonal"])))
        return [multiplied(*together(x, mask, call.shape())).approximate(UNLIKE)]

    return rule


RULES: Mapping[str, Rule] = {
    "aten.flip": _flip,
    "aten.rot90": _rot90,
    "aten.tril": _triangle(torch.tril),
    "aten.triu": _triangle(torch.triu),
}
