"""Radial parts of sums along one stream whose terms vary together, as where one block is called again and again.

Of x_j = a_j + b_j and a gradient g_j at it, a_j·g_j = β R(x_j) + s_j with s_j = e_j·g_j and e_j = (1 − β) a_j − β b_j,
which has nothing in common with x_j: see ``radial``. Later sums of the stream add to x_j what fresh weights make, and
e_j has nothing in common with that either, so that each s_j is a source of its own. Not so if b_j and a later b_k were
made by one block: of g_j = g_k + what came back in between, g_k is the same, and

    Cov(s_j, s_k) = n E[g_k²] E[e_j e_k]

The s_j of a stream, the last first, are made independent one by one: s_j = Σ_k γ_jk w_k + w_j, w_k what s_k has that no
later one has, and Var w_j what is left. Assumption: what came back in between has nothing in common with g_k.
That of a block that is called three times or more has: R of its first calls stays too large.

**Rows of unlike size.** Of a row of x = a + b of terms of the sizes A and B, β is A/(A + B) and s² is n g²·AB/(A + B),
no more than of the smaller one. Behind a norm g² goes as γ = 1/(1 − f + f·t), t the row's size over the average, and
rows with a large b get least. With R² = ρ·n g² (A + B) of the sum, s² and what β has of its own in each row are

    n E[g²]·(E[γ AB/(A + B)] + ρ (E[γ A²/(A + B)] − β² E[γ (A + B)]))/E[γ]

f such that E[γ] is what the gradient's swing says. A gate of each row that makes B gets R over itself, and AB/(A + B)
over B is not small of rows that it makes small. Assumption: A and B are independent, and B varies by its gate, if any.
"""

from collections.abc import Callable, Mapping, MutableMapping

import numpy as np

from initwell.propagate.laws import lengths
from initwell.propagate.laws.averages import law_of_sizes, products
from initwell.propagate.laws.swing import floor_of
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.propagate.shared.handwritten import operand
from initwell.propagate.shared.pairs import Pair
from initwell.trace.trace import Op, Trace

Others = Mapping[int, Signal] | None
Pairs = Callable[[int, int], Pair | None] | None

Law = tuple[Array, Array]

# Of less than this share of its square a source has nothing in common with another.
_LEAST = 1e-3
# So many later sums of a stream are looked at.
_MOST = 64
# Rows whose sizes vary by less than this are as good as of one size.
_EVEN = 0.02
_HALVINGS = 20


class Innovations:
    """The sums of one walk, from the last to the first, and what each has of its own."""

    def __init__(
        self,
        trace: Trace,
        signals: Mapping[int, Signal],
        pairs: Pairs,
        variance: MutableMapping[object, float],
    ) -> None:
        """Know no sum yet.

        Args:
            trace: that is walked.
            signals: by value id.
            pairs: how values vary together; None where no weight is used twice.
            variance: of each source, which those of sums are put into.
        """
        self._trace, self._signals, self._pairs, self._variance = trace, signals, pairs, variance
        self._terms: dict[int, dict[int, float]] = {}
        self._energy: dict[int, float] = {}
        self._shares: dict[int, dict[int, float]] = {}
        self.gated: dict[object, float] = {}
        """Source → by how much larger it is of R over the size of the term that varies more, than of R."""

    def of(self, op: Op, beta: float, energy: float, variance: float, square: float) -> dict[object, float]:
        """Return the s of a sum as source → factor, and note the variance of what is its own.

        Args:
            op: the sum.
            beta: share of the first term in R of the sum.
            energy: n E[g²] over all rows.
            variance: of s.
            square: Σ R² of the sum.
        """
        if op.index not in self._shares:
            self._add(op, beta, energy, variance * self._of_rows(op, energy, square))
        return {(op.index,): 1.0, **{(later,): c for later, c in self._shares[op.index].items()}}

    def _add(self, op: Op, beta: float, energy: float, variance: float) -> None:
        own, shares = variance, dict[int, float]()
        a, b = operand(op, "self"), operand(op, "other")
        if self._pairs is not None and a is not None and b is not None and op.functional in ("aten.add", "aten.sub"):
            sign = 1.0 if op.functional == "aten.add" else -1.0
            self._terms[op.index] = {a: 1 - beta, b: -beta * sign}
            self._energy[op.index] = energy
            for later in self._later(op):
                crossed = self._energy[later] * self._crossed(op.index, later)
                known = self._shares[later]
                crossed -= sum(known.get(k, 0.0) * c * self._variance[(k,)] for k, c in shares.items())
                least = self._variance[(later,)]
                if least > 0 and crossed * crossed > _LEAST * least * variance:
                    shares[later] = crossed / least
                    own -= crossed * crossed / least
        self._shares[op.index] = shares
        self._variance[(op.index,)] = max(own, 0.0)

    def _of_rows(self, op: Op, energy: float, square: float) -> float:
        """Return the variance of s, rows being of the sizes that they are, over that of rows of average size."""
        ways = [operand(op, "self"), operand(op, "other"), self._trace.gradients.get(op.outputs[0])]
        a, b, g = (self._signals.get(-1 if i is None else i) for i in ways)
        if a is None or b is None or g is None or energy <= 0 or a.q + b.q <= 0:
            return 1.0
        ratio = min(square / energy / (a.q + b.q), 1.0)
        found, self.gated[(op.index,)] = of_unlike_rows(a, b, g, ratio)
        return found

    def _later(self, op: Op) -> list[int]:
        """Return the later sums of the stream that a sum belongs to, the last first."""
        found, here = list[int](), op.outputs[0]
        while len(found) < _MOST:
            adds = [o for o in self._trace.consumers(here) if o.index in self._terms]
            if not adds:
                break
            found.append(adds[0].index)
            here = adds[0].outputs[0]
        return found[::-1]

    def _crossed(self, one: int, two: int) -> float:
        """Return E[e e'] of one entry of two sums."""
        return sum(
            c * d * self._product(v, w) for v, c in self._terms[one].items() for w, d in self._terms[two].items()
        )

    def _product(self, v: int, w: int) -> float:
        a, b = self._signals.get(v), self._signals.get(w)
        if a is None or b is None or self._pairs is None:
            return 0.0
        pair = a if v == w else self._pairs(v, w)
        if pair is None:
            return a.mean * b.mean
        return pair.q if isinstance(pair, Signal) else pair.signal().q + a.mean * b.mean


