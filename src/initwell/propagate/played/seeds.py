"""Ops that no rule of second moments serves, around which a stretch is played: triangular systems, rates, squares.

**States with rates.** h_t = a_t·h_(t−1) + b_t, as a scan or a linear recurrence writes it step by step, holds products
a_t a_(t−1) … of decays. Where all of them are made of one parameter, e^(a·y_t) of rates a or σ(a) alone, they go
together: channels of rates near 0 remember, others forget, and E[Π a_t²] is nothing like Π E[a_t²]. So the recurrence
is played. A parameter of one number everywhere makes no such difference, nor do draws of a small spread; and where all
rows repeat the same numbers, as a state's rates −1 … −16, each level of the state is followed by itself (``decay``): if
steps vary no more than a softplus lets them, as their gradient is taken as independent of what they are.

**Powers of products.** (h·φ(u))² of independent h and u sends h the gradient 2 h φ(u)²·g, of which E[φ⁴] is a factor
and not E[φ²]²; so does h·φ(u)·u. A value remembers one such factor, not two. An average of squares over many features,
as a norm takes it, evens that out.
"""

import math
from collections.abc import Callable, Container, Iterator, Mapping

import torch
from torch import Tensor

from initwell.propagate.moments.signal import Signal
from initwell.trace.ops import ACTIVATIONS, BENDING, COPIES, VIEWS
from initwell.trace.trace import Op, Trace, ValueRef

_CUTS = """
    slice select narrow split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk unbind unfold
    as_strided diagonal
"""
WHOLE = frozenset({*VIEWS, *COPIES}) - {f"aten.{name}" for name in _CUTS.split()}
"""Ops that show or copy all entries of their input."""
_SOLVED = frozenset({"aten.linalg_solve_triangular"})
_BENT = frozenset({*VIEWS, *COPIES, *ACTIVATIONS, *BENDING, "aten.mul", "aten.div", "aten.addcmul"})
_SOFTENED = frozenset({"aten.softplus", "aten.sigmoid"})
_SUMS = frozenset({"aten.add", "aten.sub", "aten.rsub"})
_DEEPEST = 16
# Standard deviations of drawn rates, or of their logarithms.
_LEAST = 0.25
# Averages over more entries are even enough.
_FEW = 16


def seeds(
    trace: Trace, known: Mapping[int, Signal], kept: Mapping[int, Tensor], values: Container[int]
) -> Iterator[Op]:
    """Go over the forward ops around which a stretch is to be played.

    Args:
        trace: from ``record``.
        known: value id → signal, of parameters that are drawn.
        kept: parameters that are not drawn anew, with their numbers.
        values: ids of what has real numbers.
    """

    def differ(parameter: int, *, rows: bool) -> bool:
        return _differ(kept[parameter], rows=rows) if parameter in kept else _spread(known, parameter) > _LEAST

    rates, factors = _Rates(trace, differ), _Factors(trace, values)
    for op in trace.forward_ops:
        if op.functional in _SOLVED or rates.step_again(op) or factors.meet_again(op):
            yield op


def _differ(numbers: Tensor, *, rows: bool) -> bool:
    """Whether numbers differ; if of rows is asked, not only within rows that are all the same."""
    if numbers.layout is not torch.strided:
        return False
    first = numbers[:1] if rows and numbers.ndim > 1 and len(numbers) > 1 else numbers.reshape(-1)[:1]
    return bool((numbers != first).any())


def _spread(known: Mapping[int, Signal], parameter: int) -> float:
    x = known.get(parameter)
    return 0.0 if x is None else math.sqrt(max(x.q - x.mean**2, 0.0))


