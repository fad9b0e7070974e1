"""Reading a state that is a sum of outer products, as a selective scan does: rows of unlike sizes, and norms of them.

h = Σ_t w_t x_t b_tᵀ, of channels by levels, is read as y = h c, so that y = Σ_t w_t (b_t·c) x_t: a row of as many
channels as one likes is as large as a few numbers b_t·c make it. With these Gaussian, of K levels,

    swing(y) = (1 + 2 Σ w⁴/(Σ w²)²)(1 + 2/K) − 1

Where decays wipe the state at every step, that is more than 2. A norm of such rows divides by their sizes, and of ν
degrees of freedom, 2/ν the relative variance, E[1/s²] is infinite where ν is 2 or less, but for what else the rows are
made of: what the norm sends back lives of the few rows that happen to be next to nothing, and is not known.

Assumption: the b_t of different steps, and c, are independent. Steps beyond ``_STEPS`` ago count as evenly many.
"""

import math

from initwell.propagate.laws.averages import FEWEST
from initwell.propagate.laws.functions import as_image
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.table import Call, UnknowableError
from initwell.trace.trace import Op, Trace

_STEPS = 32
_NESTED = 3
# Of the relative variance 2/ν of rows' mean squares: with ν = 8 numbers E[1/s²] is a third larger than 1/E[s²].
_MOST = 0.25


def read_state(call: Call, found: Signal) -> Signal:
    """Note how much rows that were read of a state differ in size.

    Args:
        call: of a batched product.
        found: the product.
    """
    if call.op.phase != "forward":
        return found
    for name, dim in (("self", 2), ("mat2", 1)):
        share = _unevenness(call, call[name].id)
        if share > 0:
            levels = call.signal(name).shape[dim]
            return replace(found, swing=(1 + 2 * share) * (1 + 2 / levels) - 1)
    return found


def _unevenness(call: Call, value: int) -> float:
    """Return Σ w⁴/(Σ w²)² of a state that is a sum of outer products; 0 of anything else."""
    found, left = 0.0, 1.0
    for _ in range(_STEPS):
        if _is_outer(call.trace, value, _NESTED):
            return found + left
        step = _last_step(call.trace, value)
        if step is None or any(part not in call.known for part in step[:2]):
            return found
        new, kept = (call.known[part].q for part in step[:2])
        whole, value = (new + kept) or 1.0, step[2]
        found, left = found + left * (new / whole) ** 2, left * (kept / whole) ** 2
    return found


def _last_step(trace: Trace, value: int) -> tuple[int, int, int] | None:
    """Return what was last added to a state, what was kept of it, and the state before; None of no such sum."""
    op = _producer(trace, value)
    if op is None or op.functional != "aten.add" or len(op.inputs) != 2:
        return None
    for new, kept in (op.inputs, op.inputs[::-1]):
        decay = _producer(trace, kept)
        if decay is None or decay.functional != "aten.mul" or not _is_outer(trace, new, _NESTED):
            continue
        before = [i for i in decay.inputs if (made := _producer(trace, i)) is not None and made.functional in _STATES]
        if before:
            return new, kept, before[0]
    return None


_STATES = frozenset({"aten.add", "aten.zeros", "aten.new_zeros", "aten.zeros_like"})


def _producer(trace: Trace, value: int) -> Op | None:
    return trace.producer(trace.shown(value))


def _is_outer(trace: Trace, value: int, nested: int) -> bool:
    """Whether a value is a product of two that are each broadcast along a dimension of the other, sample by sample."""
    op = _producer(trace, value)
    if op is None or nested == 0 or op.functional != "aten.mul" or len(op.inputs) != 2:
        return False
    whole = trace.values[op.outputs[0]].shape
    shapes = [trace.values[i].shape for i in op.inputs]
    if any(len(shape) != len(whole) or shape[0] != whole[0] for shape in shapes):
        return False
    if all(1 in [a for a, n in zip(shape, whole, strict=True) if n > 1] for shape in shapes):
        return True
    return any(_is_outer(trace, i, nested - 1) for i in op.inputs)


def refuse_uneven(call: Call, gradient: Signal, scale: Signal) -> None:
    """Refuse a gradient times the scale of a norm of rows that vary much in size, or are made of next to nothing.

    Args:
        call: of a product of the backward.
        gradient: one factor.
        scale: the other.

    Raises:
        UnknowableError: the scale is that of such a norm.
    """
    for factor in (gradient, scale):
        average = as_image(factor).pre.average
        if average is not None and min(average.numbers, default=math.inf) <= FEWEST:
            raise UnknowableError("a gradient through a norm of rows the first of which one or two scores made")
        if average is None or average.kind != "square" or average.of.swing <= _MOST:
            continue
        if call.values.once("states", lambda: any(_reads_state(call.trace, op) for op in call.trace.forward_ops)):
            raise UnknowableError(
                "a gradient through a norm of rows that differ much in size, as what is read of a state"
            )


def _reads_state(trace: Trace, op: Op) -> bool:
    if op.functional != "aten.bmm":
        return False
    return any(_last_step(trace, i) is not None or _is_outer(trace, i, _NESTED) for i in op.inputs)
