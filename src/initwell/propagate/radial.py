"""Radial parts: how much of a gradient lies along the value that it belongs to, and so reaches the scale of a norm.

A norm written by hand, y = x·r with r a function of the row x, sends the sum R = Σ y·g over each row to r. Of g drawn
at random that would have the variance n·E[y²]·E[g²]; but g is a gradient, and by Euler's theorem a function f that is
homogeneous of degree k has x·∇f = k·f. Taken op by op, with R(v) = Σ v·∂L/∂v over a row:

    y = W v, a view, a product with what is independent     R(v) = R(y)
    y = v + w                                               R(v) = β R(y) + s,  R(w) = (1 − β) R(y) − s
    y = φ(v)                                                R(v) = β R(y) + s
    y = a norm of v                                         R(v) = 0: a norm does not see the length of its row
    y = softmax(v)                                          R(v) = Σ y (v − Σ y v) g

with β the share that makes s independent of R(y): for a sum E[v y]/E[y²] and Var s = n E[g²](E[v²] − β² E[y²]), for
a function E[v φ′ φ]/E[φ²] and Var s = n E[g²](E[(v φ′)²] − β² E[φ²]). So R is a sum of such independent sources, of
which those of the two ways around a residual block cancel where a norm follows. At any other op it counts as random.
Assumption: a row's gradient is otherwise independent of it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from initwell.propagate.concentration import Weights
from initwell.propagate.functions import Function, as_image, composed, evaluated, line
from initwell.propagate.gaussian import nodes
from initwell.propagate.known import Known
from initwell.propagate.rows import stepped
from initwell.propagate.rules.branch import multiplied, scaled
from initwell.propagate.segments import Array
from initwell.propagate.signal import Image, Signal, replace
from initwell.trace.trace import Op, Trace, ValueRef

Found = Sequence[Signal | None]
Parts = Mapping[object, float]

_REASON = "what a gradient has along its row, which a norm's scale gets: from sums and functions as independent"
_NAMES = """
    view _unsafe_view t transpose permute expand clone neg native_dropout repeat squeeze unsqueeze slice select split
    split_with_sizes unbind alias detach _to_copy reshape contiguous flatten unflatten
"""
_SAME = frozenset(f"aten.{name}" for name in _NAMES.split())
_LINEAR: Mapping[str, tuple[str, str]] = {"aten.mm": ("self", "mat2"), "aten.addmm": ("mat1", "mat2")}
_PRODUCTS = frozenset({"aten.bmm", "aten.mm"})
_NORMS = frozenset({"aten.native_layer_norm", "aten._fused_rms_norm"})
_MADE_BY = """
    pow mul mean sum add rsqrt sqrt reciprocal var clamp clamp_min linalg_vector_norm _to_copy expand sub div maximum
