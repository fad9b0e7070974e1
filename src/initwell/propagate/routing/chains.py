"""Which ops make, of a token's scores, the choice of its experts and their weights: found in a trace, before the walk.

A chain begins at logits, one for each expert, and goes on through ops that do the same with every token's row: softmax,
sigmoid, the largest of groups, topk, what is looked up by its indices, quotients by their sum. In the backward it
begins where a gradient arrives at a value of the chain, and ends at that of the logits. ``choices`` works it out.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass

from initwell.propagate.given.known import Known
from initwell.propagate.moments.signal import Signal
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, Trace, ValueRef

_SAME_NAMES = """
    view _unsafe_view reshape unsqueeze squeeze expand clone detach alias _to_copy contiguous add sub rsub mul div neg
    sigmoid exp log sqrt tanh relu softplus clamp clamp_min clamp_max pow sum amax masked_fill where logical_not
    bitwise_not topk sort gather scatter _softmax slice cat log_sigmoid_forward logsumexp
"""
FORWARD = frozenset(f"aten.{name}" for name in _SAME_NAMES.split())
_BACK_NAMES = """
    view _unsafe_view reshape unsqueeze squeeze expand clone detach alias _to_copy contiguous add sub mul div neg sum
    masked_fill where scatter scatter_add index_put index _softmax_backward_data sigmoid_backward tanh_backward
    threshold_backward gather slice slice_backward log_sigmoid_backward
