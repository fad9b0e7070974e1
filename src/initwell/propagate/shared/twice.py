"""Where a gradient meets the weight that made it: what comes of that is not what independence says of it.

The product of two values of one encoder, Σ_k a_k b_k, sends c·b back to a = W x, with one c for all features; so do
scores a·bᵀ and squared lengths. b = W x' goes as W, and next Wᵀ multiplies it. For independent normal weights with n
inputs, of which m outputs share one c,

    E|Wᵀ W x'|² = (1 + (m + 1)/n) · what it is of independent Wᵀ and W x'

and most of that lies along x', which the layers before have made as well: they add it up. So where the share of such a
term in a gradient, s, makes more than a tenth of its size, √(1 + s (m + 1)/n) > 1.1, what comes back is unknown; but
for what is known to go as the layer's output, which ``responses`` follows. With a
c of its own for each feature, as with gates, Σ_i c_i W_ij W_ik has no such part. What lies along a of a gradient c·b
is unknown where b is of another pass through W: E[a·b] is not 0. And the gradient of a forward's own gradient, which
is made of activations and of weights that made these, is unknown from the first derivative that is derived again. One
that is a function of its own, as the cosine of a sine's input, goes as any; of several, as 2u and e^(−u²), what comes
back along each holds one gradient. But what comes back to that of u = W s is G = W r times f(u); r goes with s as the
gradient with the input, by c² of one over the input's features, and up to 1 behind more layers: then

    E[(W r)² f(u)²] = E[(W r)²] E[f²] (1 + c² (κ − 1))        κ = E[(u − E u)² f²]/(Var u · E[f²])

with κ = 3 of u², below 1 of a sine's cosine. Where that is more than a tenth, it is unknown.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf, sqrt

import numpy as np

from initwell.propagate.given.known import Known
from initwell.propagate.laws.functions import Function, as_image, combined, composed, function_moments
from initwell.propagate.moments.signal import Image, Signal
from initwell.propagate.shared.partners import Origins, Partners
from initwell.propagate.shared.reuse import argument
from initwell.trace.trace import Op, Trace

_PRODUCTS: Mapping[str, tuple[str, str]] = {
    "aten.mm": ("self", "mat2"),
    "aten.bmm": ("self", "mat2"),
    "aten.addmm": ("mat1", "mat2"),
}
_SUMS = frozenset({"aten.add", "aten.sub"})
_TURNS = frozenset(f"aten.{name}" for name in ("t", "transpose", "permute", "view", "detach", "alias", "clone"))
_SCALES = frozenset({"aten.mul", "aten.div", "aten.neg"})
# A value that this many layers were added up to goes as none of them much.
_MOST = 4
_LARGE = 1.1
_MET = (
    "meets the weight that made what it was multiplied by, in {0} at {1}: W'W x is not what independent W' and W x make"
)
_PASSES = "two passes through one weight that meet in {0} at {1}, whose gradient was multiplied by one of them again"
_DERIVED = "the gradient of a forward's own gradient, which goes as the activations and weights that made it"


class Twice:
    """Ops of one walk whose results cannot be known, as their operands hold one weight twice."""

    def __init__(self, trace: Trace, partners: Partners, known: Mapping[int, Signal], values: Known) -> None:
        """Look the trace over once for all walks; ``known`` gives value id → signal, of all values so far."""
        self._trace, self._known = trace, known
        self._found = values.once("twice", lambda: _Search(trace, partners))
        self.any = bool(self._found.lost or self._found.meetings or self._found.derived)
        self._shares: dict[tuple[int, int], float] = {}

    def why(self, op: Op) -> str | None:
        """Say why what an op makes cannot be known; None where it can."""
        if op.index in self._found.lost:
            return self._found.lost[op.index]
        if op.index in self._found.derived:
            factor, shared = self._found.derived[op.index]
            if sqrt(max(1 + shared * (self._with_own(factor) - 1), 0.0)) > _LARGE:
                return _DERIVED
        for meeting, width, gradient in self._found.meetings.get(op.index, ()):
            inputs = self._trace.values[op.outputs[0]].shape[-1]
            share = max(self._share(gradient, meeting.outputs[0]) - self._answered(op, gradient), 0.0)
            if sqrt(1 + share * (width + 1) / inputs) > _LARGE:
                return _MET.format(meeting.packet, meeting.path or "the model itself")
        return None

    def _answered(self, op: Op, gradient: int) -> float:
        """Return the share of a gradient that is known to go as what a layer made, and to be sent back so."""
        g, layer = self._known.get(gradient), None if op.of is None else self._trace.ops[op.of]
        u = None if layer is None else self._known.get(layer.outputs[0])
        if g is not None and g.undone != 1:
            return inf  # all that comes of it was measured: see ``families``
        if g is None or u is None or not g.answer or g.q <= 0:
            return 0.0
        return g.answer**2 * (u.q - u.mean**2) / g.q

    def _with_own(self, factor: int) -> float:
        """Return κ of a factor that is a function of a layer's output; 1 of any other."""
        f = self._known.get(factor)
        image = None if f is None else as_image(f)
        if image is None or image.base is not None or not image.pre.gaussian or image.pre.segmented:
            return 1.0
        u, about = image.pre, Function(lambda v: v - image.pre.mean)
        ways = [image.phi, combined(image.phi, about, np.multiply)]
        squares = [composed(Function(np.square), Image(phi, u)) for phi in ways]
        alone, both = (float(function_moments(square, u)[0].mean()) for square in squares)
        return both / (alone * (u.q - u.mean**2)) if alone * (u.q - u.mean**2) > 0 else 1.0

    def _share(self, value: int, of: int) -> float:
        """Return which share of a gradient's second moment one of the values has that were added up to it."""
        waiting = [value]
        # The way back may be as long as the trace, so that this is no recursion.
        while waiting:
            here = waiting[-1]
            terms = [] if (here, of) in self._shares or here == of else self._terms(here)
            left = [i for i, _ in terms if (i, of) not in self._shares]
            if left:
                waiting += left
                continue
            waiting.pop()
            if (here, of) not in self._shares:
                self._shares[here, of] = 1.0 if here == of else self._of_terms(here, of, terms)
        return self._shares[value, of]

    def _terms(self, value: int) -> list[tuple[int, float]]:
        """Return what a gradient was made of, as far as it goes as a weight, and which share of it each has."""
        op = self._trace.producer(value)
        if op is None or op.phase != "backward" or op.index not in self._found.carry:
            return []
        inputs = [i for i in op.inputs if i in self._found.met]
        if op.functional not in _SUMS:
            return [(i, 1.0) for i in inputs]
        whole = self._known.get(value)
        if whole is None or whole.q <= 0:
            return []
        terms = [(i, self._known.get(i)) for i in inputs]
        return [(i, min(t.q / whole.q, 1.0)) for i, t in terms if t is not None]

    def _of_terms(self, value: int, of: int, terms: Sequence[tuple[int, float]]) -> float:
        op = self._trace.producer(value)
        shares = [share * self._shares[i, of] for i, share in terms]
        return sum(shares) if op is not None and op.functional in _SUMS else max(shares, default=0.0)


