"""Which operands have something in common: where the rules' assumption of independence does not hold.

Every value has *origins*. A layer's output goes as its own weights, which are fresh and of mean 0: E[x·Wy] = 0, so its
origin is the weight alone, whatever came before. All other ops hand the origins of their operands on; a slice narrows
them, so that the queries and keys cut from one projection stay apart. Operands of a sum, a product or a contraction
that share an origin (h + relu(h), x·xᵀ, a layer applied twice) are not independent; what such an op makes is marked.

A known value that is one number everywhere has no origin; all others have one in common, since they may vary together:
Σ x·c · y·c is no product of averages where c is large at the same places.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import product
from operator import or_

from initwell.propagate.given.known import Known
from initwell.records import Record
from initwell.trace.ops import FROM_SHAPE
from initwell.trace.trace import Op, Trace, ValueRef

# A value, its phase, and the cuts since: (value that was cut, dimension, place).
Origin = tuple[object, ...]
Origins = frozenset[Origin]

_CONTRACTIONS: Mapping[str, tuple[str, str]] = {
    "aten.mm": ("self", "mat2"),
    "aten.bmm": ("self", "mat2"),
    "aten.addmm": ("mat1", "mat2"),
    "aten.baddbmm": ("batch1", "batch2"),
    "aten.linear": ("input", "weight"),
    "aten.mv": ("self", "vec"),
    "aten._grouped_mm": ("self", "mat2"),
    "aten._trilinear": ("i1", "i3"),
    "aten.convolution": ("input", "weight"),
    "aten.convolution_backward": ("grad_output", "weight"),
}
_PAIRS = frozenset({"aten.add", "aten.sub", "aten.mul", "aten.div"})
_CUTS = frozenset({"aten.slice", "aten.select", "aten.split", "aten.split_with_sizes", "aten.unbind"})
_FILLS = frozenset({"aten.slice_backward", "aten.select_backward"})
_MOST = 500
_REASON = "operands that have a value in common, or a layer applied to what it made, taken as independent"


@dataclass(frozen=True)
class Partners(Record):
    """What a trace says of which values have something in common.

    Attributes:
        shared: index of each op whose operands are not independent → why its outputs are approximate.
        origins: of each value.
        fresh: weights, and what was made of weights alone.
    """

    shared: Mapping[int, str]
    origins: Mapping[int, Origins]
    fresh: frozenset[int]


def partners_of(trace: Trace, values: Known) -> Partners:
    """Find the ops whose operands are not independent.

    Args:
        trace: from ``record``.
        values: what is known of it.

    Returns:
        The Partners.
    """
    origins: dict[int, Origins] = {
        # Two tensors of one batch may be copies of each other, near enough.
        v.id: frozenset({("inputs",) if v.kind == "input" else (v.id,)})
        for v in trace.values
        if v.producer is None and v.is_floating and v.id not in values
    }
    origins |= {v.id: _of_known(v.id, values) for v in trace.values if v.id in values and v.is_floating}
    origins |= {value: frozenset({("inputs",)}) for value in values.prepared}
    own = {v.id for v in trace.values if v.kind in ("parameter", "buffer") and v.is_floating}
    fresh = {value for value in own if value not in values}
    found: dict[int, str] = {}
    for op in trace.ops:
        if values.made(op):
            continue
        if op.inputs and all(i in own for i in op.inputs):
            made = (*op.outputs, *(new for _, new in op.mutates))
            own.update(made)
            fresh.update(made)
        if _dependent(op, origins, own, fresh):
            found[op.index] = _REASON
        for place, value in enumerate(op.outputs):
            if trace.values[value].is_floating:
                origins[value] = _few(_origins(op, place, origins, fresh, len(trace.values[value].shape)))
        for _, new in op.mutates:
            if op.outputs:
                origins.setdefault(new, origins.get(op.outputs[0], frozenset()))
    return Partners(found, origins, frozenset(fresh))


def _of_known(value: int, values: Known) -> Origins:
    low, high = values.range(value)
    return frozenset() if low == high else frozenset({("known",)})


def _operands(op: Op) -> list[int]:
    names = _CONTRACTIONS.get(op.functional) or (("self", "other") if op.functional in _PAIRS else ())
    refs = [op.arguments.get(name) for name in names]
    return [ref.id for ref in refs if isinstance(ref, ValueRef)]


def _dependent(op: Op, origins: Mapping[int, Origins], own: set[int], fresh: set[int]) -> bool:
    operands = _operands(op)
    if len(operands) < 2:
        return False
    one, two = (origins.get(i, frozenset()) for i in operands)
    if op.functional in _CONTRACTIONS and all(i in own for i in operands):
        # A weight and the model's own vectors, which may have been made from it.
        return True
    if operands[0] == operands[1] and op.functional in ("aten.add", "aten.sub"):
        return False  # has a rule of its own
    if op.functional in _CONTRACTIONS and any(i in fresh for i in operands):
        weight, other = (two, one) if operands[1] in fresh else (one, two)
        two, one = frozenset((w[0], op.phase) for w in weight), other
    return _meet(one, two)


def _meet(one: Origins, two: Origins) -> bool:
    bases = _kinds(one) & _kinds(two)
    return bool(bases) and any(
        _alike(a, b) for a in one if _kind(a) in bases for b in two if _kind(b) in bases and _kind(a) == _kind(b)
    )


def _kind(origin: Origin) -> Origin:
    # A weight's output is known by (weight, phase), any other value by its id alone.
    return origin[:1] if len(origin) > 1 and isinstance(origin[1], tuple) else origin[:2]


@lru_cache(maxsize=256)
def _kinds(origins: Origins) -> Origins:
    """Return the kinds of origins; a stream holds as many as there were layers, and many ops in turn hand them on."""
    found = frozenset(map(_kind, origins))
    return origins if found == origins else found


def _alike(a: Origin, b: Origin) -> bool:
    """Whether two cuts of one origin may overlap: not where one value was cut at two places."""
    cuts = [[part for part in o if isinstance(part, tuple)] for o in (a, b)]
    return not any(x[:2] == y[:2] and x[2] != y[2] for x, y in product(*cuts))


def _origins(op: Op, place: int, origins: Mapping[int, Origins], fresh: set[int], rank: int) -> Origins:
    operands = _operands(op)
    if op.functional in _CONTRACTIONS and not (op.functional == "aten.convolution_backward" and place == 1):
        weights = [i for i in operands if i in fresh]
        if len(weights) == 1 and not (op.functional == "aten.convolution_backward" and place == 2):
            return frozenset((o[0], op.phase) for o in origins.get(weights[0], frozenset()))
        found = _union(operands, origins)
        # What W made, contracted with a gradient, is a gradient that goes as W: Wᵀ Σ_j c_j W x_j. A product entry by
        # entry is not, for each entry has a gradient of its own.
        return found | {(o[0], op.phase) for o in found if len(o) == 2} if op.phase == "backward" else found
    if op.functional == "aten.embedding":
        return frozenset((o[0], op.phase) for o in _union(op.inputs, origins))
    if op.functional in FROM_SHAPE:
        return frozenset()
    backward = op.functional.endswith(("_backward", "_backward_data"))
    found = _union(op.inputs[:1] if backward else op.inputs, origins)
    where = op.arguments.get("start", op.arguments.get("index"))
    if op.functional == "aten.slice" and (op.arguments["dim"] or 0) not in (-1, rank - 1):
        return found  # positions and samples may be alike; channels that a layer made are not
    if op.functional in _CUTS:
        return _cut(found, op.inputs[0], op.arguments.get("dim"), place if len(op.outputs) > 1 else where)
    if op.functional in _FILLS:
        # Two parts of one whole, zero elsewhere, have no entry in common.
        return _cut(found, str(op.arguments.get("input_sizes")), op.arguments.get("dim"), where)
    return found


def _few(found: Origins) -> Origins:
    """Forget the cuts of what was cut in very many ways: its parts then count as overlapping, the safe side."""
    return _kinds(found) if sum(map(len, found)) > _MOST else found


def _cut(found: Origins, whole: object, dim: object, where: object) -> Origins:
    return frozenset((*o, (whole, dim, where)) for o in found)


def _union(values: Iterable[int], origins: Mapping[int, Origins]) -> Origins:
    return reduce(or_, [origins.get(v, frozenset()) for v in values] or [frozenset()])
