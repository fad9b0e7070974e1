"""What a model makes of its batch before any weight: normalized pixels, spectra, logarithms, powers, times as sines.

The moments of an input say little of log(1 + 10x), of x³, or of b − y where both are made of the same pixels. But the
numbers are there, as those of masks are, and no weight is needed to compute what follows from them alone. So that is
done, op by op, up to the first weight, and what comes out is measured as an input is.

Averages over all places say little where places differ much in size, as of rows of padding or of joined parts: such
values are left to the rules, which know of segments, and so are norms. What later comes out even is measured again.
Assumption: of each other, and of what layers make of the same batch, such values are independent; so all of them are
approximate.
"""

import math
from collections.abc import Collection, Mapping

from torch import Tensor
from torch.utils._pytree import tree_leaves

from initwell.propagate.given.known import MASKED
from initwell.propagate.given.measured import measured, unlike_rows, with_places, with_unlike_noted
from initwell.propagate.given.scalars import only_computes
from initwell.propagate.given.start import convolved
from initwell.propagate.moments.atoms import viewed
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.trace.calls import called, overload
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, Trace

MOST = 2**24
"""Entries of all that is computed of one batch."""
# Mean squares along a dimension that differ by more than this are of unlike places.
_UNLIKE = 9.0
_LINEAR = frozenset(
    f"aten.{name}"
    for name in ("add", "sub", "mul", "div", "neg", "cat", "stack", "constant_pad_nd", "clone", "_to_copy")
)
_JOINS = frozenset({"aten.cat", "aten.constant_pad_nd"})
_WHY = "made of the batch before any weight and measured, as independent of what else is made of it"


def prepared(
    trace: Trace, inputs: Mapping[int, Tensor], ruled: Collection[str] = ()
) -> tuple[dict[int, Signal], dict[int, Array]]:
    """Measure what a forward makes of floating inputs and known numbers alone.

    Args:
        trace: from ``record``.
        inputs: the floating tensors of the batch with numbers, by value id.
        ruled: packets of ops that the caller has rules for, which are asked instead.

    Returns:
        The signals, by value id, none of mere views of the inputs, which have rules enough; and the mean squares of
        the rows of the inputs and of these, where some are far smaller than others.

    >>> from torch import nn, ones
    >>> from initwell.trace.recorder import record
    >>> class Logarithm(nn.Module):
    ...     def forward(self, x: Tensor) -> Tensor:
    ...         return x.log1p() * 2
    >>> batch = ones(4, 3)
    >>> trace = record(Logarithm(), batch)
    >>> [round(signal.rms, 4) for signal in prepared(trace, {trace.inputs["input.0"]: batch})[0].values()]
    [0.6931, 1.3863]
    """
    numbers = {value: tensor.detach().cpu() for value, tensor in inputs.items()}
    changed: set[int] = set()
    found: dict[int, Signal] = {}
    left, samples = MOST, next((t.shape[0] for t in numbers.values() if t.ndim), 1)
    for op in trace.forward_ops if numbers else ():
        sizes = [math.prod(trace.values[value].shape) for value in op.outputs]
        if op.packet in ruled or op.functional in ruled or not _follows(op, trace, numbers) or sum(sizes) > left:
            continue
        made = _run(op, trace, numbers)
        if made is None:
            continue
        left -= sum(sizes)
        numbers |= made
        if not changed.isdisjoint(op.inputs) or not (op.functional in VIEWS or op.functional in COPIES):
            changed.update(made)
            bends = len(op.inputs) == 1 and op.functional not in _LINEAR
            if _shows_parts(op, trace, found):
                continue
            if all(_is_plain(tensor) and _is_even(tensor, by_row=not bends) for tensor in made.values()):
                found |= {value: _measured(trace, value, tensor, samples) for value, tensor in made.items()}
    rows = {v: unlike_rows(numbers[v]) for v in (*inputs, *found)}
    return found, {v: sizes for v, sizes in rows.items() if sizes is not None}


def _follows(op: Op, trace: Trace, numbers: Mapping[int, Tensor]) -> bool:
    known = trace.folded.tensors
    # One whole tensor may be written, as by add_; where views of it are about, others would show that too.
    alone = not op.mutates or (len(op.mutates) == 1 and op.mutates[0][1] in op.outputs)
    return (
        alone
        and any(i in numbers for i in op.inputs)
        and all(i in numbers or i in known for i in op.inputs)
        and only_computes(op)
        # Batch norms write running statistics without saying so; and all norms have rules that know more.
        and "norm" not in op.functional.replace("vector_norm", "")
    )


def _shows_parts(op: Op, trace: Trace, found: Collection[int]) -> bool:
    """Whether an op shows all of what was joined of parts in another shape, and those were left to the rules."""
    shown: Op | None = op
    while shown is not None and (shown.functional in VIEWS or shown.functional in COPIES):
        if math.prod(trace.values[shown.outputs[0]].shape) != math.prod(trace.values[shown.inputs[0]].shape):
            return False
        shown = trace.producer(shown.inputs[0])
    joins = shown is not None and shown.functional in _JOINS
    return joins and shown is not op and shown is not None and shown.outputs[0] not in found


def _run(op: Op, trace: Trace, numbers: Mapping[int, Tensor]) -> dict[int, Tensor] | None:
    """Return the numbers that an op makes; None where PyTorch refuses, or makes something else than it did there."""
    # Known numbers may be the model's own buffers.
    read = {i: numbers[i] if i in numbers else trace.folded.tensors[i].clone() for i in op.inputs}
    try:
        out = called(overload(op), op.arguments, lambda ref: read[ref.id], lambda ref: read[ref.id].clone())
    except RuntimeError:
        return None
    made = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
    fit = len(made) == len(op.outputs) and all(
        tuple(t.shape) == trace.values[v].shape for t, v in zip(made, op.outputs, strict=True)
    )
    return dict(zip(op.outputs, made, strict=True)) if fit else None


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.is_floating_point()
        and tensor.numel() > 0
        and bool(tensor.isfinite().all())
        and float(tensor.min()) > MASKED
    )


def _is_even(tensor: Tensor, *, by_row: bool) -> bool:
    """Whether places along each dimension behind the first are of much the same size, and rows too.

    Args:
        tensor: real.
        by_row: whether rows have to be; else those that are far smaller than others are followed one by one.
    """
    squares, blank = tensor.detach().double().square(), unlike_rows(tensor) is not None
    if blank and by_row:
        return False
    for dim in range(tensor.ndim - 1 if blank else 1, tensor.ndim):
        sizes = squares.mean([d for d in range(tensor.ndim) if d != dim])
        if float(sizes.max()) > _UNLIKE * float(sizes.min()):
            return False
    return True


def _measured(trace: Trace, value: int, tensor: Tensor, samples: int) -> Signal:
    """Measure by samples, whose rows may lie one after another along the first dimension."""
    if tensor.ndim and tensor.shape[0] == samples:
        found = measured(tensor, sample=0)
        if convolved(trace, value):
            found = with_places(found, tensor)
        return with_unlike_noted(found, tensor, "samples of what is made of the batch").approximate(_WHY)
    if tensor.ndim and samples > 1 and tensor.shape[0] and tensor.shape[0] % samples == 0:
        rows = tensor.reshape(samples, tensor.shape[0] // samples, *tensor.shape[1:])
        return viewed(measured(rows, sample=0), tuple(tensor.shape)).approximate(_WHY)
    return measured(tensor).approximate(_WHY)
