"""How two values of a walk vary together, where a weight is used more than once.

Recurrent nets use one weight at every step, and so do layers that are called again. Then the terms of a sum, or the
steps of a sequence, are not independent: g_t W and g_s W vary together as g_t and g_s do. The covariance of any two
values follows from those of what they were made of:

    a + b with w            Cov(a, w) + Cov(b, w)
    x W + b with x' W + b   K · E[x x'] σ², as in the contraction of one, and that of b with itself
    a·b with c·d            E[a]E[c] Cov(b, d) + E[b]E[d] Cov(a, c) + Cov(a, c) Cov(b, d), and c, d the other way
    φ(u) with ψ(v)          Σ a_k b_k c^k with Hermite coefficients of φ and ψ, c the correlation of u and v
    φ(u) with w             E[φ′(u)] Cov(u, w)                                                       (Stein's lemma)
    g·φ′(u) with h·ψ′(v)    Cov(g, h) · E[φ′(u) ψ′(v)]
    rows of one table       by how often two places show the same row: ``tables``

and a shape is bookkeeping. Assumptions: entries are jointly Gaussian as far as needed, gradients are independent of the
activations they meet, a factor that is not listed varies with nothing. Gates of one unit at different times are not
quite independent of what they let through where the input hardly changes with time; the fourth moments that this
takes are not followed.
"""

from collections.abc import Callable, Mapping
from math import sqrt

import numpy as np

from initwell.propagate.given.known import Known
from initwell.propagate.laws.gaussian import series_moments
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.axes import Dims
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.contraction import contract
from initwell.propagate.rules.parts import concatenated
from initwell.propagate.shared import pairs, tables
from initwell.propagate.shared.linearized import SUMS, Linearized, gradient_of
from initwell.propagate.shared.pairs import Pair, picked, raw, total
from initwell.propagate.shared.reuse import BENT, CUTS, NORMS, PRODUCTS, SLOPES, Reuse, argument, indices_of
from initwell.propagate.table import Call, RuleTable
from initwell.trace.trace import Op, ValueRef

MOST = 100_000
"""Pairs of values that a walk looks at; any further ones are taken as independent."""
_DEEPEST = 120
_WIDEST = 200
_NEGLIGIBLE = 1e-4
_SHAPE_NAMES = "view _unsafe_view t transpose permute unsqueeze squeeze expand sum mean"
_SHAPES = frozenset(f"aten.{name}" for name in _SHAPE_NAMES.split())
# In this order: what is a sum is best taken apart first.
_TAKEN_APART = (
    SUMS.keys() | {"aten.neg"},
    frozenset({"aten.mul", "aten.div"}),
    SLOPES.keys() | NORMS.keys(),
    BENT,
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
        self._terms = Linearized(self.trace, known)
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
        if (v, w) in self._values.crossed and one is not None:
            return Pair(one.dims, self._values.crossed[v, w])
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
            if p.functional == q.functional or {p.functional, q.functional} <= BENT:
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
        if name in BENT:
            return self._bent(p, q)
        if name in SLOPES:
            return self._sloped(p, q)
        if name == "aten.cat":
            return self._joined(p, q)
        if name == tables.SHOWN:
            same = self.reuse.root(p.inputs[0]) == self.reuse.root(q.inputs[0])
            return tables.both_shown(p, q, self._known, self._values) if same else None
        if name == tables.PUT_BACK:
            return self._put_back(p, q)
        if name == "aten.mul" and self._are_of_one_shape(p, q):
            return self._multiplied(p, q)
        return self._unlike(v, p, w, q)

    def _unlike(self, v: int, p: Op | None, w: int, q: Op | None) -> Pair | None:
        """Take apart the one of the two values that can be, into what it is linear in."""
        for kinds in _TAKEN_APART:
            if p is not None and p.functional in kinds:
                return total(*((factor, self.of(part, w)) for factor, part in self._terms.parts(p)))
            if q is not None and q.functional in kinds:
                found = total(*((factor, self.of(part, v)) for factor, part in self._terms.parts(q)))
                return None if found is None else found.swapped()
        return None

    def _put_back(self, p: Op, q: Op) -> Pair | None:
        g, h = gradient_of(p), gradient_of(q)
        gradients = None if g is None or h is None else self.of(g, h)
        return None if gradients is None else tables.both_put_back(gradients, p, q, self._values)

    def _cut(self, v: int, p: Op, w: int, q: Op) -> Pair | None:
        a, b = p.inputs[0], q.inputs[0]
        rank = len(self.trace.values[a].shape)
        dim = (p.arguments.get("dim") or 0) % rank
        one, two = indices_of(self.trace, v, dim), indices_of(self.trace, w, dim)
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
            count = pair.moments.size
            rows = np.eye(count).reshape(-1, *pair.moments.shape) if count <= _WIDEST else ()
            made = [work(Signal(pair.dims, row)) for row in rows]
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
        one, two = self._terms.expanded(p, slope=slope), self._terms.expanded(q, slope=slope)
        u, v = (self._known[op.inputs[0]] for op in (p, q))
        scale = sqrt(max(u.q - u.mean**2, 0.0) * max(v.q - v.mean**2, 0.0))
        if one is None or two is None or scale == 0:
            return None
        found = series_moments(one, two, np.clip(inner.moments / scale, -1.0, 1.0))
        means = 0.0 if slope else float(one.coefficients[0] * two.coefficients[0])
        return Pair(inner.dims, found - means)

    def _sloped(self, p: Op, q: Op) -> Pair | None:
        g, h = gradient_of(p), gradient_of(q)
        forward, other = self._terms.forward(p), self._terms.forward(q)
        gradients = None if g is None or h is None else self.of(g, h)
        if gradients is None or forward is None or other is None:
            return None
        inner = self.of(forward.inputs[0], other.inputs[0])
        slopes = None if inner is None else self._functions(inner, forward, other, slope=True)
        return (
            gradients.times(self._terms.slope(forward) * self._terms.slope(other))
            if slopes is None
            else gradients.product(slopes)
        )

    def _multiplied(self, p: Op, q: Op) -> Pair | None:
        one, two = _factors(p), _factors(q)
        if one is None or two is None:
            return None
        (a, b), (c, d) = one, two
        (ma, mb), (mc, md) = ([self._terms.mean(value) for value in both] for both in (one, two))
        straight = self._twofold((a, c, mb * md), (b, d, ma * mc))
        crossed = self._twofold((a, d, mb * mc), (b, c, ma * md))
        return total((1.0, straight), (1.0, crossed))

    def _are_of_one_shape(self, p: Op, q: Op) -> bool:
        """Whether both are products of two values of one shape, and not of rows and a number for each."""
        values = [argument(op, name) for op in (p, q) for name in ("self", "other")]
        return None not in values and len({self.trace.values[v].shape for v in values if v is not None}) == 1

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


def _factors(op: Op) -> tuple[int, int] | None:
    a, b = argument(op, "self"), argument(op, "other")
    return None if a is None or b is None else (a, b)
