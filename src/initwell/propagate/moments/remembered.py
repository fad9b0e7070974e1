"""What a Signal remembers of how its entries came to be: averages, laws that are no Gaussian's, gates of gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from initwell.propagate.moments.copies import worked_out
from initwell.propagate.moments.segments import Array

if TYPE_CHECKING:
    from initwell.propagate.moments.signal import Image, Signal


@dataclass(frozen=True, eq=False)
class Average:
    """Says that a value is E[x], E[x²], or E[(x − x̄)²], averaged over some dimensions, x being ``of``.

    Where few numbers made rows of x, ``numbers`` says how many, by segment of rows.
    """

    kind: Literal["mean", "square", "variance"]
    of: "Signal"
    dims: tuple[int, ...]
    numbers: tuple[float, ...] = ()

    @worked_out
    def kept(self) -> dict[object, Any]:
        """What functions of it alone found; see ``copies.kept``."""
        return {}


@dataclass(frozen=True, eq=False)
class Law:
    """How one entry is distributed that is no Gaussian: Σ weights·N(values, variance), a row for each segment.

    ``image`` times ``factor`` is what the values stand for, if that is known; the Gaussian part has mean ``offset``. Of
    a sum of few terms ``near`` is by how much squares go together beyond a Gaussian's, by pattern; see ``laws``. Where
    several values were joined, ``parts`` are what the values stand for in each of these, in place of ``image``. Of a
    sum of two values neither of which is Gaussian, ``terms`` are these two, in place of ``image``.
    """

    values: Array
    weights: Array
    variance: Array
    image: "Image | None"
    factor: Array
    offset: Array
    near: Array | None = None
    parts: "tuple[Image, ...]" = ()
    terms: "tuple[Term, ...]" = ()

    @worked_out
    def kept(self) -> dict[object, Any]:
        """What functions of it alone found; see ``copies.kept``."""
        return {}


@dataclass(frozen=True, eq=False)
class Term:
    """Says that a value is ``image`` times ``factor``, plus something independent of the law ``rest``."""

    image: "Image"
    factor: Array
    rest: Law


@dataclass(frozen=True, eq=False)
class Gate:
    """Says that a part of a gradient went through φ′(u), u being ``pre``: what it is, given u.

    ``moments`` are those of that part; E[g²|u] = φ′(u)²·power(u), and E[g|u] goes as φ′(u)·passed(u): tables over
    ``grid``, a row for each segment.
    """

    slope: Callable[[Array], Array]
    pre: "Signal"
    moments: Array
    grid: Array
    power: Array
    passed: Array
