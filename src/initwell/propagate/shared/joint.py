"""Where terms that vary together come together: sums of values, and sequences of steps, that share a weight."""

from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.given.known import Known
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.segments import MOST, Array, patterns
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.shared.covariance import MOST as MOST_PAIRS
from initwell.propagate.shared.covariance import Covariances
from initwell.propagate.shared.pairs import Pair, aligned, fitted, raw
from initwell.propagate.shared.reuse import Reuse, argument
from initwell.propagate.table import RuleTable, UnknownSignalError
from initwell.trace.trace import Op, Trace, ValueRef

Found = Sequence[Signal | None]
_TOO_MANY = f"more than {MOST_PAIRS} pairs of values that share a weight: the rest taken as independent"


class Joint:
    """Amends what the rules found, which take operands as independent, by how these vary together."""

    def __init__(self, trace: Trace, known: Mapping[int, Signal], values: Known, table: RuleTable) -> None:
        """Begin a walk; see ``Covariances`` for the arguments."""
        reuse = values.once("reuse", lambda: Reuse(trace))
        self._trace, self._known = trace, known
        self._pairs = Covariances(reuse, known, values, table) if reuse.any else None
        self.any = reuse.any
        """Whether any two values may vary together."""

    def pair(self, v: int, w: int) -> Pair | None:
        """Return the covariances of two values of one shape; None where they have none, or none that is known."""
        return None if self._pairs is None else self._pairs.of(v, w)

    def amended(self, op: Op, found: Found) -> Found:
        """Return the signals of an op's results, given those that its rule found."""
        if self._pairs is None or not found or found[0] is None or found[0].joint:
            return found
        try:
            return self._together(op, found, found[0])
        except UnknownSignalError:
            return found

    def _together(self, op: Op, found: Found, first: Signal) -> Found:
        if op.functional in ("aten.add", "aten.sub"):
            sign = 1.0 if op.functional == "aten.add" else -1.0
            first = self._added(op, first, sign * float(op.arguments["alpha"] or 1.0))
        elif op.functional == "aten.mul":
            first = self._multiplied(op, first)
        elif op.functional == "aten.mm":
            first = self._scored(op, first)
        elif op.functional == "aten.stack":
            first = self._stacked(op, first)
        else:
            return found
        exhausted = self._pairs is not None and self._pairs.exhausted
        return (first.approximate(_TOO_MANY) if exhausted else first, *found[1:])

    def _added(self, op: Op, found: Signal, factor: float) -> Signal:
        a, b = argument(op, "self"), argument(op, "other")
        pair = None if self._pairs is None or a is None or b is None or a == b else self._pairs.of(a, b)
        if pair is None:
            return found
        one, two = aligned(found, pair.plus(pair.swapped()).signal())
        return replace(one, moments=one.moments + factor * two.moments, image=None, law=None, gates=())

    def _multiplied(self, op: Op, found: Signal) -> Signal:
        """Multiply jointly Gaussian a and b, with C = Cov(a, b) and κ that of the same entry.

        E[ab a'b'] = (E[a]E[b] + κ)² + E[a]² Cov(b, b') + E[b]² Cov(a, a') + Cov(a, a') Cov(b, b')
                     + E[a]E[b] (C + Cᵀ) + C Cᵀ
        """
        a, b = argument(op, "self"), argument(op, "other")
        pair = None if self._pairs is None or a is None or b is None or a == b else self._pairs.of(a, b)
        if pair is None or a is None or b is None or found.segmented:
            return found
        means = self._known[a].mean * self._known[b].mean
        same = float(pair.moments.flat[0])
        crossed = pair.plus(pair.swapped()).times(means).plus(pair.product(pair.swapped()))
        one, two = aligned(found, crossed.signal())
        moments = one.moments + two.moments + 2 * means * same + same**2
        return replace(one, moments=moments, means=one.means + same, image=None, law=None, gates=())

    def _scored(self, op: Op, found: Signal) -> Signal:
        """Contract rows of a with rows of b, which vary together, over features: scores a·bᵀ of two passes.

        With C = E[a b'] of two rows, of one feature (s) or of two (o), averaged over rows i of a and j of b,

            E[y] = K C_s        E[y y'] = Σ E[a a'] E[b b'] + K (K + 1) C_s C_s' + K (K − 1) C_o C_o' − 2 K² E[a]² E[b]²

        for jointly Gaussian a and b; the first sum is what independence says.
        """
        a, b = argument(op, "self"), self._transposed(argument(op, "mat2"))
        pair = None if self._pairs is None or a is None or b is None or a == b else self._pairs.of(a, b)
        if pair is None or a is None or b is None or found.segmented or pair.signal().segmented:
            return found
        one, two = aligned(self._known[a], self._known[b])
        same, other = _over_rows(raw(pair, one, two).signal())
        size, means = one.shape[-1], one.mean * two.mean
        moments = found.moments - 2 * (size * means) ** 2
        for (mean, varies), weight in ((same, size * (size + 1)), (other, size * (size - 1))):
            moments += weight * mean**2
            moments.flat[0] += weight * varies
        return replace(found, moments=moments, means=np.full_like(found.means, size * same[0]))

    def _transposed(self, value: int | None) -> int | None:
        op = None if value is None else self._trace.producer(value)
        return argument(op, "self") if op is not None and op.functional == "aten.t" else None

    def _stacked(self, op: Op, found: Signal) -> Signal:
        """Give a sequence one segment a step, so that any two steps have their own moments."""
        steps = [ref.id for ref in op.arguments["tensors"] if isinstance(ref, ValueRef)]
        if self._pairs is None or not 1 < len(steps) <= MOST or any(s not in self._known for s in steps):
            return found
        count = len(steps)
        made = {(i, j): self._pairs.of(steps[i], steps[j]) for i in range(count) for j in range(i)}
        if not any(made.values()):
            return found
        parts = [self._known[s] for s in steps]
        frame = Pair(parts[0].dims, np.zeros_like(parts[0].moments))
        for other in (*(Pair(p.dims, p.moments) for p in parts), *(m for m in made.values() if m is not None)):
            frame, _ = fitted(frame, other)
        parts = [aligned(part, frame.signal())[0] for part in parts]
        whole = patterns((1,) * count)
        columns = [part.moments for part in parts]
        for i, j in zip(whole.first[count:].tolist(), whole.second[count:].tolist(), strict=True):
            pair = made.get((i, j)) or made.get((j, i))
            turned = pair.swapped() if pair is not None and (i, j) not in made else pair
            both = None if i == j else fitted(frame, raw(turned, parts[i], parts[j]))[1]
            columns.append(parts[i].moments if both is None else both.moments)
        return _along(op.arguments["dim"] % len(found.dims), parts, columns, found)


