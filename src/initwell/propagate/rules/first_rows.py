"""The first rows of causal linear attention, which are made of few scores: how much they vary in size, and norms of it.

Row i of (D ∘ q kᵀ) v is a sum of i + 1 scores' values, and what a norm behind it divides by is of few numbers where i
is small. ``laws/forms`` has E[1/m] of the mean square m of rows of H heads; m then counts as an average of ν squares,

    ν/(ν − 2) = E[1/m]·E[m]        so that squares of one row go together by 2/ν = 1 − 1/(E[1/m]·E[m])

while next to 0 it is as an average of as many as there are scores. Of one or two, 1/m has no expectation, and what the
norm sends back is not known (``states``).

What comes back through the norm is large where scores are small, and is multiplied by them on its way to the values:
there that is undone, since Σ c² is the size of the row, E[c²/m] = E[c²]/E[m]. And of the ν numbers that make a row's
size the norm does not see the length, Σ s ∂/∂s = 0: what the scores get has lost one direction of ν.

Assumption: queries, keys and values of a position are independent of each other; heads are as independent. Of a segment
of rows the first and the last are looked at, and of rows beyond ``_FAR`` none.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from initwell.propagate.laws.averages import tails
from initwell.propagate.laws.forms import Form, inverse_growth
from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.weighed import weights_of
from initwell.propagate.table import Call, UnknowableError
from initwell.trace.trace import Op, ValueRef

_FAR = 64
_STEPS = 8
# Of so many squares 1/m has no expectation.
_NONE = 2
_WHY = "rows of linear attention that are made of few scores, as those of a gamma law with their E[1/m]"


def of_first_rows(call: Call, square: Signal) -> Signal:
    """Let squares of a row go together as far as the scores that it is made of are few.

    Args:
        call: of the square of rows.
        square: of rows as of one size.
    """
    made = _product_behind(call, call.op.inputs[0])
    axis = None if made is None else _rows(square, _parts(made))
    varies = None if made is None or axis is None else _unevenness(made, call.shape()[-1])
    if made is None or varies is None:
        return square
    same = tuple([slice(n) for n in square.means.shape[: len(square.atoms) - len(square.dims[-1])]])
    # Both scores and features are few: their E[1/m] multiply.
    features = call.shape()[-1]
    whole = 1 - (1 - varies) * (1 - 2 / features)
    moments = square.moments.copy()
    moments[same] *= ((1 + whole) / (1 + 2 / features)).reshape([-1 if i == axis else 1 for i in range(moments.ndim)])
    numbers = tuple(1 / (1 / n + 1 / features) for n in _numbers(made, features))
    return replace(square, moments=moments, numbers=numbers).approximate(_WHY)


def _numbers(product: Call, features: int) -> list[float]:
    """Return of how many scores rows of a norm over so many features are made, by segment of rows."""
    y, counts = product.known[product.op.outputs[0]], _counts(product)
    if counts is None:
        return []
    there = counts.mean(0)
    ends = np.cumsum([0, *_parts(product)]).tolist()
    return [float(there[a:b].mean()) * (features // y.shape[-1]) for a, b in pairwise(ends)]


def _counts(product: Call) -> Array | None:
    """Return how many scores are not weighed by 0: of each table of weights, and each row."""
    weighed = _weighed(product)
    found = None if weighed is None else weights_of(weighed)
    return None if found is None else (found[0] != 0).double().numpy().reshape(-1, *found[0].shape[-2:]).sum(-1)


def _parts(product: Call) -> tuple[int, ...]:
    """Return the segments of rows of a product; none where these are alike."""
    rows = product.known[product.op.outputs[0]].dims[1]
    return rows[0].parts if len(rows) == 1 else ()


def _rows(x: Signal, parts: tuple[int, ...]) -> int | None:
    """Return the axis that counts rows, before the features."""
    features = x.axes([len(x.dims) - 1])
    return next((i for i, atom in enumerate(x.atoms) if parts and atom.parts == parts and i not in features), None)


def _product_behind(call: Call, value: int) -> Call | None:
    """Return the product of weighed scores and values that rows are, beside what is 0."""
    for _ in range(_STEPS):
        op = call.trace.producer(call.trace.shown(value))
        if op is None or not op.inputs or op.phase != "forward":
            return None
        made = Call(op, call.trace, call.known, call.values)
        if op.functional == "aten.bmm":
            return made if _weighed(made) is not None and op.outputs[0] in call.known else None
        rest = [i for i in op.inputs if i not in call.known or call.known[i].q > 0]
        if op.functional not in ("aten.add", "aten.cat") or len(rest) != 1:
            return None
        value = rest[0]
    return None


def _weighed(product: Call) -> Call | None:
    """Return the op that multiplies the scores by known numbers, of a product with values."""
    ref = product["self"]
    op = product.trace.producer(product.trace.shown(ref.id)) if isinstance(ref, ValueRef) else None
    if op is None or op.functional != "aten.mul" or op.phase != "forward":
        return None
    made = Call(op, product.trace, product.known, product.values)
    return made if weights_of(made) is not None else None


def _unevenness(product: Call, features: int) -> Array | None:
    """Return 2/ν for each segment of rows, of a norm over so many features."""
    y, weighed = product.known[product.op.outputs[0]], _weighed(product)
    found = None if weighed is None else weights_of(weighed)
    heads = features // y.shape[-1]
    if weighed is None or found is None or not _parts(product) or features % y.shape[-1]:
        return None
    known, scores = found
    tables = known.double().numpy().reshape(-1, *known.shape[-2:])
    if len(tables) not in (1, heads):
        return None
    varies, start = [], 0
    for length in _parts(product):
        ends = [i for i in {start, start + length - 1} if i < _FAR]
        grown = [inverse_growth(_forms(product, scores, tables[:, i], heads)) for i in ends]
        varies.append(1 - 1 / float(np.mean(grown)) if grown and math.isfinite(sum(grown)) else 0.0)
        start += length
    return np.array(varies)


def _forms(product: Call, scores: Signal, weights: Array, heads: int) -> list[Form]:
    """Return the sizes of a row of each head."""
    v = product.signal("mat2")
    s_alike = max(scores.averaged(scores.axes([len(scores.dims) - 1])), 0.0) / scores.q
    v_alike = max(v.averaged(v.axes([1])), 0.0) / v.q
    width = _width(product)
    query, value = (_fourth(product, i) for i in (_query(product), product["mat2"].id))
    found = []
    for d in weights:
        few = float((d**4).sum() / max((d**2).sum(), 1e-300) ** 2)
        varies = (1 + (query - 1) / width) * (1 + max(value - 3, 0.0) / v.shape[2] * few) - 1
        found.append(Form(d, s_alike / max(1 - s_alike, 1e-9), v_alike / max(1 - v_alike, 1e-9), varies))
    return found * (heads // len(found))


def _scores(product: Call) -> Op | None:
    weighed = _weighed(product)
    refs = [] if weighed is None else [weighed["self"], weighed["other"]]
    ops = (product.trace.producer(product.trace.shown(ref.id)) for ref in refs if isinstance(ref, ValueRef))
    return next((op for op in ops if op is not None and op.functional == "aten.bmm"), None)


def _query(product: Call) -> int:
    op = _scores(product)
    return -1 if op is None else op.arguments["self"].id


def _width(product: Call) -> int:
    return product.trace.values[_query(product)].shape[-1] if _scores(product) is not None else 1


def _fourth(call: Call, value: int) -> float:
    """Return E[x⁴]/E[x²]² of a value's entries; 3 where it is not known."""
    shown = call.known.get(call.trace.shown(value)) if value >= 0 else None
    found = None if shown is None else tails(shown)
    return 3.0 if found is None else found[0]


