"""How two values of a walk vary together, where a weight is used more than once.

Recurrent nets use one weight at every step, and so do layers that are called again. Then the terms of a sum, or the
steps of a sequence, are not independent: g_t W and g_s W vary together as g_t and g_s do. The covariance of any two
values follows from those of what they were made of:

    a + b with w            Cov(a, w) + Cov(b, w)
    x W + b with x' W + b   K · E[x x'] σ², as in the contraction of one, and that of b with itself
    a·b with c·d            E[a]E[c] Cov(b, d) + E[b]E[d] Cov(a, c) + Cov(a, c) Cov(b, d), and the same with c, d swapped
    φ(u) with ψ(v)          Σ a_k b_k c^k with Hermite coefficients of φ and ψ, c the correlation of u and v
    φ(u) with w             E[φ′(u)] Cov(u, w)                                                       (Stein's lemma)
    g·φ′(u) with h·ψ′(v)    Cov(g, h) · E[φ′(u) ψ′(v)]

and a shape is bookkeeping. Assumptions: entries are jointly Gaussian as far as needed, gradients are independent of the
activations they meet, a factor that is not listed varies with nothing. Gates of one unit at different times are not
quite independent of what they let through where the input hardly changes with time; the fourth moments that this
takes are not followed.
"""

from collections.abc import Callable, Mapping
from math import sqrt

import numpy as np

from initwell.propagate import pairs
from initwell.propagate.atoms import together
from initwell.propagate.gaussian import Series, hermite, series_moments
from initwell.propagate.known import Known
from initwell.propagate.pairs import Pair, Stretch, picked, raw, total
from initwell.propagate.reuse import CUTS, NORMS, PRODUCTS, SLOPES, Reuse, argument
from initwell.propagate.rules.contraction import contract
from initwell.propagate.rules.parts import concatenated
from initwell.propagate.rules.pointwise import phi_of
from initwell.propagate.segments import Array
from initwell.propagate.signal import Dims, Signal
from initwell.propagate.table import Call, RuleTable
from initwell.trace.ops import ACTIVATIONS
from initwell.trace.trace import Op, ValueRef

MOST = 40_000
"""Pairs of values that a walk looks at; any further ones are taken as independent."""
_DEEPEST = 120
_WIDEST = 200
_NEGLIGIBLE = 1e-4
_SHAPES = frozenset(f"aten.{n}" for n in "view _unsafe_view t transpose permute unsqueeze squeeze expand sum mean".split())
_SUMS: Mapping[str, tuple[str, str]] = {
    "aten.add": ("self", "other"),
    "aten.sub": ("self", "other"),
    "aten.rsub": ("other", "self"),
}


# In this order: what is a sum is best taken apart first.
_TAKEN_APART = (
    _SUMS.keys() | {"aten.neg"},
    frozenset({"aten.mul", "aten.div"}),
    SLOPES.keys() | NORMS.keys(),
    ACTIVATIONS.keys(),
)


