"""Scores with a mask: added, filled in or chosen, they are the scores, and which of them are shut.

A known tensor of 0 and −∞ (or the least number there is) added to scores leaves the open ones as they are, and a known
bias adds its own moments, those of the open entries. What is shut matters to the softmax alone, which asks for it.
"""

import math
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from initwell.propagate.given.mask import SHUT, Mask, both, filled, of_rank
from initwell.propagate.given.measured import in_parts, measured
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.branch import added, multiplied
from initwell.propagate.rules.overwritten import whole_rows
from initwell.propagate.table import Call
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import ValueRef


def _first(call: Call, ref: object) -> int:
    # Layers share their masks: what is worked out of one is kept with the known values.
    value = ref.id if isinstance(ref, ValueRef) else -1
    return call.values.folded.first.get(value, value)


def _additive(known: Tensor, rank: int, sample: int | None) -> tuple[Mask, Signal | None] | None:
    """Return the mask and the bias of known scores; None where nothing is shut and all are alike."""
    shut = known <= SHUT
    bias = filled(known, shut)
    if not bool(shut.any()) and bias.size and bias.min() == bias.max():
        return None
    level = float(known[shut].double().mean()) if bool(shut.any()) else -math.inf
    mask = of_rank(shut, rank, level, samples=sample == 0, added=True)
    if not bias.any():
        return mask, None
    signal = measured(torch.from_numpy(bias), sample=sample)
    return replace(mask, bias=bias.reshape((1,) * (rank - bias.ndim) + bias.shape)), signal


def are_scores(call: Call, ref: ValueRef) -> bool:
    """Whether a value is a batched product, perhaps scaled: scores of attention.

    Args:
        call: of an op of the walk.
        ref: the value.
    """
    op = call.trace.producer(ref.id)
    while op is not None and op.inputs and op.functional in _PASSED:
        op = call.trace.producer(op.inputs[0])
    return op is not None and op.functional in ("aten.bmm", "aten.baddbmm")


_PASSED = frozenset({*VIEWS, *COPIES, "aten.mul", "aten.div"})


def masked_sum(call: Call, first: str, second: str, beta: float) -> Signal | None:
    """Add a known mask or bias to scores; None where neither operand is one."""
    for name, other in ((second, first), (first, second)):
        known = call.value(name)
        if known is None or not known.is_floating_point() or not call.has(other) or (name == second and beta < 0):
            continue
        scores = isinstance(call[other], ValueRef) and are_scores(call, call[other])
        found = biased(call, call.signal(other), name, scores=scores)
        if found is not None:
            return found
    return None


def biased(call: Call, x: Signal, name: str, *, scores: bool) -> Signal | None:
    """Add a known tensor to scores, as what shuts some of them and what is added to the others.

    Args:
        call: of the op.
        x: the scores.
        name: of the known operand.
        scores: whether they are a product of queries and keys; what they are not is only added to where some are shut.
    """
    known = call.value(name)
    if known is None:
        return None
    rank = len(call.shape())
    sample = call.values.sample(call[name].id)
    found = call.values.once(f"mask {_first(call, call[name])} {rank}", partial(_additive, known, rank, sample))
    if found is None or (not scores and found[0].shut == 0):
        return None
    mask, bias = found
    if bias is not None:
        x = replace(added(*together(x, bias, call.shape())), mask=x.mask)
    elif x.shape != call.shape():
        x = together(x, mask.even, call.shape())[0]
    return replace(x, mask=both(x.mask, mask))


def masked_product(call: Call) -> Signal | None:
    """Multiply a gradient by a known mask of 0 and 1 where it is 0 already, as the softmax has set it; else None."""
    for name, other in (("other", "self"), ("self", "other")):
        known = call.value(name)
        closed = call.signal(other).closed if known is not None and call.has(other) else None
        if known is None or closed is None or call.signal(other).shape != call.shape():
            continue
        if bool(((known == 0) | (known == 1)).all()):
            mask = of_rank(known == 0, len(call.shape()), 0.0)
            return call.signal(other) if bool((closed.open <= mask.open).all()) else None
    return None


