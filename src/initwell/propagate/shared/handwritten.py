"""Norms written by hand, found in a trace: rows times, or over, one number a row that is made of the rows alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from initwell.propagate.laws.few_features import refuse_few
from initwell.propagate.laws.functions import Function, as_image, composed, evaluated, function_moments, line
from initwell.propagate.laws.gaussian import nodes
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Image, Signal, replace
from initwell.propagate.rules.branch import multiplied, scaled
from initwell.trace.trace import Op, Trace, ValueRef

_MADE_BY = """
    pow mul mean sum add rsqrt sqrt reciprocal var clamp clamp_min linalg_vector_norm _to_copy expand sub div maximum
"""
_SCALES = frozenset(f"aten.{name}" for name in _MADE_BY.split())
LINEAR: Mapping[str, tuple[str, str]] = {
    "aten.mm": ("self", "mat2"),
    "aten.addmm": ("mat1", "mat2"),
    "aten._grouped_mm": ("self", "mat2"),
}
_LONGEST = 9
_STEP = 1e-3
# Ops of an activation that is written by hand.
_FAR = 24


@dataclass(frozen=True)
class Norm:
    """A norm written by hand.

    Attributes:
        op: the product of rows with their scale, or the quotient.
        scale: its value id, one number a row.
        chain: what lies between the rows and their scale.
    """

    op: Op
    scale: int
    chain: frozenset[int]


def norms_by_hand(trace: Trace) -> dict[int, Norm]:
    """Return the norms of a trace by the index of the backward op that makes their scale's gradient."""
    found = {}
    for op in trace.forward_ops:
        norm = _norm(trace, op) if op.functional in ("aten.mul", "aten.div") else None
        maker = None if norm is None else trace.producer(trace.gradients.get(norm.scale, -1))
        if norm is not None and maker is not None:
            found[maker.index] = norm
    return found


def gates_by_row(trace: Trace) -> dict[int, Norm]:
    """Return products of rows with one number a row by the index of the backward op that makes that number's gradient.

    Such as a gate of each token: of y = x·r it gets Σ x g = R(y)/r, like a norm's scale, and a gate that all samples
    share the sum of theirs, which are independent.
    """
    found = {}
    for op in trace.forward_ops:
        x, y = (operand(op, name) for name in ("self", "other"))
        if op.functional != "aten.mul" or x is None or y is None:
            continue
        for rows, r in ((x, y), (y, x)):
            shape, wide = trace.values[r].shape, trace.values[op.outputs[0]].shape
            maker, row = trace.producer(trace.gradients.get(r, -1)), trace.values[rows].shape
            if len(wide) > 1 < wide[-1] and row[-1:] == wide[-1:] and _is_by_row(shape, wide) and maker is not None:
                found[maker.index] = Norm(op, r, frozenset())
    return {index: gate for index, gate in found.items() if trace.ops[index].functional == "aten.sum"}


def _is_by_row(shape: Sequence[int], wide: Sequence[int]) -> bool:
    """Whether numbers of a shape are one for each row that they multiply, or one for that row of all samples."""
    shared = next((i for i, n in enumerate(shape) if n > 1), len(shape))
    return len(shape) == len(wide) > shared and tuple(shape[shared:]) == (*wide[shared:-1], 1)


def multiple_of(trace: Trace, value: int) -> int:
    """Return the rows that a value holds times one number for each row; itself where it holds no such.

    Args:
        trace: that it is part of.
        value: such as rows times their gates.
    """
    while (op := trace.producer(value)) is not None and op.functional in ("aten.mul", "aten.div", "aten.neg"):
        wide, ways = trace.values[value].shape, [operand(op, name) for name in ("self", "other")]
        if op.functional == "aten.mul" and None not in ways and trace.values[ways[0] or 0].shape != wide:
            ways.reverse()
        rows, number = ways
        if rows is None or trace.values[rows].shape != wide or len(wide) < 2:
            break
        if number is not None and not _is_by_row(trace.values[number].shape, wide):
            break
        value = rows
    return value


def are_multiples(trace: Trace, op: Op) -> bool:
    """Whether both terms of a sum are multiples of one row: none has anything of its own, but a share by its number."""
    ways = [operand(op, name) for name in ("self", "other")]
    return None not in ways and len({multiple_of(trace, way) for way in ways if way is not None}) == 1


