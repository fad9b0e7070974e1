"""Radial parts: how much of a gradient lies along the value that it belongs to, and so reaches the scale of a norm.

A norm written by hand, y = x·r with r a function of the row x, sends the sum R = Σ y·g over each row to r. Of g drawn
at random that would have the variance n·E[y²]·E[g²]; but g is a gradient, and by Euler's theorem a function f that is
homogeneous of degree k has x·∇f = k·f. Taken op by op, with R(v) = Σ v·∂L/∂v over a row:

    y = W v, a 1×1 convolution, a view, a product with what is independent     R(v) = R(y)
    y = v + w                                               R(v) = β R(y) + s,  R(w) = (1 − β) R(y) − s
    y = φ(v)                                                R(v) = β R(y) + s
    y = a norm of v                                         R(v) = ε/(m + ε) R(y), m the row's average square
    y = v and others, side by side                          R(v) = β R(y) + s
    y = softmax(v)                                          R(v) = Σ y (v − Σ y v) g

with β the share that makes s independent of R(y): for a sum E[v y]/E[y²] and Var s = n E[g²](E[v²] − β² E[y²]), for
a function E[v φ′ φ]/E[φ²] and Var s = n E[g²](E[(v φ′)²] − β² E[φ²]), for one of several parts its share of Σ y² g²,
where the shares' s add up to 0: what rotary embeddings take apart and put together again keeps its R. So R is a sum of
such independent sources, of which those of the two ways around a residual block cancel where a norm follows. What
starts at an output of the model is one more. H heads that are one row later on have R/H and s each, with E[s²] of
(1 − 1/H)(1 − ρ) of what chance gives, ρ how alike they and their gradients are. At any other op it counts as random.
Of a norm by hand the share ε/(m + ε) varies from row to row, and where several rows' R add up to 0, what their own
shares leave of them does not. Assumption: a row's gradient is otherwise independent of it.
"""

import math
from collections.abc import Mapping, Sequence

from initwell.propagate.given.known import Known
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.branch import scaled
from initwell.propagate.rules.turned import is_turn
from initwell.propagate.shared.attended import SAME, Attended
from initwell.propagate.shared.handwritten import (
    LINEAR,
    Norm,
    are_multiples,
    as_terms,
    carrying,
    gates_by_row,
    in_piece,
    is_shut,
    is_taken_off,
    is_weight,
    left_of,
    length,
    meeting,
    met,
    norms_by_hand,
    operand,
    over,
    parted,
    points,
    rows_and_weight,
    size,
    started,
)
from initwell.propagate.shared.innovations import Innovations, Others, Pairs
from initwell.propagate.shared.numbers import numbers, of_number
from initwell.propagate.shared.routed import (
    MOVED,
    Head,
    Parts,
    apart,
    copies,
    gathered,
    of_values,
    opposed,
    repeated,
    sharing,
    side_by_side,
    square,
    summed,
    terms,
    together,
)
from initwell.propagate.shared.routers import with_experts
from initwell.propagate.shared.streams import REGROUPING, alike, are_one_row, in_common, in_heads, widened
from initwell.propagate.shared.tapped import Taps, across_channels
from initwell.propagate.shared.twins import Twins, carried
from initwell.trace.trace import Op, Trace

Found = Sequence[Signal | None]

_REASON = "what a gradient has along its row, which a norm's scale gets: from sums and functions as independent"
_PRODUCTS = frozenset({"aten.bmm", "aten.mm"})
_SHUT = frozenset({"aten.masked_fill", "aten.where"})
_NORMS = frozenset({"aten.native_layer_norm", "aten._fused_rms_norm"})
_JOINED = frozenset({"aten.cat", "aten.stack"})
_BIASES = {"aten.addmm": "self", "aten.convolution": "bias"}
# Of what is less than this share of a row's gradient, the rounding of 32 bits is the larger part.
_ROUNDING = 3e-6