"""
_SCALES = frozenset(f"aten.{name}" for name in _MADE_BY.split())
_TO_SOFTMAX = frozenset({*_SAME, "aten.add", "aten.masked_fill", "aten.where"} - {"aten.detach"})
_LONGEST = 9


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


def _norm(trace: Trace, op: Op) -> Norm | None:
    x, scale = (_id(op, name) for name in ("self", "other"))
    for rows, r in ((x, scale), (scale, x)):
        if rows is None or r is None or (op.functional == "aten.div" and rows != x):
            continue
        made = trace.producer(r)
        if made is not None and made.functional == "aten.expand":
            r = made.inputs[0]
        if _size(trace, r) < _size(trace, rows):
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


def _id(op: Op, name: str) -> int | None:
    ref = op.arguments.get(name)
    return ref.id if isinstance(ref, ValueRef) else None


def _size(trace: Trace, value: int) -> int:
    return math.prod(trace.values[value].shape)


class Radial:
    """Amends the gradients of norms' scales; what it asks for is what the walk has found so far."""

    def __init__(
        self, trace: Trace, known: Mapping[int, Signal], values: Known, others: Mapping[int, Signal] | None = None
    ) -> None:
        """Begin a walk.

        Args:
            trace: that is walked.
            known: signals so far, by value id.
            values: known numbers.
            others: the same signals without blank rows, if there are any.
        """
        self._trace, self._known, self._values = trace, known, values
        self._signals = known if others is None else others
        self._norms: Mapping[int, Norm] = values.once("norms by hand", lambda: norms_by_hand(trace))
        self._chains = frozenset[int]().union(*(norm.chain for norm in self._norms.values()))
        self._ops = frozenset(norm.op.index for norm in self._norms.values())
        self._parts: dict[int, Parts | None] = {}
        self._variance: dict[object, float] = {}

    def amended(self, op: Op, found: Found) -> Found:
        """Return the signals of an op's results; where it makes the gradient of a norm's scale, by its radial part."""
        norm = self._norms.get(op.index)
        if norm is None or not found or found[0] is None or found[0].q <= 0:
            return found
        parts, scale = self._of(norm.op.outputs[0]), self._signals.get(norm.scale)
        if parts is None or scale is None or scale.q <= 0:
            return found
        whole = sum(c * c * self._variance[source] for source, c in parts.items()) / _size(self._trace, norm.scale)
        return (_over(scale, found[0], whole).approximate(_REASON), *found[1:])

    def _of(self, value: int) -> Parts | None:
        """Return R of a value as source → factor; None where something is not known."""
        if value not in self._parts:
            self._parts[value] = self._found(value)
        return self._parts[value]

    def _found(self, value: int) -> Parts | None:
        ways = []
        for op in self._trace.consumers(value):
            if op.phase == "forward" and any(o in self._trace.gradients for o in op.outputs):
                ways.append(self._through(op, value))
        if not ways or None in ways or value in self._trace.outputs.values():
            return self._random(value)
        return _sum(way for way in ways if way is not None)

    def _random(self, value: int) -> Parts | None:
        signal, gradient = self._signals.get(value), self._gradient(value)
        if signal is None or gradient is None:
            return None
        self._variance[value] = _size(self._trace, value) * signal.q * gradient.q
        return {value: 1.0}

    def _gradient(self, value: int) -> Signal | None:
        return self._signals.get(self._trace.gradients.get(value, -1))

    def _through(self, op: Op, value: int) -> Parts | None:
        """Return what R of a value gets from one op that reads it; None where that is random."""
        if op.index in self._ops and value not in self._chains:
            return {}
        if op.functional in _NORMS or all(o in self._chains for o in op.outputs):
            return {}
        if op.functional in _SAME:
            ways = [self._of(o) for o in op.outputs if o in self._trace.gradients]
            return None if None in ways else _sum(way for way in ways if way is not None)
        if op.functional in _LINEAR and self._is_weight(_id(op, _LINEAR[op.functional][1])):
            return self._less_bias(op) if _id(op, _LINEAR[op.functional][0]) == value else None
        if op.functional in _PRODUCTS:
            # Of queries times keys, and of weights times values, the rows are those of what comes first.
            return self._of(op.outputs[0]) if _id(op, "self") == value else self._keys(op)
        if op.functional == "aten._softmax":
            return self._weights(op, value)
        if op.functional in ("aten.mul", "aten.div"):
            return self._product(op, value)
        if op.functional in ("aten.add", "aten.sub") and _id(op, "other") is not None:
            return self._summand(op, value)
        return self._function(op, value)

    def _is_weight(self, value: int | None) -> bool:
        """Whether a value is a parameter, or made of one alone."""
        for _ in range(_LONGEST):
            if value is None or self._trace.values[value].kind == "parameter":
                break
            made = self._trace.producer(value)
            value = made.inputs[0] if made is not None and len(made.inputs) == 1 else None
        return value is not None

    def _less_bias(self, op: Op) -> Parts | None:
        out, bias = op.outputs[0], _id(op, "self") if op.functional == "aten.addmm" else None
        whole, own = self._signals.get(out), self._signals.get(bias if bias is not None else -1)
        if bias is None or (own is not None and own.q == 0):
            return self._of(out)
        if whole is None or own is None:
            return None
        return self._shared(op, out, whole.q - own.q, own.q, 1.0)

    def _weights(self, op: Op, value: int) -> Parts | None:
        """Return R of scores: of what their weights get, what lies along them; see ``concentration.Weights.along``."""
        scores, gradient = self._signals.get(value), self._gradient(op.outputs[0])
        dim = int(op.arguments["dim"])
        if scores is None or gradient is None:
            return None
        sent, axes = self._gradient(value), scores.axes([dim % len(scores.dims)])
        variance = scores.q - scores.averaged(axes)
        if variance <= 0 or not axes or sent is None:
            return {}
        along, _, alone = _rows(scores, variance)
        self._variance[(op.index,)] = _size(self._trace, value) * sent.q * along / max(alone, 1e-300)
        return {(op.index,): 1.0}

    def _keys(self, op: Op) -> Parts | None:
        """Return R of keys: over rows of scores s·g, with s large where there is any g; None where it is no key.

        Queries that are alike send more than as many others. What has a bias follows the scores by its share.
        """
        end, s = self._softmax(op.outputs[0]), self._signals.get(op.outputs[0])
        sent = self._gradient(op.outputs[0])
        scores = None if end is None else self._signals.get(end[0])
        if s is None or sent is None or end is None or scores is None:
            return None
        axes, rows = s.axes([len(s.dims) - 1]), [x.axes([len(x.dims) - 2]) for x in (s, sent)]
        common, variance = s.averaged(axes), scores.q - scores.averaged(scores.axes([len(scores.dims) - 1]))
        own = max(s.q - common, 0.0)
        if variance <= 0:
            return None
        _, keys, alone = _rows(scores, variance)
        share = min(end[1] ** 2 * own / variance, 1.0)
        alike = (s.shape[-2] - 1) * s.averaged(rows[0]) * sent.averaged(rows[1]) / max(s.q * sent.q, 1e-300)
        power = own * (share * keys / max(alone, 1e-300) + 1 - share) + common
        self._variance[op.index, "keys"] = math.prod(s.shape) * sent.q * power * (1 + max(alike, 0.0))
        return {(op.index, "keys"): 1.0}

    def _softmax(self, value: int) -> tuple[int, float] | None:
        """Return what goes into the softmax that a value goes to, and by which number it is multiplied on the way."""
        factor = 1.0
        for _ in range(3 * _LONGEST):
            later = [op for op in self._trace.consumers(value) if op.phase == "forward"]
            name, other = later[0].functional if later else "", later[0].arguments.get("other") if later else None
            if name in ("aten._softmax", "aten._safe_softmax"):
                return value, factor
            if name in ("aten.mul", "aten.div") and isinstance(other, (int, float)):
                factor *= other if name == "aten.mul" else 1 / other
            elif name not in _TO_SOFTMAX or len(later) > 1:
                return None
            value = later[0].outputs[0]
        return None

    def _product(self, op: Op, value: int) -> Parts | None:
        parts, times = self._of(op.outputs[0]), [_id(op, n) == value for n in ("self", "other")]
        sign = (1, 1 if op.functional == "aten.mul" else -1)
        factor = sum(s for s, is_there in zip(sign, times, strict=True) if is_there)
        return None if parts is None else {source: c * factor for source, c in parts.items()}

    def _summand(self, op: Op, value: int) -> Parts | None:
        one, two = _id(op, "self"), _id(op, "other")
        mean = self._trace.producer(two) if two is not None else None
        if mean is not None and mean.functional == "aten.mean" and mean.inputs[0] == one:
            # Deviations from the row's own mean: R(x) = R(x − x̄), and the mean itself has no more to add.
            return self._of(op.outputs[0]) if value == one else {}
        whole, other = self._signals.get(op.outputs[0]), two if value == one else one
        if other is not None and other in self._values and whole is not None and whole.mask is not None:
            # What a mask shuts has no gradient.
            return self._of(op.outputs[0])
        a, b = (self._signals.get(i if i is not None else -1) for i in (one, two))
        if a is None or b is None or one == two or op.arguments.get("alpha", 1) not in (1, None):
            return None
        return self._shared(op, op.outputs[0], a.q, b.q, 1.0 if value == one else -1.0)

    def _shared(self, op: Op, out: int, first: float, second: float, sign: float) -> Parts | None:
        """Return the part of R that one summand gets: the first with sign 1, the second with −1."""
        parts, whole, gradient = self._of(out), self._signals.get(out), self._gradient(out)
        if parts is None or whole is None or gradient is None or whole.q <= 0:
            return None
        beta = (whole.q + first - second) / 2 / whole.q
        self._variance[(op.index,)] = _size(self._trace, out) * gradient.q * max(first - beta * beta * whole.q, 0.0)
        share = beta if sign > 0 else 1.0 - beta
        return _sum([{source: c * share for source, c in parts.items()}, {(op.index,): sign}])

    def _function(self, op: Op, value: int) -> Parts | None:
        """Return the part of R that comes through a function of one number."""
        out = op.outputs[0]
        parts, gradient = self._of(out), self._gradient(out)
        points = _points(self._known.get(value), self._known.get(out))
        if parts is None or gradient is None or points is None:
            return None
        sent, y, weights = points
        square, cross, own = (float(weights @ product) for product in (y * y, sent * y, sent * sent))
        if square <= 0:
            return None
        beta = cross / square
        self._variance[op.index, value] = _size(self._trace, out) * gradient.q * max(own - beta * cross, 0.0)
        return _sum([{source: c * beta for source, c in parts.items()}, {(op.index, value): 1.0}])


