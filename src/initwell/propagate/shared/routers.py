"""How what a router's scores get along themselves goes with what the sum of its experts gets.

With s_j the scores of the experts that are chosen, w_j their weights, e_j what they make and d_j = e_j·g, g the
gradient of their sum, radial parts (``radial``) are

    R(Σ_j w_j e_j) = Σ_j w_j d_j        R(s) = Σ_j w_j (s_j − s̄) d_j        s̄ = Σ p s

over the chosen where their weights are divided by their sum, over all experts where they are not. Of independent d_j
of one size the second is a times the first and a rest, independent of it, of c times the variance that the first has:

    a = E[Σ w² (s − s̄)]/E[Σ w²]        c = E[Σ w² (s − s̄)²]/E[Σ w²] − a²

a is not 0, as large weights are those of large scores. These are averages over the k largest of a row of Gaussian
scores, and taken over a fixed sample of such rows, whose error is below 1 %.
"""

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from initwell.propagate.laws.rows import stepped
from initwell.propagate.moments.signal import Signal
from initwell.propagate.shared.attended import SAME
from initwell.propagate.shared.routed import MOVED, PICKED, copies, terms
from initwell.trace.trace import Op, Trace

_ENTRIES = 400_000
_FURTHEST = 16


def with_experts(trace: Trace, signals: Mapping[int, Signal], softmax: Op) -> tuple[int, float, float] | None:
    """Return the sum of a router's experts, and a and c, by which R of its scores follows from R of this sum.

    Args:
        trace: that it is part of.
        signals: what is known so far.
        softmax: of the scores. None where its weights are not those of experts that are chosen and added up.
    """
    scores = signals.get(softmax.inputs[0])
    found = _added_up(trace, softmax)
    if scores is None or found is None:
        return None
    total, chosen, divided = found
    variance = scores.q - scores.averaged(scores.axes([len(scores.dims) - 1]))
    return (total, *along(stepped(variance), scores.shape[-1], chosen, divided)) if variance > 0 else None


def _added_up(trace: Trace, softmax: Op) -> tuple[int, int, bool] | None:
    """Return the sum of the experts, how many are chosen, and whether weights are divided by their sum."""
    value, chosen, divided = softmax.outputs[0], 0, False
    for _ in range(_FURTHEST):
        later = [op for op in trace.consumers(value) if op.phase == "forward"]
        op = next(
            (op for op in later if op.outputs and op.outputs[0] in trace.gradients and _goes_on(trace, op, value)), None
        )
        if op is None:
            return None
        if op.functional in PICKED:
            chosen = trace.values[op.outputs[0]].shape[-1]
        divided |= op.functional == "aten.div"
        value = op.outputs[0]
        if chosen and terms(trace, op) == chosen and op.functional == "aten.sum":
            return value, chosen, divided
    return None


def _goes_on(trace: Trace, op: Op, value: int) -> bool:
    if op.functional == "aten.sum":
        return bool(terms(trace, op))
    if op.functional in MOVED:
        return bool(copies(trace, op)) and op.inputs[0] == value
    return op.functional in SAME or op.functional in ("aten.div", "aten.mul")


@lru_cache(maxsize=256)
def along(variance: float, count: int, chosen: int, divided: bool) -> tuple[float, float]:
    """Return by how much what scores get along themselves goes with what the sum of the experts gets, and its rest.

    Args:
        variance: of a score.
        count: of the experts.
        chosen: how many of them, those of the largest scores.
        divided: whether their weights are divided by their sum.

    >>> [round(x, 2) for x in along(1.0, 4, 4, True)], along(1.0, 4, 1, True)
    ([0.27, 0.15], (0.0, 0.0))
    """
    rows = max(_ENTRIES // count, 16)
    scores = math.sqrt(variance) * np.random.default_rng(0).standard_normal((rows, count))
    scores.partition(count - chosen, axis=1)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    s, w = scores[:, -chosen:], weights[:, -chosen:]
    average = (weights * scores).sum(1, keepdims=True)
    if divided:
        w = w / w.sum(1, keepdims=True)
        average = (w * s).sum(1, keepdims=True)
    own = w * (s - average)
    whole = float((w * w).sum(1).mean())
    slope = float((w * own).sum(1).mean()) / whole
    return slope, max(float((own * own).sum(1).mean()) / whole - slope * slope, 0.0)