def _over_rows(crossed: Signal) -> tuple[tuple[float, float], tuple[float, float]]:
    """Average E[a b'] of one feature, and of two, over all pairs of rows, and say how it varies over these."""
    rows, features = crossed.axes([0]), crossed.axes([1])
    moments = crossed.moments.transpose((*features, *rows)).reshape(2 ** len(features), -1)
    between, among = (_counts(crossed, axes) for axes in (features, rows))
    apart = between[1:] @ moments[1:] / max(float(between[1:].sum()), 1.0)
    return _spread_of(moments[0], among), _spread_of(apart, among)


def _counts(x: Signal, axes: Sequence[int]) -> Array:
    """Return how many pairs of indices of these axes there are of each pattern."""
    found = np.ones(1)
    for i in axes:
        n = x.atoms[i].size
        found = np.multiply.outer(found, np.array([n, n * (n - 1.0)])).ravel()
    return found


def _spread_of(c: Array, counts: Array) -> tuple[float, float]:
    mean = float(counts @ c / counts.sum())
    return mean, float(counts @ (c - mean) ** 2 / counts.sum())


def _along(dim: int, parts: Sequence[Signal], columns: Sequence[Array], found: Signal) -> Signal:
    """Put steps and their pairs along a new dimension."""
    axis = sum(map(len, parts[0].dims[:dim]))
    sample = any(atom.sample for atom in found.dims[dim])
    dims = (*parts[0].dims[:dim], (Atom(len(parts), sample, (1,) * len(parts)),), *parts[0].dims[dim:])
    means = np.stack([part.means for part in parts], axis)
    return found.changed(np.stack(columns, axis), means, dims=dims, gaussian=found.gaussian)
