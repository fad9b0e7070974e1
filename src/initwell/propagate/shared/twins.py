"""Weights of attention that are made twice of the same scores, as where each half of the values is summed by itself.

Differential attention sums halves v_1, v_2 of its values by one softmax, p, and a norm follows each row (o_1, o_2):
R(o_1) + R(o_2) = 0, with R(v) = Σ v·∂L/∂v as in ``radial``. What gets a part of R of a sum o = Σ p v,

    of values       R(v_t) = Σ_o β_t R(o) + s_t                     β_t of p and of what values have in common
    of scores       R(s) = Σ_t a_t d_t,  a = p (s − Σ p s)          d_t = v_t·∂L/∂o = (C p)_t/(pᵀ C p) R(o) + d⊥_t
    of keys         R(k_t) = Σ_o s_t p_t (d_t − Σ p d)

(see ``attended``) has it by factors that are made of p alone. Those of both halves are the same, so that what goes with
R(o_1) and R(o_2) cancels in the values' row, and in the query's and key's that both sums read.
"""

import math
from collections.abc import MutableMapping

from initwell.propagate.shared.routed import Head, Parts, square
from initwell.trace.ops import ACTIVATIONS, BENDING
from initwell.trace.trace import Op, Trace, ValueRef

_FURTHEST = 40
_NAMES = """
    view _unsafe_view t transpose permute expand clone neg repeat squeeze unsqueeze slice select split split_with_sizes
    unbind alias _to_copy reshape contiguous flatten unflatten bmm mul div add sub cat masked_fill where tanh _softmax
    _safe_softmax detach full ones zeros scalar_tensor arange triu tril mm addmm linear
"""
_RANDOM = frozenset({"aten.rrelu", "aten.rrelu_with_noise", "aten.rrelu_with_noise_functional"})
_SURE = frozenset({*(f"aten.{name}" for name in _NAMES.split()), *ACTIVATIONS, *BENDING}) - _RANDOM


class Twins:
    """Finds the first of several values that the same ops make of the same values."""

    def __init__(self, trace: Trace) -> None:
        """Begin with nothing found.

        Args:
            trace: that is looked at.
        """
        self._trace = trace
        self._made: dict[object, int] = {}
        self._first: dict[int, int] = {}

    def first(self, value: int, furthest: int = _FURTHEST) -> int:
        """Return the first value that was made as a value is; itself where there is none before."""
        if value not in self._first:
            op = self._trace.producer(value)
            if op is None or furthest == 0 or op.functional not in _SURE or value not in op.outputs:
                return value
            self._first[value] = self._made.setdefault(self._way(op, value, furthest), value)
        return self._first[value]

    def _way(self, op: Op, value: int, furthest: int) -> object:
        inputs = tuple(self.first(i, furthest - 1) for i in op.inputs)
        names = ((name, i) for name, ref in op.arguments.items() if (i := _place(op, ref)) is not None)
        others = repr([given for given in op.arguments.items() if not isinstance(given[1], ValueRef)])
        return op.name, op.outputs.index(value), inputs, tuple(names), others


def _place(op: Op, ref: object) -> int | None:
    return op.inputs.index(ref.id) if isinstance(ref, ValueRef) else None


def carried(parts: Parts, way: object, whole: float, variance: MutableMapping[object, float]) -> dict[object, float]:
    """Return what goes with R of a sum, source by source, but for what its heads share.

    Args:
        parts: of the sum.
        way: by which factors.
        whole: Σ R² of all that goes with it.
        variance: of each source; what is new is put into it.
    """
    along = square(parts, variance)
    if along <= 0 or whole <= 0:
        return {}
    kept = {source: c for source, c in parts.items() if not isinstance(source, Head)}
    variance.update({(way, source): variance[source] for source in kept})
    return {(way, source): c * math.sqrt(whole / along) for source, c in kept.items()}
