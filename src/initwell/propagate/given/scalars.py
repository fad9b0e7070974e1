"""Single numbers that kept parameters alone make, such as exp(λ·μ) of two vectors or the largest singular value of a
weight: they are computed, for a law of their moments knows less than they do.

A parameter that is not drawn anew is what it is. Most of what models make of such, a transpose or a cast, is a weight
again and is described by its moments. A single number has none worth the name: Σ_i λ_i·μ_i of two given vectors is one
draw, and e to that power a factor on all that follows. Nor have a few products λ_i·μ_i: their average square is that of
these few pairs, and not the product of two averages. And where a model takes a table apart that it neither draws nor
trains, such as one of sines and cosines, each part is as large as it is, and not as the table is on average.
"""

import math
from collections.abc import Mapping, Set

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from initwell.trace.calls import called, overload
from initwell.trace.trace import Op, Trace

MOST = 2**22
"""Entries of all that is computed on the way to one number."""
# Of longer vectors the average of a product is that of independents.
_FEW = 256
_PARTS = frozenset(f"aten.{name}" for name in ("slice", "split", "split_with_sizes", "select", "unbind", "narrow"))
_OF_TWO = frozenset(f"aten.{name}" for name in ("add", "sub", "mul", "div"))


def scalars(trace: Trace, kept: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Compute what kept parameters and known numbers make: one entry, a few of two vectors, parts of a frozen table.

    Args:
        trace: from ``record``.
        kept: parameters that are not drawn anew, by value id.

    Returns:
        Their numbers, on the CPU, by value id.

    >>> from initwell.trace.recorder import record
    >>> class Scaled(torch.nn.Module):
    ...     def __init__(self) -> None:
    ...         super().__init__()
    ...         self.v = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    ...     def forward(self, x: Tensor) -> Tensor:
    ...         return x * (self.v * self.v).sum()
    >>> model = Scaled()
    >>> trace = record(model, torch.zeros(2, 2))
    >>> [t.item() for t in scalars(trace, {trace.parameters["v"]: model.v}).values()]
    [5.0]
    """
    if not kept:
        return {}
    follows: set[int] = set()
    frozen = {value for value, numbers in kept.items() if not numbers.requires_grad}
    found: dict[int, Tensor] = {}
    for op in trace.ops:
        if op.phase == "forward" and _follows(op, trace, kept, follows):
            follows.update(op.outputs)
            if all(i in frozen or i in trace.folded.tensors for i in op.inputs):
                frozen.update(op.outputs)
            if _single(op, trace) or _of_two_vectors(op, trace, kept, follows) or _part(op, trace, frozen):
                found.update(_computed(op, trace, kept, found))
    return found


def _follows(op: Op, trace: Trace, kept: Mapping[int, Tensor], follows: set[int]) -> bool:
    """Whether an op reads kept parameters or what was made of them, and else known numbers only."""
    known = trace.folded.tensors
    return (
        not op.mutates
        and any(i in kept or i in follows for i in op.inputs)
        and all(i in kept or i in follows or i in known for i in op.inputs)
        and only_computes(op)
    )


def only_computes(op: Op) -> bool:
    """Whether an op is PyTorch's own and draws nothing."""
    return op.name.startswith("aten.") and torch.Tag.nondeterministic_seeded not in overload(op).tags


def _single(op: Op, trace: Trace) -> bool:
    made = [trace.values[value] for value in op.outputs]
    return len(made) == 1 and math.prod(made[0].shape) == 1 and made[0].dtype.startswith(("float", "bfloat"))


def _of_two_vectors(op: Op, trace: Trace, kept: Mapping[int, Tensor], follows: set[int]) -> bool:
    """Whether an op adds or multiplies two short vectors that kept parameters made."""
    own = [i for i in op.inputs if i in kept or i in follows]
    shapes = [trace.values[i].shape for i in (*own, *op.outputs)]
    vectors = all(1 <= math.prod(shape) == max(shape, default=1) <= _FEW for shape in shapes)
    return op.functional in _OF_TWO and len({*own}) == len(op.inputs) == 2 and vectors


def _part(op: Op, trace: Trace, frozen: Set[int]) -> bool:
    """Whether an op takes a part of what frozen tables show; of a weight itself a part is a weight."""
    taken = op.functional in _PARTS and op.inputs[0] in frozen
    return taken and trace.values[trace.shown(op.inputs[0])].kind != "parameter"


def _computed(last: Op, trace: Trace, kept: Mapping[int, Tensor], found: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
    """Run an op and those before it; return what it makes, or nothing where that takes too much or PyTorch refuses."""
    numbers: dict[int, Tensor] = {}
    ops = _before(last, trace, kept, found)
    if sum(math.prod(trace.values[v].shape) for op in ops for v in op.outputs) > MOST:
        return {}
    for op in ops:
        for i in op.inputs:
            if i not in numbers:
                numbers[i] = (kept if i in kept else found if i in found else trace.folded.tensors)[i].detach().cpu()
        try:
            out = called(overload(op), op.arguments, lambda ref: numbers[ref.id])
        except RuntimeError:
            return {}  # a view of strides that its meta tensor had and its numbers have not
        numbers.update(zip(op.outputs, (t for t in tree_leaves(out) if isinstance(t, Tensor)), strict=False))
    return {value: numbers[value] for value in last.outputs if value in numbers}


def _before(last: Op, trace: Trace, kept: Mapping[int, Tensor], found: Mapping[int, Tensor]) -> list[Op]:
    """Return an op and those that make what it reads, in order."""
    ops, waiting = {last.index: last}, [*last.inputs]
    while waiting:
        value = waiting.pop()
        if value in kept or value in found or value in trace.folded.tensors:
            continue
        op = trace.producer(value)
        if op is not None and op.index not in ops:
            ops[op.index] = op
            waiting += op.inputs
    return [ops[i] for i in sorted(ops)]