"""
BACKWARD = frozenset(f"aten.{name}" for name in _BACK_NAMES.split())
_CHOICES = frozenset({"aten.topk", "aten.sort"})
_CUTS = frozenset({"aten.slice", "aten.cat", "aten.slice_backward"})
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Chain:
    """The ops of one router.

    Attributes:
        root: the logits' id.
        topk: index of the op that chooses; None where rows are only sorted.
        width: how many logits a token has.
        experts: how many of these are of experts that are chosen from; others are of experts that all tokens go to.
        tokens: how many tokens.
        forward: indices of the ops that make something of the logits.
        chosen: values that were made of what was chosen, by it or by an earlier choice.
        bases: gradients that arrive → the value of the chain that they belong to.
        backward: indices of backward ops → the gradient that what they make is linear in.
    """

    root: int
    topk: int | None
    width: int
    experts: int
    tokens: int
    forward: frozenset[int]
    chosen: frozenset[int]
    bases: Mapping[int, int]
    backward: Mapping[int, int]


def numbers(trace: Trace, values: Known, known: Mapping[int, Signal]) -> Mapping[int, float]:
    """Return the vectors of the model's own that are one number everywhere, such as a bias for the choice that is 0.

    Args:
        trace: from ``record``.
        values: what is known of it.
        known: the signals that a walk starts with.

    Returns:
        Value id → that number, of parameters, buffers, and what are views of them; none without a choice.
    """
    if not values.once("choice", lambda: any(op.functional in _CHOICES for op in trace.forward_ops)):
        return {}
    found: dict[int, float] = {}
    for value in trace.values:
        signal = known.get(value.id) if value.kind in ("parameter", "buffer") and len(value.shape) <= 1 else None
        if signal is not None and signal.q - signal.mean**2 <= _ROUNDING * signal.q:
            found[value.id] = signal.mean
    for op in trace.forward_ops:
        if op.inputs and op.inputs[0] in found and (op.functional in VIEWS or op.functional in COPIES):
            found |= dict.fromkeys(op.outputs, found[op.inputs[0]])
    return found


def chains(trace: Trace, values: Container[int]) -> Mapping[int, Chain]:
    """Find the routers of a trace.

    Args:
        trace: from ``record``.
        values: the ids of what is no matter of chance.

    Returns:
        Index of each op that belongs to one → its chain.
    """
    roots: dict[int, list[int]] = {}
    for op in trace.forward_ops:
        if op.functional in _CHOICES and _of_rows(trace, op):
            leaf = _leaf(trace, values, op.inputs[0])
            if leaf is not None:
                roots.setdefault(leaf, []).append(op.index)
    found: dict[int, Chain] = {}
    for root, choices in roots.items():
        chain = _chain(trace, values, root, choices)
        if chain is not None:
            found |= dict.fromkeys((*chain.forward, *chain.backward), chain)
    return found


def _of_rows(trace: Trace, op: Op) -> bool:
    value = trace.values[op.inputs[0]]
    rank = len(value.shape)
    return (
        value.is_floating and rank > 1 and op.arguments["dim"] % rank == rank - 1 and op.arguments.get("largest", True)
    )


def _leaf(trace: Trace, values: Container[int], value: int) -> int | None:
    """Return the one random value that a score is made of, going back as far as there is but one."""
    leaves: dict[int, int] = {}

    def leaf(value: int) -> int:
        if value not in leaves:
            op = trace.producer(value)
            leaves[value] = value
            if op is not None and op.functional in FORWARD and op.phase == "forward" and _within_rows(trace, op):
                behind = {leaf(i) for i in op.inputs if i not in values}
                if len(behind) == 1:
                    leaves[value] = behind.pop()
        return leaves[value]

    root = trace.values[leaf(value)]
    return root.id if root.is_floating and len(root.shape) > 1 else None


def _chain(trace: Trace, values: Container[int], root: int, choices: list[int]) -> Chain | None:
    shape = trace.values[root].shape
    width, tokens = shape[-1], 1
    for n in shape[:-1]:
        tokens *= n
    whole, experts = _whole(trace, choices, width, tokens)
    if not whole or tokens < 2 or width < 2:
        return None
    picked = [i for i in whole if trace.ops[i].functional == "aten.topk"]
    forward, made, chosen = set[int](), {root}, set[int]()
    for op in trace.ops:  # those of the backward that read values of the forward alone, too
        if not _same_for_all(trace, values, op, made, tokens):
            continue
        forward.add(op.index)
        made.update(op.outputs, (new for _, new in op.mutates))
        if op.index in choices or any(i in chosen for i in op.inputs):
            chosen.update(op.outputs, (new for _, new in op.mutates))
    bases, backward = _backward(trace, values, made, chosen)
    return Chain(
        root,
        picked[-1] if picked else None,
        width,
        experts,
        tokens,
        frozenset(forward),
        frozenset(chosen),
        bases,
        backward,
    )


def _whole(trace: Trace, choices: list[int], width: int, tokens: int) -> tuple[list[int], int]:
    """Return the choices among all experts, and how many these are: the logits, or a part of them in one row."""
    widths = {i: trace.values[trace.ops[i].inputs[0]].shape[-1] for i in choices}
    whole = [i for i, n in widths.items() if n == width]
    if whole:
        return whole, width
    rows = {i: n for i, n in widths.items() if _size(trace, trace.ops[i].inputs[0]) == tokens * n}
    most = max(rows.values(), default=0)
    return [i for i, n in rows.items() if n == most], most


def is_tail(trace: Trace, value: int) -> bool:
    """Whether a value is of the last entries of wider rows, as the weights of experts that all tokens go to."""
    op = trace.producer(value)
    while op is not None and (op.functional in VIEWS or op.functional in COPIES):
        if op.functional == "aten.slice":
            start = op.arguments.get("start") or 0
            return bool(start != 0)
        op = trace.producer(op.inputs[0])
    return False


def _same_for_all(trace: Trace, values: Container[int], op: Op, made: set[int], tokens: int) -> bool:
    inputs = [i for i in op.inputs if i not in values]
    if op.functional == "aten.index":
        return _sorted_only(trace, op, made)
    if op.functional not in FORWARD or not inputs or not all(i in made for i in inputs):
        return False
    if not _within_rows(trace, op):
        return False
    return all(_size(trace, o) % tokens == 0 for o in op.outputs)


def _within_rows(trace: Trace, op: Op) -> bool:
    """Whether an op that cuts or joins does so along the last dimension alone; True for others."""
    if op.functional not in _CUTS:
        return True
    rank = len(trace.values[op.outputs[0]].shape)
    return bool(rank > 1 and (op.arguments.get("dim") or 0) % rank == rank - 1)


def _sorted_only(trace: Trace, op: Op, made: set[int]) -> bool:
    """Whether values of the chain are put in the order of a sort of its indices."""
    table, index = op.arguments["self"], op.arguments["indices"]
    known = isinstance(table, ValueRef) and table.id in made and len(trace.values[table.id].shape) == 1
    return known and len(index) == 1 and is_order(trace, index[0], made)


def is_order(trace: Trace, ref: object, made: set[int] | frozenset[int] | None = None) -> bool:
    """Whether an index is the order that a sort of a choice's indices gave, or the way back from it.

    Args:
        trace: that it is part of.
        ref: the index.
        made: values of a chain, which must hold what was sorted; None for any choice.
    """
    op = maker(trace, ref)
    if op is None:
        return False
    if op.functional in ("aten.sort", "aten.argsort"):
        if op.outputs[-1] != _behind_views(trace, ref):
            return False
        source = op.arguments["self"]
        if made is not None:
            return isinstance(source, ValueRef) and source.id in made and not trace.values[source.id].is_floating
        return is_expert(trace, source) or is_order(trace, source)
    if op.functional in ("aten.index_put", "aten._index_put_impl"):
        index = op.arguments["indices"]
        return len(index) == 1 and not op.arguments["accumulate"] and is_order(trace, index[0], made)
    return False


def is_token(trace: Trace, ref: object) -> bool:
    """Whether an index says of each sorted row which token it is of: order // k."""
    op = maker(trace, ref)
    return (
        op is not None and op.functional in ("aten.floor_divide", "aten.div") and is_order(trace, op.arguments["self"])
    )