def _norm(trace: Trace, op: Op) -> Norm | None:
    x, scale = (operand(op, name) for name in ("self", "other"))
    for rows, r in ((x, scale), (scale, x)):
        if rows is None or r is None or (op.functional == "aten.div" and rows != x):
            continue
        made = trace.producer(r)
        if made is not None and made.functional == "aten.expand":
            r = made.inputs[0]
        if size(trace, r) < size(trace, rows):
            chain = _chain(trace, r, _bases(trace, rows))
            if chain is not None:
                return Norm(op, r, chain)
    return None


def _bases(trace: Trace, rows: int) -> set[int]:
    """Return the rows, and what they are the deviations of."""
    made = trace.producer(rows)
    return {rows, *(made.inputs[:1] if made is not None and made.functional == "aten.sub" else ())}


def _chain(trace: Trace, scale: int, bases: set[int]) -> frozenset[int] | None:
    """Return the values between rows and their scale; None where the scale is made of anything else."""
    chain, ahead = set[int](), [scale]
    while ahead:
        value = ahead.pop()
        if value in bases or value in chain:
            continue
        made = trace.producer(value)
        if made is None or made.functional not in _SCALES or len(chain) > _LONGEST:
            return None
        chain.add(value)
        ahead += made.inputs
    return frozenset(chain)


def is_weight(trace: Trace, value: int | None) -> bool:
    """Whether a value is a parameter, or made of one alone."""
    for _ in range(_LONGEST):
        if value is None or trace.values[value].kind == "parameter":
            break
        made = trace.producer(value)
        value = made.inputs[0] if made is not None and len(made.inputs) == 1 else None
    return value is not None


def is_taken_off(trace: Trace, op: Op) -> bool:
    """Whether a row's mean is only subtracted from it: what deviations get counts it already."""
    if op.functional != "aten.mean":
        return False
    later = [use for use in trace.consumers(op.outputs[0]) if use.phase == "forward"]
    rows, mean = op.inputs[0], op.outputs[0]
    subtracted = (operand(use, "self") == rows and operand(use, "other") == mean for use in later)
    return bool(later) and all(use.functional == "aten.sub" for use in later) and all(subtracted)


def meeting(trace: Trace, value: int) -> Op | None:
    """Return the op in which all ways on from a value come together that carry gradients; None if they do not soon.

    Args:
        trace: of the model.
        value: that several ops read, such as what an activation written by hand is of.
    """
    ahead, shape = {op.index: op for op in carrying(trace, value)}, trace.values[value].shape
    alone = len(ahead) < 2
    for _ in range(_FAR):
        if alone or not ahead:
            return None
        op = ahead.pop(min(ahead))
        if not ahead:
            return op
        if trace.values[op.outputs[0]].shape != shape or op.outputs[0] in trace.outputs.values():
            return None
        ahead.update({later.index: later for later in carrying(trace, op.outputs[0])})
    return None


def carrying(trace: Trace, value: int) -> list[Op]:
    """Return the forward ops that read a value and get a gradient."""
    ops = (op for op in trace.consumers(value) if op.phase == "forward")
    return [op for op in ops if any(o in trace.gradients for o in op.outputs)]


def operand(op: Op, name: str) -> int | None:
    """Return the value id of an argument; None where it is no tensor."""
    ref = op.arguments.get(name)
    return ref.id if isinstance(ref, ValueRef) else None


def rows_and_weight(trace: Trace, op: Op) -> tuple[int | None, int | None] | None:
    """Return the value ids of rows and of the weight that a linear layer multiplies each of them with; else None.

    A 1×1 convolution takes the channels of each place as a linear layer takes a row.
    """
    if op.functional in LINEAR:
        x, weight = (operand(op, name) for name in LINEAR[op.functional])
        return x, weight
    x, weight = operand(op, "input"), operand(op, "weight")
    if op.functional != "aten.convolution" or x is None or weight is None or operand(op, "bias") is not None:
        return None
    before, after, kernel = (trace.values[i].shape[2:] for i in (x, op.outputs[0], weight))
    return (x, weight) if math.prod(kernel) == 1 == op.arguments["groups"] and before == after else None


def size(trace: Trace, value: int) -> int:
    """Return how many entries a value has."""
    return math.prod(trace.values[value].shape)


