"""Filters without a sign: rows that sum to one, and bilinear interpolation."""

import math
from dataclasses import dataclass, field

import numpy as np

from initwell.errors import ShapeError
from initwell.initializers.distributions import Array, Stream
from initwell.initializers.layout import Layout
from initwell.initializers.matrices import Whole, need_kernel


@dataclass(frozen=True)
class UnitBall(Whole):
    """Positive weights whose sum is 1 for every output unit: U(0, 1) divided by the unit's sum.

    Args:
        layout: the weight; every entry of a vector is a unit of its own, and so is 1.

    Raises:
        ShapeError: the layout is empty.
    """

    kind: str = field(default="unit_ball", init=False, repr=False)
    layout: Layout

    def __post_init__(self) -> None:
        """Refuse rows of nothing."""
        if self.layout.size == 0:
            raise ShapeError("shape", self.layout.shape, "A row that sums to 1 has at least one entry.")

    @property
    def mean(self) -> float:
        """One over the number of a unit's inputs."""
        return 1 / self.layout.blocks[2]

    @property
    def std(self) -> float:
        """Standard deviation, from E[u²/S²] = ∫ t E[u² e⁻ᵗᵘ] E[e⁻ᵗᵘ]ⁿ⁻¹ dt with S the sum of n uniform numbers."""
        from scipy.integrate import quad
        from scipy.special import gammainc

        n = self.layout.blocks[2]
        if n == 1:
            return 0.0

        def integrand(x: float) -> float:
            # t = x/n, since the integral lies within a few 2/n; γ(3, t) = 2·P(3, t) is E[u² e⁻ᵗᵘ]·t³.
            t = x / n
            if t == 0:
                return 0.0
            square = 2 * float(gammainc(3, t)) / t**3
            return t * square * (-math.expm1(-t) / t) ** (n - 1) / n

        # In two pieces: past 60 only small n have anything left, and that falls off slowly.
        near, far = quad(integrand, 0, 60, epsabs=0, epsrel=1e-10), quad(integrand, 60, math.inf, epsabs=1e-14)
        return math.sqrt(near[0] + far[0] - 1 / n**2)

    def draw_blocks(self, stream: Stream) -> Array:
        """Divide every row by its sum, added up from left to right so that every machine rounds alike."""
        values = stream.uniform(0, self.layout.size).reshape(self.layout.blocks)
        return values / np.cumsum(values, axis=-1)[..., -1:]


@dataclass(frozen=True)
class Bilinear(Whole):
    """Linear interpolation filters, the product of a triangle along every kernel axis.

    Args:
        layout: a convolution's weight.
        every_pair: whether each pair of channels gets the filter, as in Caffe, or only channel i with output i.

    Raises:
        ShapeError: the layout is no convolution.

    Source: Long et al. 2015, section 3.3; the filter as Caffe's BilinearFiller computes it.
    """

    kind: str = field(default="bilinear", init=False, repr=False)
    layout: Layout
    every_pair: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no kernel."""
        need_kernel(self.kind, self.layout, "A matrix has no positions to interpolate between.")

    @property
    def mean(self) -> float:
        """Mean over all entries."""
        return float(self._filter().mean()) * self._share

    @property
    def std(self) -> float:
        """Standard deviation over all entries."""
        square = float(np.square(self._filter()).mean()) * self._share
        return math.sqrt(max(square - self.mean**2, 0.0))

    @property
    def _share(self) -> float:
        _, rows, columns = self.layout.blocks
        return 1.0 if self.every_pair else 1 / max(rows, columns // self.layout.receptive_field)

    def _filter(self) -> Array:
        """Return the one filter, of the kernel's shape, flattened."""
        found = np.ones(())
        for width in self.layout.kernel:
            f = math.ceil(width / 2)
            c = (width - 1) / (2 * f)
            found = np.multiply.outer(found, 1 - np.abs(np.arange(width) / f - c))
        return found.reshape(-1)

    def draw_blocks(self, stream: Stream) -> Array:
        """Give the filter to every pair of channels, or to the pairs (i, i); nothing is random."""
        count, rows, columns = self.layout.blocks
        inputs = columns // self.layout.receptive_field
        pairs = np.ones((rows, inputs)) if self.every_pair else np.eye(rows, inputs)
        block = np.multiply.outer(pairs, self._filter()).reshape(rows, columns)
        return np.tile(block, (count, 1, 1))
