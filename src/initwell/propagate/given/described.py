"""Inputs that a caller describes instead of giving: Signals in a batch, and the meta tensors that stand for them."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from initwell.errors import ArgumentError
from initwell.propagate.given.checks import is_number
from initwell.propagate.given.start import input_signals
from initwell.propagate.moments.signal import Signal, independent, replace
from initwell.trace.batch import as_arguments, map_tensors, tensors, uncompiled
from initwell.trace.trace import Trace


def signal(shape: Sequence[int], *, q: float = 1.0, mean: float = 0.0, overlap: float | None = None) -> Signal:
    """Describe an input of ``predict`` by its moments, in place of a tensor: normal numbers of which nothing is drawn.

    Args:
        shape: of the tensor; dimension 0 counts the samples.
        q: the second moment E[x²], above 0.
        mean: E[x]; mean² at most q.
        overlap: E[x y] over q for the same entry x, y of two samples; None for independent samples, mean²/q. Entries
            at different places are independent.

    Returns:
        The Signal: a batch may hold it wherever it could hold a floating tensor of this shape.

    Raises:
        ArgumentError: no whole numbers from 1, or moments that no numbers have.

    >>> pixels = signal((8, 3, 32, 32), q=0.5, mean=0.3)
    >>> pixels.shape, pixels.overlap
    ((8, 3, 32, 32), 0.18)
    """
    sizes: tuple[Any, ...] = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not all(isinstance(n, Integral) and int(n) >= 1 for n in sizes):
        raise ArgumentError("shape", shape, "Give whole numbers from 1, such as (8, 3, 224, 224).")
    if not (is_number(q) and math.isfinite(q) and q > 0):
        raise ArgumentError("q", q, "Give the second moment E[x²], a number above 0.")
    if not (is_number(mean) and mean * mean <= q):
        raise ArgumentError("mean", mean, f"Its square may not exceed the second moment q = {q:g}.")
    found = replace(independent(tuple(map(int, sizes)), float(q), float(mean), sample=0), gaussian=True)
    return found if overlap is None else _overlapping(found, overlap)


def _overlapping(found: Signal, overlap: float) -> Signal:
    samples, variance = found.shape[0] if found.shape else 1, found.q - found.mean**2
    # N numbers cannot all be further apart than this: the variance of their sum would be negative.
    least = (found.mean**2 - variance / max(samples - 1, 1)) / found.q
    if not (is_number(overlap) and least <= overlap <= 1):
        raise ArgumentError("overlap", overlap, f"Give a number from {least:.4g} to 1 for {samples} such samples.")
    if samples == 1:
        return found  # there is no second one
    moments = found.moments.copy()
    moments[tuple(int(a.sample) for a in found.atoms)] = overlap * found.q
    return found.changed(moments, found.mean, gaussian=True)


def stood_in(model: nn.Module, batch: Any) -> tuple[Any, dict[int, Signal]]:
    """Put a meta tensor in the place of every Signal of a batch.

    Args:
        model: its parameters say which floating type the tensors have.
        batch: any nest of tensors and Signals.

    Returns:
        The batch, and id of a tensor in it → the Signal that it stands for.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    found: dict[int, Signal] = {}

    def stand_in(described: Signal) -> Tensor:
        tensor = torch.empty(described.shape, dtype=dtype, device="meta")
        found[id(tensor)] = described
        return tensor

    return map_tensors(batch, stand_in, Signal), found


def given_signals(model: nn.Module, trace: Trace, batch: Any, described: Mapping[int, Signal]) -> dict[int, Signal]:
    """Measure the floating tensors of a batch, and take what was described as it is.

    Args:
        model: that was traced.
        trace: of the model on this batch.
        batch: with the tensors that ``stood_in`` put there.
        described: what these stand for.

    Returns:
        Their signals, by value id.
    """
    own = {value: described[id(t)] for value, t in _inputs(model, trace, batch) if id(t) in described}
    rest = {name: value for name, value in trace.inputs.items() if value not in own}
    return input_signals(model, replace(trace, inputs=rest), batch) | own


def given_numbers(model: nn.Module, trace: Trace, batch: Any, described: Mapping[int, Signal]) -> dict[int, Tensor]:
    """Return a batch's floating tensors that have numbers, by value id; arguments as above."""
    given = [(i, t) for i, t in _inputs(model, trace, batch) if t.is_floating_point() and not t.is_meta]
    return {value: tensor for value, tensor in given if id(tensor) not in described}


def _inputs(model: nn.Module, trace: Trace, batch: Any) -> list[tuple[int, Tensor]]:
    args, kwargs = as_arguments(uncompiled(model), batch)
    named = [*tensors(args, "input"), *tensors(kwargs, "input")]
    return [(trace.inputs[name], tensor) for name, tensor in named if name in trace.inputs]
