"""Several streams of rows, each with gates of its own, as hyper-connections have them: what is one row in all of them.

    x_j = x + Σ_l p_lj a_l          u = Σ_j r_j x_j          j = 1 … n streams, one number p_lj, r_j a row and stream

Where gates differ little, the streams do, and so do the gradients g_j at them: r_j g, of g at u. With R(v) = v·g as in
``radial``: R of the one row a_l is that of its n products together, Σ_j R(p_lj a_l), and those are alike. Of R(u) each
stream's x_j·g is a share, and s_j of its own, along what x_j has that u has not. With p_lj = m_l + d_lj that is

    E[s_j²] = E[g²] (1 − 1/n) Σ_l E[d_l²] E[a_l²] (1 − m_l² E[a_l²]/U)          U = E[(x + Σ_l m_l a_l)²]

as a_l has m_l a_l/(x + Σ m a) in common with u, along which g has R(u) alone, and what all streams have alike is no
difference of theirs. Assumption: x and the a_l have nothing in common, and every row of them is of one size.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from initwell.propagate.moments.signal import Signal
from initwell.propagate.shared.attended import SAME
from initwell.propagate.shared.handwritten import operand, size
from initwell.propagate.shared.routed import terms
from initwell.trace.trace import Op, Trace

REGROUPING = frozenset({"aten.view", "aten._unsafe_view", "aten.reshape"})
"""Ops that may make rows longer or shorter."""
_WIDENS = frozenset({"aten.mul", "aten.expand"})
_GATING = frozenset({*REGROUPING, "aten.clone", "aten.mul"})


def widened(trace: Trace, op: Op, value: int) -> tuple[int, int]:
    """Return how many rows an op makes of each row of a value, and along which dimension: (1, 0) where it makes one.

    Args:
        trace: that it is part of.
        op: any.
        value: that it reads.
    """
    before, after = trace.values[value].shape, trace.values[op.outputs[0]].shape
    if op.functional not in _WIDENS or len(before) != len(after) or before[-1:] != after[-1:]:
        return 1, 0
    wider = [i for i, (b, a) in enumerate(zip(before, after, strict=True)) if b != a]
    return (after[wider[0]], wider[0]) if len(wider) == 1 and before[wider[0]] == 1 else (1, 0)


def are_one_row(trace: Trace, value: int, heads: int, ends: Callable[[Op], bool]) -> bool:
    """Whether heads side by side are read as one row, by itself or times gates, or are gated and added up again.

    Args:
        trace: that it is part of.
        value: the heads side by side.
        heads: how many.
        ends: whether an op reads a row as a whole.
    """
    length = trace.values[value].shape[-1]
    ahead = [value]
    while ahead:
        here = ahead.pop()
        later = [op for op in trace.consumers(here) if op.phase == "forward"]
        for op in (op for op in later if not ends(op)):
            shape = trace.values[op.outputs[0]].shape
            if op.functional in _GATING and shape and length in (shape[-1], shape[-1] * heads):
                ahead.append(op.outputs[0])
            elif trace.values[here].shape[-1] * heads != length or terms(trace, op) != heads:
                return False
        if not later:
            return False
    return True


def product(trace: Trace, value: int) -> tuple[int, int, int, int] | None:
    """Return what is times a gate of each stream: the row, the gates, how many streams, along which dimension."""
    made = trace.producer(value)
    while made is not None and made.functional in SAME and len(made.inputs) == 1 and _is_as_long(trace, made):
        made = trace.producer(made.inputs[0])
    if made is None or made.functional != "aten.mul":
        return None
    for row, gates in (("self", "other"), ("other", "self")):
        a, p = operand(made, row), operand(made, gates)
        if a is not None and p is not None:
            n, dim = widened(trace, made, a)
            shape = trace.values[made.outputs[0]].shape
            if n > 1 and trace.values[p].shape == (*shape[:-1], 1):
                return a, p, n, dim
    return None


def alike(trace: Trace, signals: Mapping[int, Signal], op: Op) -> tuple[int, float]:
    """Return how many streams a sum adds gated rows to, and how much what is sent to them is alike; (1, 0) elsewhere.

    Args:
        trace: that it is part of.
        signals: what is known so far.
        op: a sum.
    """
    ways = [i for i in (operand(op, "self"), operand(op, "other")) if i is not None]
    found = next((way for way in (product(trace, i) for i in ways) if way is not None), None)
    made, sent = signals.get(op.outputs[0]), signals.get(trace.gradients.get(op.outputs[0], -1))
    if found is None or made is None or sent is None or made.q <= 0 or sent.q <= 0:
        return 1, 0.0
    before = math.prod(trace.values[found[1]].shape[: found[3]])
    return found[2], _alike(made, sent, before, found[2])


def in_heads(trace: Trace, signals: Mapping[int, Signal], value: int, heads: int) -> float:
    """Return how much R is alike of several rows that are one later on: E[R_i R_j] over E[R²].

    Args:
        trace: that they are part of.
        signals: what is known so far.
        value: the rows, the last dimension but one of which are the heads of one row.
        heads: how many.
    """
    x, sent = signals.get(value), signals.get(trace.gradients.get(value, -1))
    shape = trace.values[value].shape
    if x is None or sent is None or x.q <= 0 or sent.q <= 0 or len(shape) < 2 or shape[-2] != heads:
        return 0.0
    return _alike(x, sent, math.prod(shape[:-2]), heads)


def _alike(x: Signal, sent: Signal, before: int, n: int) -> float:
    shares = [s.averaged(_axes(s, before, n)) / s.q for s in (x, sent)]
    return min(max(math.prod(shares), 0.0), 1.0)


def _axes(signal: Signal, before: int, n: int) -> list[int]:
    """Return which axes of the moments count n streams, so many indices before them: a dimension or a part of one."""
    axes, have = [], 1
    for i, atom in enumerate(signal.atoms):
        if before <= have < before * n:
            axes.append(i)
        have *= atom.size
    return axes


def in_common(trace: Trace, signals: Mapping[int, Signal], streams: int, dims: Sequence[int]) -> float:
    """Return which share of streams' R is that of the row which they are added up to; 0 of other rows.

    Args:
        trace: that they are part of.
        signals: what is known so far.
        streams: their value.
        dims: along which they are added up.
    """
    x = signals.get(streams)
    if x is None or x.q <= 0:
        return 0.0
    n = math.prod(x.shape[d] for d in dims)
    common = x.averaged(x.axes(dims))
    apart, told, along = max(x.q - common, 0.0), 0.0, 0.0
    for variance, square, mean in _added(trace, signals, streams):
        told += variance * square
        along += variance * square * min(mean * mean * square / max(common, 1e-300), 1.0)
    left = apart - along * min(apart / told, 1.0) if told > 0 else apart
    return 1 - left / x.q * (1 - 1 / n)


def _added(trace: Trace, signals: Mapping[int, Signal], value: int) -> list[tuple[float, float, float]]:
    """Return E[d²], E[a²] and m of every row that was added to streams with gates of their own."""
    found = []
    while (made := trace.producer(value)) is not None:
        if made.functional in SAME and len(made.inputs) == 1 and _is_as_long(trace, made):
            value = made.inputs[0]
            continue
        ways = [operand(made, name) for name in ("self", "other")] if made.functional == "aten.add" else []
        gated = [None if way is None else product(trace, way) for way in ways]
        if len(ways) < 2 or all(way is None for way in gated):
            break
        row, gates, _, dim = next(way for way in gated if way is not None)
        a, p = signals.get(row), signals.get(gates)
        if a is not None and p is not None:
            found.append((max(p.q - p.averaged(p.axes([dim])), 0.0), a.q, p.mean))
        value = next((w for w, way in zip(ways, gated, strict=True) if way is None and w is not None), -1)
    return found


def _is_as_long(trace: Trace, op: Op) -> bool:
    return size(trace, op.inputs[0]) == size(trace, op.outputs[0])
