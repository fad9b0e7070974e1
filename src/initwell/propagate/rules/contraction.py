"""The one contraction rule, behind linear layers, q·kᵀ, attention·v and every gradient and weight gradient of them.

Let y_{mn} = Σ_k a_{mk} b_{kn}, with a independent of b and k of length K. Then E[y y'] is a sum over pairs (k, k'):
K of them agree and K(K−1) differ, and on each a contributes its own moment and b its own, so

    moments(y) = K · a[k agrees] ⊗ b[k agrees] + K(K−1) · a[k differs] ⊗ b[k differs]

Free axes stay as they are (⊗), batched axes are shared by all three, and a contracted dimension of several atoms is
this rule once for each. Assumption: a and b are independent; the sum is Gaussian when K is not small.

Where both are linear images, by different weights, of the rows k of one value, the averages of a and b over those
weights go together, and each pair that differs has more, with f the relative variance of the product of two such rows:

    f · (a[k agrees] − a[k differs]) ⊗ (b[k agrees] − b[k differs])

Keys and score gradients are such images, and their sum is the gradient of the queries; see ``gram``.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from initwell.propagate.laws.lengths import by_layer, sent_back
from initwell.propagate.laws.swing import of_product
from initwell.propagate.moments.atoms import matched, permuted, together
from initwell.propagate.moments.axes import Source
from initwell.propagate.moments.gram import adding, fluctuation, forgotten, image, in_common, varied, varying
from initwell.propagate.moments.labels import Weights, bilinear, labels
from initwell.propagate.moments.segments import Array, Patterns
from initwell.propagate.moments.signal import Signal, merged_fidelity, replace
from initwell.propagate.moments.slots import resolved
from initwell.propagate.rules.branch import added, scaled
from initwell.propagate.rules.first_rows import undone
from initwell.propagate.rules.masks import biased
from initwell.propagate.rules.own_products import refuse_own
from initwell.propagate.rules.responses import responding
from initwell.propagate.rules.states import read_state
from initwell.propagate.shared.reuse import CUTS
from initwell.propagate.table import Call, Rule
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op

# Behind a norm it is orthogonal to the whole row that the activation is a part of.
_WHY = "a gradient times an activation that it came back through, as independent"
_LAYERS = frozenset({"aten.mm", "aten.addmm", "aten.linear", "aten.convolution"})


def contract(a: Signal, b: Signal, over: Sequence[tuple[int, int]], batch: Sequence[tuple[int, int]] = ()) -> Signal:
    """Contract two independent signals.

    Args:
        a: the first.
        b: the second.
        over: pairs of dimensions to sum over, (of a, of b).
        batch: pairs of dimensions that they share.

    Returns:
        Dimensions: the shared ones, the rest of a, the rest of b.

    >>> from initwell.propagate.moments.signal import independent
    >>> contract(independent((4, 8), 1.0), independent((8, 5), 0.5), [(1, 0)]).q
    4.0
    """
    a, b = matched(a, b, [*over, *batch])
    spread = min(fluctuation(a, [d for d, _ in over]), fluctuation(b, [d for _, d in over]))
    return replace(_contracted(a, b, over, batch), spread=spread)


def _contracted(a: Signal, b: Signal, over: Sequence[tuple[int, int]], batch: Sequence[tuple[int, int]]) -> Signal:
    a, b = resolved(a, [d for d, _ in over]), resolved(b, [d for _, d in over])
    a, b = matched(a, b, [*over, *batch])
    names = labels(tuple(map(len, a.dims)), tuple(map(len, b.dims)), tuple(over), tuple(batch))
    pairs = names.over
    along = [a.atoms[i].patterns for i, _ in pairs]
    counts = _counts(tuple(along))
    moments = bilinear(names.moments, a.moments, b.moments, counts)
    rows, value = in_common(a, b, pairs)
    if rows:
        one, two = (varied(x, [pairs[r][i] for r in rows], value) for i, x in enumerate((a, b)))
        moments = moments + bilinear(names.moments, one, two, counts)
    means: Array | float = 0.0
    if a.means.any() and b.means.any():
        means = np.einsum(names.means, a.means, b.means, *(np.array(p.parts, float) for p in along))
    shared = len(batch)
    own = [forgotten(a.dims[d]) for d in names.kept_a[:shared]], [a.dims[d] for d in names.kept_a[shared:]]
    dims = (*own[0], *own[1], *[b.dims[d] for d in names.kept_b])
    found = a.changed(moments, means, dims=dims, gaussian=True)
    return merged_fidelity(found, b)


@lru_cache(maxsize=1024)
def _counts(along: tuple[Patterns, ...]) -> Weights:
    return Weights(tuple([p.counts for p in along]))


def product(
    call: Call, one: str, two: str, over: tuple[int, int], *, batched: bool = False, second: Signal | None = None
) -> Signal:
    """Contract two operands, minding what they have in common.

    Args:
        call: of the op.
        one: the first operand's name.
        two: the second's.
        over: the dimension of each to sum over.
        batched: whether they share dimension 0.
        second: what the second counts as, where that is not what it is.
    """
    a, b = call.signal(one), call.signal(two) if second is None else second
    refs, kept = (call[one].id, call[two].id), len(a.dims) - 1
    first, last = rows_of(call, refs[0]), rows_of(call, refs[1])
    ways = (
        (refs[1], a, first, over[0], range(kept)),
        (refs[0], b, last, over[1], range(kept, kept + len(b.dims) - 1)),
    )
    for weight, x, value, features, rows in () if batched else ways:
        if call.trace.values[call.trace.shown(weight)].kind == "parameter":
            source, *older = source_of(call, x, value, features)
            found = _contracted(a, b, [over], ())
            if call.op.phase == "backward":
                found = replace(responding(call, found, x, b if x is a else a), tilt=tilt_of_layer(call, x))
            elif (older or not source.level) and features == len(x.dims) - 1:
                found = replace(found, **by_layer(_in_full(call, x, value)))
            return image(found, rows, x, [features], source, older=older)
    refuse_own(call, one, two, over, batched=batched)
    spreads = fluctuation(a, over[:1]), fluctuation(b, over[1:])
    left, right = _itself(a, first, b, over, batched), _itself(b, last, a, over[::-1], batched)
    least = min(
        spreads[0] if left is a else fluctuation(left, over[:1]),
        spreads[1] if right is b else fluctuation(right, over[1:]),
    )
    found = _contracted(left, right, [over], [(0, 0)] if batched else [])
    if batched and min(left.swing, right.swing) < 0 < max(left.swing, right.swing):
        # Rows of weights, and what came back through a norm of the rows that they made, are added up.
        found = of_product(found, left.swing, right.swing)
    elif batched and found.swing > 0:
        # What all rows that are added up have in common does not swing.
        share = _own_share(found, left, right, over)
        found = replace(found, swing=found.swing * share**2, floor=1 - share * (1 - found.floor))
    # Given one factor, the product is a linear image of the other.
    ends = [(range(int(batched), kept), Source(first, math.sqrt(spreads[0])))]
    ends.append((range(kept, len(found.dims)), Source(last, math.sqrt(spreads[1]))))
    return adding(found, ends, spread=least)


def tilt_of_layer(call: Call, g: Signal) -> float:
    """Return the tilt of what a layer sends back, by the rows that it read."""
    read = call.forward().inputs if g.lengths < 0 and call.op.of is not None else ()
    rows = [i for i in read if i in call.known and call.known[i].shape[:-1] == g.shape[:-1]]
    return sent_back(g, _in_full(call, call.known[rows[0]], rows_of(call, rows[0]))) if len(rows) == 1 else 0.0


def _in_full(call: Call, x: Signal, value: int) -> Signal:
    """Return the value whose rows a view shows, which knows of what its entries are products."""
    whole = call.known.get(value, x)
    return whole if len(x.dims) == 2 and whole.shape[-1:] == x.shape[-1:] else x


def _own_share(found: Signal, a: Signal, b: Signal, over: tuple[int, int]) -> float:
    """Return the share of E[(Σ a b)²] that is Σ a² times what each b has of its own."""
    count = a.shape[over[0]]
    rows = count * (a.q + (count - 1) * a.averaged(a.axes([over[0]])))
    common = rows * b.averaged(b.axes([over[1]])) / found.q if found.q > 0 else 1.0
    return min(max(1 - common, 0.0), 1.0)


def _itself(a: Signal, value: int, b: Signal, over: tuple[int, int], batched: bool) -> Signal:
    """Let a value that the other operand follows follow itself."""
    if value not in {s.value for atom in b.dims[over[1]] for s in atom.follows}:
        return a
    features = [d for d in range(int(batched), len(a.dims)) if d != over[0]]
    return adding(a, [([over[0]], Source(value, math.sqrt(fluctuation(a, features))))])


def source_of(call: Call, x: Signal, value: int, features: int) -> tuple[Source, ...]:
    """Return what rows follow that a fresh layer makes: those that it reads, and what these follow as they are."""
    level = _level(call, x, value, features)
    if level or not _of_layer(call, x, value):
        return (Source(value, level=level),)
    # The lengths of W x vary by 2/D of D outputs, where |x| does not, and products of two rows by 1/C + 1/D: a level
    # falls as the strength that it goes with rises. Scores of W x are as many coordinates of x as those of x are.
    older = max((atom.follows for atom in x.atoms), key=len, default=())
    curved = sum(s.level * s.strength**2 for s in older)
    level = min(curved / fluctuation(x, [features]), 1.0) if curved > 0 else 0.0
    return (Source(value, level=level), *[s._replace(level=0.0) for s in older])


def _of_layer(call: Call, x: Signal, value: int) -> bool:
    """Whether a fresh layer made rows."""
    made = call.trace.producer(value)
    if made is None or made.functional not in _LAYERS or not x.gaussian:
        return False
    return any(call.trace.values[call.trace.shown(i)].kind == "parameter" for i in made.inputs)


def _level(call: Call, x: Signal, value: int, features: int) -> float:
    """Say how much of one length rows are about what they have in common: 1 for normalized ones without anything.

    Rows of zeros beside them are none that count.
    """
    around = call.trace.producer(value)
    if around is not None and around.functional == "aten.constant_pad_nd" and not around.arguments.get("value"):
        inner = around.inputs[0]
        if inner not in call.known or features % len(x.dims) != len(x.dims) - 1 or any(around.arguments["pad"][:2]):
            return 0.0
        within = call.known[inner]
        return _level(call, within, rows_of(call, inner), len(within.dims) - 1)
    op = call.trace.producer(x.roots[0][0]) if len(x.roots) == 1 else None
    made = call.known.get(op.outputs[0]) if op is not None else None
    if op is None or made is None or op.functional.endswith(("batch_norm", "group_norm")):
        return 0.0
    own = (x.roots[0][1] / made.roots[0][1]) ** 2 * made.q if made.roots else x.roots[0][1] ** 2
    if abs(own - x.q) > 0.01 * x.q:
        return 0.0
    return varying(x, [features]) ** 2


def rows_of(call: Call, value: int) -> int:
    """Return the value whose rows a view shows, by all their features.

    Queries, keys and values that are cut from one projection are as many images of its input as they are parts, by
    weights of their own: what follows the rows of one of them does not follow those of the others.
    """
    trace = call.trace
    while (op := trace.producer(value)) is not None and op.inputs:
        if op.functional not in VIEWS and op.functional not in COPIES:
            break
        if op.functional in CUTS and _cuts_features(call, op, value):
            break
        value = op.inputs[0]
    return value


def _cuts_features(call: Call, op: Op, value: int) -> bool:
    """Whether an op takes a part of a dimension that counts features: one along which nothing is followed."""
    whole, shape = call.known.get(op.inputs[0]), call.trace.values[op.inputs[0]].shape
    if whole is None or whole.shape != shape or call.trace.values[value].shape == shape:
        return False
    dim = (op.arguments.get("dim") or 0) % len(shape)
    if any(atom.follows for atom in whole.atoms):
        return not any(atom.follows for atom in whole.dims[dim])
    return dim == len(shape) - 1


def _mm(call: Call) -> Sequence[Signal]:
    return [product(call, "self", "mat2", (1, 0))]


def _bmm(call: Call) -> Sequence[Signal]:
    found = read_state(call, product(call, "self", "mat2", (2, 1), batched=True, second=undone(call)))
    if call.op.phase == "backward" and found.fidelity == "exact" and found.q > 0:
        varied = [np.ptp(call.signal(name).moments) > 0 for name in ("self", "mat2")]
        return [found.approximate(_WHY) if all(varied) else found]
    return [found]


def _addmm(call: Call) -> Sequence[Signal]:
    return [_plus(product(call, "mat1", "mat2", (1, 0)), call)]


def _baddbmm(call: Call) -> Sequence[Signal]:
    return [_plus(product(call, "batch1", "batch2", (2, 1), batched=True), call)]


def _plus(found: Signal, call: Call) -> Signal:
    alpha, beta = float(call["alpha"]), float(call["beta"])
    if beta == 0:
        return added(found, found, alpha, 0.0)
    if beta == 1 and (whole := biased(call, scaled(found, alpha), "self", scores=len(found.dims) == 3)) is not None:
        return whole
    one, two = together(found, call.signal("self"), call.shape())
    return added(one, two, alpha, beta, gaussian=True)


def _linear(call: Call) -> Sequence[Signal]:
    y = product(call, "input", "weight", (len(call.signal("input").dims) - 1, 1))
    if call["bias"] is None:
        return [y]
    return [added(*together(y, call.signal("bias"), call.shape()), gaussian=True)]


def _mv(call: Call) -> Sequence[Signal]:
    return [product(call, "self", "vec", (1, 0))]


def transposed(signal: Signal) -> Signal:
    """Swap the last two dimensions."""
    order = list(range(len(signal.dims)))
    order[-2:] = order[:-3:-1]
    return permuted(signal, order)


RULES: Mapping[str, Rule] = {
    "aten.mm": _mm,
    "aten.bmm": _bmm,
    "aten.addmm": _addmm,
    "aten.baddbmm": _baddbmm,
    "aten.linear": _linear,
    "aten.mv": _mv,
}