def refuse_first_rows(call: Call, value: int, features: int) -> None:
    """Refuse what a norm sends back to rows that are made of so few scores that 1/m has no expectation.

    Args:
        call: of the norm's backward.
        value: what is normalized.
        features: how many the norm is over.

    Raises:
        UnknowableError: there are such rows.
    """
    product = _product_behind(call, value)
    counts = None if product is None else _counts(product)
    if product is None or counts is None:
        return
    squares = counts.min() * max(features // call.trace.values[product.op.outputs[0]].shape[-1], 1)
    if 0 < squares <= _NONE:
        raise UnknowableError("a norm's gradient at rows of linear attention that are made of one or two scores")


def less_their_length(call: Call, gradient: Signal) -> Signal:
    """Take off a gradient of scores what of it lies along the row that they make, which a norm does not see.

    Args:
        call: of the gradient of weighed scores, times their weights.
        gradient: what that makes.
    """
    if call.op.phase != "backward" or call.op.of is None:
        return gradient
    trace, scores = call.trace, call.forward().outputs[0]
    products = call.values.once("products", lambda: [o for o in trace.forward_ops if o.functional == "aten.bmm"])
    op = next((op for op in products if trace.shown(op.inputs[0]) == scores), None)
    if op is None:
        return gradient
    product = Call(op, call.trace, call.known, call.values)
    norm = _norm_of(call, op.outputs[0])
    varies = None if norm is None else _unevenness(product, call.trace.values[norm].shape[-1])
    return gradient if varies is None else _by_row(gradient, product, 1 - varies / 2)


def _by_row(g: Signal, product: Call, shares: Array) -> Signal:
    """Multiply rows by the roots of these shares, one for each segment of rows of a product."""
    axis = _rows(g, _parts(product))
    if axis is None:
        return g
    sizes = np.sqrt(shares).reshape([-1 if i == axis else 1 for i in range(len(g.atoms))])
    return g.changed(g.moments * over_pairs(g.atoms, sizes), g.means, gaussian=g.gaussian)


def undone(call: Call) -> Signal | None:
    """Return the gradient of rows as it meets the scores that made them: what few scores made larger is no larger.

    Args:
        call: of a product of the backward.

    Returns:
        The second operand as it counts there; None for any other product.
    """
    if call.op.phase != "backward" or call.op.of is None:
        return None
    product = Call(call.forward(), call.trace, call.known, call.values)
    if product.op.functional != "aten.bmm" or (weighed := _weighed(product)) is None:
        return None
    if call.trace.shown(call["self"].id) != weighed.op.outputs[0]:
        return None
    norm = _norm_of(call, product.op.outputs[0])
    varies = None if norm is None else _unevenness(product, call.trace.values[norm].shape[-1])
    return None if varies is None else _by_row(call.signal("mat2"), product, 1 - varies)


def _norm_of(call: Call, value: int) -> int | None:
    """Return the rows that are squared for a norm, of a product that they are made of; None where there is none."""
    squares: Sequence[Op] = call.values.once("squares", lambda: [o for o in call.trace.forward_ops if _is_square(o)])
    for op in squares:
        made = _product_behind(call, op.inputs[0])
        if made is not None and made.op.outputs[0] == value:
            return op.inputs[0]
    return None


def _is_square(op: Op) -> bool:
    if op.functional == "aten.pow":
        return op.arguments.get("exponent") == 2
    return op.functional == "aten.mul" and op.arguments.get("self") == op.arguments.get("other")
