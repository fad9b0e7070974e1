"""What a model makes of its batch before any weight: normalized pixels, spectra, logarithms, powers, times as sines.

The moments of an input say little of log(1 + 10x), of x³, or of b − y where both are made of the same pixels. But the
numbers are there, as those of masks are, and no weight is needed to compute what follows from them alone. So that is
done, op by op, up to the first weight, and what comes out is measured as an input is.
"""

import math
from collections.abc import Collection, Mapping

from torch import Tensor
from torch.utils._pytree import tree_leaves

from initwell.propagate.given.measured import measured, with_places, with_unlike_noted
from initwell.propagate.given.scalars import only_computes, overload
from initwell.propagate.moments.atoms import viewed
from initwell.propagate.moments.signal import Signal
from initwell.trace.fold import called
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, Trace

MOST = 2**25
"""Entries of all that is computed of one batch."""
# Less than this is a mask's minus infinity.
_MASKED = -1e4


def prepared(trace: Trace, inputs: Mapping[int, Tensor], ruled: Collection[str] = ()) -> dict[int, Signal]:
    """Measure what a forward makes of floating inputs and known numbers alone.

    Args:
        trace: from ``record``.
        inputs: the floating tensors of the batch with numbers, by value id.
        ruled: packets of ops that the caller has rules for, which are asked instead.

    Returns:
        The signals, by value id; none of mere views of the inputs, which have rules enough.

    >>> from torch import nn, ones
    >>> from initwell.trace.recorder import record
    >>> class Logarithm(nn.Module):
    ...     def forward(self, x: Tensor) -> Tensor:
    ...         return x.log1p() * 2
    >>> batch = ones(4, 3)
    >>> trace = record(Logarithm(), batch)
    >>> [round(signal.rms, 4) for signal in prepared(trace, {trace.inputs["input.0"]: batch}).values()]
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
            if all(_is_plain(tensor) for tensor in made.values()):
                found |= {value: _measured(trace, value, tensor, samples) for value, tensor in made.items()}
    return found


def _follows(op: Op, trace: Trace, numbers: Mapping[int, Tensor]) -> bool:
    known = trace.folded.tensors
    # One whole tensor may be written, as by add_; where views of it are about, others would show that too.
    alone = not op.mutates or (len(op.mutates) == 1 and op.mutates[0][1] in op.outputs)
    return (
        alone
        and any(i in numbers for i in op.inputs)
        and all(i in numbers or i in known for i in op.inputs)
        and only_computes(op)
    )


def _run(op: Op, trace: Trace, numbers: Mapping[int, Tensor]) -> dict[int, Tensor] | None:
    """Return the numbers that an op makes; None where PyTorch refuses, or makes something else than it did there."""
    read = {i: numbers[i] if i in numbers else trace.folded.tensors[i] for i in op.inputs}
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
        and float(tensor.min()) > _MASKED
    )


def _measured(trace: Trace, value: int, tensor: Tensor, samples: int) -> Signal:
    """Measure by samples, whose rows may lie one after another along the first dimension."""
    if tensor.ndim and tensor.shape[0] == samples:
        found = measured(tensor, sample=0)
        if any("conv" in op.functional or "pool" in op.functional for op in trace.consumers(value)):
            found = with_places(found, tensor)
        return with_unlike_noted(found, tensor, "samples of what is made of the batch")
    if tensor.ndim and samples > 1 and tensor.shape[0] and tensor.shape[0] % samples == 0:
        rows = tensor.reshape(samples, tensor.shape[0] // samples, *tensor.shape[1:])
        return viewed(measured(rows, sample=0), tuple(tensor.shape))
    return measured(tensor)
