"""Signal: a whole tensor as its mean and its second moments by which indices agree.

At initialization the entries of a tensor are exchangeable along each of its axes: no sample, position or channel is
special. Then E[x_i x_j] depends only on *which axes i and j differ in*, and a tensor of any size is one small array:

    moments[b] = E[x_i x_j] for indices that agree on the axes where b is 0 and differ on those where b is 1

``moments[0, 0, …]`` is the second moment q that Xavier and Kaiming carry.

**Atoms.** A reshape must lose nothing, so the axes of that array are not the tensor's dimensions but *atoms*: each
dimension is a row-major tuple of atoms whose sizes multiply to its length. (N, T, C) seen as (N·T, C) is the same three
atoms, grouped otherwise. An atom of size a·b can be cut in two exactly: indices agree on it when they agree on both
parts, so ``moments[.., d, ..]`` becomes ``moments[.., d1, d2, ..] = moments[.., d1 or d2, ..]``. A dimension of
length 1 has no atoms at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from initwell.errors import ArgumentError
from initwell.records import Record
from initwell.theory.activation import Activation

Array = NDArray[np.float64]
Fidelity = Literal["exact", "approximate"]


@dataclass(frozen=True)
class Atom(Record):
    """One atomic axis.

    Attributes:
        size: its length, at least 2.
        sample: whether it counts samples, so that differing in it means another sample.
    """

    size: int
    sample: bool = False


Dims = tuple[tuple[Atom, ...], ...]


@dataclass(frozen=True, eq=False)
class Image:
    """Says that a value is φ(u), u the Gaussian signal ``pre``: the backward's φ′ asks for it."""

    phi: Activation
    pre: "Signal"


@dataclass(frozen=True, eq=False)
class Law:
    """How one entry is distributed that is no Gaussian: Σ weights·N(values, variance), a function of one plus another.

    ``image`` times ``factor`` is the part of it that the values stand for; the Gaussian part has mean ``offset``.
    """

    values: Array
    weights: Array
    variance: float
    image: Image
    factor: float
    offset: float


@dataclass(frozen=True, eq=False)
class Gate:
    """Says that a part of a gradient went through φ′(u), u being ``pre``: what it is, given u.

    ``moments`` are those of that part; E[g²|u] = φ′(u)²·power(u), and E[g|u] goes as φ′(u)·passed(u): tables over
    ``grid``.
    """

    phi: Activation
    pre: "Signal"
    moments: Array
    grid: Array
    power: Array
    passed: Array


@dataclass(frozen=True, eq=False)
class Signal:
    """One tensor at initialization; see the module's text.

    Attributes:
        dims: the atoms of each dimension, row-major.
        moments: shape (2,) * number of atoms, in the order of ``dims``.
        mean: E[x].
        fidelity: "exact" under mean-field's independence, or "approximate".
        reasons: why it is only approximate.
        gaussian: whether entries may be taken as jointly Gaussian: sums of many independent terms, and sums of those.
        image: the Gaussian that it is a function of, where it is one.
        law: how its entries are distributed, where they are the sum of a Gaussian and a function of one.
        gates: the masks that its parts went through last, where it is a gradient that met some.
        roots: (tag, a): it contains a times the normalized value of that tag, plus what is independent of it.
        peak: above 1 where only the largest of that many entries along the spatial dimensions (2, 3, …) got a
            gradient: max pooling's backward.
        profile: for each of the last dimensions, E[x²] by position over its mean: what zero padding leaves at borders.
    """

    dims: Dims
    moments: Array
    mean: float = 0.0
    fidelity: Fidelity = "exact"
    reasons: tuple[str, ...] = ()
    gaussian: bool = False
    image: Image | None = None
    law: Law | None = None
    gates: tuple[Gate, ...] = ()
    roots: tuple[tuple[int, float], ...] = ()
    peak: int = 1
    profile: tuple[Array, ...] = ()

    def __post_init__(self) -> None:
        """Refuse moments that do not belong to the atoms."""
        if self.moments.shape != (2,) * len(self.atoms):
            cure = "Give one axis of length 2 for each atom; a dimension of length 1 has none."
            raise ArgumentError("moments", f"shape {self.moments.shape} for {len(self.atoms)} atoms", cure)

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """All atoms, in the order of ``moments``."""
        return tuple(atom for dim in self.dims for atom in dim)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(math.prod(a.size for a in dim) for dim in self.dims)

    @property
    def q(self) -> float:
        """The second moment E[x²]."""
        return float(self.moments[(0,) * self.moments.ndim])

    @property
    def rms(self) -> float:
        """The root mean square, √E[x²]."""
        return math.sqrt(max(self.q, 0.0))

    @property
    def overlap(self) -> float | None:
        """The moment between the same entry of different samples over q; None without a sample axis, or at q = 0."""
        differ = tuple(int(a.sample) for a in self.atoms)
        return float(self.moments[differ]) / self.q if any(differ) and self.q > 0 else None

    def axes(self, dims: Sequence[int]) -> tuple[int, ...]:
        """Return which axes of ``moments`` belong to these dimensions."""
        starts = np.cumsum([0, *(len(d) for d in self.dims)])
        return tuple(i for d in dims for i in range(starts[d], starts[d + 1]))

    def changed(self, moments: Array, mean: float, *, dims: Dims | None = None, gaussian: bool = False) -> "Signal":
        """Return a signal of other numbers that keeps the fidelity and forgets where it came from."""
        return Signal(
            self.dims if dims is None else dims, moments, mean, self.fidelity, self.reasons, gaussian=gaussian
        )

    def regrouped(self, dims: Dims, moments: Array) -> "Signal":
        """Return the same entries under other dimensions."""
        return replace(self.changed(moments, self.mean, dims=dims, gaussian=self.gaussian), peak=self.peak)

    def approximate(self, reason: str) -> "Signal":
        """Return it marked as approximate, and why."""
        reasons = self.reasons if reason in self.reasons else (*self.reasons, reason)
        return replace(self, fidelity="approximate", reasons=reasons)


def independent(shape: Sequence[int], q: float, mean: float = 0.0, *, sample: int | None = None) -> Signal:
    """Return a signal of independent entries.

    Args:
        shape: of the tensor.
        q: E[x²].
        mean: E[x].
        sample: the dimension that counts samples, if any.

    Returns:
        A signal whose moments are q where all indices agree and mean² elsewhere.

    >>> independent((4, 3), 2.0).moments.tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    dims = tuple((Atom(n, i == sample),) if n > 1 else () for i, n in enumerate(shape))
    moments = np.full((2,) * sum(map(len, dims)), mean * mean)
    moments[(0,) * moments.ndim] = q
    return Signal(dims, moments, mean)


def constant(shape: Sequence[int], value: float) -> Signal:
    """Return a signal that is the same known number everywhere.

    >>> constant((2, 1), 3.0).moments.tolist()
    [9.0, 9.0]
    """
    return independent(shape, value * value, value)


def merged_fidelity(signal: Signal, *others: Signal) -> Signal:
    """Return ``signal`` no more trusted than the others it was made with."""
    for other in others:
        for reason in other.reasons:
            signal = signal.approximate(reason)
    return signal


def averaged(moments: Array, axis: int, size: int) -> Array:
    """Average over all pairs of indices of an axis, those of an index with itself included: agree/n + differ·(1−1/n).

    >>> averaged(np.array([3.0, 1.0]), 0, 4).item()
    1.5
    """
    agree, differ = moments.take(0, axis), moments.take(1, axis)
    return np.asarray(agree / size + differ * (1 - 1 / size))
