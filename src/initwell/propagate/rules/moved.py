"""Sums of a value and itself moved along one dimension: h + (shift(h) − h)·m, as token shifts mix, and their gradients.

Padding, cutting out and joining only say where entries go: y_p = x_{p−l} for p within a stretch, and 0 beside it. Of
two such, y of lag l within P and y' of lag l' within P', the entries of p and p' show one of x if p − l = p' − l',
else two that differ. So for p in a segment s and p' in t, with segments a and b of x,

    pairs that show one entry of a            |(s ∩ P − l) ∩ (t ∩ P' − l') ∩ a|
    pairs that show entries of a and b        |(s ∩ P − l) ∩ a| · |(t ∩ P' − l') ∩ b|, the others

all of them lengths of stretches, and Cov(y, y') is the average of x's own over them: a known matrix from the patterns
of x to those of the result. Assumption: indices of one segment of x are alike however far apart they are.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.segments import Array, along, patterns
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.parts import one_atom
from initwell.propagate.shared.pairs import Pair, of
from initwell.trace.trace import Op, Trace, ValueRef

MOVES = frozenset({"aten.constant_pad_nd", "aten.slice", "aten.slice_backward", "aten.cat"})
APART = "a value and itself moved along a dimension, neighbours as any two positions"
# Of so many parts side by side none is looked at.
_MOST = 3


class Move(NamedTuple):
    """Where the entries of a dimension come from: y_p = x_{p − lag} for start ≤ p < stop, else 0."""

    dim: int
    lag: int
    start: int
    stop: int

    def after(self, first: "Move | None") -> "Move | None":
        """Return this move of what another has made; None where they are along two dimensions."""
        if first is None:
            return self
        start, stop = max(self.start, first.start + self.lag), min(self.stop, first.stop + self.lag)
        return Move(self.dim, self.lag + first.lag, start, stop) if first.dim == self.dim else None


def moves(trace: Trace, op: Op) -> list[tuple[int, Move]]:
    """Return the values whose entries an op moves along a dimension, and how; none if it does anything else.

    Args:
        trace: with the op.
        op: one of ``MOVES``.
    """
    given, shape = op.arguments, trace.values[op.outputs[0]].shape
    if op.functional == "aten.cat":
        return _side_by_side(trace, op)
    ref = given.get("self", given.get("grad_output"))
    if not isinstance(ref, ValueRef) or len(trace.values[ref.id].shape) != len(shape):
        return []
    if op.functional == "aten.constant_pad_nd":
        return [] if given["value"] else _padded(ref.id, [int(p) for p in given["pad"]], shape)
    dim, whole = (given["dim"] or 0) % len(shape), (ref.id if op.functional == "aten.slice" else op.outputs[0])
    start, stop, step = slice(given["start"], given["end"], given["step"]).indices(trace.values[whole].shape[dim])
    if step != 1:
        return []
    move = Move(dim, -start, 0, shape[dim]) if op.functional == "aten.slice" else Move(dim, start, start, stop)
    return [(ref.id, move)]


def _padded(value: int, pads: Sequence[int], shape: Sequence[int]) -> list[tuple[int, Move]]:
    changed = [i for i in range(len(pads) // 2) if pads[2 * i] or pads[2 * i + 1]]
    if len(changed) != 1:
        return []
    before, behind = pads[2 * changed[0] : 2 * changed[0] + 2]
    dim = len(shape) - 1 - changed[0]
    return [(value, Move(dim, before, max(before, 0), shape[dim] - max(behind, 0)))]


def _side_by_side(trace: Trace, op: Op) -> list[tuple[int, Move]]:
    parts = op.arguments["tensors"]
    if len(parts) > _MOST:
        return []
    found, place = list[tuple[int, Move]](), 0
    for part in parts:
        shape = trace.values[part.id].shape
        dim = op.arguments["dim"] % len(shape)
        found.append((part.id, Move(dim, place, place, place + shape[dim])))
        place += shape[dim]
    return found


def across(x: Signal, one: Move | None, two: Move | None, parts: Sequence[int]) -> Pair | None:
    """Return the covariance of two that one value's entries were moved to; None where it was moved in two ways.

    Args:
        x: the value.
        one: where the first has them from; None for x itself.
        two: where the second has.
        parts: segments of the result, along the dimension that they are moved along.

    >>> from initwell.propagate.moments.signal import independent
    >>> found = across(independent((3, 4), 2.0), Move(0, 1, 1, 3), None, (3,))
    >>> found and found.moments[:, 0].tolist()
    [0.0, 0.6666666666666666]
    """
    dim = next(move.dim for move in (one, two) if move is not None)
    if any(move is not None and move.dim != dim for move in (one, two)):
        return None
    x = one_atom(x, dim)
    axis, atom = x.axes([dim])[0] if x.dims[dim] else -1, x.dims[dim][0] if x.dims[dim] else None
    if atom is None or atom.slots is not None:
        return None
    ways = [(0, 0, sum(parts)) if move is None else tuple(move[1:]) for move in (one, two)]
    matrix = _shares(tuple(parts), atom.patterns.parts, ways[0], ways[1])
    covariance = of(x).moments
    new = Atom(sum(parts), atom.sample, tuple(parts) if len(parts) > 1 else ())
    return Pair((*x.dims[:dim], (new,), *x.dims[dim + 1 :]), along(covariance, matrix, axis))


@lru_cache(maxsize=256)
def _shares(new: tuple[int, ...], old: tuple[int, ...], one: tuple[int, ...], two: tuple[int, ...]) -> Array:
    """Return by pattern of the result which share of its pairs shows each pattern of the value."""
    made, shown, s, a = patterns(new), patterns(old), len(new), len(old)
    first, second = (_stretches(new, old, *way) for way in (one, two))
    found = np.zeros((len(made.counts), len(shown.counts)))
    at, other = (np.ix_(made.first, shown.first), np.ix_(made.second, shown.second))
    p, q = (tuple([ends[at_] for ends in way]) for way, at_ in ((first, at), (second, other)))
    here, alike = _overlap(p, q), _overlap(_less(p, one[0]), _less(q, two[0]))
    every = (p[1] - p[0]) * (q[1] - q[0])
    found[:s, :a] = here[:s, :a] if one[0] == two[0] else 0.0
    found[:s, a:] = 0.0 if one[0] == two[0] else here[:s, a:]
    found[s:, :a] = 0.0 if one[0] == two[0] else alike[s:, :a]
    known = (shown.first == shown.second)[a:] * alike[s:, a:] * (one[0] != two[0])
    found[s:, a:] = every[s:, a:] - (made.first == made.second)[s:, None] * here[s:, a:] - known
    shares: Array = found / np.where(made.counts > 0, made.counts, 1.0)[:, None]
    return shares


Ends = tuple[Array, ...]


def _stretches(new: Sequence[int], old: Sequence[int], lag: int, start: int, stop: int) -> Ends:
    """Return where those entries of each new segment begin and end that show each old one: two arrays (new, old)."""
    ends, shown = (np.cumsum([0, *parts]) for parts in (new, old))
    first = np.maximum(np.maximum(ends[:-1], start)[:, None], shown[:-1] + lag)
    last = np.minimum(np.minimum(ends[1:], stop)[:, None], shown[1:] + lag)
    return first.astype(float), np.maximum(last, first).astype(float)


def _less(stretch: Ends, lag: int) -> Ends:
    return stretch[0] - lag, stretch[1] - lag


def _overlap(one: Ends, two: Ends) -> Array:
    shared: Array = np.maximum(np.minimum(one[1], two[1]) - np.maximum(one[0], two[0]), 0.0)
    return shared
