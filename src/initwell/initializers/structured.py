"""Rules that place their weights: identity, dirac, sparse, bilinear, positive unit ball."""

import math
from dataclasses import dataclass, field

from initwell.errors import ArgumentError
from initwell.initializers.base import Initializer, Recipe
from initwell.initializers.citations import JIA_2014, LE_2015, LONG_2015, MARTENS_2010, ZAGORUYKO_2017
from initwell.initializers.distributions import Distribution, need_finite, need_positive
from initwell.initializers.filters import Bilinear, UnitBall
from initwell.initializers.layout import Layout
from initwell.initializers.matrices import Dirac, Identity
from initwell.initializers.sparse import FixedCountSparse, SparseNormal


@dataclass(frozen=True)
class IdentityRule(Initializer):
    """Gain times the identity, one per packed part."""

    gain: float = 1.0
    name: str = field(default="identity", init=False, repr=False)
    citation: str = field(default=LE_2015, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a gain that is no number."""
        need_finite("gain", self.gain)

    def recipe(self, layout: Layout) -> Recipe:
        """Return the identity of that layout."""
        return Recipe(Identity(layout, self.gain), gain=self.gain, note=_cut_note(layout))

    def describe(self) -> str:
        """Return the name with its gain."""
        return f"identity, gain {self.gain:.4g}"


@dataclass(frozen=True)
class DiracRule(Initializer):
    """A convolution that passes its input on, group by group, times the gain."""

    gain: float = 1.0
    name: str = field(default="dirac", init=False, repr=False)
    citation: str = field(default=ZAGORUYKO_2017, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a gain that is no number."""
        need_finite("gain", self.gain)

    def recipe(self, layout: Layout) -> Recipe:
        """Return the dirac filters of that layout."""
        return Recipe(Dirac(layout, self.gain), gain=self.gain, note=_cut_note(layout))

    def describe(self) -> str:
        """Return the name with its gain."""
        return f"dirac, gain {self.gain:.4g}"


@dataclass(frozen=True)
class Sparse(Initializer):
    """Martens' rule: each unit takes exactly ``count`` inputs, or all it has where that is fewer: the note says so."""

    count: int = 15
    std: float | None = None
    gain: float = 1.0
    name: str = field(default="sparse", init=False, repr=False)
    citation: str = field(default=MARTENS_2010, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse numbers out of their range."""
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ArgumentError("count", self.count, "Give a whole number of 1 or more.")
        need_positive("gain", self.gain)
        if self.std is not None:
            need_positive("std", self.std)

    def recipe(self, layout: Layout) -> Recipe:
        """Return the sparse distribution of that layout; its fan is the count."""
        inputs = layout.blocks[2]
        count = min(self.count, max(inputs, 1))
        spread = self.gain / math.sqrt(count) if self.std is None else self.std
        note = "" if count == self.count else f"a unit has only {inputs} inputs: {count} of them, not {self.count}"
        gain = self.gain if self.std is None else None
        return Recipe(FixedCountSparse(layout, count, spread), fan=float(count), gain=gain, note=note)

    def describe(self) -> str:
        """Return the name with its count."""
        return f"sparse, {self.count} inputs a unit" + ("" if self.std is None else f", std {self.std:g}")


@dataclass(frozen=True)
class BernoulliSparse(Initializer):
    """Normal weights of which each is kept with a probability, on its own."""

    probability: float = 0.1
    std: float | None = None
    gain: float = 1.0
    name: str = field(default="bernoulli sparse", init=False, repr=False)
    citation: str = field(default=JIA_2014, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse numbers out of their range."""
        if not 0 < self.probability <= 1:
            raise ArgumentError("probability", self.probability, "Give a number above 0, up to 1.")
        need_positive("gain", self.gain)
        if self.std is not None:
            need_positive("std", self.std)

    def recipe(self, layout: Layout) -> Recipe:
        """Return the sparse distribution; with no std, that of the dense rule over the root of the probability."""
        if self.std is not None:
            return Recipe(SparseNormal(self.probability, self.std))
        fan = self.probability * layout.fan_in
        return Recipe(SparseNormal(self.probability, self.gain / math.sqrt(fan)), fan=fan, gain=self.gain)

    def describe(self) -> str:
        """Return the name with its probability."""
        return f"bernoulli sparse, probability {self.probability:g}"


@dataclass(frozen=True)
class Shaped(Initializer):
    """A rule without options: a kind of distribution that needs only the layout."""

    name: str
    build: type[Bilinear] | type[UnitBall]
    citation: str = field(default="", repr=False)

    def recipe(self, layout: Layout) -> Recipe:
        """Return the distribution of that layout."""
        distribution: Distribution = self.build(layout)
        return Recipe(distribution)

    def describe(self) -> str:
        """Return the name."""
        return self.name


def identity(gain: float = 1.0) -> IdentityRule:
    """Gain times the identity matrix (Le et al. 2015)."""
    return IdentityRule(gain)


def dirac(gain: float = 1.0) -> DiracRule:
    """A convolution that starts as the identity, with groups (Zagoruyko and Komodakis 2017)."""
    return DiracRule(gain)


def sparse(count: int = 15, std: float | None = None, gain: float = 1.0) -> Sparse:
    """Exactly ``count`` nonzero weights per output unit.

    Args:
        count: nonzero weights of a unit.
        std: their standard deviation; None for gain / √count, which keeps the second moment. Martens took 1.
        gain: the gain, where std is None.

    Returns:
        The rule.

    Source: Martens 2010, section 5.

    >>> sparse(count=4, gain=2.0).recipe(Layout((10, 16))).distribution.spread
    1.0
    """
    return Sparse(count, std, gain)


def bernoulli_sparse(probability: float = 0.1, std: float | None = None, gain: float = 1.0) -> BernoulliSparse:
    """Each weight is kept with a probability, as Caffe's sparse gaussian does."""
    return BernoulliSparse(probability, std, gain)


def bilinear() -> Shaped:
    """Upsampling filters for a transposed convolution, channel by channel, for any number of kernel axes."""
    return Shaped("bilinear", Bilinear, LONG_2015)


def positive_unitball() -> Shaped:
    """Positive weights that sum to 1 for every output unit."""
    return Shaped("positive unitball", UnitBall, JIA_2014)


def _cut_note(layout: Layout) -> str:
    _, rows, columns = layout.blocks
    inputs = columns // layout.receptive_field
    return "" if rows == inputs else f"{inputs} inputs and {rows} outputs: {min(rows, inputs)} are passed on"