def length(trace: Trace, value: int) -> int:
    """Return how long a row is, along the last dimension; 1 of a number."""
    shape = trace.values[value].shape
    return max(shape[-1], 1) if shape else 1


def met(x: Signal, g: Signal) -> float:
    """Return E[x²]·E[g²], segment by segment where both have some: large entries may have small gradients.

    Args:
        x: a value.
        g: its gradient.
    """
    if not (x.segmented and g.segmented) or x.shape != g.shape:
        return x.q * g.q
    x, g = together(x, g, x.shape)
    product = x.diagonal * g.diagonal
    for atom in x.atoms:
        shares = np.array(atom.parts or (atom.size,)) / atom.size
        product = shares @ product.reshape(len(shares), -1)
    return float(product.item())


def parted(whole: Signal, first: Signal, second: Signal, g: Signal, along: float) -> tuple[float, float]:
    """Return β of y = v + w and E[s²] of an entry, for R(v) = β R(y) + s as in ``radial``, segment by segment.

    Where β is not that of all rows, such as of the first ones behind a causal mask, its own part of R(y) is in s:
    E[g² (E[v²] − β_i² E[y²])] + t E[g² E[y²] (β_i − β)²], with β that of all rows by what each has of R(y) at random.

    Args:
        whole: y.
        first: v.
        second: w.
        g: gradient of y.
        along: t, Σ R(y)² over what it is of random gradients.
    """
    if not (g.segmented and (whole.segmented or first.segmented or second.segmented)):
        beta = (whole.q + first.q - second.q) / 2 / whole.q
        return beta, g.q * max(first.q - beta * beta * whole.q, 0.0)
    y, v, w, square, shares = _by_segment(whole, first, second, g)
    own = (y + v - w) / 2 / np.maximum(y, 1e-300)
    weights = shares * square * y
    beta = float((weights * own).sum() / max(weights.sum(), 1e-300))
    rest = shares * square * np.maximum(v - own * own * y, 0.0)
    return beta, float(rest.sum()) + along * float((weights * (own - beta) ** 2).sum())


def is_shut(scores: Signal | None) -> bool:
    """Whether a mask shuts some scores: what it shuts has no gradient."""
    return scores is not None and scores.mask is not None


def as_terms(whole: Signal, part: Signal) -> tuple[Signal, Signal]:
    """Return a sum as that of two independent terms, of which the second is as large as a part, such as a bias."""
    share = min(part.q / whole.q, 1.0) if whole.q > 0 else 0.0
    return scaled(whole, math.sqrt(1 - share)), scaled(whole, math.sqrt(share))


def _by_segment(*signals: Signal) -> Sequence[Array]:
    """Return mean squares of values of one shape by segments of all of them, and each segment's share of entries."""
    shape, finest = signals[0].shape, signals[0]
    for signal in signals[1:]:
        finest = together(finest, signal, shape)[0]
    shares = np.ones(())
    for atom in finest.atoms:
        shares = np.multiply.outer(shares, np.array(atom.parts or (atom.size,)) / atom.size)
    return [*(together(signal, finest, shape)[0].diagonal for signal in signals), shares]


def in_piece(trace: Trace, signals: Mapping[int, Signal], op: Op, value: int) -> float | None:
    """Return Σ x² g² of one of the values that an op puts side by side; None where it is not known.

    Args:
        trace: of the model.
        signals: of its values, so far.
        op: such as a concatenation.
        value: one that it reads.
    """
    if size(trace, value) == 0:
        return 0.0
    signal, gradient = signals.get(value), signals.get(trace.gradients.get(op.outputs[0], -1))
    if len(trace.consumers(value)) == 1:
        gradient = signals.get(trace.gradients.get(value, -1)) or gradient
    return None if signal is None or gradient is None else size(trace, value) * met(signal, gradient)


def started(trace: Trace, signals: Mapping[int, Signal], value: int) -> float:
    """Return Σ R² of the gradients that start at an output of the model, independent of it; 0 at other values.

    Args:
        trace: that it is part of.
        signals: what is known so far.
        value: any.
    """
    if value not in trace.outputs.values() or value not in signals:
        return 0.0
    names = {name for name, output in trace.outputs.items() if output == value}
    sent = [v.id for v in trace.values if v.kind == "cotangent" and v.name in names and v.id in signals]
    return size(trace, value) * sum(met(signals[value], signals[g]) for g in sent)


