"""Rows that are copied, added up, taken apart or put elsewhere, and what each has of a gradient along them.

With R(v) = Σ v·∂L/∂v over a row, as in ``radial``:

    y = H parts of v side by side, each a row     R(v) = Σ_h R(y_h)         R(y_h) = R(v)/H + s_h
    y = n copies of v                             R(v) = Σ_j R(y_j)
    y = v_1 + … + v_n                             R(v_j) = R(y)/n + s_j

where Σ s = 0, for parts and terms of one size. A token that goes to k experts is copied to k rows, and is the sum of k
later, so that what adds up to 0 where they part has added up to 0 again where they meet. Rows in the order of their
experts, and entries that are picked from a row, have the R of those that they were: what is not picked has no gradient.
"""

import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.propagate.routing.chains import is_order, is_token
from initwell.propagate.shared.handwritten import size
from initwell.trace.trace import Op, Trace

Parts = Mapping[object, float]
_AS_THEY_ARE: Parts = {}

PICKED = frozenset({"aten.topk", "aten.gather"})
"""Ops that pick entries of a row."""
_ADDED = frozenset({"aten.sum", "aten.mean"})
MOVED = frozenset({*PICKED, *_ADDED, "aten.index"})
"""Ops that put rows, or entries of rows, elsewhere, copy them or add them up, as averages do."""


class Head(NamedTuple):
    """A source as each of several rows that are one later on has it.

    Attributes:
        heads: of rows that are one.
        source: of the later row; None for what each has of its own and adds up to 0.
        op: where, of such.
    """

    heads: int
    source: object
    op: int = -1


def copies(trace: Trace, op: Op) -> int:
    """Return how many rows an op makes of each that it reads: 0 where it does anything else.

    Args:
        trace: that it is part of.
        op: one of ``MOVED``.
    """
    rank = len(trace.values[op.inputs[0]].shape)
    if op.functional in PICKED:
        return int(int(op.arguments["dim"]) % max(rank, 1) == rank - 1)
    indices = op.arguments.get("indices", ())
    if op.functional != "aten.index" or len(indices) != 1:
        return 0
    if is_order(trace, indices[0]):
        return 1
    before, after = (size(trace, i) for i in (op.inputs[0], op.outputs[0]))
    return after // before if is_token(trace, indices[0]) else 0


def terms(trace: Trace, op: Op) -> int:
    """Return how many rows an op adds up to each that it makes, or averages; 0 where it does anything else.

    Args:
        trace: that it is part of.
        op: one of ``MOVED``.
    """
    shape, dims = trace.values[op.inputs[0]].shape, op.arguments.get("dim")
    if op.functional not in _ADDED or not isinstance(dims, (tuple, list)) or len(dims) != 1:
        return 0
    dim = int(dims[0]) % len(shape)
    return shape[dim] if dim < len(shape) - 1 else 0


def apart(parts: Parts, heads: int) -> dict[object, float]:
    """Return what each of so many rows has of the R of one."""
    return {Head(heads, source): c / math.sqrt(heads) for source, c in parts.items()}


def together(parts: Parts, heads: int) -> Parts:
    """Return R of rows of so many heads, of which each has these parts.

    >>> together({**apart({"y": 1.0}, 4), Head(4, None, 7): 1.0, "own": 1.0}, 4)
    {'y': 1.0, 'own': 1.0}
    """
    ways: list[Parts] = []
    for source, c in parts.items():
        if not (isinstance(source, Head) and source.heads == heads):
            ways.append({source: c})
        elif source.source is not None:
            ways.append({source.source: c * math.sqrt(heads)})
    return summed(ways)


def repeated(trace: Trace, op: Op, parts: Parts, by_chance: Callable[[int, int | None], float | None]) -> Parts:
    """Return R of a row of which there are several copies: their R add up as their gradients do, which may go together.

    Args:
        trace: of the model.
        op: that repeats it.
        parts: of the copies.
        by_chance: Σ R² of a value and a random gradient as large as one; None for all that the value gets.
    """
    one, copied = by_chance(op.inputs[0], _sent_by(trace, op)), by_chance(op.outputs[0], None)
    factor = math.sqrt(one / copied) if one and copied else 1.0
    return {source: c * factor for source, c in parts.items()}


