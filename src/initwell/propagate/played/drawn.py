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
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from initwell.propagate.moments.alike import plain
from initwell.propagate.moments.axes import Source
from initwell.propagate.moments.places import sizes
from initwell.propagate.moments.segments import Array, along
from initwell.propagate.moments.signal import Signal
from initwell.propagate.played.sizes import chances, factors

# The relative variance of squares is 2 for a Gaussian weight and 0.8 for a uniform one.
_UNIFORM = 1.4
_LEAST = 1e-12
# Rows whose products vary by less than this of their size are as good as Gaussian.
_EVEN = 1e-3
# An average over more rows is no better known.
_ROWS = 1 << 12


class Layers(NamedTuple):
    """What outputs of layers are images of, W a.

    Attributes:
        read: the rows a, by the value that they are of.
        weights: the W of each part, by the axes along which it varies.
    """

    read: dict[tuple[int, ...], Tensor]
    weights: dict[tuple[int, ...], Tensor]


def drawn(
    signal: Signal,
    generator: Generator,
    dtype: torch.dtype = torch.float64,
    *,
    as_images: bool = False,
    unlike: Sequence[float] | None = None,
    layers: Layers | None = None,
) -> Tensor:
    """Draw a tensor.

    Args:
        signal: that it is to have; how entries of unlike segments go together is taken as alike, not their sizes.
        generator: of the numbers.
        dtype: that it is worked out in.
        as_images: whether rows are to be images of rows of few features, if the signal says that they are.
        unlike: by what rows vary in size beyond that, if it is known: see ``sizes``.
        layers: rows and weights that were drawn before; those of this one are added.

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
    shares = {kept: _share(moments, even.mean, kept) for kept in subsets(count)}
    total, images = sum(shares.values()), images_of(even, unlike) if as_images else None
    for kept, share in shares.items():
        if share > _LEAST * even.q and total > 0:
            shape = [n if i in kept else 1 for i, n in enumerate(lengths)]
            if uniform or images is None:
                part = numbers(shape, generator, dtype, uniform=uniform)
            else:
                part = part_of(shape, kept, images, generator, dtype, layers or Layers({}, {}))
            part = part * math.sqrt(share * whole / total)
            for axis in places.keys() & {*kept}:
                part = torch.tensordot(part, places[axis].root.to(dtype), ([axis], [0])).movedim(-1, axis)
            found = found + part
    for axis, place in places.items():
        found = found * place.size.to(dtype).reshape([-1 if i == axis else 1 for i in range(count)])
    if signal.segmented:
        found = found * _sizes(signal, even.q).to(dtype)
    if unlike:
        found = found * factors(unlike, chances(signal, one_a_row(signal), generator)).to(dtype)
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


class _Images(NamedTuple):
    """Rows that are linear images W a of rows a of few features, as a layer's outputs are of what it reads.

    Products of two rows vary by 1/K of their own size, K the number of features, the same for all outputs; and so do
    the rows' lengths, if they are not even.

    Attributes:
        features: axes of the moments that count outputs.
        width: K.
        even: whether all rows a are of one length.
        of: the value that these are of, or −1.
    """

    features: frozenset[int]
    width: int
    even: bool
    of: int


def _features(signal: Signal) -> frozenset[int]:
    return frozenset(i for i, a in enumerate(signal.atoms) if not a.follows and not a.sample)


def beyond(gradients: Tensor, weights: Tensor) -> float:
    """Return Σ (w·g)² over the columns w of W, less what it is of another W of unit variance: an average over rows."""
    g = gradients.reshape(-1, gradients.shape[-1])
    g = g[:: len(g) // _ROWS | 1].double()  # an odd step, so that positions of all samples come by
    return float((g @ weights.double()).square().sum(1).mean() - weights.shape[1] * g.square().sum(1).mean())


def undone(gradients: Sequence[Tensor], layers: Sequence[Layers], inputs: int) -> float:
    """Return by how much what goes back through a layer is larger than of an independent weight.

    Args:
        gradients: of its outputs, of each draw.
        layers: of each draw, what the outputs were drawn as.
        inputs: how many features the layer reads.
    """
    size = sum(float(g.double().square().sum(-1).mean()) for g in gradients)
    more = sum(beyond(g, w) for g, d in zip(gradients, layers, strict=True) for w in d.weights.values())
    return math.sqrt(max(1 + more / (inputs * size), _LEAST)) if size > 0 else 1.0


def one_a_row(signal: Signal) -> list[int]:
    """Return the lengths of a tensor with one number a row."""
    features = _features(signal)
    return [1 if i in features else a.size for i, a in enumerate(signal.atoms)]


def images_of(signal: Signal, unlike: Sequence[float] | None) -> _Images | None:
    """Return how rows are images of few numbers by one W, as a layer of finite width makes them; else None.

    Args:
        signal: of the value.
        unlike: by how much its rows vary in size, if that is said apart, so that those numbers are of one length.
    """
    features = _features(signal)
    if not _EVEN < signal.spread < 1 or not features or len(features) == len(signal.atoms):
        return None
    level = max(source.level for atom in signal.atoms for source in (*atom.follows, Source(-1)))
    of = next((atom.follows[0].value for atom in signal.atoms if atom.follows), -1)
    return _Images(features, max(round(1 / signal.spread), 1), level > 0 or unlike is not None, of)


def part_of(
    shape: list[int],
    kept: tuple[int, ...],
    images: _Images | None,
    generator: Generator,
    dtype: torch.dtype,
    layers: Layers,
) -> Tensor:
    """Draw what varies along some axes alone, of unit variance, with W and a as ``layers`` has them, if it does."""
    outputs = [i for i in kept if images is not None and i in images.features]
    rows = [i for i in kept if i not in outputs]
    if images is None or not outputs or not rows:
        return numbers(shape, generator, dtype, uniform=False)
    a, w = (
        numbers([math.prod(shape[i] for i in axes), images.width], generator, dtype, uniform=False)
        for axes in (rows, outputs)
    )
    w = layers.weights.setdefault(kept, w)
    if images.of >= 0:
        a = layers.read.setdefault((images.of, images.width, *rows, *(shape[i] for i in rows)), a)
    a = (
        a[:, : w.shape[1]]
        if a.shape[1] >= w.shape[1]
        else numbers([len(a), w.shape[1]], generator, dtype, uniform=False)
    )
    a = a / a.square().mean(1, keepdim=True).sqrt() if images.even else a
    found = (a @ w.T / math.sqrt(w.shape[1])).reshape([shape[i] for i in (*rows, *outputs)])
    order = sorted(range(len(kept)), key=(*rows, *outputs).__getitem__)
    return found.permute(order).reshape(shape)


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


def numbers(shape: list[int], generator: Generator, dtype: torch.dtype, *, uniform: bool) -> Tensor:
    """Draw numbers of mean 0 and variance 1, Gaussian or uniform."""
    if uniform:
        return (torch.rand(shape, generator=generator, dtype=dtype) - 0.5) * math.sqrt(12)
    return torch.randn(shape, generator=generator, dtype=dtype)


def subsets(count: int) -> list[tuple[int, ...]]:
    """Return all sets of so many axes, the smaller ones first.

    >>> subsets(2)
    [(), (0,), (1,), (0, 1)]
    """
    return [s for n in range(count + 1) for s in itertools.combinations(range(count), n)]


def _share(moments: np.ndarray, mean: float, kept: tuple[int, ...]) -> float:
    """Return the variance of the part that varies along these axes and no others."""
    return max(signed(moments - mean**2, kept), 0.0)


def signed(covariances: np.ndarray, kept: tuple[int, ...]) -> float:
    """Return what is left of covariances for the part that varies along these axes and no others, be it negative."""
    found, rank = 0.0, covariances.ndim
    for n in range(len(kept) + 1):
        for inner in itertools.combinations(kept, n):
            place = tuple(0 if i in inner else 1 for i in range(rank))
            found += (-1) ** (len(kept) - n) * float(covariances[place])
    return found