class _Rates:
    """Which steps multiply a state by decays that one parameter has made, as the step before did."""

    def __init__(self, trace: Trace, differ: Callable[..., bool]) -> None:
        self.trace, self.differ = trace, differ
        self._made: dict[int, frozenset[int]] = {}
        self._soft = set[int]()

    def step_again(self, op: Op) -> bool:
        """Whether an op multiplies by such decays what a step before has multiplied by them, too."""
        if op.functional != "aten.mul" or len(op.inputs) != 2:
            return False
        for decay, state in (op.inputs, op.inputs[::-1]):
            before = self._step_of(state)
            if before is None or not (rates := self._rates(decay)):
                continue
            shared = rates & frozenset[int]().union(*map(self._rates, before.inputs))
            if any(decay not in self._soft or self.differ(p, rows=True) for p in shared):
                return True
        return False

    def _step_of(self, state: int) -> Op | None:
        """Return the product that a state is a sum with."""
        added = self.trace.producer(self.trace.shown(state))
        if added is None or added.functional not in _SUMS:
            return None
        for term in added.inputs:
            made = self.trace.producer(self.trace.shown(term))
            if made is not None and made.functional == "aten.mul" and self._as_many(made, state):
                return made
        return None

    def _as_many(self, made: Op, state: int) -> bool:
        one, two = (math.prod(self.trace.values[value].shape) for value in (made.outputs[0], state))
        return one == two

    def _rates(self, value: int, deep: int = _DEEPEST) -> frozenset[int]:
        """Return the parameters that a value is made of entry by entry; but for what is added to it, as a bias."""
        if value not in self._made:
            self._made[value] = self._found(value, deep)
        return self._made[value]

    def _found(self, value: int, deep: int) -> frozenset[int]:
        op = self.trace.producer(value)
        if op is None and self.trace.values[value].kind == "parameter":
            return frozenset({value}) if self.differ(value, rows=False) else frozenset()
        if op is None or deep == 0 or (op.functional not in _BENT and op.functional not in _SUMS):
            return frozenset()
        inner = [i for i in op.inputs if op.functional not in _SUMS or self._is_made(i)]
        each = [self._rates(i, deep - 1) for i in inner]
        if op.functional in _SOFTENED or any(i in self._soft for i in inner):
            self._soft.add(value)
        return frozenset[int]().union(*each)

    def _is_made(self, value: int) -> bool:
        return self.trace.producer(self.trace.shown(value)) is not None


class _Factors:
    """Which values others are products of, entry by entry."""

    def __init__(self, trace: Trace, values: Container[int]) -> None:
        self.trace, self.values = trace, values
        self._made: dict[int, frozenset[int]] = {}

    def meet_again(self, op: Op) -> bool:
        """Whether an op multiplies two values, at least one of several factors, that have a factor in common."""
        if op.functional in _POWERS and op.arguments.get("exponent", 2) not in (0, 1):
            refs = [op.arguments["self"]] * 2
        elif op.functional == "aten.mul":
            refs = [op.arguments["self"], op.arguments["other"]]
        else:
            return False
        one, two = (self._of(ref.id) if isinstance(ref, ValueRef) else frozenset[int]() for ref in refs)
        return bool(one & two) and len(one | two) > 1 and not self._averaged(op)

    def _averaged(self, op: Op) -> bool:
        """Whether all that is read of squares is an average over many."""
        later = [o for o in self.trace.consumers(op.outputs[0]) if o.phase == "forward"]
        entries = math.prod(self.trace.values[op.outputs[0]].shape)
        means = [entries / math.prod(self.trace.values[o.outputs[0]].shape) for o in later if o.functional in _AVERAGES]
        return bool(later) and len(means) == len(later) and min(means) > _FEW

    def _of(self, value: int) -> frozenset[int]:
        if value not in self._made:
            self._made[value] = self._found(value)
        return self._made[value]

    def _found(self, value: int) -> frozenset[int]:
        op = self.trace.producer(value)
        if value in self.values or (op is None and self.trace.values[value].kind == "parameter"):
            return frozenset()
        if op is not None and (op.functional in WHOLE or op.functional in _FACTORED):
            return frozenset[int]().union(*map(self._of, op.inputs))
        return frozenset({value})


_PAIRED = "maximum minimum where gt lt ge le"
_FACTORED = frozenset({*ACTIVATIONS, *BENDING, "aten.mul", "aten.div"}) - {
    "aten.glu",
    *(f"aten.{name}" for name in _PAIRED.split()),
}
_POWERS = frozenset({"aten.pow", "aten.square"})
_AVERAGES = frozenset({"aten.mean", "aten.sum"})
