"""What a forward makes of an activation's output by hand: relu(x)², x·σ(1.7x), x − tanh(x)."""

from initwell.trace.follow import Following, uses
from initwell.trace.ops import BENDING
from initwell.trace.trace import Op, Trace, ValueRef

# Of these an operand that comes from the same layer makes another function of one variable; of any other layer, a gate
# or a residual branch.
_COMBINING = frozenset({"aten.mul", "aten.add", "aten.sub", "aten.div"})


def beyond(trace: Trace, parameter: str, found: Following) -> tuple[str, ...]:
    """Name the ops that go on bending, entry by entry, what an activation op gave.

    Args:
        trace: the forward.
        parameter: the layer's weight.
        found: the activation that follows it.

    Returns:
        The ops, without "aten."; empty where there are none, or where it is a module that stands for itself.
    """
    if found.kind != "activation":
        return ()
    same = [op for op in trace.ops if op.path == found.path and op.functional == found.op_name]
    for start in uses(trace, parameter):
        for op in same:
            own = _between(trace, start, op) if op.index > start.index else frozenset()
            if own:
                return _made_of(trace, op, own)
    return ()


def _between(trace: Trace, start: Op, end: Op) -> frozenset[int]:
    """Return the values on the way from one op to another; none where there is no way."""
    waiting, behind = list(end.inputs), {}
    while waiting:
        op = trace.producer(waiting.pop())
        if op is not None and op.index >= start.index and op.index not in behind:
            behind[op.index] = op
            waiting.extend(op.inputs)
    own: set[int] = set()
    for _, op in sorted(behind.items()):
        if op.index == start.index or own & set(op.inputs):
            own.update(op.outputs)
    return frozenset(own)


def _made_of(trace: Trace, activation: Op, own: frozenset[int]) -> tuple[str, ...]:
    result = activation.outputs[0]
    found = []
    for op in trace.consumers(result):
        squared = sum(isinstance(a, ValueRef) and a.id == result for a in op.arguments.values()) > 1
        again = squared or bool(own & set(op.inputs))
        if op.phase == "forward" and (op.functional in BENDING or (op.functional in _COMBINING and again)):
            found.append(op.functional.removeprefix("aten."))
    return tuple(dict.fromkeys(found))
