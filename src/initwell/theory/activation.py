"""What an activation is: the function, its derivative, where it is not smooth, and what is known in closed form."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from initwell.errors import ArgumentError
from initwell.records import Record

Array = NDArray[np.float64]
Function = Callable[[Array], Array]
ClosedForm = Callable[..., float]

# One variable: of (q), or of (q, mu) where ``closed_forms_take_mean``; two: of (q, c).
CLOSED_FORMS = frozenset(
    {"mean", "second_moment", "derivative_second_moment", "growth", "overlap", "derivative_overlap"}
)


@dataclass(frozen=True)
class Activation(Record):
    """A pointwise nonlinearity φ, or a gate that multiplies one half of its input by ψ of the other.

    Attributes:
        name: the canonical name.
        fn: φ over float64 arrays of any shape; a gate splits the last axis in two halves (a, b) and gives a·ψ(b).
        derivative: φ′ almost everywhere, same shape as its input; of a gate, the partial derivatives (ψ(b), a·ψ′(b)).
        kinks: where φ or one of its derivatives is not smooth, ascending.
        jumps: those of the kinks where φ itself is discontinuous.
        parameters: the values this member was built with, such as {"slope": 0.25}.
        closed_forms: for u ~ N(0, q): "mean" E[φ], "second_moment" E[φ²], "derivative_second_moment" E[φ′²] and
            "growth" q·dE[φ²]/dq as functions of q; "overlap" E[φ(u)φ(v)] and "derivative_overlap" E[φ′(u)φ′(v)] as
            functions of (q, c). One answers NaN where cancellation would leave fewer than twelve digits.
        closed_forms_take_mean: whether those of one variable also take the mean of u, as (q, mu).
        torch: how PyTorch spells it: module types, bare names of functions, and ATen overload packets.
        citation: where it was introduced.
        odd: whether φ(−x) = −φ(x).
        bounded: whether |φ| has an upper bound, so that it can saturate.
        precision: relative precision of φ's values, that of float64 unless a callable computes in less.
        gate: ψ, for a gate; None for a pointwise function.
        notes: what a caller should know about how the record was made.
    """

    name: str
    fn: Function
    derivative: Function
    kinks: tuple[float, ...] = ()
    jumps: tuple[float, ...] = ()
    parameters: Mapping[str, float] = field(default_factory=dict, hash=False)
    closed_forms: Mapping[str, ClosedForm] = field(default_factory=dict, compare=False, repr=False)
    closed_forms_take_mean: bool = False
    torch: tuple[str, ...] = ()
    citation: str = ""
    odd: bool = False
    bounded: bool = False
    precision: float = float(np.finfo(np.float64).eps)
    gate: "Activation | None" = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a record that contradicts itself."""
        unknown = set(self.closed_forms) - CLOSED_FORMS
        if unknown:
            raise ValueError(f"activation {self.name}: unknown closed forms {sorted(unknown)}")
        if tuple(sorted(self.kinks)) != self.kinks or not set(self.jumps) <= set(self.kinks):
            raise ValueError(f"activation {self.name}: kinks must ascend and include the jumps")

    @property
    def inputs(self) -> int:
        """Count the pre-activations that one output takes: 2 for a gate, otherwise 1."""
        return 1 if self.gate is None else 2

    def __str__(self) -> str:
        """Spell the name with its parameters, as in ``leaky_relu(slope=0.01)``."""
        inner = ", ".join(f"{k}={v:g}" for k, v in self.parameters.items())
        return f"{self.name}({inner})" if inner else self.name


def require(holds: bool, argument: str, got: float, cure: str) -> None:
    """Raise the error that names the argument, what was got and the cure, unless the condition ``holds``."""
    if not holds:
        raise ArgumentError(argument, got, cure)