def multiplied_mask(call: Call) -> Signal | None:
    """Multiply scores by a known mask of 0 and 1 where what is 0 is shut by the sum that follows; else None.

    GPT writes s·b − 10⁴·(1 − b): the open scores stay as they are.
    """
    later = [op for op in call.trace.consumers(call.op.outputs[0]) if op.phase == "forward"]
    if call.op.phase != "forward" or len(later) != 1 or later[0].functional != "aten.add":
        return None
    added = next((call.value_of(later[0].arguments.get(n)) for n in ("other", "self")), None)
    for name, other in (("other", "self"), ("self", "other")):
        known = call.value(name)
        if known is None or added is None or not call.has(other) or not are_scores(call, call[other]):
            continue
        if not bool(((known == 0) | (known == 1)).all()) or not bool(((known == 1) | (added <= SHUT)).all()):
            continue
        x, mask = call.signal(other), of_rank(known == 0, len(call.shape()), 0.0)
        return replace(x, mask=both(x.mask, mask)) if x.shape == call.shape() else None
    return None


def _number(call: Call, name: str) -> float | None:
    """Return what is filled in, where it is one number."""
    value = call[name]
    if not isinstance(value, ValueRef):
        return float(value) if isinstance(value, (int, float)) else None
    known = call.value(name)
    if known is None:
        return 0.0 if call.has(name) and call.signal(name).q == 0.0 else None
    low, high = call.values.range(value.id)
    return low if low == high or high <= SHUT else None


def masked_choice(call: Call, condition: str, kept: str, fill: str, *, shut: bool) -> Signal | None:
    """Fill scores with −∞ where a known condition says so; None where that is not what happens.

    A gradient that is 0 there already, as the softmax has set it, stays as it is.

    Args:
        call: of where or masked_fill.
        condition: its argument's name.
        kept: that of the scores.
        fill: that of what is filled in.
        shut: whether the condition holds where scores are shut.
    """
    known, number = call.value(condition), _number(call, fill)
    if known is None or number is None or not call.has(kept):
        return None
    x, rank = call.signal(kept), len(call.shape())
    name = f"mask {_first(call, call[condition])} {rank} {shut} {number}"
    if number > SHUT and number != 0:
        return None
    samples = call.values.sample(call[condition].id) == 0
    mask = call.values.once(
        name, lambda: of_rank(known.bool() if shut else ~known.bool(), rank, number, samples=samples)
    )
    if number == 0:
        closed = x.closed if x.shape == call.shape() else None
        if closed is None or not bool((closed.open <= mask.open).all()):
            return None
        return _emptied(call, x, f"{name} empty", mask)
    if x.shape != call.shape():
        x = together(x, mask.even, call.shape())[0]
    return replace(x, mask=both(x.mask, mask))


def _emptied(call: Call, g: Signal, name: str, mask: Mask) -> Signal:
    """Set a gradient to 0 in rows of scores that are shut as a whole, where a softmax of one number was uniform."""
    row_parts = g.dims[-2][0].patterns.parts if len(g.dims[-2]) == 1 else ()
    some = call.values.once(f"{name} {row_parts}", partial(_with_any, mask, row_parts))
    if some is None:
        return g
    return replace(multiplied(*together(g, some, g.shape)), mask=g.mask, closed=g.closed)


def _with_any(mask: Mask, row_parts: tuple[int, ...]) -> Signal | None:
    """Return 1 for rows with anything open and 0 for others, by these segments; None where all have."""
    some: NDArray[np.bool_] = np.asarray(mask.open.any(-1, keepdims=True))
    if bool(some.all()):
        return None
    sample, ends = (0 if mask.samples else None), {0, *accumulate(row_parts)}
    if some.ndim < 3 or some.shape[-2] != sum(row_parts) or math.prod(some.shape[1:-2]) > 1:
        return measured(torch.from_numpy(some).double(), sample=sample)
    rows = whole_rows(torch.from_numpy(~some.reshape(-1, sum(row_parts))), (len(some), sum(row_parts), 1))
    if rows is not None and len(row_parts) > 1 and set(rows.some) <= ends:
        some = np.ones_like(some[:1])
        some[..., rows.some[0] : rows.some[1], :] = False
    parts = [row_parts if axis == some.ndim - 2 else (n,) for axis, n in enumerate(some.shape)]
    return in_parts(np.asarray(some, float), parts, sample=sample)