class Covariances:
    """Covariances of the values of one walk, found when they are asked for."""

    def __init__(self, reuse: Reuse, known: Mapping[int, Signal], values: Known, table: RuleTable) -> None:
        """Know no pair yet.

        Args:
            reuse: of the trace.
            known: value id → signal, of all values so far.
            values: what has real numbers.
            table: the rules, which act on pairs too where they are linear.
        """
        self.reuse, self.trace = reuse, reuse.trace
        self._known, self._values, self._table = known, values, table
        self._found: dict[tuple[int, int], Pair | None] = {}
        self._series: dict[tuple[int, bool], Series] = {}
        self._maps: dict[tuple[object, Dims], tuple[Dims, Array] | None] = {}
        self._depth = 0

    @property
    def exhausted(self) -> bool:
        """Whether there were more pairs than are looked at."""
        return len(self._found) >= MOST

    def of(self, v: int, w: int) -> Pair | None:
        """Return the covariances of two values of one shape; None where they have none, or none that is known."""
        v, w = self.reuse.root(v), self.reuse.root(w)
        if v == w:
            return pairs.of(self._known[v]) if v in self._known else None
        if (v, w) in self._found:
            return self._found[v, w]
        if (w, v) in self._found:
            other = self._found[w, v]
            return None if other is None else other.swapped()
        one, two = self._known.get(v), self._known.get(w)
        if one is None or two is None or one.shape != two.shape or not self.reuse.tags(v) & self.reuse.tags(w):
            return None
        if self._depth >= _DEEPEST or self.exhausted:
            return None
        self._depth += 1
        try:
            found = self._made(v, w)
        finally:
            self._depth -= 1
        if found is not None and np.abs(found.moments).max(initial=0.0) <= _NEGLIGIBLE * sqrt(abs(one.q * two.q)):
            found = None
        self._found[v, w] = found
        return found

    def _made(self, v: int, w: int) -> Pair | None:
        p, q = self.reuse.maker(v), self.reuse.maker(w)
        if p is not None and q is not None:
            if p.phase != q.phase:
                return None
            if p.functional == q.functional or {p.functional, q.functional} <= ACTIVATIONS.keys():
                return self._alike(v, p, w, q)
        return self._unlike(v, p, w, q)

    def _alike(self, v: int, p: Op, w: int, q: Op) -> Pair | None:
        """Both values were made by the same kind of op."""
        name = p.functional
        if name in CUTS:
            return self._cut(v, p, w, q)
        if name in _SHAPES:
            return self._shaped(p, q)
        if name in PRODUCTS:
            return self._product(v, p, w, q)
        if name in ACTIVATIONS:
            return self._bent(p, q)
        if name in SLOPES:
            return self._sloped(p, q)
        if name == "aten.cat":
            return self._joined(p, q)
        if name == "aten.mul" and _factors(p) is not None and _factors(q) is not None:
            return self._multiplied(p, q)
        return self._unlike(v, p, w, q)

    def _unlike(self, v: int, p: Op | None, w: int, q: Op | None) -> Pair | None:
        """Take apart the one of the two values that can be, into what it is linear in."""
        for kinds in _TAKEN_APART:
            if p is not None and p.functional in kinds:
                return total(*((factor, self.of(part, w)) for factor, part in self._parts(p)))
            if q is not None and q.functional in kinds:
                found = total(*((factor, self.of(part, v)) for factor, part in self._parts(q)))
                return None if found is None else found.swapped()
        return None

    def _parts(self, op: Op) -> list[tuple[float, int]]:
        """Return factors and values that add up to an op's result, as far as that varies with anything else."""
        name = op.functional
        if name in _SUMS:
            factors = (1.0, (-1.0 if name != "aten.add" else 1.0) * float(op.arguments.get("alpha") or 1.0))
            given = [argument(op, n) for n in _SUMS[name]]
            return [(f, v) for f, v in zip(factors, given, strict=True) if v is not None]
        if name in SLOPES:
            forward, gradient = self._forward(op), _gradient(op)
            return [] if forward is None or gradient is None else [(self._slope(forward), gradient)]
        if name in NORMS:
            return self._normalized(op)
        source, other = argument(op, "self"), argument(op, "other")
        if name in ACTIVATIONS:
            return [] if source is None else [(self._slope(op), source)]
        if source is None or other is None:
            number = -1.0 if name == "aten.neg" else op.arguments["other" if other is None else "self"]
            value = other if source is None else source
            plain = value is not None and isinstance(number, (int, float))
            return [(1.0 / number if name == "aten.div" else float(number), value)] if plain and value is not None else []
        return [(self._mean(other), source), (self._mean(source), other)] if name == "aten.mul" else []

    def _normalized(self, op: Op) -> list[tuple[float, int]]:
        """Return what a norm divides its input, or the gradient of its output, by, and that."""
        moved, source = argument(op, NORMS[op.functional]), argument(op, "input")
        signal = None if source is None else self._known.get(source)
        if signal is None or moved is None:
            return []
        weight = argument(op, "weight")
        scale = 1.0 if weight is None else self._mean(weight)
        variance = signal.q - signal.mean**2
        return [(scale / sqrt(variance), moved)] if variance > 0 else []

    def _mean(self, value: int) -> float:
        signal = self._known.get(value)
        return signal.mean if signal is not None and abs(signal.mean) > 1e-6 * signal.rms else 0.0

    def _forward(self, op: Op) -> Op | None:
        forward = None if op.of is None else self.trace.ops[op.of]
        return forward if forward is not None and forward.functional in ACTIVATIONS else None

    def _slope(self, op: Op) -> float:
        series = self._expanded(op, slope=True)
        return 0.0 if series is None else float(series.coefficients[0])

    def _expanded(self, op: Op, *, slope: bool) -> Series | None:
        """Return an activation, or its derivative, as a series in its Gaussian input."""
        source = argument(op, "self")
        signal = None if source is None else self._known.get(source)
        if signal is None:
            return None
        if (op.index, slope) not in self._series:
            phi = phi_of(op)
            f = phi.derivative if slope else phi.fn
            variance = max(signal.q - signal.mean**2, 0.0)
            self._series[op.index, slope] = hermite(f, phi.kinks, signal.mean, variance)
        return self._series[op.index, slope]

    def _cut(self, v: int, p: Op, w: int, q: Op) -> Pair | None:
        a, b = p.inputs[0], q.inputs[0]
        rank = len(self.trace.values[a].shape)
        dim = (p.arguments.get("dim") or 0) % rank
        one, two = _stretch(self.trace.values[a].shape[dim], v, p, self), _stretch(
            self.trace.values[b].shape[dim], w, q, self
        )
        whole = self.of(a, b)
        if whole is None or dim != (q.arguments.get("dim") or 0) % rank or one is None or two is None:
            return None
        return picked(whole, dim, one, two, drop=p.functional in ("aten.select", "aten.unbind"))

    def _shaped(self, p: Op, q: Op) -> Pair | None:
        a, b = p.inputs[0], q.inputs[0]
        same = _plain(p) == _plain(q) and self.trace.values[a].shape == self.trace.values[b].shape
        found = self.of(a, b) if same else None
        if found is None:
            return None
        rule = self._table.rules[p.functional]

        def shaped(part: Signal) -> Signal:
            made = rule(Call(p, self.trace, {a: part}, self._values))[0]
            return part if made is None else made

        return self._linear((p.functional, str(_plain(p)), self.trace.values[a].shape), shaped, found)

    def _product(self, v: int, p: Op, w: int, q: Op) -> Pair | None:
        names = PRODUCTS[p.functional]
        (a, b), (c, d) = ([argument(op, n) for n in names] for op in (p, q))
        found = None if None in (a, b, c, d) else self._contracted(p.functional, (a or 0, b or 0), (c or 0, d or 0))
        scale = float(p.arguments.get("alpha") or 1.0) * float(q.arguments.get("alpha") or 1.0)
        found = None if found is None else found.times(scale)
        if p.functional != "aten.addmm":
            return found
        one, two = argument(p, "self"), argument(q, "self")
        if one is None or two is None or self.reuse.root(one) != self.reuse.root(two) or one not in self._known:
            return found
        whole, bias = together(self._known[v], self._known[one], self.trace.values[v].shape)
        own = Pair(whole.dims, pairs.of(bias).moments)
        return own if found is None else own.plus(found)

    def _contracted(self, name: str, one: tuple[int, int], two: tuple[int, int]) -> Pair | None:
        """Contract x W with x' W; or, of a weight's gradients, two products of what are no weights."""
        (a, b), (c, d) = one, two
        signals = [self._known.get(value) for value in (a, b, c, d)]
        x, y, z, u = signals
        if x is None or y is None or z is None or u is None or x.shape != z.shape or y.shape != u.shape:
            return None
        if name == "aten.bmm":
            return self._batched((a, c, x, z), (b, d, y, u))
        weights = [self.reuse.weight(value) for value in (a, b, c, d)]
        if any(weights):
            if weights[0] != weights[2] or weights[1] != weights[3]:
                return None
            if weights[1] is None:
                return self._linear(("left", weights[0]), lambda g: contract(x, g, [(1, 0)]), raw(self.of(b, d), y, u))
            return self._linear(("right", weights[1]), lambda g: contract(g, y, [(1, 0)]), raw(self.of(a, c), x, z))
        found = contract(raw(self.of(a, c), x, z).signal(), raw(self.of(b, d), y, u).signal(), [(1, 0)])
        means = contract(x, y, [(1, 0)]).mean * contract(z, u, [(1, 0)]).mean
        return Pair(found.dims, found.moments - means)

    def _batched(self, one: tuple[int, int, Signal, Signal], two: tuple[int, int, Signal, Signal]) -> Pair:
        """Contract two batches of matrices, neither of them weights: attention's."""
        (a, c, x, z), (b, d, y, u) = one, two
        left, right = raw(self.of(a, c), x, z), raw(self.of(b, d), y, u)
        found = contract(left.signal(), right.signal(), [(2, 1)], [(0, 0)])
        means = contract(x, y, [(2, 1)], [(0, 0)]).mean * contract(z, u, [(2, 1)], [(0, 0)]).mean
        return Pair(found.dims, found.moments - means)

    def _linear(self, key: object, work: Callable[[Signal], Signal], pair: Pair) -> Pair:
        """Apply what is linear in moments: once to each pattern alone, for all pairs of these atoms."""
        place = key, pair.dims
        if place not in self._maps:
            rows = np.eye(pair.moments.size).reshape(-1, *pair.moments.shape)
            made = [work(Signal(pair.dims, row)) for row in rows] if len(rows) <= _WIDEST else []
            # Segments that happen to be alike may have been merged: then there is no one map.
            whole = bool(made) and all(m.dims == made[0].dims for m in made)
            self._maps[place] = (made[0].dims, np.stack([m.moments for m in made])) if whole else None
        known = self._maps[place]
        if known is None:
            found = work(pair.signal())
            return Pair(found.dims, found.moments)
        return Pair(known[0], np.tensordot(pair.moments.ravel(), known[1], (0, 0)))

    def _bent(self, p: Op, q: Op) -> Pair | None:
        a, b = argument(p, "self"), argument(q, "self")
        inner = None if a is None or b is None else self.of(a, b)
        return None if inner is None else self._functions(inner, p, q, slope=False)

    def _functions(self, inner: Pair, p: Op, q: Op, *, slope: bool) -> Pair | None:
        """Return Cov(φ(u), ψ(v)), or E[φ′(u)ψ′(v)], from the covariances of u and v."""
        one, two = self._expanded(p, slope=slope), self._expanded(q, slope=slope)
        u, v = (self._known[op.inputs[0]] for op in (p, q))
        scale = sqrt(max(u.q - u.mean**2, 0.0) * max(v.q - v.mean**2, 0.0))
        if one is None or two is None or scale == 0:
            return None
        found = series_moments(one, two, np.clip(inner.moments / scale, -1.0, 1.0))
        means = 0.0 if slope else float(one.coefficients[0] * two.coefficients[0])
        return Pair(inner.dims, found - means)

    def _sloped(self, p: Op, q: Op) -> Pair | None:
        g, h = _gradient(p), _gradient(q)
        forward, other = self._forward(p), self._forward(q)
        gradients = None if g is None or h is None else self.of(g, h)
        if gradients is None or forward is None or other is None:
            return None
        inner = self.of(forward.inputs[0], other.inputs[0])
        slopes = None if inner is None else self._functions(inner, forward, other, slope=True)
        return gradients.times(self._slope(forward) * self._slope(other)) if slopes is None else gradients.product(slopes)

    def _multiplied(self, p: Op, q: Op) -> Pair | None:
        one, two = _factors(p), _factors(q)
        if one is None or two is None:
            return None
        (a, b), (c, d) = one, two
        (ma, mb), (mc, md) = ([self._mean(value) for value in both] for both in (one, two))
        if any(self.trace.values[x].shape != self.trace.values[y].shape for x, y in ((a, b), (a, c), (a, d))):
            return None
        straight = self._twofold((a, c, mb * md), (b, d, ma * mc))
        crossed = self._twofold((a, d, mb * mc), (b, c, ma * md))
        return total((1.0, straight), (1.0, crossed))

    def _twofold(self, one: tuple[int, int, float], two: tuple[int, int, float]) -> Pair | None:
        """Return m₁·Cov₁ + m₂·Cov₂ + Cov₁·Cov₂; what is certain to be 0 is not looked for."""
        first, second = (one, two) if abs(one[2]) >= abs(two[2]) else (two, one)
        x = self.of(first[0], first[1])
        if x is None and not second[2]:
            return None
        y = self.of(second[0], second[1])
        both = None if x is None or y is None else x.product(y)
        return total((first[2], x), (second[2], y), (1.0, both))

    def _joined(self, p: Op, q: Op) -> Pair | None:
        """Join parts: those at the same place vary together; of others, no two entries have the same index."""
        one, two = ([ref.id for ref in op.arguments["tensors"] if isinstance(ref, ValueRef)] for op in (p, q))
        shapes = [[self.trace.values[v].shape for v in values] for values in (one, two)]
        if p.arguments["dim"] != q.arguments["dim"] or shapes[0] != shapes[1]:
            return None
        if any(value not in self._known for value in one):
            return None
        found = [(self.of(a, b) or pairs.nothing(self._known[a])).signal() for a, b in zip(one, two, strict=True)]
        whole = concatenated(found, p.arguments["dim"] % len(shapes[0][0]))
        return Pair(whole.dims, whole.moments)


def _plain(op: Op) -> dict[str, object]:
    return {name: value for name, value in op.arguments.items() if not isinstance(value, ValueRef)}


def _gradient(op: Op) -> int | None:
    return argument(op, "grad_output") if "grad_output" in op.arguments else argument(op, "grad_out")


def _factors(op: Op) -> tuple[int, int] | None:
    a, b = argument(op, "self"), argument(op, "other")
    return None if a is None or b is None else (a, b)


def _stretch(length: int, value: int, op: Op, of: Covariances) -> Stretch | None:
    """Return which indices of a dimension one of an op's results keeps; None if not a stretch of neighbours."""
    if op.functional == "aten.slice":
        start, stop, step = slice(op.arguments["start"], op.arguments["end"], op.arguments["step"] or 1).indices(length)
        return (start, stop) if step == 1 else None
    place = op.outputs.index(value)
    if op.functional in ("aten.select", "aten.unbind"):
        index = op.arguments["index"] % length if op.functional == "aten.select" else place
        return index, index + 1
    rank = len(of.trace.values[value].shape)
    sizes = [of.trace.values[v].shape[(op.arguments.get("dim") or 0) % rank] for v in op.outputs]
    return sum(sizes[:place]), sum(sizes[: place + 1])
