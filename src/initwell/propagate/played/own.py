"""Sums of a value and of what few weights of its own channel made of it: x + bn(w∗x), w a depthwise convolution.

A channel of x + (w∗x)/s is 1 + ŵ/s times as large at each frequency, ŵ that of its k×k weights alone: some channels
grow and others are cancelled, and no sum over many evens that out. The next such branch is divided by that channel's
own size, and gradients come back through the same 1 + ŵ/s, so that what a channel is divided by and what comes back to
it go together from block to block:

    E[|1 + ŵ/s|² |1 + ŵ′/s′|² …]    with s′² = Σ |ŵ′|²|1 + ŵ/s|² X, X the power of what the first block reads

is no product of averages, and at all depths there is another. Layers that read all channels end it: what they make is
alike in all. So these stretches are played between such layers; batch norm in them divides by real sizes.
"""

from collections.abc import Iterator

from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, Trace, ValueRef

NORMS = frozenset({"aten.native_batch_norm", "aten._native_batch_norm_legit"})
_SUMS = frozenset({"aten.add", "aten.sub"})
_LINEAR = frozenset({*_SUMS, *NORMS, *COPIES, *VIEWS, "aten.mul"})
_STEPS = 32


def sums_of_own(trace: Trace) -> Iterator[Op]:
    """Go over the sums of a value and of a normalized depthwise convolution of it.

    Args:
        trace: from ``record``.
    """
    for op in trace.forward_ops:
        if op.functional not in NORMS or not op.arguments["training"]:
            continue
        conv = trace.producer(trace.shown(op.arguments["input"].id))
        if conv is not None and is_depthwise(trace, conv):
            yield from _sums(trace, op, trace.shown(conv.arguments["input"].id))


def is_depthwise(trace: Trace, op: Op) -> bool:
    """Whether an op is a convolution each output of which reads one channel."""
    if op.functional != "aten.convolution" or op.arguments["transposed"]:
        return False
    return bool(trace.values[op.arguments["weight"].id].shape[1] == 1 < op.arguments["groups"])


def _sums(trace: Trace, norm: Op, source: int) -> Iterator[Op]:
    """Go over the sums that a normalized value is a term of, whose other term is linear in the same source."""
    value = norm.outputs[0]
    for _ in range(_STEPS):
        after = [op for op in trace.consumers(value) if op.phase == "forward" and op.functional in _LINEAR]
        added = next((op for op in after if op.functional in _SUMS), None)
        if added is not None:
            others = [r for r in (added.arguments["self"], added.arguments["other"]) if isinstance(r, ValueRef)]
            if any(_holds(trace, r.id, source) for r in others if r.id != value):
                yield added
                return
        if not after:
            return
        value = (added or after[0]).outputs[0]


def _holds(trace: Trace, value: int, source: int) -> bool:
    """Whether a value is a source, or a sum that it is a term of, by itself or behind a norm or few weights."""
    left, seen = [trace.shown(value)], set[int]()
    while left and len(seen) < _STEPS:
        here = left.pop()
        if here == source:
            return True
        op = trace.producer(here)
        if here in seen or op is None:
            continue
        seen.add(here)
        if op.functional in _LINEAR or is_depthwise(trace, op):
            left += [trace.shown(i) for i in op.inputs]
    return False