def of_unlike_rows(a: Signal, b: Signal, g: Signal, ratio: float) -> tuple[float, float]:
    """Return by how much what two terms' rows have of their own varies more than that of rows of average size.

    Args:
        a: one term.
        b: the other.
        g: gradient of their sum.
        ratio: ρ.

    Returns:
        That, and by how much larger it is, over that, divided by the size of the term that varies more.

    >>> from initwell.propagate.moments.signal import independent, replace
    >>> a, g = independent((100, 8), 1.0), independent((100, 8), 1.0)
    >>> b = replace(a, swing=1.0)
    >>> of_unlike_rows(a, a, g, 0.0), round(of_unlike_rows(a, b, g, 1.0)[0], 3)
    ((1.0, 1.0), 1.0)
    >>> [round(f, 2) for f in of_unlike_rows(a, b, replace(g, swing=-0.2), 0.0)]
    [0.65, 2.09]
    """
    varies = [max(lengths.of_rows(x), 0.0) for x in (a, b)]
    if max(varies) <= _EVEN or a.q <= 0 or b.q <= 0:
        return 1.0, 1.0
    floors = [floor_of(x) if v == x.swing else 0.0 for x, v in zip((a, b), varies, strict=True)]
    one, two = (law_of_sizes(x.q, v * x.q**2, f) for x, v, f in zip((a, b), varies, floors, strict=True))
    first, second, weights = _pairs(one, two)
    whole, size, beta = first + second, a.q + b.q, a.q / (a.q + b.q)
    weights = weights * _inverse(whole / size, weights, (1 - min(g.swing, 0.0)) * (1 - min(g.lengths, 0.0)))
    weights = weights / weights.sum()
    own = float(weights @ (first * second / whole))
    gated = float(weights @ ((second if varies[0] > varies[1] else first) / whole)) * (a.q, b.q)[varies[0] <= varies[1]]
    shares = ratio * float(weights @ (first**2 / whole - beta**2 * whole))
    return (own + shares) / (beta * b.q), gated / own


def _pairs(one: Law, two: Law) -> tuple[Array, Array, Array]:
    """Return two independent sizes, and how probable they are together."""
    first, weights = products(one, (np.ones_like(two[0]), two[1]))
    return first, products((np.ones_like(one[0]), one[1]), two)[0], weights


def _inverse(sizes: Array, weights: Array, gain: float) -> Array:
    """Return 1/(1 − f + f·t) of rows' sizes t, the average of which is as much as is asked for."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS if gain > 1 else 0):
        part = (low + high) / 2
        low, high = (part, high) if float(weights @ (1 / (1 - part + part * sizes))) < gain else (low, part)
    return np.asarray(1 / (1 - low + low * sizes))