def _rows(scores: Signal, variance: float) -> Array:
    """Return ``Weights.sent`` averaged over rows, of which a mask leaves unlike numbers of scores open."""
    sizes = scores.mask.sizes if scores.mask is not None else ((float(scores.shape[-1]), 1.0),)
    rows = [(share, Weights(n, stepped(2 * scores.spread))) for n, share in sizes]
    return np.asarray(sum(share * row.sent(stepped(variance)) for share, row in rows))


def _over(scale: Signal, gradient: Signal, square: float) -> Signal:
    """Return R/scale, R of this second moment: both of a norm's ways to write it, y = x·r and y = x/r, ask for that.

    Args:
        scale: r, a function of the rows' average square.
        gradient: what R/scale would be, taken at random.
        square: E[R²].
    """
    image = as_image(scale)
    if image.base is not None or image.pre.dims != gradient.dims:
        return scaled(gradient, math.sqrt(max(square, 0.0) / scale.q / gradient.q))
    inverse = composed(Function(lambda x: 1 / x), image)
    whole = gradient.changed(gradient.moments * (max(square, 0.0) / gradient.q), 0.0)
    return replace(multiplied(whole, evaluated(Image(inverse, image.pre))), image=Image(inverse, image.pre, whole))


def _points(v: Signal | None, y: Signal | None) -> tuple[Array, Array, Array] | None:
    """Return v·dy/dv, y and weights over the distribution of v, where y is a function of v; else None."""
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
    found = (sent, np.asarray(outer.phi.fn(u)), weights / weights.sum())
    return found if all(np.isfinite(part).all() for part in found) else None


def _sum(ways: Iterable[Parts]) -> Parts:
    found: dict[object, float] = {}
    for way in ways:
        for source, c in way.items():
            found[source] = found.get(source, 0.0) + c
    return found
