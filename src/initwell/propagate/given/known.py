"""Known values: tensors of a walk that depend on nothing random, as real numbers, and as Signals where rules want them.

A causal mask, the positions, what the integers of the batch are turned into: ``trace.fold`` computes them once for a
Trace, whatever the weights. A rule asks ``Call.value`` for the numbers, or ``Call.signal``, which measures them then.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from initwell.propagate.given.agreement import Array, agreement
from initwell.propagate.given.measured import crossed, measured, unlikeness
from initwell.propagate.given.scalars import scalars
from initwell.propagate.moments.signal import Signal, constant
from initwell.trace.trace import Folded, Op, Trace

T = TypeVar("T")

# An entry below this is a mask's "minus infinity": what is added to scores to take them out, and no size of a signal.
MASKED = -1e4


@dataclass(frozen=True, eq=False)
class Known:
    """The known values of a Trace.

    Attributes:
        folded: the numbers.
        batched: values made from the batch, whose dimension 0 counts samples.
        kept: parameters that are not drawn anew, with their numbers.
        rows: inputs with rows far smaller than others, and the mean square of each row: see ``measured.unlike_rows``.
        prepared: signals of what the model makes of its batch alone: see ``prepared``.
        crossed: how two inputs of the batch vary together, by their ids and by pattern: see ``measured.crossed``.
        sizes: relative variance of the mean squares of an input's rows, by its id.
    """

    folded: Folded
    batched: frozenset[int] = frozenset()
    kept: Mapping[int, Tensor] = field(default_factory=dict, repr=False)
    rows: Mapping[int, Array] = field(default_factory=dict, repr=False)
    prepared: Mapping[int, Signal] = field(default_factory=dict, repr=False)
    crossed: Mapping[tuple[int, int], Array] = field(default_factory=dict, repr=False)
    sizes: Mapping[int, float] = field(default_factory=dict, repr=False)
    _signals: dict[int, Signal | None] = field(default_factory=dict, repr=False)
    _ranges: dict[int, tuple[float, float]] = field(default_factory=dict, repr=False)
    _agreements: dict[int, Array] = field(default_factory=dict, repr=False)
    _once: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def nothing(cls) -> "Known":
        """Return that nothing is known."""
        return cls(Folded({}, {}, frozenset(), ()))

    def __contains__(self, value: int) -> bool:
        """Whether the numbers of a value are known."""
        return value in self.folded.tensors

    def __getitem__(self, value: int) -> Tensor:
        """Return the numbers of a value, on the CPU; not to be written to."""
        return self.folded.tensors[value]

    def once(self, name: str, work: Callable[[], T]) -> T:
        """Return what ``work`` found when it was first asked for: it depends on the Trace alone."""
        if name not in self._once:
            self._once[name] = work()
        found: T = self._once[name]
        return found

    def made(self, op: Op) -> bool:
        """Whether everything that an op makes is known, or measured of the batch alone."""
        new = (*op.outputs, *(value for _, value in op.mutates))
        return bool(new) and all(value in self or value in self.prepared for value in new)

    def drawn(self, value: int) -> bool:
        """Whether a value is random, but not by weights or activations: a shuffle, a dropout mask."""
        return value in self.folded.drawn

    @property
    def frozen(self) -> Mapping[int, Tensor]:
        """Parameters that are neither drawn nor trained, such as a table of sinusoids, with their numbers."""
        kept = self.kept
        return self.once("frozen", lambda: {v: t.detach() for v, t in kept.items() if not t.requires_grad})

    def sample(self, value: int) -> int | None:
        """Return the dimension of a known value that counts samples, if any."""
        return 0 if value in self.batched else None

    def agreement(self, value: int) -> Array:
        """Return how often entries of a known integer value are equal: see ``agreement.agreement``."""
        first = self.folded.first[value]
        if first not in self._agreements:
            self._agreements[first] = agreement(self[value])
        return self._agreements[first]

    def signal(self, value: int) -> Signal | None:
        """Measure a known value; None for one without numbers, or with a mask's minus infinity among them."""
        if value not in self:
            return self.prepared.get(value)
        first = self.folded.first[value]
        if first not in self._signals:
            low, high = self.range(value)
            plain = low > MASKED and high < math.inf
            self._signals[first] = _measured(self[value], self.sample(value), low, high) if plain else None
        return self._signals[first]

    def range(self, value: int) -> tuple[float, float]:
        """Return the least and the largest entry of a known value; NaN where it has no order or no entries."""
        first = self.folded.first[value]
        if first not in self._ranges:
            self._ranges[first] = _range(self[value])
        return self._ranges[first]


