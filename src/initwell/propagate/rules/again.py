"""Few weights that are applied to what they made themselves, as a depthwise convolution shared by a stream of blocks.

A channel's convolution multiplies each frequency by one number ŵ, about complex Gaussian, E|ŵ|² = v. Coming by again,
an entry of x + w∗x meets the same 1 + ŵ. After k uses its square is not (1 + v)^k times what it was, but

    M_k = E|1 + ŵ|^2k = Σ_j C(k, j)² j! v^j          and without the skip        E|ŵ|^2k = k! v^k

A channel's weights are few, and no sum over many evens this out. What a block adds between two uses has come by less
often. With t_k the share of a square that has come by k times already, the sum is Σ t_k M_{k+1}/M_k times as large as x
and the convolution alone Σ t_k E|ŵ|²|1 + ŵ|^2k/M_k. Gradients come back through the same weights in the same way.
Assumption: frequencies are no multiples of half a turn, where ŵ is real; channels that have grown are no less in the
norms and products between.
"""

import math
from collections.abc import Mapping, Sequence

from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.table import Call
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, ValueRef

AGAIN = "few weights applied to what they made, frequencies of each channel as multiplied by one complex number"
_STEPS = 64
_LINEAR = frozenset({*VIEWS, *COPIES, "aten.add", "aten.sub", "aten.cat", "aten.slice", "aten.slice_backward"})
# What a convolution reads, forward and backward.
_READ: Mapping[str, str] = {"aten.convolution": "input", "aten.convolution_backward": "grad_output"}


def of_convolution(call: Call, y: Signal) -> Signal:
    """Return what a convolution makes, forward or backward, minding how often what it reads has come by before.

    Args:
        call: of the convolution, or of its backward.
        y: what it makes, its weights taken as independent of what it reads.
    """
    parts = _parts(call, call.op) if _is_shared(call) else [1.0]
    if len(parts) == 1:
        return y
    size = _size(call, call.op)
    return _larger(y, sum(t * _alone(k, size, skip=_sum_of(call, call.op) is not None) for k, t in enumerate(parts)))


def of_sum(call: Call, found: Signal, first: str, second: str) -> Signal:
    """Return x + w∗x of few weights, minding how often x has come by them before.

    Args:
        call: of the sum.
        found: the sum, its terms taken as independent.
        first: name of one term.
        second: name of the other.
    """
    refs = call.tensors(first, second) if _is_shared(call) else None
    if refs is None:
        return found
    for stream, made in zip(refs, refs[::-1], strict=True):
        op = call.trace.producer(call.trace.shown(made.id))
        if op is None or op.functional not in _READ or _sum_of(call, op) is not call.op:
            continue
        parts, x, y = _parts(call, op), call.of(stream), call.of(made)
        if len(parts) > 1 and x.dims == y.dims == found.dims:
            v = _size(call, op)
            fresh = y.q / max(sum(t * _alone(k, v, skip=True) for k, t in enumerate(parts)), 1e-300)
            grown = sum(t * _power(k + 1, v) / _power(k, v) for k, t in enumerate(parts))
            # As a whole: in part it is what is in both terms at once.
            return replace(_larger(found, (x.q + fresh) * grown / (1 + v) / max(found.q, 1e-300)), joint=True)
    return found


def _larger(x: Signal, square: float) -> Signal:
    root = math.sqrt(square)
    found = replace(x, moments=x.moments * square, means=x.means * root, image=None, law=None)
    return found.approximate(AGAIN)


def _is_shared(call: Call) -> bool:
    """Whether some convolution's weights, of one input channel each, are used by several."""

    def several() -> bool:
        seen: set[int] = set()
        for op in call.trace.forward_ops:
            weight = op.arguments["weight"].id if op.functional == "aten.convolution" else None
            if weight is not None and weight in seen and call.trace.values[weight].shape[1] == 1:
                return True
            seen |= {weight} if weight is not None else set()
        return False

    return call.values.once("again", several)


def _parts(call: Call, op: Op) -> Sequence[float]:
    """Return the shares of the square of what a convolution reads that came by its weights 0, 1, 2, … times."""
    before = _earlier(call, op) if call.trace.values[op.arguments["weight"].id].shape[1] == 1 else None
    x = call.known.get(op.arguments[_READ[op.functional]].id)
    if before is None or x is None or x.q <= 0:
        return [1.0]
    after = _sum_of(call, before)
    whole = call.known.get(before.outputs[0] if after is None else after.outputs[0])
    if whole is None:
        return [1.0]
    v, share = _size(call, before), min(whole.q / x.q, 1.0)
    grown = [t * _rate(k, v, skip=after is not None) for k, t in enumerate(_parts(call, before))]
    return [1 - share, *(share * t / sum(grown) for t in grown)]


def _earlier(call: Call, op: Op) -> Op | None:
    """Return the last use of the same weights, of the same phase, that a convolution reads a linear image of."""
    weight, found = op.arguments["weight"].id, None
    queue, seen = [op.arguments[_READ[op.functional]].id], set[int]()
    while queue and len(seen) < _STEPS:
        value = queue.pop(0)
        made = call.trace.producer(value)
        if value in seen or made is None or made.phase != op.phase:
            continue
        seen.add(value)
        if made.functional == op.functional and made.arguments["weight"].id == weight and value == made.outputs[0]:
            found = made if found is None or made.index > found.index else found
        elif made.functional in _LINEAR:
            queue.extend(made.inputs)
    return found


def _size(call: Call, op: Op) -> float:
    """Return v: what the weights make of a square that is new to them, as they did when they were used first."""
    while (before := _earlier(call, op)) is not None:
        op = before
    x, y = call.known.get(op.arguments[_READ[op.functional]].id), call.known.get(op.outputs[0])
    return y.q / x.q if x is not None and y is not None and x.q > 0 else 0.0


def _sum_of(call: Call, op: Op) -> Op | None:
    """Return the op that adds what a convolution read to what it made."""
    end = call.trace.shown(op.arguments[_READ[op.functional]].id)
    for after in call.trace.consumers(op.outputs[0]):
        if after.functional == "aten.add" and after.phase == op.phase:
            refs = [r for r in (after.arguments["self"], after.arguments["other"]) if isinstance(r, ValueRef)]
            if any(call.trace.shown(r.id) == end for r in refs):
                return after
    return None


def _power(uses: int, v: float) -> float:
    """Return E|1 + ŵ|^2k.

    >>> _power(1, 2.0), _power(2, 2.0)
    (3.0, 17.0)
    """
    return sum(math.comb(uses, j) ** 2 * math.factorial(j) * v**j for j in range(uses + 1))


def _rate(before: int, v: float, *, skip: bool) -> float:
    return _power(before + 1, v) / _power(before, v) if skip else (before + 1) * v


def _alone(before: int, v: float, *, skip: bool) -> float:
    """Return how much larger a convolution's output is of what came by so often before."""
    if not skip:
        return before + 1.0
    found = sum(math.comb(before, j) ** 2 * math.factorial(j + 1) * v**j for j in range(before + 1))
    return found / _power(before, v)
