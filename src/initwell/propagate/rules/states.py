"""Reading a state that is a sum of outer products, as a selective scan does: rows of unlike sizes, and norms of them.

h = Σ_t w_t x_t b_tᵀ, of channels by levels, is read as y = h c, so that y = Σ_t w_t (b_t·c) x_t: a row of as many
channels as one likes is as large as a few numbers b_t·c make it. With these Gaussian, of K levels,

    swing(y) = (1 + 2 Σ w⁴/(Σ w²)²)(1 + 2/K) − 1

Where decays wipe the state at every step, that is more than 2. A norm of such rows divides by their sizes, and of ν
degrees of freedom, 2/ν the relative variance, E[1/s²] is infinite where ν is 2 or less, but for what else the rows are
made of: what the norm sends back lives of the few rows that happen to be next to nothing, and is not known.

What is written, where, and what is read are images of one row, and where rows vary in size by v, as those of a
depthwise convolution that nothing normalized, powers of it are larger than of independents: under a gamma law 1 + v of
what is written, E[r²], and (1 + v)(1 + 2v) of what is read of it at once, E[r³]. Of d entries v = (E[x⁴]/E[x²]² − 1)/d.

Assumption: the b_t of different steps, and c, are independent. Steps beyond ``_STEPS`` ago count as evenly many.
"""

import math

import numpy as np

from initwell.propagate.laws.averages import FEWEST, gamma_law
from initwell.propagate.laws.functions import as_image
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.first_rows import refuse_first_rows
from initwell.propagate.rules.one_gate import refuse_one_gate
from initwell.propagate.rules.scatter import relative_variance
from initwell.propagate.table import Call, UnknowableError
from initwell.trace.trace import Op, Trace

_STEPS = 32
_NESTED = 3
_POINTS = 32
# Of the relative variance 2/ν of rows' mean squares: with ν = 8 numbers E[1/s²] is a third larger than 1/E[s²].
_MOST = 0.25
# So much is ν = 1/2 of a number: most rows are next to nothing beside a few.
_HARDLY = 4.0
_DIFFER = "a gradient through a norm of rows most of which are small beside a few, as where states have grown"


def read_state(call: Call, found: Signal) -> Signal:
    """Note how much rows that were read of a state differ in size.

    Args:
        call: of a batched product.
        found: the product.
    """
    if call.op.phase != "forward":
        return found
    found = _read_at_once(call, found)
    for name, dim in (("self", 2), ("mat2", 1)):
        share = _unevenness(call, call[name].id)
        if share > 0:
            levels = call.signal(name).shape[dim]
            return replace(found, swing=(1 + 2 * share) * (1 + 2 / levels) - 1, floor=0.0)
    return found


def written(call: Call, found: Signal) -> Signal:
    """Let a product of two images of one row go with the square of its size, where states are written.

    Args:
        call: of the product.
        found: as of independents.
    """
    if call.op.phase != "forward" or not _is_outer(call.trace, call.op.outputs[0], _NESTED):
        return found
    refs = call.tensors("self", "other")
    rows = set[int]() if refs is None else _rows_of(call, refs[0].id) & _rows_of(call, refs[1].id)
    varies = max((_varies(call, value) for value in rows), default=0.0)
    if refs is None or varies == 0:
        return found
    wide = zip(*(call.trace.values[ref.id].shape for ref in refs), strict=True)
    return _same_rows(found, [d for d, lengths in enumerate(wide) if min(lengths) > 1], 1 + varies)


def _same_rows(found: Signal, dims: list[int], factor: float) -> Signal:
    """Multiply moments of entries of one row."""
    rows = set(found.axes(dims))
    same = tuple([slice(n) if i in rows else slice(None) for i, n in enumerate(found.means.shape)])
    moments = found.moments.copy()
    moments[same] *= factor
    return replace(found, moments=moments)


def _read_at_once(call: Call, found: Signal) -> Signal:
    """Let what is read of a state by the row that was written last go with the third power of its size."""
    for name, other in (("self", "mat2"), ("mat2", "self")):
        step = _last_step(call.trace, call[name].id)
        if step is None or any(part not in call.known for part in step[:2]):
            continue
        rows = _rows_of(call, step[0]) & _rows_of(call, call[other].id)
        varies = max((_varies(call, value) for value in rows), default=0.0)
        new, kept = (call.known[part].q for part in step[:2])
        if varies > 0 and new > 0:
            return _same_rows(found, [0], 1 + new / (new + kept) * 2 * varies)
    return found


def _rows_of(call: Call, value: int) -> set[int]:
    """Return the values whose rows others are made of: by a layer, or entry by entry in a product."""
    shown = call.trace.shown(value)
    op = call.trace.producer(shown)
    if op is not None and op.functional == "aten.mul":
        return set[int]().union(*(_rows_of(call, i) for i in op.inputs))
    if op is not None and op.functional in ("aten.mm", "aten.addmm"):
        name = "self" if op.functional == "aten.mm" else "mat1"
        return {call.trace.shown(op.arguments[name].id)}
    return {shown}


def _varies(call: Call, value: int) -> float:
    """Return the relative variance of the sizes of rows φ(u), u what a depthwise convolution made, channels not alike.

    Of each channel u is Gaussian, of a size that its few weights have made.
    """
    x = call.known.get(value)
    made = None if x is None else x.image
    op = call.trace.producer(value)
    whole = None if op is None or not op.inputs else call.known.get(call.trace.shown(op.inputs[0]))
    if x is None or made is None or made.base is not None or len(x.shape) != 3 or whole is None:
        return 0.0
    u, spread = made.pre, relative_variance(whole)
    variance = u.q - u.mean**2
    if variance <= 0 or spread <= 0:
        return 0.0
    sizes, shares = gamma_law(variance, spread * variance**2)
    z, weights = np.polynomial.hermite_e.hermegauss(_POINTS)
    y = made.phi.fn(u.mean + np.multiply.outer(np.sqrt(sizes), z))
    two, four = (float(shares @ y**k @ (weights / weights.sum())) for k in (2, 4))
    return max(four / two**2 - 1, 0.0) / whole.shape[1] if two > 0 else 0.0


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
        if average.of.swing > _HARDLY:
            raise UnknowableError(_DIFFER)
        if call.values.once("states", lambda: any(_reads_state(call.trace, op) for op in call.trace.forward_ops)):
            raise UnknowableError(
                "a gradient through a norm of rows that differ much in size, as what is read of a state"
            )


def refuse_rows(call: Call, value: int, features: int) -> None:
    """Refuse what a layer norm sends back to rows of which it is not known how small the small ones are.

    Args:
        call: of the norm's backward.
        value: what is normalized.
        features: how many the norm is over.

    Raises:
        UnknowableError: there are such rows.
    """
    refuse_first_rows(call, value, features)
    refuse_one_gate(call, value)
    if value in call.known and call.known[value].swing > _HARDLY:
        raise UnknowableError(_DIFFER)


def _reads_state(trace: Trace, op: Op) -> bool:
    if op.functional != "aten.bmm":
        return False
    return any(_last_step(trace, i) is not None or _is_outer(trace, i, _NESTED) for i in op.inputs)
