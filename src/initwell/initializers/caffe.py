"""Caffe's weight fillers, exactly as Caffe computes them: from the blob's raw shape, whatever its layer.

Caffe's fan_in is count / shape(0) and its fan_out count / shape(1). They ignore groups and stride, and they are swapped
for a Deconvolution, and for an InnerProduct with ``transpose: true``, whose blobs are (in, out, …). PyTorch stores
those weights in the same order, so that the shape alone decides.

Source: BVLC/caffe, include/caffe/filler.hpp and src/caffe/proto/caffe.proto (FillerParameter).
"""

import math
from dataclasses import dataclass, field

from initwell.errors import ArgumentError, ShapeError, UnknownNameError
from initwell.initializers import distributions
from initwell.initializers.base import Initializer, Recipe
from initwell.initializers.citations import GLOROT_2010, HE_2015, JIA_2014, LONG_2015
from initwell.initializers.filters import Bilinear as BilinearFilter
from initwell.initializers.filters import UnitBall
from initwell.initializers.layout import Layout
from initwell.initializers.sparse import SparseNormal

VARIANCE_NORMS = ("FAN_IN", "FAN_OUT", "AVERAGE")


def fans(shape: tuple[int, ...]) -> tuple[float, float]:
    """Return Caffe's (fan_in, fan_out) of a blob's shape.

    Raises:
        ShapeError: the blob has no axes or is empty.

    >>> fans((64, 16, 3, 3)), fans((10,))
    ((144.0, 576.0), (1.0, 10.0))
    """
    count = math.prod(shape)
    if not shape or count == 0:
        raise ShapeError("shape", shape, "Caffe's fillers need a blob with at least one axis and one entry.")
    return count / shape[0], float(count / shape[1] if len(shape) > 1 else count)


