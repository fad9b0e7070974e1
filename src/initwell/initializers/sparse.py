"""Distributions with zeros: so many nonzero weights per unit, or each weight kept with a probability."""

import math
from dataclasses import dataclass, field

import numpy as np

from initwell.errors import ArgumentError, ShapeError
from initwell.initializers.distributions import Array, Elementwise, Stream, need_finite, need_positive
from initwell.initializers.layout import Layout
from initwell.initializers.matrices import Whole, need_matrix


@dataclass(frozen=True)
class SparseNormal(Elementwise):
    """N(centre, spread²) with the given probability, else 0, each entry on its own: Caffe's sparse gaussian.

    Args:
        probability: that an entry is drawn at all, 0 to 1.
        spread: standard deviation of the entries that are drawn, above 0.
        centre: their mean.

    Raises:
        ArgumentError: an argument is out of its range.

    >>> SparseNormal(0.25, 2.0).std
    1.0
    """

    kind: str = field(default="sparse_normal", init=False, repr=False)
    probability: float
    spread: float = 1.0
    centre: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no probability or no normal distribution."""
        if not 0 <= self.probability <= 1:
            raise ArgumentError("probability", self.probability, "Give a number from 0 to 1.")
        need_positive("spread", self.spread)
        need_finite("centre", self.centre)

    @property
    def mean(self) -> float:
        """Mean over drawn and zero entries."""
        return self.probability * self.centre

    @property
    def std(self) -> float:
        """Standard deviation over drawn and zero entries."""
        kept = self.probability
        return math.sqrt(kept * self.spread**2 + kept * (1 - kept) * self.centre**2)

    def draw_slice(self, stream: Stream, start: int, stop: int) -> Array:
        """Draw normals, and clear those whose coin, from a stream of its own, says so."""
        values = stream.normal(start, stop)
        values *= self.spread
        values += self.centre
        values[stream.child("mask").uniform(start, stop) >= self.probability] = 0.0
        return values


@dataclass(frozen=True)
class FixedCountSparse(Whole):
    """Each output unit takes exactly ``count`` of its inputs, with weights of N(0, spread²); the others are 0.

    Args:
        layout: the weight.
        count: nonzero weights per output unit, from 1 to the inputs there are.
        spread: standard deviation of the nonzero weights, above 0.

    Raises:
        ShapeError: the layout is a vector, or a unit has fewer inputs than count.
        ArgumentError: count or spread is out of its range.

    Source: Martens 2010, section 5, "sparse initialization".
    """

    kind: str = field(default="fixed_count_sparse", init=False, repr=False)
    layout: Layout
    count: int
    spread: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a count that no unit has inputs for."""
        need_matrix(self.kind, self.layout)
        need_positive("spread", self.spread)
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ArgumentError("count", self.count, "Give a whole number of 1 or more.")
        inputs = self.layout.blocks[2]
        if self.count > inputs:
            raise ShapeError(
                "count", f"{self.count} for shape {self.layout.shape}", f"A unit there has {inputs} inputs."
            )

    @property
    def mean(self) -> float:
        """Zero."""
        return 0.0

    @property
    def std(self) -> float:
        """Standard deviation over all entries, the zeros among them."""
        return self.spread * math.sqrt(self.count / self.layout.blocks[2])

    def draw_blocks(self, stream: Stream) -> Array:
        """Give every input a random rank, and keep the first ``count`` of each unit."""
        blocks, rows, columns = self.layout.blocks
        ranks = stream.child("choice").uniform(0, self.layout.size).reshape(blocks * rows, columns)
        # A stable sort, so that a tie, should one ever be, is settled alike on every machine.
        kept = np.argsort(ranks, axis=1, kind="stable")[:, : self.count]
        values = self.spread * stream.normal(0, blocks * rows * self.count)
        found = np.zeros((blocks * rows, columns))
        np.put_along_axis(found, kept, values.reshape(kept.shape), axis=1)
        return found.reshape(self.layout.blocks)
