"""Weights that are used more than once, and which values they can make vary together.

Two outputs of one layer, h W and h' W, vary together as h and h' do; of two layers with weights of their own, they do
not. So a value's *tags* are the weights, and the other things that come from nowhere, that it is linear in: a product
with a weight has that weight's alone, whatever came before, and a part of its outputs only that part of the weight.
Values without a tag in common have no covariance.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property

from initwell.trace.ops import ACTIVATIONS
from initwell.trace.trace import Op, Trace, ValueRef

IDENTITIES = frozenset({"aten.detach", "aten.alias", "aten.clone", "aten.contiguous", "aten._to_copy"})
CUTS = frozenset({"aten.select", "aten.slice", "aten.split", "aten.split_with_sizes", "aten.unbind"})
PRODUCTS: Mapping[str, tuple[str, str]] = {
    "aten.mm": ("self", "mat2"),
    "aten.addmm": ("mat1", "mat2"),
    "aten.bmm": ("self", "mat2"),
}
NORMS = {"aten.native_layer_norm": "input", "aten.native_layer_norm_backward": "grad_out"}
"""Norms of each entry's own channels → the argument that, when these are many, they only divide by its size."""
BENT = ACTIVATIONS.keys() - {"aten.glu", "aten.prelu", "aten._prelu_kernel", "aten.rrelu_with_noise"}
"""Ops that apply a function of one number."""
SLOPES: Mapping[str, str] = {
    ("aten.threshold_backward" if name == "aten.relu" else f"{name}_backward"): name for name in sorted(BENT)
}
"""Ops that multiply a gradient by the derivative of such a function → that function's op."""

TABLES: Mapping[str, str] = {"aten.embedding": "weight", "aten.embedding_dense_backward": "grad_output"}
"""Look-ups in a table, and gradients put back into one → the argument that they are linear in."""

_TURNS = frozenset({"aten.t", "aten.transpose", "aten.permute", "aten.view"})
Tags = frozenset[tuple[object, ...]]
Weight = tuple[int, tuple[str, ...]]


class Reuse:
    """What a Trace alone says about that, found once for all walks over it."""

    def __init__(self, trace: Trace) -> None:
        """Look at nothing yet."""
        self.trace = trace
        self._roots: dict[int, int] = {}
        self._tags: dict[int, Tags] = {}

    @cached_property
    def any(self) -> bool:
        """Whether some weight is used in two products, or two look-ups, of the forward."""
        found: Counter[tuple[int, bool]] = Counter()
        for op in self.trace.forward_ops:
            if op.functional in PRODUCTS:
                found.update((weight[0], False) for weight in self._weights(op))
            elif op.functional in TABLES:
                found[self.root(op.inputs[0]), True] += 1
        return any(n > 1 for n in found.values())

    def maker(self, value: int) -> Op | None:
        """Return the op that made a value, None for what comes from nowhere."""
        return self.trace.producer(value)

    def root(self, value: int) -> int:
        """Return the value that this one is a plain copy of."""
        if value not in self._roots:
            op = self.maker(value)
            same = op is not None and op.functional in IDENTITIES and not op.mutates and op.outputs[0] == value
            source = argument(op, "self") if op is not None and same else None
            self._roots[value] = value if source is None else self.root(source)
        return self._roots[value]

    def weight(self, value: int) -> Weight | None:
        """Return the parameter that a value shows, and how it is turned; None for anything else."""
        turns: list[str] = []
        while (op := self.maker(value := self.root(value))) is not None:
            source = argument(op, "self")
            if op.functional not in _TURNS or source is None:
                return None
            turns.append(str([op.functional, *(str(a) for a in op.arguments.values() if not isinstance(a, ValueRef))]))
            value = source
        kind = self.trace.values[value].kind
        return (value, tuple(turns)) if kind in ("parameter", "buffer") else None

    def _weights(self, op: Op) -> Iterator[Weight]:
        for name in PRODUCTS[op.functional]:
            value = argument(op, name)
            weight = None if value is None else self.weight(value)
            if weight is not None:
                yield weight

    def tags(self, value: int) -> Tags:
        """Return what a value is linear in; see the module's text."""
        value = self.root(value)
        if value not in self._tags:
            # Step by step from the first op on, as chains through time are longer than Python calls may nest.
            waiting = [value]
            while waiting:
                missing = [i for i in self._sources(waiting[-1]) if i not in self._tags]
                if missing:
                    waiting += missing
                else:
                    done = waiting.pop()
                    self._tags[done] = self._found(done)
        return self._tags[value]

    def _sources(self, value: int) -> list[int]:
        op = self.maker(value)
        if op is None:
            return []
        if op.functional in PRODUCTS and len(list(self._weights(op))) == 1:
            names: tuple[str, ...] = ("self",) if op.functional == "aten.addmm" else ()
        elif op.functional in SLOPES:
            names = ("grad_output", "grad_out")
        elif op.functional in NORMS:
            names = (NORMS[op.functional],)
        elif op.functional in TABLES:
            names = (TABLES[op.functional],)
        else:
            return [self.root(i) for i in op.inputs]
        return [self.root(i) for i in (argument(op, name) for name in names) if i is not None]

    def _found(self, value: int) -> Tags:
        op = self.maker(value)
        if op is None:
            return frozenset({(value,)})
        found = frozenset[tuple[object, ...]]().union(*(self._tags[i] for i in self._sources(value)))
        if op.functional in PRODUCTS:
            weights = list(self._weights(op))
            return found | {(weights[0][0], op.phase)} if len(weights) == 1 else found
        rank = len(self.trace.values[value].shape)
        if op.functional in CUTS and len(op.outputs) > 1 and (op.arguments["dim"] or 0) in (-1, rank - 1):
            return frozenset((*tag, (len(op.outputs), op.outputs.index(value))) for tag in found)
        return found


def indices_of(trace: Trace, value: int, dim: int) -> tuple[int, int] | None:
    """Return which indices of a dimension a cut keeps, from the first to behind the last; None if no neighbours.

    Args:
        trace: with the value.
        value: what one of ``CUTS`` made.
        dim: the dimension that it cuts, from 0.
    """
    op = trace.producer(value)
    if op is None:
        return None
    length = trace.values[op.inputs[0]].shape[dim]
    if op.functional == "aten.slice":
        start, stop, step = slice(op.arguments["start"], op.arguments["end"], op.arguments["step"]).indices(length)
        return (start, stop) if step == 1 else None
    place = op.outputs.index(value)
    if op.functional in ("aten.select", "aten.unbind"):
        index = op.arguments["index"] % length if op.functional == "aten.select" else place
        return index, index + 1
    sizes = [trace.values[v].shape[dim] for v in op.outputs]
    return sum(sizes[:place]), sum(sizes[: place + 1])


def argument(op: Op, name: str) -> int | None:
    """Return the value that an op takes under this name, None for none or a plain number."""
    ref = op.arguments.get(name)
    return ref.id if isinstance(ref, ValueRef) else None