def _sent_by(trace: Trace, op: Op) -> int | None:
    """Return the gradient that an op alone sends to what it reads, before others are added; None where none is."""
    here, shape = trace.gradients.get(op.outputs[0]), trace.values[op.inputs[0]].shape
    while here is not None and trace.values[here].shape != shape:
        here = next((back.outputs[0] for back in trace.consumers(here) if back.of == op.index), None)
    return here


def square(parts: Parts, variance: Mapping[object, float], factors: Mapping[object, float] = _AS_THEY_ARE) -> float:
    """Return Σ R².

    Args:
        parts: of R.
        variance: of each source.
        factors: by which a source counts for more.
    """
    return sum(c * c * variance[source] * factors.get(source, 1.0) for source, c in parts.items())


def gathered(parts: Parts, n: int, variance: MutableMapping[object, float]) -> Parts:
    """Return R of rows of n heads each, of as many as there are or a part of them, as of queries that share a key.

    Σ of n of H numbers that add up to 0 has (H − n)/(H − 1) of the variance that it had of independent ones.

    Args:
        parts: of each head.
        n: how many are one row.
        variance: of each source; those of parts of the heads are put into it.
    """
    found: dict[object, float] = {}
    for source, c in together(parts, n).items():
        if isinstance(source, Head) and source.heads > n and source.heads % n == 0:
            fewer = source._replace(heads=source.heads // n)
            variance[fewer] = variance[source]
            left = n if source.source is not None else (source.heads - n) / (source.heads - 1)
            found[fewer] = found.get(fewer, 0.0) + c * math.sqrt(left)
        else:
            found[source] = found.get(source, 0.0) + c
    return found


def of_values(
    op: int,
    parts: Parts,
    sizes: tuple[float, float],
    keys: tuple[Parts, float],
    summed: Parts,
    variance: MutableMapping[object, float],
) -> Parts:
    """Return R of the values of attention: a share of what their sums have, by heads as these, and the s_t.

    The s_t (see ``attended``) go with R of the keys: both are of what the values' gradients have apart from the sum's.

    Args:
        op: the sum.
        parts: of it.
        sizes: the variance of R of values, and how much of it heads share as their sums do.
        keys: R of the keys, and how far that of the values goes with it.
        summed: what goes with R of the sum otherwise.
        variance: of each source.
    """
    along, whole = square(parts, variance), square(keys[0], variance)
    heads = _of_heads(op, parts, sizes[1] / along, variance) if along > 0 else {}
    own = max(sizes[0] - sum(variance[source] for source in heads) - square(summed, variance), 0.0)
    linked = min(keys[1] ** 2 * sizes[0], own) if whole > 0 else 0.0
    variance[op, "attended"] = own - linked
    shared = {source: c * math.sqrt(linked / whole) for source, c in keys[0].items()} if linked > 0 else {}
    return {**shared, **summed, **dict.fromkeys(heads, 1.0), (op, "attended"): 1.0}


def _of_heads(op: int, parts: Parts, share: float, variance: MutableMapping[object, float]) -> list[Head]:
    """Return sources that rows of heads have as those of a sum have theirs, of a share of its variance."""
    sums = dict[Head, float]()
    for source, c in parts.items():
        if isinstance(source, Head):
            key = Head(source.heads, None if source.source is None else (op, "summed"), op)
            sums[key] = sums.get(key, 0.0) + share * c * c * variance[source]
    for key, whole in sums.items():
        variance[key] = whole
        if key.source is not None:
            variance[key.source] = whole
    return list(sums)


def side_by_side(
    op: Op, value: int, sizes: Sequence[float], parts: Parts, within: bool, variance: MutableMapping[object, float]
) -> Parts:
    """Return R of a value among those that an op puts side by side.

    Args:
        op: such as a concatenation.
        value: one that it reads.
        sizes: Σ x² g² of each.
        parts: of the result.
        within: whether side by side within rows; else rows follow one another.
        variance: of each source; those of the op are put into it.
    """
    weights = np.array(sizes)
    if (whole := float(weights.sum())) <= 0:
        return {}
    own = weights if within else weights / whole * square(parts, variance)
    variance.update({(op.index, i): float(v) for i, v in enumerate(own)})
    found: list[Parts] = []
    for i in (i for i, part in enumerate(op.inputs) if part == value):
        share = float(weights[i]) / whole
        found.append({source: c * share for source, c in parts.items()})
        found.append({(op.index, j): float(i == j) - share for j in range(len(weights))})
    return summed(found)


def sharing(gates: Signal, whole: Callable[[int], float]) -> Signal:
    """Return gradients of the gates of a token's experts with what they have in common: they add up to R of their sum.

    E[(Σ_j d_j)²] = n q + n (n − 1) E[d_i d_j], which is 0 where a norm follows.

    Args:
        gates: the gradients, of one size q.
        whole: of so many gates, E[(Σ_j d_j)²]/(n q).
    """
    axis = next((i for i, atom in enumerate(gates.atoms) if atom.slots is not None), None)
    if axis is None or gates.atoms[axis].parts or gates.q <= 0:
        return gates
    n, moments = gates.atoms[axis].size, gates.moments.copy()
    token = [slice(len(atom.parts) or 1) for atom in gates.atoms]
    one, other = ((*token[:axis], slice(i, i + 1), *token[axis + 1 :]) for i in (0, 1))
    moments[other] = moments[one] * (whole(n) - 1) / (n - 1)
    return gates.regrouped(gates.dims, moments)


def opposed(trace: Trace, signals: Mapping[int, Signal], value: int, z: Array, own: Array) -> float:
    """Return by how much Σ s g of a row's chosen entries is smaller than if their gradients were independent; else 1.

    Where gates add up to 1, or a norm follows their experts' sum, gradients of two chosen ones are opposed; and chosen
    ones are alike, as the largest of a row: of n with E[g g'] = c E[g²] it is 1 + (n − 1) c E[s s']/E[s²].

    Args:
        trace: that it is part of.
        signals: what is known so far.
        value: rows of which the largest are chosen.
        z: standard normal numbers that entries are functions of.
        own: s at these.
    """
    picked = next((op for op in trace.consumers(value) if op.functional == "aten.gather"), None)
    sent = None if picked is None else signals.get(trace.gradients.get(picked.outputs[0], -1))
    axis = None if sent is None else next((i for i, atom in enumerate(sent.atoms) if atom.slots is not None), None)
    if sent is None or axis is None or sent.q <= 0 or sent.shape[-1] != sent.atoms[axis].size:
        return 1.0
    n, count = sent.shape[-1], trace.values[value].shape[-1]
    largest = np.interp(_largest(count, n), z, own)
    square = float((largest**2).mean())
    both = (float((largest.sum(1) ** 2).mean()) / n - square) / (n - 1) if n > 1 else 0.0
    return max(1 + (n - 1) * sent.averaged([axis]) / sent.q * both / square, 0.0) if square > 0 else 1.0


@lru_cache(maxsize=64)
def _largest(count: int, n: int) -> Array:
    """Return the n largest of so many normal numbers, in a fixed sample of rows: an error below 1 %."""
    rows = np.random.default_rng(0).standard_normal((max(400_000 // count, 16), count))
    return np.partition(rows, count - n, axis=1)[:, count - n :]


def summed(ways: Iterable[Parts]) -> Parts:
    """Return the sum of several parts of one R."""
    found: dict[object, float] = {}
    for way in ways:
        for source, c in way.items():
            found[source] = found.get(source, 0.0) + c
    return found