class _Search:
    """What a trace alone says: which gradients go as a weight, and where they meet it again."""

    def __init__(self, trace: Trace, partners: Partners) -> None:
        self._trace, self._partners = trace, partners
        self.lost: dict[int, str] = {}
        self.derived: dict[int, tuple[int, float]] = {}
        self.meetings: dict[int, list[tuple[Op, int, int]]] = {}
        self.met: dict[int, frozenset[int]] = {}
        self.carry: set[int] = set()
        self._alike: set[int] = set()
        self._made: dict[int, tuple[frozenset[object], int, int]] = {}
        self._gradients = {v.id for v in trace.values if v.kind == "cotangent"}
        self._sent = self._of_own_layers()
        derived = self._derived()
        for op in trace.ops:
            if op.phase != "backward":
                continue
            if op.of in derived:
                self.lost[op.index] = _DERIVED
            elif (factor := self._own_factor(op)) is not None:
                self.derived[op.index] = factor, 1.0 if self.derived else 1 / self._features(op)
            if not self._gradients.isdisjoint(op.inputs):
                self._gradients.update(op.outputs)
                self._look(op)

    def _derived(self) -> set[int]:
        """Return the ops of a forward's own gradient whose own derivative is unknown.

        Those of functions that have an op for theirs; and products with several functions of what one layer made.
        """
        own = [op for op in self._trace.forward_ops if op.of is not None]
        found = {op.index for op in self._trace.forward_ops if "_backward" in op.functional}
        if not any(op.functional in _PRODUCTS for op in own):
            return found  # what is multiplied is a number, which goes as nothing
        made = {value for op in own for value in op.outputs}
        layers: dict[frozenset[int], set[int]] = {}
        for op in own:
            for value in set(op.inputs) - made if op.functional not in _PRODUCTS else ():
                layers.setdefault(frozenset(self._passes(value)), set()).add(self._shown(value))
        several = [layer for layer, read in layers.items() if layer and len(read) > 1]
        ways = [(op.index, self._passes(i).keys()) for op in own for i in op.inputs if op.functional not in _PRODUCTS]
        return found | {index for index, passes in ways if any(layer <= passes for layer in several)}

    def _of_own_layers(self) -> set[int]:
        """Return what a forward's own gradient sends back through layers, and what is made of that."""
        found = set[int]()
        for op in self._trace.forward_ops:
            if op.of is not None and (op.functional in _PRODUCTS or not found.isdisjoint(op.inputs)):
                found.update(op.outputs)
        return found

    def _own_factor(self, op: Op) -> int | None:
        """Return the factor by which a gradient goes on through a product of a forward's own gradient; else None."""
        own = None if op.of is None else self._trace.ops[op.of]
        if own is None or own.of is None or {op.functional, own.functional} != {"aten.mul"} or len(own.inputs) != 2:
            return None
        return next((i for i in op.inputs if i in own.inputs and i not in self._sent), None)

    def _features(self, op: Op) -> int:
        """Return of how many features a layer made what a product reads; 1 where no layer did."""
        made = [self._trace.producer(i) for i in op.inputs if i in self._gradients]
        layers = [m for m in made if m is not None and m.functional in _PRODUCTS]
        return self._trace.values[_operands(layers[0])[0]].shape[-1] if layers else 1

    def _look(self, op: Op) -> None:
        if op.functional in _PRODUCTS:
            weights = [i for i in _operands(op) if i in self._partners.fresh]
            if len(weights) == 1:
                self._back(op, weights[0])
            elif not weights:
                self._contracted(op)
            return
        self._spread(op)
        if op.functional == "aten.mul" and len(op.inputs) == 2:
            self._multiplied(op)
        self._hand_on(op)

    def _hand_on(self, op: Op) -> None:
        found = frozenset[int]().union(*(self.met.get(i, frozenset()) for i in op.inputs))
        if found and op.outputs:
            self.carry.add(op.index)
            self.met[op.outputs[0]] = self.met.get(op.outputs[0], frozenset()) | found

    def _back(self, op: Op, weight: int) -> None:
        """Multiply by a weight: note what goes as it."""
        kinds = {o[0] for o in self._partners.origins.get(weight, frozenset())}
        gradient = next(i for i in _operands(op) if i != weight)
        for index in sorted(self.met.get(gradient, ())):
            made, source, width = self._made[index]
            if made & kinds and self._shown(weight) in {self._shown(w) for w in self._passes(source).values()}:
                self.meetings.setdefault(op.index, []).append((self._trace.ops[index], width, gradient))

    def _contracted(self, op: Op) -> None:
        one, two = _operands(op)
        shape = self._trace.values[op.outputs[0]].shape
        for value, other, dim in ((one, two, -2), (two, one, -1)):
            if value not in self._gradients and other in self._gradients and len(shape) > 1:
                self._note(op, value, shape[dim])

    def _multiplied(self, op: Op) -> None:
        for value, other in (op.inputs, op.inputs[::-1]):
            if value in self._gradients:
                continue
            if other in self._alike and self._trace.values[value].shape[-1:] > (1,):
                self._note(op, value, self._trace.values[value].shape[-1])
            elif made := self._names(value):
                self._along(op, value, made, other)

    def _along(self, op: Op, value: int, made: frozenset[object], gradient: int) -> None:
        """Multiply what goes as one pass through a weight by another pass."""
        for index in sorted(self.met.get(gradient, ())):
            names, source, _ = self._made[index]
            if not names & made:
                continue
            one, two = self._passes(value), self._passes(source)
            shown = [{self._shown(w) for w in passes.values()} for passes in (one, two)]
            if shown[0] & shown[1] and not one.keys() & two.keys():
                meeting = self._trace.ops[index]
                self.lost[op.index] = _PASSES.format(meeting.packet, meeting.path or "the model itself")

    def _note(self, op: Op, value: int, width: int) -> None:
        if made := self._names(value):
            self._made[op.index] = made, value, width
            self.met[op.outputs[0]] = frozenset({op.index})

    def _names(self, value: int) -> frozenset[object]:
        """Return the weights that a forward value goes as: the last on the way, if few."""
        origins: Origins = self._partners.origins.get(value, frozenset())
        found = frozenset(o[0] for o in origins if len(o) == 2 and o[1] == "forward")
        return found if len(origins) <= _MOST else frozenset()

    def _shown(self, weight: int) -> int:
        """Return what a weight is, however it is turned; parts of one are different ones."""
        while (op := self._trace.producer(weight)) is not None and op.functional in _TURNS:
            weight = op.inputs[0]
        return weight

    def _passes(self, value: int) -> dict[int, int]:
        """Return the products with a weight that a forward value was made by last, and the weight of each."""
        found, seen, waiting = dict[int, int](), {value}, [value]
        while waiting:
            op = self._trace.producer(waiting.pop())
            if op is None:
                continue
            weights = [i for i in _operands(op) if i in self._partners.fresh] if op.functional in _PRODUCTS else []
            if weights:
                found[op.index] = weights[-1]
                continue
            new = [i for i in op.inputs if i not in seen]
            seen.update(new)
            waiting += new
        return found

    def _spread(self, op: Op) -> None:
        """Keep which gradients are one number for all of the last dimension."""
        if not op.inputs or not op.outputs:
            return
        shape, source = self._trace.values[op.outputs[0]].shape, self._trace.values[op.inputs[0]].shape
        wide = op.functional == "aten.expand" and shape and shape[-1] > 1 and (not source or source[-1] == 1)
        alike = self._all(op.inputs) and source[-1:] == shape[-1:]
        if (wide and op.inputs[0] in self._gradients) or (
            alike and op.functional in ("aten.mul", "aten.div", "aten.neg")
        ):
            self._alike.add(op.outputs[0])

    def _all(self, values: Iterable[int]) -> bool:
        return all(i in self._alike for i in values)


def _operands(op: Op) -> list[int]:
    return [i for i in (argument(op, name) for name in _PRODUCTS[op.functional]) if i is not None]
