"""What the result of an op is linear in: its terms, or, of a nonlinearity, its Gaussian input with Stein's lemma.

For jointly Gaussian u and w, Cov(φ(u), w) = E[φ′(u)] Cov(u, w). Source: Stein 1981, Lemma 2.
"""

from collections.abc import Mapping
from math import sqrt

from initwell.propagate.laws.gaussian import Series, hermite
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.pointwise import phi_of
from initwell.propagate.shared.reuse import BENT, NORMS, SLOPES, argument
from initwell.trace.trace import Op, Trace

SUMS: Mapping[str, tuple[str, str]] = {
    "aten.add": ("self", "other"),
    "aten.sub": ("self", "other"),
    "aten.rsub": ("other", "self"),
}
"""Ops that add → first and second term."""

# As much of a divisor's second moment may vary.
_HARDLY = 0.1


class Linearized:
    """Reads ops as sums of factors times values."""

    def __init__(self, trace: Trace, known: Mapping[int, Signal]) -> None:
        """Read ops of a trace, ``known`` giving value id → signal, of all values so far."""
        self._trace, self._known = trace, known
        self._series: dict[tuple[int, bool], Series] = {}

    def parts(self, op: Op) -> list[tuple[float, int]]:
        """Return factors and values that add up to an op's result, as far as that varies with anything else."""
        name = op.functional
        if name in SUMS:
            factors = (1.0, (-1.0 if name != "aten.add" else 1.0) * float(op.arguments.get("alpha") or 1.0))
            given = [argument(op, n) for n in SUMS[name]]
            return [(f, v) for f, v in zip(factors, given, strict=True) if v is not None]
        if name in SLOPES:
            forward, gradient = self.forward(op), gradient_of(op)
            return [] if forward is None or gradient is None else [(self.slope(forward), gradient)]
        if name in NORMS:
            return self._normalized(op)
        source, other = argument(op, "self"), argument(op, "other")
        if source is None:
            return []
        if name in BENT:
            return [(self.slope(op), source)]
        if name == "aten.div" and other is not None:
            return self._divided(source, other)
        if other is None:
            number = -1.0 if name == "aten.neg" else op.arguments["other"]
            plain = isinstance(number, (int, float)) and number != 0
            return [(1.0 / number if name == "aten.div" else float(number), source)] if plain else []
        return [(self.mean(other), source), (self.mean(source), other)] if name == "aten.mul" else []

    def _divided(self, source: int, divisor: int) -> list[tuple[float, int]]:
        """Return 1/d and x of x/d, where d hardly varies: the length of a long row."""
        signal = self._known.get(divisor)
        if signal is None or signal.mean <= 0 or signal.q > (1 + _HARDLY) * signal.mean**2:
            return []
        return [(1 / signal.mean, source)]

    def _normalized(self, op: Op) -> list[tuple[float, int]]:
        """Return what a norm divides its input, or the gradient of its output, by, and that."""
        moved, source = argument(op, NORMS[op.functional]), argument(op, "input")
        signal = None if source is None else self._known.get(source)
        if signal is None or moved is None:
            return []
        weight = argument(op, "weight")
        scale = 1.0 if weight is None else self.mean(weight)
        variance = signal.q - signal.mean**2
        return [(scale / sqrt(variance), moved)] if variance > 0 else []

    def mean(self, value: int) -> float:
        """Return E[v], 0 where it is next to that, so that nothing is looked for that comes to nothing."""
        signal = self._known.get(value)
        return signal.mean if signal is not None and abs(signal.mean) > 1e-6 * signal.rms else 0.0

    def forward(self, op: Op) -> Op | None:
        """Return the activation that a backward op is the derivative of; None for other ops."""
        forward = None if op.of is None else self._trace.ops[op.of]
        return forward if forward is not None and forward.functional in BENT else None

    def slope(self, op: Op) -> float:
        """Return E[φ′(u)] of an activation."""
        series = self.expanded(op, slope=True)
        return 0.0 if series is None else float(series.coefficients[0])

    def expanded(self, op: Op, *, slope: bool) -> Series | None:
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


def gradient_of(op: Op) -> int | None:
    """Return the gradient that a backward op starts from."""
    return argument(op, "grad_output") if "grad_output" in op.arguments else argument(op, "grad_out")