@dataclass(frozen=True)
class Constant(Initializer):
    """Caffe's constant filler: ``value``, 0 by default."""

    value: float = 0.0
    name: str = field(default="caffe.constant", init=False, repr=False)
    citation: str = field(default=JIA_2014, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what is no number."""
        distributions.need_finite("value", self.value)

    def recipe(self, layout: Layout) -> Recipe:
        """Return the constant."""
        return Recipe(distributions.Constant(self.value))

    def describe(self) -> str:
        """Return the name with its value."""
        return f"{self.name} {self.value:g}"


@dataclass(frozen=True)
class Uniform(Initializer):
    """Caffe's uniform filler: U(min, max), U(0, 1) by default: not centred."""

    min: float = 0.0
    max: float = 1.0
    name: str = field(default="caffe.uniform", init=False, repr=False)
    citation: str = field(default=JIA_2014, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what Caffe's checks refuse: min above max."""
        distributions.need_finite("min", self.min)
        distributions.need_finite("max", self.max)
        if self.min > self.max:
            raise ArgumentError("min", f"{self.min}, above max = {self.max}", "Give min <= max.")

    def recipe(self, layout: Layout) -> Recipe:
        """Return the uniform distribution."""
        fans(layout.shape)
        return Recipe(distributions.Uniform(self.min, self.max))

    def describe(self) -> str:
        """Return the name with its interval."""
        return f"{self.name} [{self.min:g}, {self.max:g}]"


@dataclass(frozen=True)
class Gaussian(Initializer):
    """Caffe's gaussian filler: N(mean, std²); sparse >= 0 keeps each entry with probability sparse / shape(0)."""

    mean: float = 0.0
    std: float = 1.0
    sparse: int = -1
    name: str = field(default="caffe.gaussian", init=False, repr=False)
    citation: str = field(default=JIA_2014, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what Caffe's checks refuse."""
        distributions.need_finite("mean", self.mean)
        distributions.need_positive("std", self.std)
        if isinstance(self.sparse, bool) or not isinstance(self.sparse, int) or self.sparse < -1:
            raise ArgumentError("sparse", self.sparse, "Give a whole number of 0 or more, or -1 for a dense blob.")

    def recipe(self, layout: Layout) -> Recipe:
        """Return the normal distribution, with Bernoulli zeros if sparse."""
        fans(layout.shape)
        if self.sparse < 0:
            return Recipe(distributions.Normal(self.mean, self.std))
        outputs = layout.shape[0]
        if self.sparse > outputs:
            cure = f"The probability is sparse / shape(0): give at most {outputs}."
            raise ShapeError("sparse", f"{self.sparse} for shape {layout.shape}", cure)
        return Recipe(SparseNormal(self.sparse / outputs, self.std, self.mean))

    def describe(self) -> str:
        """Return the name with its numbers."""
        tail = f", sparse {self.sparse}" if self.sparse >= 0 else ""
        return f"{self.name} mean {self.mean:g}, std {self.std:g}{tail}"


@dataclass(frozen=True)
class PositiveUnitball(Initializer):
    """Caffe's positive_unitball filler: U(0, 1), each row of the first axis divided by its sum."""

    name: str = field(default="caffe.positive_unitball", init=False, repr=False)
    citation: str = field(default=JIA_2014, init=False, repr=False)

    def recipe(self, layout: Layout) -> Recipe:
        """Return the distribution on rows of the blob's first axis, whatever that axis means."""
        fans(layout.shape)
        return Recipe(UnitBall(Layout.of(layout.shape)))

    def describe(self) -> str:
        """Return the name."""
        return self.name


@dataclass(frozen=True)
class Xavier(Initializer):
    """Caffe's xavier filler: U(±√(3/n)); its default n = fan_in is LeCun's rule, not the paper's 2/(in+out)."""

    variance_norm: str = "FAN_IN"
    name: str = field(default="caffe.xavier", init=False, repr=False)
    citation: str = field(default=f"{JIA_2014}\n\n{GLOROT_2010}", init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse an unknown norm."""
        check_norm(self.variance_norm)

    def recipe(self, layout: Layout) -> Recipe:
        """Return the uniform distribution of variance 1 / n."""
        n = normalizer(layout.shape, self.variance_norm)
        bound = math.sqrt(3 / n)
        return Recipe(distributions.Uniform(-bound, bound), fan=n, gain=1.0)

    def describe(self) -> str:
        """Return the name with its norm."""
        return f"{self.name} {self.variance_norm}"


@dataclass(frozen=True)
class MSRA(Initializer):
    """Caffe's msra filler: N(0, 2/n), n = fan_in by default."""

    variance_norm: str = "FAN_IN"
    name: str = field(default="caffe.msra", init=False, repr=False)
    citation: str = field(default=f"{JIA_2014}\n\n{HE_2015}", init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse an unknown norm."""
        check_norm(self.variance_norm)

    def recipe(self, layout: Layout) -> Recipe:
        """Return the normal distribution of variance 2 / n."""
        n = normalizer(layout.shape, self.variance_norm)
        return Recipe(distributions.Normal(0.0, math.sqrt(2 / n)), fan=n, gain=math.sqrt(2))

    def describe(self) -> str:
        """Return the name with its norm."""
        return f"{self.name} {self.variance_norm}"


@dataclass(frozen=True)
class Bilinear(Initializer):
    """Caffe's bilinear filler: an interpolation filter for every pair of channels; 4 axes, the last two equal."""

    name: str = field(default="caffe.bilinear", init=False, repr=False)
    citation: str = field(default=f"{JIA_2014}\n\n{LONG_2015}", init=False, repr=False)

    def recipe(self, layout: Layout) -> Recipe:
        """Return the filter."""
        if len(layout.shape) != 4 or layout.shape[2] != layout.shape[3]:
            raise ShapeError(
                "shape", layout.shape, "Caffe's bilinear filler needs 4 axes, of which the last two are equal."
            )
        return Recipe(BilinearFilter(Layout.of(layout.shape), every_pair=True))

    def describe(self) -> str:
        """Return the name."""
        return self.name


def normalizer(shape: tuple[int, ...], variance_norm: str) -> float:
    """Return the n of Caffe's xavier and msra: fan_in, fan_out, or their arithmetic mean.

    Raises:
        ShapeError: the blob has no axes or is empty.
        UnknownNameError: an unknown norm.

    >>> normalizer((64, 16, 3, 3), "AVERAGE")
    360.0
    """
    check_norm(variance_norm)
    fan_in, fan_out = fans(shape)
    return {"FAN_IN": fan_in, "FAN_OUT": fan_out, "AVERAGE": (fan_in + fan_out) / 2}[variance_norm]


def check_norm(variance_norm: str) -> None:
    """Raise UnknownNameError unless Caffe has this norm."""
    if variance_norm not in VARIANCE_NORMS:
        raise UnknownNameError.among("variance_norm", variance_norm, VARIANCE_NORMS)