def over(scale: Signal, gradient: Signal, square: float) -> Signal:
    """Return R/scale, R of this second moment: both of a norm's ways to write it, y = x·r and y = x/r, ask for that.

    Args:
        scale: r, a function of the rows' average square.
        gradient: what R/scale would be, taken at random.
        square: E[R²].

    Raises:
        UnknowableError: few features make nearly all of the rows.
    """
    if scale.shape == gradient.shape:
        # Gradients behind a mask, or of keys that several heads share, are cut finer than the rows.
        scale, gradient = together(scale, gradient, gradient.shape)
    image = as_image(scale)
    refuse_few(image.pre.average)
    if image.base is not None or image.pre.dims != gradient.dims:
        return scaled(gradient, math.sqrt(max(square, 0.0) / scale.q / gradient.q))
    inverse = composed(Function(lambda x: 1 / x), image)
    # Where rows are of several sizes, R/scale is larger in larger ones, and R itself is not.
    whole = multiplied(gradient, scale)
    whole = gradient.changed(whole.moments * (max(square, 0.0) / whole.q), 0.0)
    return replace(multiplied(whole, evaluated(Image(inverse, image.pre))), image=Image(inverse, image.pre, whole))


def left_of(op: Op, rows: Signal | None, scale: Signal | None) -> tuple[float, float]:
    """Return ε/(m + ε) of a norm, 1 + d log k/d log |x| of x·k, and its variance over rows; 0 where it is not known.

    Args:
        op: the norm; by hand, the product with k or the quotient.
        rows: what is normalized.
        scale: k or its inverse, of a norm by hand.
    """
    if scale is None:
        eps, dims = op.arguments.get("eps"), len(op.arguments.get("normalized_shape", ()))
        if rows is None or not isinstance(eps, float):
            return 0.0, 0.0
        common = rows.averaged(rows.axes(range(-dims, 0))) if op.functional == "aten.native_layer_norm" else 0.0
        return eps / max(rows.q - common + eps, 1e-300), 0.0
    image = as_image(scale)
    if image.base is not None or image.pre.average is None or image.pre.mean <= 0:
        return 0.0, 0.0
    k, sign, step = image.phi.fn, 1.0 if op.functional == "aten.mul" else -1.0, math.exp(_STEP)
    # The average is of squares.
    left = Function(lambda v: np.maximum(1 + sign * np.log(np.abs(k(v * step) / k(v / step))) / _STEP, 0.0))
    means, moments = function_moments(left, image.pre)
    mean, square = float(means.flat[0]), float(moments.flat[0])
    if image.pre.average.kind == "mean" or not 0 < square < math.inf:
        return 0.0, 0.0
    return mean, max(square - mean * mean, 0.0)


def points(v: Signal | None, y: Signal | None) -> tuple[Array, Array, Array, Array] | None:
    """Return v·dy/dv, y and weights over the distribution of v, where y is a function of v; else None.

    Args:
        v: any signal, if it is known.
        y: what it made.

    Returns:
        v·dy/dv, y and weights, and the standard normal numbers of which they are functions.
    """
    if v is None or y is None or y.image is None:
        return None
    inner, outer = as_image(v), y.image
    if inner.base is not None or outer.base is not None or outer.pre.dims != inner.pre.dims:
        return None
    if outer.pre is v:
        inner = Image(line(1.0), v)
    elif outer.pre is not inner.pre:
        return None
    pre = outer.pre
    variance = max(pre.q - pre.mean**2, 0.0)
    z, weights = nodes((*inner.phi.kinks, *outer.phi.kinks), pre.mean, variance)
    u, step = pre.mean + math.sqrt(variance) * z, 1e-5 * (math.sqrt(variance) + abs(pre.mean))
    rise, below = (f.fn(u + step) - f.fn(u - step) for f in (outer.phi, inner.phi))
    with np.errstate(divide="ignore", invalid="ignore"):
        sent = np.where(below != 0, inner.phi.fn(u) * rise / below, 0.0)
    found = (sent, np.asarray(outer.phi.fn(u)), weights / weights.sum(), z)
    return found if all(np.isfinite(part).all() for part in found) else None
