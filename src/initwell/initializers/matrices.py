"""Distributions of whole matrices: orthogonal, identity and dirac, drawn one group or packed part at a time."""

import math
from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np

from initwell.errors import ShapeError
from initwell.initializers.distributions import Array, Distribution, Stream, need_finite
from initwell.initializers.layout import Layout

_CONVOLUTIONS = ("conv", "conv_transpose")


class Whole(Distribution):
    """A distribution of the independent matrices of one layout; a slice of it is cut from the whole."""

    elementwise = False
    layout: Layout

    @abstractmethod
    def draw_blocks(self, stream: Stream) -> Array:
        """Draw the matrices, of shape ``layout.blocks``: (matrices, outputs, inputs·kernel)."""

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Take the layout's own shape only."""
        if shape != self.layout.shape:
            cure = f"This distribution was made for shape {self.layout.shape}; ask its initializer for another."
            raise ShapeError("shape", shape, cure)

    def draw_slice(self, stream: Stream, start: int, stop: int) -> Array:
        """Draw the whole tensor and cut the slice from it."""
        if self.layout.size == 0:
            return np.empty(0)
        return self.layout.from_blocks(self.draw_blocks(stream)).reshape(-1)[start:stop]


@dataclass(frozen=True)
class Orthogonal(Whole):
    """Gain times a Haar matrix: its rows or columns, whichever are fewer, are orthonormal; one per group and part.

    It is made by LAPACK's QR in float64. Rounded to float32, the entries are the same on every run of one machine and
    build; another LAPACK, or another number of its threads, may differ in the last bit.

    Args:
        layout: the weight; its kernel counts as inputs.
        gain: the factor.

    Raises:
        ShapeError: the layout is a vector or empty.
        ArgumentError: the gain is not finite.

    Source: Saxe et al. 2014; signs as in Mezzadri, "How to generate random matrices from the classical compact groups".

    >>> Orthogonal(Layout((4, 16)), 1.0).std
    0.25
    """

    kind: str = field(default="orthogonal", init=False, repr=False)
    layout: Layout
    gain: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a vector."""
        need_matrix(self.kind, self.layout)
        need_finite("gain", self.gain)

    @property
    def mean(self) -> float:
        """Zero: a matrix and its negative are equally likely."""
        return 0.0

    @property
    def std(self) -> float:
        """Gain over the root of the longer side: the squares of a matrix add up to its shorter side."""
        _, rows, columns = self.layout.blocks
        return abs(self.gain) / math.sqrt(max(rows, columns))

    def draw_blocks(self, stream: Stream) -> Array:
        """Draw one Haar matrix per block."""
        blocks = haar(stream, *self.layout.blocks)
        blocks *= self.gain
        return blocks


@dataclass(frozen=True)
class DeltaOrthogonal(Whole):
    """A convolution that is an orthogonal matrix at the kernel's centre and 0 elsewhere; one per group.

    Args:
        layout: a convolution's weight.
        gain: the factor.

    Raises:
        ShapeError: the layout is no convolution.
        ArgumentError: the gain is not finite.

    Source: Xiao et al. 2018, section 3.3 and algorithm 1.
    """

    kind: str = field(default="delta_orthogonal", init=False, repr=False)
    layout: Layout
    gain: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what has no kernel."""
        need_kernel(self.kind, self.layout, "Use orthogonal for a matrix.")
        need_finite("gain", self.gain)

    @property
    def mean(self) -> float:
        """Zero."""
        return 0.0

    @property
    def std(self) -> float:
        """That of an orthogonal matrix, thinned by the kernel."""
        _, rows, columns = self.layout.blocks
        inputs = columns // self.layout.receptive_field
        return abs(self.gain) / math.sqrt(max(rows, inputs) * self.layout.receptive_field)

    def draw_blocks(self, stream: Stream) -> Array:
        """Put one Haar matrix at the centre of each block's kernel."""
        count, rows, columns = self.layout.blocks
        taps = haar(stream, count, rows, columns // self.layout.receptive_field)
        return self.gain * at_centre(self.layout, taps)


@dataclass(frozen=True)
class Identity(Whole):
    """Gain times the identity matrix, as far as it goes when the sides differ; one per packed part.

    Args:
        layout: a matrix.
        gain: the factor.

    Raises:
        ShapeError: the layout is a vector or has a kernel.
        ArgumentError: the gain is not finite.
    """

    kind: str = field(default="identity", init=False, repr=False)
    layout: Layout
    gain: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no matrix."""
        need_matrix(self.kind, self.layout)
        need_finite("gain", self.gain)
        if self.layout.kernel:
            raise ShapeError("shape", self.layout.shape, "An identity is a matrix; use dirac for a convolution.")

    @property
    def mean(self) -> float:
        """Gain times the share of entries on the diagonal."""
        return self.gain * diagonal_share(self.layout)

    @property
    def std(self) -> float:
        """Spread of entries that are the gain on the diagonal and 0 off it."""
        share = diagonal_share(self.layout)
        return abs(self.gain) * math.sqrt(share * (1 - share))

    def draw_blocks(self, stream: Stream) -> Array:
        """Set the diagonals; nothing is random."""
        count, rows, columns = self.layout.blocks
        return np.tile(self.gain * np.eye(rows, columns), (count, 1, 1))


@dataclass(frozen=True)
class Dirac(Whole):
    """A convolution that passes channel i of each group on to output i of that group, times the gain.

    Args:
        layout: a convolution's weight; where a group has more inputs than outputs or fewer, the rest stays 0.
        gain: the factor.

    Raises:
        ShapeError: the layout is no convolution.
        ArgumentError: the gain is not finite.
    """

    kind: str = field(default="dirac", init=False, repr=False)
    layout: Layout
    gain: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what has no kernel."""
        need_kernel(self.kind, self.layout, "Use identity for a matrix.")
        need_finite("gain", self.gain)

    @property
    def mean(self) -> float:
        """Gain times the share of entries that are not 0."""
        return self.gain * diagonal_share(self.layout) / self.layout.receptive_field

    @property
    def std(self) -> float:
        """Spread of entries that are the gain or 0."""
        share = diagonal_share(self.layout) / self.layout.receptive_field
        return abs(self.gain) * math.sqrt(share * (1 - share))

    def draw_blocks(self, stream: Stream) -> Array:
        """Put identities at the kernel's centre; nothing is random."""
        count, rows, columns = self.layout.blocks
        eye = np.eye(rows, columns // self.layout.receptive_field)
        return self.gain * at_centre(self.layout, np.tile(eye, (count, 1, 1)))


def haar(stream: Stream, count: int, rows: int, columns: int) -> Array:
    """Draw matrices with orthonormal rows or columns, whichever are fewer, uniformly among all such.

    Args:
        stream: where random numbers come from.
        count: how many.
        rows: rows of each.
        columns: columns of each.

    Returns:
        (count, rows, columns).
    """
    long, short = max(rows, columns), min(rows, columns)
    found = np.empty((count, rows, columns))
    for index in range(count):
        first = index * long * short
        gaussian = stream.normal(first, first + long * short).reshape(long, short)
        q, r = np.linalg.qr(gaussian)
        # QR alone leaves the signs to the algorithm; with R's diagonal made positive, Q is Haar.
        q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)
        found[index] = q if rows >= columns else q.T
    return found


def at_centre(layout: Layout, taps: Array) -> Array:
    """Put (matrices, outputs, inputs) at the centre of a kernel of zeros; k // 2 of an axis of length k.

    Returns:
        (matrices, outputs, inputs·kernel).
    """
    centre = np.ravel_multi_index(tuple(k // 2 for k in layout.kernel), layout.kernel)
    blocks = np.zeros((*taps.shape, layout.receptive_field))
    blocks[..., centre] = taps
    return blocks.reshape(layout.blocks)


def diagonal_share(layout: Layout) -> float:
    """Return min(rows, inputs) / (rows · inputs), the share of a block's channel pairs that are on its diagonal."""
    _, rows, columns = layout.blocks
    return 1 / max(rows, columns // layout.receptive_field)


def need_matrix(kind: str, layout: Layout) -> None:
    """Raise ShapeError for a vector or an empty tensor."""
    if layout.kind == "vector" or layout.size == 0:
        cure = f"The {kind} rule needs at least one input and one output; use constant or normal for a vector."
        raise ShapeError("shape", layout.shape, cure)


def need_kernel(kind: str, layout: Layout, cure: str) -> None:
    """Raise ShapeError for all but convolutions."""
    if layout.kind not in _CONVOLUTIONS or not layout.kernel or layout.size == 0:
        raise ShapeError(
            "shape", f"{layout.shape}, a {layout.kind} weight", f"The {kind} rule is for convolutions. {cure}"
        )
