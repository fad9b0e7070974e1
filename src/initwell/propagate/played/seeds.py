"""Ops that no rule of second moments serves, around which a stretch is played: triangular systems, states with rates.

**States with rates.** h_t = a_t·h_(t−1) + b_t, as a scan or a linear recurrence writes it step by step, holds products
a_t a_(t−1) … of decays. Where all of them are made of one parameter, e^(a·y_t) of rates a or σ(a) alone, they go
together: channels of rates near 0 remember, others forget, and E[Π a_t²] is nothing like Π E[a_t²]. So the recurrence
is played. A parameter of one number everywhere makes no such difference, nor do draws of a small spread; and where all
rows repeat the same numbers, as a state's rates −1 … −16, each level of the state is followed by itself (``decay``).
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from initwell.propagate.moments.signal import Signal
from initwell.trace.ops import ACTIVATIONS, BENDING, COPIES, VIEWS
from initwell.trace.trace import Op, Trace

_SOLVED = frozenset({"aten.linalg_solve_triangular"})
_BENT = frozenset({*VIEWS, *COPIES, *ACTIVATIONS, *BENDING, "aten.mul", "aten.div", "aten.addcmul"})
_SUMS = frozenset({"aten.add", "aten.sub", "aten.rsub"})
_DEEPEST = 16
# Standard deviations of drawn rates, or of their logarithms.
_LEAST = 0.25


def seeds(trace: Trace, known: Mapping[int, Signal], kept: Mapping[int, Tensor]) -> Iterator[Op]:
    """Go over the forward ops around which a stretch is to be played.

    Args:
        trace: from ``record``.
        known: value id → signal, of parameters that are drawn.
        kept: parameters that are not drawn anew, with their numbers.
    """

    def uneven(parameter: int) -> bool:
        return _differ(kept[parameter]) if parameter in kept else _spread(known, parameter) > _LEAST

    rates = _Rates(trace, uneven)
    for op in trace.forward_ops:
        if op.functional in _SOLVED or rates.step_again(op):
            yield op


def _differ(numbers: Tensor) -> bool:
    """Whether numbers differ, and not only within rows that are all the same."""
    if numbers.layout is not torch.strided:
        return False
    first = numbers[:1] if numbers.ndim > 1 and len(numbers) > 1 else numbers.reshape(-1)[:1]
    return bool((numbers != first).any())


def _spread(known: Mapping[int, Signal], parameter: int) -> float:
    x = known.get(parameter)
    return 0.0 if x is None else math.sqrt(max(x.q - x.mean**2, 0.0))


class _Rates:
    """Which steps multiply a state by decays that one parameter has made, as the step before did."""

    def __init__(self, trace: Trace, uneven: Callable[[int], bool]) -> None:
        self.trace, self.uneven = trace, uneven
        self._made: dict[int, frozenset[int]] = {}

    def step_again(self, op: Op) -> bool:
        """Whether an op multiplies by such decays what a step before has multiplied by them, too."""
        if op.functional != "aten.mul" or len(op.inputs) != 2:
            return False
        for decay, state in (op.inputs, op.inputs[::-1]):
            before = self._step_of(state)
            if before is None or not (rates := self._rates(decay)):
                continue
            if any(rates & self._rates(i) for i in before.inputs):
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
            return frozenset({value}) if self.uneven(value) else frozenset()
        if op is None or deep == 0 or (op.functional not in _BENT and op.functional not in _SUMS):
            return frozenset()
        each = [self._rates(i, deep - 1) for i in op.inputs if op.functional not in _SUMS or self._is_made(i)]
        return frozenset[int]().union(*each)

    def _is_made(self, value: int) -> bool:
        return self.trace.producer(self.trace.shown(value)) is not None