class Radial:
    """Amends the gradients of norms' scales; what it asks for is what the walk has found so far."""

    def __init__(
        self, trace: Trace, known: Mapping[int, Signal], values: Known, others: Others = None, pairs: Pairs = None
    ) -> None:
        """Begin a walk.

        Args:
            trace: that is walked.
            known: signals so far, by value id.
            values: known numbers.
            others: the same signals without blank rows, if there are any.
            pairs: how values vary together, where weights are used again.
        """
        self._trace, self._known, self._values = trace, known, values
        self._signals = known if others is None else others
        self._attention, self._twins = Attended(trace, self._signals, self._ratio), Twins(trace)
        self._norms: Mapping[int, Norm] = values.once("norms by hand", lambda: norms_by_hand(trace))
        self._chains = frozenset[int]().union(*(norm.chain for norm in self._norms.values()))
        self._gates: Mapping[int, Norm] = values.once("gates by row", lambda: gates_by_row(trace))
        self._ops = frozenset(norm.op.index for norm in self._norms.values())
        self._scales = {**self._gates, **self._norms}
        self._numbers: Mapping[int, int] = values.once("numbers", lambda: numbers(trace))
        self.any = bool(self._scales or self._numbers)
        """Whether there is any such norm, or gate, or number."""
        self._parts: dict[int, Parts | None] = {}
        self.measured: Mapping[int, float] = {}
        self._variance: dict[object, float] = {}
        self._sums = Innovations(trace, self._signals, pairs, self._variance)
        across = values.once("convolutions across rows", lambda: across_channels(trace, self._scales.values()))
        self._taps = Taps(trace, self._signals, across, self._variance)

    def amended(self, op: Op, found: Found) -> Found:
        """Return the signals of an op's results; where it makes that of a row's scale or gate, by its radial part."""
        norm = self._scales.get(op.index)
        if norm is None:
            made = self._numbers.get(op.index)
            return found if made is None else of_number(self._trace, self._signals, op, made, found, self._ratio)
        if not found or found[0] is None or found[0].q <= 0:
            return found
        parts, scale = self._of(norm.op.outputs[0]), self._signals.get(norm.scale)
        if parts is None or scale is None or scale.q <= 0 or norm.op.outputs[0] in parts:
            return found
        varies = scale.q - scale.mean**2 > _ROUNDING * scale.q
        if op.index not in self._norms or (varies and scale.image is None and scale.average is None):
            # A gate, or the sum of a router's weights: how 1/r goes with R is in what R/r would be at random. That of
            # a softmax's is 1 and goes with nothing.
            if not (alone := self._by_chance(norm.op.outputs[0])):
                return found
            sent = self._variation(parts, self._sums.gated if op.index in self._gates else None)
            gates = scaled(found[0], math.sqrt(sent / alone)).approximate(_REASON)
            return (sharing(gates, lambda n: self._variation(together(parts, n)) / self._variation(parts)), *found[1:])
        whole = self._variation(parts) / size(self._trace, norm.scale)
        return (over(scale, found[0], whole).approximate(_REASON), *found[1:])

    def _of(self, value: int) -> Parts | None:
        """Return R of a value as source → factor; None where something is not known."""
        if value not in self._parts:
            self._parts[value] = self._random(value) if value in self.measured else self._found(value)
        return self._parts[value]

    def _found(self, value: int) -> Parts | None:
        if size(self._trace, value) == 0:
            return {}  # what rotary embeddings leave as it is, where they turn all
        end = meeting(self._trace, value)
        if end is not None and (whole := self._function(end, value)) is not None:
            return whole
        ways = [self._through(op, value) for op in carrying(self._trace, value)]
        if not ways or None in ways:
            return self._random(value)
        if (own := started(self._trace, self._signals, value)) > 0:
            self._variance[value, "started"] = own
            ways.append({(value, "started"): 1.0})
        return summed(way for way in ways if way is not None)

    def _random(self, value: int) -> Parts | None:
        if (variance := self._by_chance(value)) is None:
            return None
        self._variance[value] = variance
        return {value: 1.0}

    def _by_chance(self, value: int, way: int | None = None) -> float | None:
        """Return Σ R² of a gradient, or a part of it, drawn without regard to the value, or as it was measured."""
        signal, gradient = self._signals.get(value), self._gradient(value) if way is None else self._signals.get(way)
        if signal is None or gradient is None:
            return None
        return self.measured.get(value, size(self._trace, value) * met(signal, gradient))

    def _ratio(self, value: int) -> float | None:
        """Return Σ R² of a value over what it is of a random gradient."""
        parts, chance = self._of(value), self._by_chance(value)
        return None if parts is None or not chance else self._variation(parts) / chance

    def _gradient(self, value: int) -> Signal | None:
        return self._signals.get(self._trace.gradients.get(value, -1))

    def _through(self, op: Op, value: int) -> Parts | None:
        """Return what R of a value gets from one op that reads it; None where that is random."""
        if all(o in self._chains for o in op.outputs) or is_taken_off(self._trace, op):
            return {}
        if op.functional in _NORMS or (op.index in self._ops and value not in self._chains):
            return self._norm(op, value)
        if op.functional in SAME:
            ways = [self._of(o) for o in op.outputs if o in self._trace.gradients]
            if None in ways:
                return None
            sent, n = summed(way for way in ways if way is not None), widened(self._trace, op, value)[0]
            if op.functional == "aten.repeat":
                return repeated(self._trace, op, sent, self._by_chance)
            return gathered(sent, n, self._variance) if n > 1 else self._regrouped(op, value, sent)
        if (layer := rows_and_weight(self._trace, op)) is not None and is_weight(self._trace, layer[1]):
            return self._less_bias(op) if layer[0] == value else None
        if op.functional == "aten.convolution" and operand(op, "input") == value:
            return self._taps.of(op, self._less_bias(op))
        if op.functional == "aten.linalg_vector_norm":
            return self._random(op.outputs[0])  # x·d|x|/dx is |x| itself
        if op.functional in _PRODUCTS:
            # Of queries times keys, and of weights times values, the rows are those of what comes first.
            parts = self._of(op.outputs[0])
            if operand(op, "self") == value or parts is None:
                return parts
            softmax = self._attention.softmax(op.outputs[0])
            return self._values_part(op, parts) if softmax is None else self._attended(op, softmax)
        if op.functional == "aten._softmax":
            return self._scores_part(op, value)
        if is_turn(self._trace, op) or (op.functional in _SHUT and is_shut(self._signals.get(op.outputs[0]))):
            return self._of(op.outputs[0])
        if op.functional in ("aten.mul", "aten.div") or op.functional in MOVED:
            return self._moved(op, value) if op.functional in MOVED else self._product(op, value)
        if op.functional in _JOINED:
            return self._piece(op, value)
        if op.functional in ("aten.add", "aten.sub") and operand(op, "other") is not None:
            return self._summand(op, value)
        return self._function(op, value)

    def _regrouped(self, op: Op, value: int, parts: Parts) -> Parts:
        """Return R of rows that a view makes longer, or shorter, on their way to or from a linear layer."""
        if op.functional not in REGROUPING:
            return parts
        before, after = (length(self._trace, i) for i in (value, op.outputs[0]))
        if len(self._trace.values[op.outputs[0]].shape) == 1 < len(self._trace.values[value].shape):
            return together(parts, before)  # numbers, of which each is a row
        heads = after // before
        if heads > 1 and after % before == 0 and are_one_row(self._trace, op.outputs[0], heads, self._ends):
            shared = in_heads(self._trace, self._signals, value, heads)
            return self._of_heads(op, value, heads, parts, shared + (1 - shared) / heads)
        if before > after and before % after == 0:
            return gathered(parts, before // after, self._variance)
        return parts

    def _of_heads(self, op: Op, value: int, heads: int, parts: Parts, share: float) -> Parts:
        """Return R of each of several rows that are one later on, which holds a share of what they have at random."""
        later = self._trace.consumers(op.outputs[0]) if op.functional in REGROUPING else ()
        normed = next((o.outputs[0] for o in later if o.index in self._ops), None)
        # Before a norm rows of unlike sizes have gradients of their inverse: what the normalized ones have is the same.
        alone = in_piece(self._trace, self._signals, op, value) if normed is None else self._by_chance(normed)
        if alone is None:
            return parts
        self._variance.update({Head(heads, source): self._variance[source] for source in parts})
        self._variance[Head(heads, None, op.index)] = alone * max(1 - share, 0.0)
        return {**apart(parts, heads), Head(heads, None, op.index): 1.0}

    def _moved(self, op: Op, value: int) -> Parts | None:
        """Return R of rows, or entries of rows, that are copied, added up or put elsewhere."""
        parts, n = self._of(op.outputs[0]), terms(self._trace, op)
        if parts is None or operand(op, "self") != value:
            return None
        if n == 0:
            return together(parts, copied) if (copied := copies(self._trace, op)) else self._function(op, value)
        term, whole = (self._signals.get(i) for i in (value, op.outputs[0]))
        if term is None or whole is None or term.q <= 0:
            return None
        made = self._trace.producer(value)
        gate = next((gate for gate in self._gates.values() if gate.op is made), None)
        rows = next((i for i in made.inputs if i != gate.scale), -1) if made is not None and gate is not None else -1
        common = in_common(self._trace, self._signals, rows, op.arguments["dim"])
        share = whole.q / term.q if op.functional == "aten.mean" else whole.q / term.q / n**2
        return self._of_heads(op, value, n, parts, max(share, common))

    def _ends(self, op: Op) -> bool:
        """Whether an op, a layer or part of a norm, reads a row as a whole."""
        return op.functional in {*LINEAR, *_NORMS} or op.index in self._ops or op.outputs[0] in self._chains

    def _norm(self, op: Op, value: int) -> Parts | None:
        """Return R of the rows of a norm: of what the normalized ones get, as much as ε leaves of their length."""
        if op.functional in _NORMS and operand(op, "input") != value:
            return None
        scale = None if op.functional in _NORMS else next(n.scale for n in self._norms.values() if n.op is op)
        left, varies = left_of(op, self._signals.get(value), self._known.get(scale if scale is not None else -1))
        parts = self._of(op.outputs[0]) if math.hypot(left, math.sqrt(varies)) > _ROUNDING else {}
        if not parts:
            return parts
        # Rows that have R in common, such as those of a token's experts, have not all the same share of it left.
        self._variance[op.index, "left"] = varies * self._variation(parts)
        return {**{source: c * left for source, c in parts.items()}, (op.index, "left"): 1.0}

    def _piece(self, op: Op, value: int) -> Parts | None:
        """Return R of a value among those that an op puts side by side, or one after another."""
        out, parts = op.outputs[0], self._of(op.outputs[0])
        if parts is None:
            return None
        alone = [in_piece(self._trace, self._signals, op, i) for i in op.inputs]
        if None in alone:
            return None
        within = (int(op.arguments.get("dim", 0)) + 1) % len(self._trace.values[out].shape) == 0
        return side_by_side(op, value, [part for part in alone if part is not None], parts, within, self._variance)

    def _variation(self, parts: Parts, factors: Mapping[object, float] | None = None) -> float:
        return square(parts, self._variance, factors or {})

    def _less_bias(self, op: Op) -> Parts | None:
        out, bias = op.outputs[0], operand(op, _BIASES.get(op.functional, ""))
        whole, own = self._signals.get(out), self._signals.get(bias if bias is not None else -1)
        if bias is None or (own is not None and own.q == 0):
            return self._of(out)
        return None if whole is None or own is None else self._shared(op, out, *as_terms(whole, own), 1.0)

    def _values_part(self, op: Op, parts: Parts) -> Parts | None:
        """Return R of the values of attention, part of which goes with that of the keys."""
        sizes, linked = self._attention.values(op, self._variation(parts)), self._attention.with_keys(op)
        if sizes is None:
            return None
        softmax = self._attention.behind(operand(op, "self"))
        way = "values", None if softmax is None else self._twins.first(softmax.outputs[0])
        summed = carried(parts, way, sizes[1], self._variance)
        keys = None if linked is None or softmax is None else self._attended(linked[0], softmax)
        link = linked[1] if linked is not None and keys is not None else 0.0
        return of_values(op.index, parts, (sizes[0], sizes[2]), (keys or {}, link), summed, self._variance)

    def _scores_part(self, op: Op, value: int) -> Parts | None:
        """Return R of the scores of a softmax, those of a router from R of its experts' sum."""
        linked = with_experts(self._trace, self._signals, op) if self._gates else None
        parts, chance = (None, None) if linked is None else (self._of(linked[0]), self._by_chance(linked[0]))
        if linked is None or parts is None or chance is None:
            return self._attended(op, op, value)
        self._variance[op.index, "attended"] = chance * linked[2]
        return {**{source: c * linked[1] for source, c in parts.items()}, (op.index, "attended"): 1.0}

    def _attended(self, op: Op, softmax: Op, scores: int | None = None) -> Parts | None:
        """Return R of scores, or of keys: a source of its own, and what goes with R of the sum by their weights."""
        found = self._attention.keys(op) if scores is None else self._attention.scores(op, scores)
        product = self._attention.summing(softmax)
        if found is None:
            return None
        parts = None if product is None else self._of(product.outputs[0])
        summed = carried(parts or {}, (scores is None, self._twins.first(softmax.outputs[0])), found[1], self._variance)
        self._variance[op.index, "attended"] = max(found[0] - square(summed, self._variance), 0.0)
        return {**summed, (op.index, "attended"): 1.0}

    def _product(self, op: Op, value: int) -> Parts | None:
        parts, times = self._of(op.outputs[0]), [operand(op, n) == value for n in ("self", "other")]
        sign = (1, 1 if op.functional == "aten.mul" else -1)
        factor = sum(s for s, is_there in zip(sign, times, strict=True) if is_there)
        n = widened(self._trace, op, value)[0]
        parts = together(parts, n) if parts is not None and n > 1 else parts
        return None if parts is None else {source: c * factor for source, c in parts.items()}

    def _summand(self, op: Op, value: int) -> Parts | None:
        one, two = operand(op, "self"), operand(op, "other")
        mean = self._trace.producer(two) if two is not None else None
        if mean is not None and mean.functional == "aten.mean" and mean.inputs[0] == one:
            # Deviations from the row's own mean: R(x) = R(x − x̄), and the mean itself has no more to add.
            return self._of(op.outputs[0]) if value == one else {}
        other = two if value == one else one
        if other is not None and other in self._values and is_shut(self._signals.get(op.outputs[0])):
            return self._of(op.outputs[0])
        a, b = (self._signals.get(i if i is not None else -1) for i in (one, two))
        if a is None or b is None or one == two or op.arguments.get("alpha", 1) not in (1, None):
            return None
        return self._shared(op, op.outputs[0], a, b, 1.0 if value == one else -1.0)

    def _shared(self, op: Op, out: int, first: Signal, second: Signal, sign: float) -> Parts | None:
        """Return the part of R that one summand gets: the first with sign 1, the second with −1."""
        parts, whole, gradient = self._of(out), self._signals.get(out), self._gradient(out)
        if parts is None or whole is None or gradient is None or whole.q <= 0:
            return None
        energy = size(self._trace, out) * gradient.q
        if are_multiples(self._trace, op):
            energy, beta = self._variation(parts) / whole.q, (whole.q + first.q - second.q) / 2 / whole.q
            chance = energy * max(first.q - beta * beta * whole.q, 0.0)
        else:
            along = self._variation(parts) / max(self._by_chance(out) or 0.0, 1e-300)
            beta, own = parted(whole, first, second, gradient, along)
            chance = size(self._trace, out) * own
        made: Parts = self._sums.of(op, beta, energy, chance, self._variation(parts))
        n, one = alike(self._trace, self._signals, op)
        if n > 1:
            self._variance.update(dict.fromkeys((Head(n, (op.index,)), (op.index, "own")), self._variance[(op.index,)]))
            made = {Head(n, (op.index,)): math.sqrt(one), (op.index, "own"): math.sqrt(1 - one)}
        share = beta if sign > 0 else 1.0 - beta
        return summed([{k: c * share for k, c in parts.items()}, {k: sign * c for k, c in made.items()}])

    def _function(self, op: Op, value: int) -> Parts | None:
        """Return the part of R that comes through a function of one number."""
        out = op.outputs[0]
        parts, gradient = self._of(out), self._gradient(out)
        found = points(self._known.get(value), self._known.get(out))
        if parts is None or gradient is None or found is None:
            return None
        sent, y, weights, z = found
        square, cross, own = (float(weights @ product) for product in (y * y, sent * y, sent * sent))
        if square <= 0:
            return None
        beta = cross / square
        apart = opposed(self._trace, self._signals, out, z, sent - beta * y)
        self._variance[op.index, value] = size(self._trace, out) * gradient.q * max(own - beta * cross, 0.0) * apart
        return summed([{source: c * beta for source, c in parts.items()}, {(op.index, value): 1.0}])