def _range(tensor: Tensor) -> tuple[float, float]:
    if tensor.numel() == 0 or tensor.is_complex() or tensor.is_quantized or tensor.layout is not torch.strided:
        return math.nan, math.nan
    return float(tensor.min()), float(tensor.max())


def _measured(tensor: Tensor, sample: int | None, low: float, high: float) -> Signal:
    return constant(tensor.shape, low) if low == high else measured(tensor, sample=sample)


class _NumberlessError(KeyError):
    """A value has no signal, and no numbers to measure."""


class Signals(dict[int, Signal]):
    """Value id → signal, of what a walk found; a known value is measured when it is asked for.

    To iterate goes over what was found or asked for.
    """

    def __init__(self, start: Mapping[int, Signal], known: Known) -> None:
        """Begin with the signals of ``start``."""
        super().__init__(start)
        self._known = known

    def __missing__(self, value: int) -> Signal:
        """Measure a known value."""
        signal = self._known.signal(value)
        if signal is None:
            raise _NumberlessError(value)
        self[value] = signal
        return signal

    def __contains__(self, value: object) -> bool:
        """Whether a value has a signal."""
        return isinstance(value, int) and self.get(value) is not None

    @overload
    def get(self, value: int, default: None = None) -> Signal | None: ...

    @overload
    def get(self, value: int, default: Signal | T) -> Signal | T: ...

    def get(self, value: int, default: Any = None) -> Any:
        """Return the signal of a value, or another where it has none."""
        try:
            return self[value]
        except _NumberlessError:
            return default

    def forget(self, value: int) -> None:
        """Forget what was found of a value, if anything was."""
        self.pop(value, None)


def known_values(
    trace: Trace,
    kept: Mapping[int, Tensor] | None = None,
    rows: Mapping[int, Array] | None = None,
    prepared: Mapping[int, Signal] | None = None,
    inputs: Mapping[int, Tensor] | None = None,
) -> Known:
    """Return what a trace knows of its numbers.

    Args:
        trace: from ``record``.
        kept: parameters that are not drawn anew, by value id.
        rows: mean squares of the rows of inputs that differ much in size, by value id.
        prepared: signals of what the model makes of its batch alone, by value id.
        inputs: floating tensors of the batch that have numbers, by value id.

    Returns:
        The Known, for as many walks over the trace as one likes.
    """
    kept = kept or {}
    found, folded = scalars(trace, kept), trace.folded
    made = {value: number for value, number in found.items() if number.numel() == 1}
    vectors = {value: measured(numbers) for value, numbers in found.items() if numbers.numel() > 1}
    if made:
        first = {**folded.first, **{value: value for value in made}}
        folded = replace(folded, tensors={**folded.tensors, **made}, first=first)
    together, sizes = crossed(inputs or {}), {value: unlikeness(t) for value, t in (inputs or {}).items()}
    return Known(folded, _batched(trace), kept, rows or {}, {**(prepared or {}), **vectors}, together, sizes)


def _batched(trace: Trace) -> frozenset[int]:
    """Find the known values that have the batch's length and were made from it, or in its shape."""
    shapes = [trace.values[value].shape for value in trace.inputs.values()]
    length = next((shape[0] for shape in shapes if shape), 0)
    made = set(trace.inputs.values())
    for op in trace.ops:
        if any(value in made for value in op.inputs):
            made.update(op.outputs, (new for _, new in op.mutates))
    return frozenset(v for v in made & trace.folded.tensors.keys() if trace.values[v].shape[:1] == (length,))
