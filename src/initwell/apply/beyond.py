"""What a forward makes of an activation's output by hand: relu(x)², x·σ(1.7x), x − tanh(x)."""

from collections.abc import Iterator

from initwell.trace.follow import Following, uses
from initwell.trace.ops import BENDING, CONTRACTIONS, TRANSPARENT
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
    for op, own in _at(trace, parameter, found):
        return _made_of(trace, op, own)
    return ()


def alone(trace: Trace, parameter: str, found: Following) -> bool:
    """Whether an op that may be part of more is the whole activation: its result goes on as it is to the next layer."""
    plain = CONTRACTIONS.keys() | TRANSPARENT.keys()
    for op, own in _at(trace, parameter, found):
        after = [c for c in trace.consumers(op.outputs[0]) if c.phase == "forward"]
        return not _made_of(trace, op, own) and all(c.functional in plain for c in after)
    return False


def _at(trace: Trace, parameter: str, found: Following) -> Iterator[tuple[Op, frozenset[int]]]:
    """Yield the ops that were found behind a parameter, each with the values on the way to it; none of a module's."""
    if found.kind == "module":
        return
    same = [op for op in trace.ops if op.path == found.path and op.functional == found.op_name]
    for start in uses(trace, parameter):
        for op in same:
            own = _between(trace, start, op) if op.index > start.index else frozenset()
            if own:
                yield op, _beside(trace, own, op)


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


def _beside(trace: Trace, own: frozenset[int], activation: Op) -> frozenset[int]:
    """Add what else is made of the same values entry by entry, as the x/2 of x/2·(1 + erf(x/√2))."""
    grown, waiting = set(own), list(own)
    while waiting:
        for op in trace.consumers(waiting.pop()):
            entrywise = op.functional in BENDING or op.functional in TRANSPARENT
            if op.phase == "forward" and op.index != activation.index and entrywise:
                waiting.extend(v for v in op.outputs if v not in grown)
                grown.update(op.outputs)
    return frozenset(grown)


def _made_of(trace: Trace, activation: Op, own: frozenset[int]) -> tuple[str, ...]:
    mine, found = {activation.outputs[0]}, []
    waiting = [op for op in trace.consumers(activation.outputs[0]) if op.phase == "forward"]
    while waiting:
        op = waiting.pop(0)
        squared = sum(isinstance(a, ValueRef) and a.id in mine for a in op.arguments.values()) > 1
        again = squared or bool(own & set(op.inputs))
        if op.functional in BENDING or (op.functional in _COMBINING and again):
            found.append(op.functional.removeprefix("aten."))
        elif op.functional in TRANSPARENT and all(v in mine or trace.values[v].kind == "constant" for v in op.inputs):
            # 1 + tanh(x) and the like are on their way to what is made of them.
            mine.add(op.outputs[0])
            waiting.extend(c for c in trace.consumers(op.outputs[0]) if c.phase == "forward")
    return tuple(dict.fromkeys(found))
