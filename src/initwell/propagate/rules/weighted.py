"""Sums over the rows that a known mask leaves, divided by how many those are: the mean of texts of unlike length.

With w a known weight of each row t of each sample i, and d known of each sample,

    y_i = Σ_t w_it x_it / d_i        E[y_i y_j'] = Σ_tu E[(w_it/d_i) (w_ju/d_j)] E[x_it x_ju']

and w/d is one known tensor: its moments times those of x, pattern by pattern, are exact. The rows as segments at one
end, as many in each sample as on average (``overwritten``), have E[n]² for E[n²]; and n and d go together, so that
E[n] E[1/n²] is not E[1/n]. Of layers between the mask and the sum, whose rows stay 0 where it is, the rows that are
left take the place of x.

Backward, the gradient is divided by d, and meets the mask behind layers that leave rows what they are: moments of 1/d
in it give way to those of w/d.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from initwell.propagate.given.measured import measured
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.branch import multiplied
from initwell.propagate.rules.parts import sliced
from initwell.propagate.table import Call
from initwell.trace.trace import Op, Phase, ValueRef

# So many ops may lie between a mask and a sum.
_STEPS = 12
# Ops that make each row of that row, and the argument that it is.
_BY_ROW = {
    "aten.mm": "self",
    "aten.addmm": "mat1",
    "aten.relu": "self",
    "aten.gelu": "self",
    "aten.silu": "self",
    "aten.tanh": "self",
    "aten.native_dropout": "input",
    "aten.threshold_backward": "grad_output",
    "aten.gelu_backward": "grad_output",
    "aten.silu_backward": "grad_output",
    "aten.tanh_backward": "grad_output",
}


class Numbers(NamedTuple):
    """Known numbers by a name, under which what is worked out of them is kept for the next walk of a trace."""

    name: str
    tensor: Tensor


def weights_of(call: Call, op: Op) -> tuple[Numbers, ValueRef] | None:
    """Return the known weight of each row, (samples, places, 1), by which an op multiplies, and what it multiplies.

    Args:
        call: of any op of the walk.
        op: a product with known numbers, or a choice between a value and 0; None of any other.
    """
    shape = call.trace.values[op.outputs[0]].shape if op.outputs else ()
    for ref, shuts, kept in _choices(call, op.functional, op.arguments) if len(shape) == 3 else ():
        numbers = call.value_of(ref)
        if numbers is None or not isinstance(kept, ValueRef) or numbers.ndim != 3 or numbers.shape[:2] != shape[:2]:
            continue
        if call.trace.values[kept.id].shape == shape:
            name = f"weights of rows {call.values.folded.first[ref.id]} {shuts}"
            rows = call.values.once(name, lambda: _of_rows(numbers, shuts=shuts))  # noqa: B023
            return None if rows is None else (Numbers(name, rows), kept)
    return None


def _of_rows(numbers: Tensor, *, shuts: bool) -> Tensor | None:
    """Return the number of each row; None where features have numbers of their own."""
    if not bool((numbers == numbers[..., :1]).all()):
        return None
    rows = numbers[..., :1]
    return (rows == 0 if shuts else rows).double()


def _choices(call: Call, name: str, given: Mapping[str, Any]) -> list[tuple[Any, bool, Any]]:
    """Return what may be known, whether it shuts, and what is multiplied by it, of an op's arguments."""
    if name == "aten.mul":
        return [(given["other"], False, given["self"]), (given["self"], False, given["other"])]
    if name == "aten.masked_fill" and _is_zero(call, given["value"]):
        return [(given["mask"], True, given["self"])]
    if name == "aten.where":
        ways = ((False, "self", "other"), (True, "other", "self"))
        return [(given["condition"], shuts, given[kept]) for shuts, kept, fill in ways if _is_zero(call, given[fill])]
    return []


def _is_zero(call: Call, fill: object) -> bool:
    if isinstance(fill, ValueRef):
        return call.value_of(fill) is not None and call.values.range(fill.id) == (0.0, 0.0)
    return fill == 0


def rows_summed(call: Call, ref: ValueRef, divisor: Numbers | None = None) -> Signal | None:
    """Return w·x, or w·x/d, of a value that is summed over its rows; None where it has no known weights.

    Args:
        call: of the sum, or of what divides it.
        ref: the value.
        divisor: d, of one number a sample.
    """
    op = call.trace.producer(ref.id)
    direct = weights_of(call, op) if op is not None else None
    if direct is not None and (x := call.known.get(direct[1].id)) is not None:
        return _times(call, x, direct[0], divisor)
    y = call.known.get(ref.id)
    if y is None or not y.segmented or len(y.shape) != 3:
        return None
    weights, left = _mask_behind(call, ref), _left(y)
    return None if weights is None or left is None else _times(call, left, weights, divisor)


def _times(call: Call, x: Signal, weights: Numbers, divisor: Numbers | None) -> Signal:
    return multiplied(*together(replace(x, mask=None, image=None), _share(call, weights, divisor), x.shape))


def _share(call: Call, weights: Numbers | None, divisor: Numbers | None) -> Signal:
    """Return w/d, (samples, places, 1), or 1/d of as many dimensions; without a divisor w."""

    def share() -> Signal:
        below = torch.ones(1, 1, 1) if divisor is None else divisor.tensor
        return measured((torch.ones(1, 1, 1) if weights is None else weights.tensor) / below, sample=0)

    return call.values.once(f"share of {weights and weights.name} by {divisor and divisor.name}", share)


