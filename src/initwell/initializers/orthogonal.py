"""Rules that make orthogonal weights, so that lengths pass through a layer unchanged."""

import math
from dataclasses import dataclass, field

from initwell.errors import ShapeError
from initwell.initializers.base import Initializer, Recipe
from initwell.initializers.citations import MARTENS_2021, SAXE_2014, XIAO_2018
from initwell.initializers.distributions import need_positive
from initwell.initializers.layout import Layout
from initwell.initializers.matrices import DeltaOrthogonal, Orthogonal


@dataclass(frozen=True)
class OrthogonalRule(Initializer):
    """Gain times a Haar orthogonal matrix; a convolution's kernel counts as inputs, each group and part is its own."""

    gain: float = 1.0
    name: str = field(default="orthogonal", init=False, repr=False)
    citation: str = field(default=SAXE_2014, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a gain of 0 or less."""
        need_positive("gain", self.gain)

    def recipe(self, layout: Layout) -> Recipe:
        """Return the orthogonal distribution of that layout."""
        return Recipe(Orthogonal(layout, self.gain), gain=self.gain)

    def describe(self) -> str:
        """Return the name with its gain."""
        return f"orthogonal, gain {self.gain:.4g}"


@dataclass(frozen=True)
class DeltaOrthogonalRule(Initializer):
    """An orthogonal matrix at a convolution's centre tap, for at least as many outputs as inputs."""

    gain: float = 1.0
    name: str = field(default="delta orthogonal", init=False, repr=False)
    citation: str = field(default=XIAO_2018, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a gain of 0 or less."""
        need_positive("gain", self.gain)

    def recipe(self, layout: Layout) -> Recipe:
        """Return the delta-orthogonal distribution of that layout."""
        distribution = DeltaOrthogonal(layout, self.gain)
        outputs, inputs = _sides(layout)
        if inputs > outputs:
            got = f"{layout.shape}: {inputs} inputs, {outputs} outputs in each group"
            cure = "Lengths are kept only with at least as many outputs; use scaled_uniform_orthogonal, which scales."
            raise ShapeError("shape", got, cure)
        return Recipe(distribution, gain=self.gain)

    def describe(self) -> str:
        """Return the name with its gain."""
        return f"delta orthogonal, gain {self.gain:.4g}"


@dataclass(frozen=True)
class ScaledUniformOrthogonal(Initializer):
    """An orthogonal matrix times max(1, √(outputs/inputs)), at the centre tap of a convolution: E[y²] = gain² E[x²]."""

    gain: float = 1.0
    name: str = field(default="scaled uniform orthogonal", init=False, repr=False)
    citation: str = field(default=MARTENS_2021, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a gain of 0 or less."""
        need_positive("gain", self.gain)

    def recipe(self, layout: Layout) -> Recipe:
        """Return an orthogonal distribution, a delta one for a convolution, with the scale of its sides."""
        kind = DeltaOrthogonal if layout.kernel and layout.kind in ("conv", "conv_transpose") else Orthogonal
        unscaled = kind(layout, self.gain)
        outputs, inputs = _sides(layout) if kind is DeltaOrthogonal else layout.blocks[1:]
        factor = self.gain * max(1.0, math.sqrt(outputs / inputs))
        return Recipe(kind(unscaled.layout, factor), gain=self.gain)

    def describe(self) -> str:
        """Return the name with its gain."""
        return f"scaled uniform orthogonal, gain {self.gain:.4g}"


def orthogonal(gain: float = 1.0) -> OrthogonalRule:
    """Gain times a Haar orthogonal matrix (Saxe et al. 2014)."""
    return OrthogonalRule(gain)


def delta_orthogonal(gain: float = 1.0) -> DeltaOrthogonalRule:
    """Orthogonal at a convolution's centre tap, 0 elsewhere (Xiao et al. 2018)."""
    return DeltaOrthogonalRule(gain)


def scaled_uniform_orthogonal(gain: float = 1.0) -> ScaledUniformOrthogonal:
    """Orthogonal, scaled so that a layer that is not square keeps the second moment (Martens et al. 2021).

    Source: Martens et al. 2021, appendix on SUO weights: factor max(1, √(outputs/inputs)); convolutions are deltas.

    >>> recipe = scaled_uniform_orthogonal().recipe(Layout((64, 16)))
    >>> recipe.distribution.std
    0.25
    """
    return ScaledUniformOrthogonal(gain)


def _sides(layout: Layout) -> tuple[int, int]:
    _, rows, columns = layout.blocks
    return rows, columns // layout.receptive_field
