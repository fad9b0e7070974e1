"""Incidences: which outputs of a convolution or pooling read which inputs through which taps, along one axis.

Two of an output p, an input x and a tap k give the third, so with E incidences and degrees d (how many of them an index
has), pairs of incidences count as E that agree in all, Σ d² − E that agree in one of the three, and E² less all these
that agree in none. Zero padding, stride and dilation are in the degrees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.moments.places import LONGEST, sizes
from initwell.propagate.moments.segments import Array
from initwell.propagate.table import Call


@dataclass(frozen=True, eq=False)
class Axis:
    """One spatial axis: how many pairs of incidences agree in what.

    Attributes:
        pairs: N[p, x, k], 0 for agree and 1 for differ.
        sizes: number of output positions, input positions and taps.
        at: shape (outputs, taps): the input position that an output reads through a tap.
        inside: whether there is such a position, and not padding.
    """

    pairs: Array
    sizes: tuple[int, int, int]
    at: NDArray[np.int64]
    inside: NDArray[np.bool_]

    @cached_property
    def one_to_one(self) -> bool:
        """Whether each output reads the input at its own place, and no other."""
        n = self.sizes[0]
        return self.sizes == (n, n, 1) and bool((self.at[:, 0] == np.arange(n)).all())

    @cached_property
    def degrees(self) -> tuple[float, float]:
        """How many taps of an output read an input, on average, and the average of the square."""
        taps = self.inside.sum(axis=1)
        return float(taps.mean()), float((taps**2).mean())

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """``at``, and 0 where that is padding."""
        return np.where(self.inside, self.at, 0)

    @cached_property
    def read(self) -> list[tuple[Any, Any]]:
        """For each tap, indices of the pairs of outputs that it has an input for, and of those inputs' pairs."""
        taps = [(np.flatnonzero(inside), at[inside]) for at, inside in zip(self.at.T, self.inside.T, strict=True)]
        return [(_of_pairs(outputs), _of_pairs(inputs)) for outputs, inputs in taps if outputs.size]


def _of_pairs(places: NDArray[np.int64]) -> tuple[Any, Any]:
    """Return an index of the pairs of these places: as slices, which are faster, where they lie evenly."""
    first, last = int(places[0]), int(places[-1])
    step = int(places[1]) - first if places.size > 1 else 1
    if step > 0 and last - first == step * (places.size - 1) and bool((np.diff(places) == step).all()):
        return (slice(first, last + 1, step),) * 2
    return places[:, None], places


def carried(places: Array, axis: Axis, *, back: bool) -> Array:
    """Add up, for each two positions, what they read through the same tap; not settled.

    Args:
        places: of what is read; see ``places``.
        axis: that is read.
        back: from outputs to inputs.
    """
    at, inside = axis.at, axis.inside
    count = axis.sizes[1] if back else len(at)
    if places.ndim == 1 or count > LONGEST:
        size = sizes(places)
        if back:
            each = np.broadcast_to(size[:, None], at.shape)[inside]
            return np.bincount(at[inside], weights=each, minlength=count).astype(np.float64)
        return np.asarray(np.where(inside, size[np.where(inside, at, 0)], 0.0).sum(axis=1))
    found = np.zeros((2, count, count))
    for outputs, inputs in axis.read:
        to, source = (inputs, outputs) if back else (outputs, inputs)
        found[:, *to] += places[:, *source]
    return found


@lru_cache(maxsize=1024)
def spatial_axis(inputs: int, outputs: int, taps: int, stride: int, padding: int, dilation: int) -> Axis:
    """Count the incidences of one axis of a convolution or pooling.

    >>> spatial_axis(4, 4, 3, 1, 1, 1).pairs[0, 0, 0].item()  # of 12 taps, 2 fall on padding
    10.0
    """
    at = np.arange(outputs)[:, None] * stride - padding + np.arange(taps)[None, :] * dilation
    return axis_of(at, (at >= 0) & (at < inputs), inputs)


def axis_of(at: NDArray[np.int64], inside: NDArray[np.bool_], inputs: int) -> Axis:
    """Count the pairs of a list of incidences; the arguments are those of an ``Axis``."""
    every = float(inside.sum())
    by_output, by_tap = inside.sum(axis=1).astype(float), inside.sum(axis=0).astype(float)
    by_input = np.bincount(at[inside], minlength=inputs).astype(float)
    pairs = np.zeros((2, 2, 2))
    pairs[0, 0, 0] = every
    pairs[0, 1, 1], pairs[1, 0, 1], pairs[1, 1, 0] = (float(d @ d) - every for d in (by_output, by_input, by_tap))
    pairs[1, 1, 1] = every**2 - pairs.sum()
    return Axis(pairs, (at.shape[0], inputs, at.shape[1]), at, inside)


def adaptive(inputs: Sequence[int], outputs: Sequence[int]) -> list[Axis]:
    """Return the axes of adaptive pooling: window i goes from ⌊i·n/m⌋ to ⌈(i + 1)·n/m⌉."""
    axes = []
    for n, m in zip(inputs, outputs, strict=True):
        starts = np.arange(m) * n // m
        ends = -((-(np.arange(m) + 1) * n) // m)
        at = starts[:, None] + np.arange(int((ends - starts).max()))[None, :]
        axes.append(axis_of(at, at < ends[:, None], n))
    return axes


def geometry(call: Call, inputs: Sequence[int], outputs: Sequence[int], kernel: Sequence[int]) -> list[Axis]:
    """Return the axes of an op with stride, padding and dilation arguments."""
    arguments = call.op.arguments
    given = (arguments.get("stride"), arguments.get("padding"), arguments.get("dilation"))
    return list(_axes(tuple(inputs), tuple(outputs), tuple(kernel), *given))


@lru_cache(maxsize=1024)
def _axes(
    inputs: tuple[int, ...], outputs: tuple[int, ...], kernel: tuple[int, ...], *given: int | tuple[int, ...] | None
) -> tuple[Axis, ...]:
    stride, padding, dilation = (spread(value, len(kernel)) for value in given)
    columns = (inputs, outputs, kernel, stride if given[0] not in ((), None) else kernel, padding, dilation)
    return tuple([spatial_axis(i, o, k, s, p, d) for i, o, k, s, p, d in zip(*columns, strict=True)])


def spread(value: object, n: int) -> tuple[int, ...]:
    """Return an argument that may be given once for all axes as one number an axis."""
    if value is None or value == ():
        return (1,) * n
    if isinstance(value, int):
        return (value,) * n
    whole = tuple(map(int, value))  # type: ignore[call-overload]
    return whole * n if len(whole) == 1 else whole
