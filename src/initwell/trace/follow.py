"""Which activation follows a layer: from a parameter, through the op that uses it, to the first nonlinearity."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any, Literal

from initwell.errors import UnknownNameError
from initwell.records import Record
from initwell.trace.ops import ACTIVATIONS, BENDING, CONTRACTIONS, COPIES, FROM_SHAPE, TRANSPARENT, VIEWS
from initwell.trace.trace import Op, Trace

# What is still to be looked at: op index, the value that led there, packets passed on the way; earliest op first.
Queue = list[tuple[int, int, tuple[str, ...]]]
End = Literal["activation", "module", "contraction", "output", "other"]

_ACTIVATION_MODULES = "torch.nn.modules.activation."
# Modules of that file that are no pointwise nonlinearity.
_NOT_POINTWISE = frozenset({"MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin"})


@dataclass(frozen=True)
class Following(Record):
    """What stands after a layer.

    Args:
        kind: "activation" for an op of the activation table; "module" when the signal enters a module that is an
            activation by its type, whatever ops it is made of (``torch.nn.Softsign``, or a module without parameters
            and children whose output has its input's shape); "contraction", "output" or "other" where it ends without.
        op_name: packet of the op that ended the search, out-of-place spelling: "aten.relu"; "" at an output.
        path: module path of that op.
        module_type: type of that module, "torch.nn.modules.activation.ReLU".
        through: packets of the ops passed on the way, in order.
        arguments: that op's plain arguments by name, such as {"negative_slope": 0.01}.
        start: packet of the op that uses the parameter, "aten.convolution".
    """

    kind: End
    op_name: str
    path: str
    module_type: str
    through: tuple[str, ...]
    arguments: Mapping[str, Any]
    start: str = ""


def uses(trace: Trace, parameter: str) -> tuple[Op, ...]:
    """Return the forward ops in which a parameter meets data, in order.

    Ops that only reshape, copy or recompute the weight (transposes, casts, weight norm) are followed through.

    Raises:
        UnknownNameError: the trace has no such parameter; the message lists the nearest names.
    """
    if parameter not in trace.parameters:
        raise UnknownNameError.among("parameter", parameter, trace.parameters)
    found: dict[int, Op] = {}
    waiting, seen = [trace.parameters[parameter]], set()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        for op in trace.consumers(value):
            if op.phase == "backward":
                continue
            if any(out in trace.moving for out in op.outputs):
                found[op.index] = op
            else:
                waiting.extend(op.outputs)
    return tuple(found[i] for i in sorted(found))


def followings(trace: Trace, parameter: str) -> tuple[Following, ...]:
    """Return what follows a parameter at each of its uses; more than one for a reused or tied parameter."""
    return tuple(following(trace, op) for op in uses(trace, parameter))


def following(trace: Trace, op: Op) -> Following:
    """Return what follows an op: the earliest activation that its output reaches through transparent ops.

    Where the output is used in several places, every branch is followed, and the first activation in execution order
    wins; a branch ends at a contraction, at an output, and at any op that is not listed as transparent.
    """
    if op.functional in ACTIVATIONS:
        return _end("activation", op, (), op)
    queue: Queue = []
    seen: set[int] = set()
    ends: list[Following] = []
    _push(trace, op, (), queue, seen)
    while queue:
        index, value, through = heappop(queue)
        current = trace.ops[index]
        kind = _kind(trace, op, current, value)
        if kind in ("activation", "module"):
            found = _end(kind, current, through, op)
            return replace(found, op_name="aten.silu") if _gates_itself(trace, current) else found
        if kind == "other" and current.functional in TRANSPARENT:
            _push(trace, current, (*through, current.functional), queue, seen)
        else:
            ends.append(_end(kind, current, through, op))
    return ends[0] if ends else Following("output", "", "", "", _passed(trace, op), {}, op.functional)


def _passed(trace: Trace, op: Op) -> tuple[str, ...]:
    """Return the transparent ops between an op and the output that it ends in."""
    names: list[str] = []
    queue: Queue = []
    seen: set[int] = set()
    _push(trace, op, (), queue, seen)
    while queue:
        current = trace.ops[heappop(queue)[0]]
        names.append(current.functional)
        _push(trace, current, (), queue, seen)
    return tuple(names)


def _push(trace: Trace, op: Op, through: tuple[str, ...], queue: Queue, seen: set[int]) -> None:
    for value in _carried(op):
        for consumer in trace.consumers(value):
            if _looks(consumer) and consumer.index not in seen:
                seen.add(consumer.index)
                heappush(queue, (consumer.index, value, through))


def _looks(op: Op) -> bool:
    return op.phase == "forward" and op.path != "(loss)" and op.functional not in FROM_SHAPE


def _carried(op: Op) -> Iterator[int]:
    # Of an op with several results only views and splits carry the signal in all of them; of a norm or a pooling,
    # the first is the signal and the rest are statistics or indices.
    yield from op.outputs if op.functional in VIEWS else op.outputs[:1]
    yield from (new for _, new in op.mutates if new not in op.outputs)


def _kind(trace: Trace, start: Op, op: Op, value: int) -> End:
    if op.path != start.path and _is_activation_module(trace, op, value):
        return "module"
    if op.functional in ACTIVATIONS:
        return "activation"
    if op.functional in CONTRACTIONS:
        return "contraction"
    return "other"


def _is_activation_module(trace: Trace, op: Op, value: int) -> bool:
    short = op.module_type.removeprefix(_ACTIVATION_MODULES)
    if short != op.module_type:
        return short not in _NOT_POINTWISE
    if op.functional in VIEWS or op.functional in COPIES or op.module_type.startswith("torch.nn.modules."):
        return False
    return _bends_alone(trace, op, value)


def _bends_alone(trace: Trace, op: Op, value: int) -> bool:
    """Whether a module of the user's own is a pointwise function of one value: no parameters, children, other inputs.

    A module made of one listed activation op alone is left to that op, whose name says more.
    """
    if op.path in trace.containers:
        return False
    group = trace.run_of(op)
    work = [o for o in group if o.functional not in VIEWS]
    made = {out for o in group for out in o.outputs}
    given = {v for o in group for v in o.inputs if v not in made and trace.values[v].kind != "constant"}
    names = {o.functional for o in work}
    same_shape = trace.values[work[-1].outputs[0]].shape == trace.values[value].shape
    if given != {value} or not same_shape or not names <= (BENDING | TRANSPARENT.keys() | ACTIVATIONS.keys()):
        return False
    return len(work) > 1 and bool(names & (BENDING | ACTIVATIONS.keys()))


def _gates_itself(trace: Trace, op: Op) -> bool:
    """Whether a sigmoid is multiplied with its own input: x·σ(x), which is silu written out."""
    return op.functional == "aten.sigmoid" and any(
        c.functional == "aten.mul" and set(c.inputs) == {op.inputs[0], op.outputs[0]}
        for c in trace.consumers(op.outputs[0])
    )


def activation_after(trace: Trace, parameter: str) -> Following | None:
    """Return the activation that follows the first use of a parameter, None where there is none before the next layer.

    Args:
        trace: from ``record``.
        parameter: a name of ``model.named_parameters()``.

    Raises:
        UnknownNameError: the trace has no such parameter.

    >>> import torch
    >>> from initwell.trace.recorder import record
    >>> layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LeakyReLU(0.2), torch.nn.Linear(4, 2))
    >>> trace = record(layers, torch.zeros(5, 3), backward=False)
    >>> found = activation_after(trace, "0.weight")
    >>> found.op_name, found.path, found.arguments
    ('aten.leaky_relu', '1', {'negative_slope': 0.2})
    >>> activation_after(trace, "2.weight") is None
    True
    """
    for found in followings(trace, parameter):
        if found.kind in ("activation", "module"):
            return found
    return None


def _end(kind: End, op: Op, through: tuple[str, ...], start: Op) -> Following:
    plain = {k: v for k, v in op.arguments.items() if isinstance(v, (bool, int, float, str))}
    return Following(kind, op.functional, op.path, op.module_type, through, plain, start.functional)
