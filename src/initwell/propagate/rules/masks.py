"""Scores with a mask: added, filled in or chosen, they are the scores, and which of them are shut.

A known tensor of 0 and −∞ (or the least number there is) added to scores leaves the open ones as they are, and a known
bias adds its own moments, those of the open entries. What is shut matters to the softmax alone, which asks for it.
"""

import torch
from torch import Tensor

from initwell.propagate.atoms import together
from initwell.propagate.mask import SHUT, Mask, both, filled, of_rank
from initwell.propagate.measured import measured
from initwell.propagate.rules.branch import added
from initwell.propagate.signal import Signal, replace
from initwell.propagate.table import Call
from initwell.trace.trace import ValueRef


def _mask(call: Call, ref: object, shut: Tensor, rank: int, level: float) -> Mask:
    # Layers share their masks: what is worked out of one is kept with the known values.
    value = ref.id if isinstance(ref, ValueRef) else -1
    first = call.values.folded.first.get(value, value)
    samples = call.values.sample(value) == 0
    return call.values.once(
        f"mask {first} {rank} {call.op.functional}", lambda: of_rank(shut, rank, level, samples=samples)
    )


def masked_sum(call: Call, first: str, second: str, beta: float) -> Signal | None:
    """Add a known mask to scores, whose other entries may be a bias; None where neither operand is such a mask.

    Args:
        call: of add or sub.
        first: an operand's name.
        second: the other's.
        beta: factor of the second.
    """
    rank = len(call.shape())
    for name, other in ((second, first), (first, second)):
        known = call.value(name)
        if known is None or not known.is_floating_point() or not call.has(other) or (name == second and beta < 0):
            continue
        shut = known <= SHUT
        if not bool(shut.any()):
            continue
        x, mask = call.signal(other), _mask(call, call[name], shut, rank, float(known[shut].double().mean()))
        bias = filled(known, shut)
        if bias.any():
            sample = call.values.sample(call[name].id)
            x = added(*together(x, measured(torch.from_numpy(bias), sample=sample), call.shape()))
        elif x.shape != call.shape():
            x = together(x, mask.even, call.shape())[0]
        return replace(x, mask=both(x.mask, mask))
    return None


def _low(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > 0 and value.is_floating_point() and bool((value <= SHUT).all())
    return isinstance(value, (int, float)) and value <= SHUT


def masked_choice(call: Call, condition: str, kept: str, fill: str, *, shut: bool) -> Signal | None:
    """Fill scores with −∞ where a known condition says so; None where that is not what happens.

    Args:
        call: of where or masked_fill.
        condition: its argument's name.
        kept: that of the scores.
        fill: that of what is filled in.
        shut: whether the condition holds where scores are shut.
    """
    known = call.value(condition)
    value = call.value(fill) if isinstance(call[fill], ValueRef) else call[fill]
    if known is None or not call.has(kept) or not _low(value):
        return None
    x = call.signal(kept)
    closed = known.bool() if shut else ~known.bool()
    level = float(value.double().mean()) if isinstance(value, Tensor) else float(value or 0.0)
    mask = _mask(call, call[condition], closed, len(call.shape()), level)
    if x.shape != call.shape():
        x = together(x, mask.even, call.shape())[0]
    return replace(x, mask=both(x.mask, mask))
