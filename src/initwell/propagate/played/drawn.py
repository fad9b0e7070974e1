"""Numbers drawn by a Signal: Gaussian, with its mean and its second moments by which indices agree.

A value that is exchangeable along its axes is a sum of independent parts, each of which varies along some of them and
is the same along the others. Indices that differ along the axes D share the parts that vary along none of D, so that

    m[D] = Σ_(S ∩ D = ∅) v_S        v_S = Σ_(U ⊆ S) (−1)^(|S| − |U|) m[all but U]

by Möbius inversion. Parts that would be negative, as where entries of a row sum to 0, are left out.

Along a spatial axis with tables S and L (``places``) what all positions have in common goes as √S, and what varies
along it is correlated as L says: both are put in place of "all alike" and "independent".
"""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from initwell.propagate.moments.alike import plain
from initwell.propagate.moments.places import sizes
from initwell.propagate.moments.segments import Array, along
from initwell.propagate.moments.signal import Signal

# The relative variance of squares is 2 for a Gaussian weight and 0.8 for a uniform one.
_UNIFORM = 1.4
_LEAST = 1e-12


def drawn(signal: Signal, generator: Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw a tensor.

    Args:
        signal: that it is to have; how entries of unlike segments go together is taken as alike, not their sizes.
        generator: of the numbers.
        dtype: that it is worked out in.

    >>> from initwell.propagate.moments.signal import independent
    >>> found = drawn(independent((1000, 8), 4.0), Generator().manual_seed(0))
    >>> found.shape, bool(abs(float(found.square().mean()) - 4) < 0.2)
    (torch.Size([1000, 8]), True)
    """
    even = plain(signal, *range(len(signal.dims))) if signal.segmented else signal
    lengths, count = [a.size for a in even.atoms], len(even.atoms)
    found = torch.full(lengths, even.mean, dtype=dtype)
    uniform = len(signal.scatter) == 1 and signal.scatter[0] < _UNIFORM
    whole, places = even.q - even.mean**2, _places(even)
    moments = _apart(even.moments, places)
    shares = {kept: _share(moments, even.mean, kept) for kept in _subsets(count)}
    total = sum(shares.values())
    for kept, share in shares.items():
        if share > _LEAST * even.q and total > 0:
            shape = [n if i in kept else 1 for i, n in enumerate(lengths)]
            part = _numbers(shape, generator, dtype, uniform=uniform) * math.sqrt(share * whole / total)
            for axis in places.keys() & {*kept}:
                part = torch.tensordot(part, places[axis].root.to(dtype), ([axis], [0])).movedim(-1, axis)
            found = found + part
    for axis, place in places.items():
        found = found * place.size.to(dtype).reshape([-1 if i == axis else 1 for i in range(count)])
    if signal.segmented:
        found = found * _sizes(signal, even.q).to(dtype)
    return found.reshape(signal.shape).to(torch.float32)


def evenly(signal: Signal, count: int, generator: Generator) -> list[Tensor]:
    """Draw so many tensors of independent entries that together have each quantile of their law as often as any other.

    Of weights that a norm divides by, one by one, E[1/(w² + ε)] is made by the few smallest: chance misses them.

    Args:
        signal: normal or uniform, of mean 0.
        count: of tensors.
        generator: of the order.

    >>> from initwell.propagate.moments.signal import independent
    >>> one, two = evenly(independent((500,), 4.0), 2, Generator().manual_seed(0))
    >>> round(float(torch.cat([one, two]).square().mean()), 1), 3.0 < float(one.square().mean()) < 5.0
    (4.0, True)
    """
    size = math.prod(signal.shape)
    order = torch.randperm(size * count, generator=generator, dtype=torch.float64)
    levels = (order + torch.rand((), generator=generator, dtype=torch.float64)) / (size * count)
    uniform = len(signal.scatter) == 1 and signal.scatter[0] < _UNIFORM
    found = (levels - 0.5) * math.sqrt(12) if uniform else torch.special.ndtri(levels.clamp(1e-9, 1 - 1e-9))
    return [*(found * signal.rms).to(torch.float32).reshape(count, *signal.shape)]


class _Place(NamedTuple):
    """Positions along an axis.

    Attributes:
        size: of an entry, over that of all.
        root: a root of the correlations of what is each position's own.
        alike: their average over positions that differ.
    """

    size: Tensor
    root: Tensor
    alike: float


def _places(signal: Signal) -> dict[int, _Place]:
    """Return what is known of positions, by axis of the moments."""
    found, rank = {}, len(signal.dims)
    for dim, tables in zip(range(rank - len(signal.profile), rank), signal.profile, strict=True):
        if len(signal.dims[dim]) == 1 and len(signal.profile) == rank - 2:
            size, n = np.sqrt(np.maximum(sizes(tables), 0.0)), signal.dims[dim][0].size
            own = tables[1] / np.maximum(np.outer(size, size), _LEAST) if tables.ndim == 3 else np.eye(n)
            values, vectors = np.linalg.eigh(own)
            root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
            alike = (own.sum() - np.trace(own)) / (n * (n - 1))
            found[signal.axes([dim])[0]] = _Place(torch.from_numpy(size), torch.from_numpy(root), float(alike))
    return found


def _apart(moments: Array, places: Mapping[int, _Place]) -> Array:
    """Return moments in which positions that differ have what all of them have in common, and not what is theirs."""
    for axis, place in places.items():
        if place.alike < 1 - _LEAST:
            own = np.array([[1.0, 0.0], [-place.alike / (1 - place.alike), 1 / (1 - place.alike)]])
            moments = along(moments, own, axis)
    return moments


def _sizes(signal: Signal, q: float) -> Tensor:
    """Return how much larger than on average the entries of each segment are: one axis for each atom."""
    found = np.sqrt(np.maximum(signal.diagonal, 0.0) / q) if q > 0 else np.ones_like(signal.means)
    for axis, atom in enumerate(signal.atoms):
        if atom.parts:
            found = np.repeat(found, atom.parts, axis)
    return torch.from_numpy(np.ascontiguousarray(found))


def _numbers(shape: list[int], generator: Generator, dtype: torch.dtype, *, uniform: bool) -> Tensor:
    if uniform:
        return (torch.rand(shape, generator=generator, dtype=dtype) - 0.5) * math.sqrt(12)
    return torch.randn(shape, generator=generator, dtype=dtype)


def _subsets(count: int) -> list[tuple[int, ...]]:
    return [s for n in range(count + 1) for s in itertools.combinations(range(count), n)]


def _share(moments: np.ndarray, mean: float, kept: tuple[int, ...]) -> float:
    """Return the variance of the part that varies along these axes and no others."""
    found, rank = 0.0, moments.ndim
    for n in range(len(kept) + 1):
        for inner in itertools.combinations(kept, n):
            place = tuple(0 if i in inner else 1 for i in range(rank))
            found += (-1) ** (len(kept) - n) * (float(moments[place]) - mean**2)
    return max(found, 0.0)