def _mask_behind(call: Call, ref: ValueRef) -> Numbers | None:
    """Return the weights, 0 or 1, of rows that layers, each of one row, had in front of them."""
    for op in _behind(call, ref, "forward"):
        if (found := weights_of(call, op)) is not None:
            name, rows = found[0]
            return found[0] if call.values.once(f"{name} ones", lambda: _of_ones(rows)) else None  # noqa: B023
    return None


def _behind(call: Call, ref: ValueRef, phase: Phase) -> Iterator[Op]:
    """Yield the op that made a value, and those before it, as long as each makes every row of that row."""
    before: Any = ref
    for _ in range(_STEPS):
        op = call.trace.producer(call.trace.shown(before.id)) if isinstance(before, ValueRef) else None
        if op is None or op.phase != phase:
            return
        yield op
        before = op.arguments.get(_BY_ROW.get(op.functional, ""))


def _of_ones(rows: Tensor) -> bool:
    return bool(((rows == 0) | (rows == 1)).all())


def _left(y: Signal) -> Signal | None:
    """Return rows of which some are 0, as a segment, as if none were; None where that is not what they are."""
    if len(y.dims[1]) != 1 or len(y.dims[1][0].parts) != 2:
        return None
    parts, (axis,) = y.dims[1][0].parts, y.axes([1])
    sizes = [float(np.abs(y.diagonal.take(i, axis)).max()) for i in range(2)]
    if min(sizes) > 0 or max(sizes) == 0:
        return None
    part = sliced(y, 1, 0, parts[0]) if sizes[1] == 0 else sliced(y, 1, parts[0], sum(parts))
    if len(part.dims[1]) != 1:
        return None
    whole = replace(part.dims[1][0], size=sum(parts), parts=())
    return part.regrouped((part.dims[0], (whole,), *part.dims[2:]), part.moments)


def by_sample(call: Call, ref: object, rank: int, samples: int) -> Numbers | None:
    """Return what is known of one number a sample, none of them 0, as (samples, 1, 1); None of anything else.

    Args:
        call: of the op that divides by it.
        ref: the divisor.
        rank: how many dimensions has what is divided.
        samples: how long the first of them is.
    """
    known = call.value_of(ref)
    if known is None or not isinstance(ref, ValueRef) or known.ndim != rank or rank < 2:
        return None
    if known.shape[0] != samples or samples < 2:
        return None
    name = f"number of each sample {call.values.folded.first[ref.id]}"
    found = call.values.once(name, lambda: _of_samples(known))
    return None if found is None else Numbers(name, found)


def _of_samples(known: Tensor) -> Tensor | None:
    flat = known.double().reshape(len(known), -1)
    if bool((flat != flat[:, :1]).any()) or bool((flat == 0).any()) or not bool(flat.isfinite().all()):
        return None
    return flat[:, :1, None]


def of_rows_left(call: Call, x: Signal) -> Signal:
    """Return what is summed over its rows as the product of them and of their known weights, where it is one."""
    ref = call["self"]
    if call.op.phase != "forward" or not x.segmented or not isinstance(ref, ValueRef):
        return x
    found = rows_summed(call, ref)
    return x if found is None else found


def mean_of_rows(call: Call) -> Signal | None:
    """Return w·x/d of a quotient (Σ w·x)/d over dimension 1, d of one number a sample; None where it is none."""
    ref = call["self"]
    if call.op.phase != "forward" or not isinstance(ref, ValueRef) or len(call.shape()) < 2:
        return None
    divisor = by_sample(call, call["other"], len(call.shape()), call.shape()[0])
    summed = call.trace.producer(call.trace.shown(ref.id)) if divisor is not None else None
    if summed is None or summed.functional != "aten.sum" or not isinstance(summed.arguments["self"], ValueRef):
        return None
    of = summed.arguments["self"]
    rank = len(call.trace.values[of.id].shape)
    if rank != 3 or [d % rank for d in summed.arguments["dim"] or ()] != [1]:
        return None
    return rows_summed(call, of, divisor)


def sent_back(call: Call) -> Signal | None:
    """Multiply a gradient by known weights of rows where it was divided by a number of each sample; else None."""
    if call.op.phase != "backward" or (found := weights_of(call, call.op)) is None:
        return None
    weights, ref = found
    divisor, g = _divisor_behind(call, ref), call.known.get(ref.id)
    if divisor is None or g is None:
        return None
    g, new = together(g, _share(call, weights, divisor), g.shape)
    old = together(g, _share(call, None, divisor), g.shape)[1]
    if g.dims != old.dims or (old.moments <= 0).any():
        return None
    share = replace(new, moments=new.moments / old.moments, means=new.means / old.means)
    return replace(multiplied(g, share), joint=True)


def _divisor_behind(call: Call, ref: ValueRef) -> Numbers | None:
    """Return what a gradient was divided by, ahead of layers, each of one row."""
    for op in _behind(call, ref, "backward"):
        if op.functional == "aten.div":
            shape = call.trace.values[op.outputs[0]].shape
            return by_sample(call, op.arguments["other"], len(shape), shape[0] if shape else 0)
    return None


def known_inverse(call: Call) -> Signal | None:
    """Return 1/d of a known divisor, as what it is; None where that is not known, or somewhere 0."""
    known, ref = call.value("other"), call["other"]
    if known is None or known.is_complex():
        return None
    name = f"inverse of {call.values.folded.first[ref.id]}"
    return call.values.once(name, lambda: _inverse(known, call.values.sample(ref.id)))


def _inverse(known: Tensor, sample: int | None) -> Signal | None:
    if bool((known == 0).any()) or not bool(known.isfinite().all()):
        return None
    return measured(1 / known.double(), sample=sample)
