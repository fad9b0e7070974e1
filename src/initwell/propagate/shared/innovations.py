"""Radial parts of sums along one stream whose terms vary together, as where one block is called again and again.

Of x_j = a_j + b_j and a gradient g_j at it, a_j·g_j = β R(x_j) + s_j with s_j = e_j·g_j and e_j = (1 − β) a_j − β b_j,
which has nothing in common with x_j: see ``radial``. Later sums of the stream add to x_j what fresh weights make, and
e_j has nothing in common with that either, so that each s_j is a source of its own. Not so if b_j and a later b_k were
made by one block: of g_j = g_k + what came back in between, g_k is the same, and

    Cov(s_j, s_k) = n E[g_k²] E[e_j e_k]

The s_j of a stream, the last first, are made independent one by one: s_j = Σ_k γ_jk w_k + w_j, w_k what s_k has that no
later one has, and Var w_j what is left. Assumption: what came back in between has nothing in common with g_k.
That of a block that is called three times or more has: R of its first calls stays too large.
"""

from collections.abc import Callable, Mapping, MutableMapping

from initwell.propagate.moments.signal import Signal
from initwell.propagate.shared.handwritten import operand
from initwell.propagate.shared.pairs import Pair
from initwell.trace.trace import Op, Trace

Others = Mapping[int, Signal] | None
Pairs = Callable[[int, int], Pair | None] | None

# Of less than this share of its square a source has nothing in common with another.
_LEAST = 1e-3
# So many later sums of a stream are looked at.
_MOST = 64


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

    def of(self, op: Op, beta: float, energy: float, variance: float) -> dict[object, float]:
        """Return the s of a sum as source → factor, and note the variance of what is its own.

        Args:
            op: the sum.
            beta: share of the first term in R of the sum.
            energy: n E[g²] over all rows.
            variance: of s.
        """
        if op.index not in self._shares:
            self._add(op, beta, energy, variance)
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