def is_expert(trace: Trace, ref: object) -> bool:
    """Whether whole numbers are the indices of a choice, sorted or not."""
    return choice(trace, ref) is not None


def choice(trace: Trace, ref: object) -> Op | None:
    """Return the choice that whole numbers come from: its indices, sorted or not, or their order; else None."""
    op = maker(trace, ref)
    if op is None:
        return None
    here = _behind_views(trace, ref)
    if op.functional == "aten.topk":
        return op if here == op.outputs[1] else None
    if op.functional in ("aten.sort", "aten.argsort", "aten.clamp", "aten.floor_divide", "aten.histc", "aten.cumsum"):
        return choice(trace, op.arguments["self"])
    if op.functional in ("aten.index_put", "aten._index_put_impl"):
        index = op.arguments["indices"]
        return choice(trace, index[0]) if len(index) == 1 else None
    return None


def maker(trace: Trace, ref: object) -> Op | None:
    """Return the op behind an argument, behind views and copies."""
    return trace.producer(_behind_views(trace, ref)) if isinstance(ref, ValueRef) else None


def _behind_views(trace: Trace, ref: object) -> int:
    value = ref.id if isinstance(ref, ValueRef) else -1
    op = trace.producer(value)
    while op is not None and op.inputs and (op.functional in VIEWS or op.functional in COPIES):
        value = op.inputs[0]
        op = trace.producer(value)
    return value


def _size(trace: Trace, value: int) -> int:
    found = 1
    for n in trace.values[value].shape:
        found *= n
    return found


def _backward(
    trace: Trace, values: Container[int], made: set[int], chosen: set[int]
) -> tuple[Mapping[int, int], Mapping[int, int]]:
    """Return the gradients that arrive, and the ops that make something linear of them."""
    owner = {gradient: value for value, gradient in trace.gradients.items() if value in chosen}
    linear: dict[int, int] = {}
    bases: dict[int, int] = {}
    ops: dict[int, int] = {}
    for op in trace.backward_ops:
        if op.functional not in BACKWARD or not _within_rows(trace, op):
            continue
        moving = [i for i in op.inputs if i not in values and i not in made]
        sources = {linear.get(i, i if i in owner else -1) for i in moving if not _whole_number(trace, i)}
        if len(sources) != 1 or -1 in sources or not all(_fits(trace, i, made) for i in moving):
            continue
        base = sources.pop()
        bases[base] = owner[base]
        ops[op.index] = base
        linear |= dict.fromkeys(op.outputs, base)
        linear |= {new: base for _, new in op.mutates}
    return bases, ops


def _whole_number(trace: Trace, value: int) -> bool:
    return not trace.values[value].is_floating


def _fits(trace: Trace, value: int, made: set[int]) -> bool:
    return trace.values[value].is_floating or is_order(trace, ValueRef(value), made)
