"""Look-ups by numbers that are known: advanced indexing, index_select, gather, and their backward.

A place i of the result shows row r(i) of a table. Which rows, and so how often two places show rows that agree in some
of the table's atoms and differ in the others, is counted from the index itself (``agreement.patterns``). Rows being
exchangeable, with P[A | place] the share of pairs at a pattern of places whose rows agree in exactly the atoms A,

    moments(y)[place, rest] = Σ_A P[A | place] · moments(x)[A, rest]

The backward adds gradients into their rows: over all pairs of places, those whose rows agree in exactly A add up to

    moments(dx)[A, rest] = Σ_place pairs(place) · P[A | place] · moments(g)[place, rest] / pairs(A)

An embedding is the look-up by one index in one dimension. An index that is random, but not by what it is applied to
(the shuffles of a masked autoencoder), takes entries at random, and exchangeable ones stay what they are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from initwell.propagate.given.agreement import Array, Integers, patterns, places
from initwell.propagate.moments.alike import plain
from initwell.propagate.moments.atoms import joined, matched
from initwell.propagate.moments.axes import Atom, Dims
from initwell.propagate.moments.signal import Signal
from initwell.propagate.table import UnknownSignalError

_SHUFFLED = "entries picked by random numbers, taken as a shuffle that all other axes share"


@dataclass(frozen=True, eq=False)
class Lookup:
    """Which rows of a table its places show.

    Attributes:
        dims: of the table, those that are indexed.
        sizes: of the table's atoms in these dimensions.
        shares: shape (2,) * these + (2,) * atoms of places: P[A | place].
        places: the atoms of the places, dimension by dimension.
        least: how often each row is looked up at least.
        most: how often at most.
    """

    dims: tuple[int, ...]
    sizes: tuple[int, ...]
    shares: Array
    places: Dims
    least: int
    most: int

    @property
    def first(self) -> int:
        """Where the places' dimensions stand in the result: in front, unless the indexed ones are neighbours."""
        neighbours = self.dims == tuple(range(self.dims[0], self.dims[0] + len(self.dims)))
        return self.dims[0] if neighbours else 0


def lookup(table: Sequence[Sequence[Atom]], given: Mapping[int, Tensor], sample: int | None = None) -> Lookup:
    """Count how an index repeats itself, atom by atom of the table.

    Args:
        table: the atoms of what is looked up, dimension by dimension.
        given: indexed dimension → known integers, of shapes that broadcast.
        sample: the dimension of the places that counts samples, where that is known.

    Returns:
        The Lookup.

    >>> lookup([(Atom(5),)], {0: torch.tensor([3, 3, 1])}).shares.round(3).tolist()
    [[1.0, 0.333], [0.0, 0.667]]
    """
    dims = tuple(sorted(given))
    whole = torch.broadcast_tensors(*(given[d] for d in dims))  # type: ignore[no-untyped-call]
    shape, coordinates = tuple(whole[0].shape), list[Integers]()
    for d, index in zip(dims, whole, strict=True):
        inner = math.prod(a.size for a in table[d])
        numbers = index.numpy() % max(inner, 1)
        for atom in table[d]:
            inner //= atom.size
            coordinates.append(numbers // inner % atom.size)
            moving = (i for i in range(len(shape)) if atom.sample and np.any(np.diff(coordinates[-1], axis=i)))
            sample = next(moving, sample)
    sizes = tuple(a.size for d in dims for a in table[d])
    if not coordinates:
        count = math.prod(shape)
        return Lookup(dims, (), np.ones((2,) * sum(n > 1 for n in shape)), places(shape, sample), count, count)
    rows = np.ravel_multi_index(tuple(c.ravel() for c in coordinates), sizes)
    counts = np.bincount(rows, minlength=math.prod(sizes))
    return Lookup(dims, sizes, patterns(coordinates), places(shape, sample), int(counts.min()), int(counts.max()))


def looked_up(table: Signal, found: Lookup) -> Signal:
    """Show rows of a table: the places' dimensions come instead of the indexed ones.

    Args:
        table: what is looked up.
        found: which of its rows.

    >>> from initwell.propagate.moments.signal import independent
    >>> table = independent((5, 2), 1.0)
    >>> looked_up(table, lookup(table.dims, {0: torch.tensor([3, 3, 1])})).moments.round(3).tolist()
    [[1.0, 0.0], [0.333, 0.0]]
    """
    table = plain(table, *found.dims)
    count, axes = len(found.sizes), table.axes(found.dims)
    moments = np.tensordot(found.shares, np.moveaxis(table.moments, axes, range(count)), (range(count),) * 2)
    rest = [d for i, d in enumerate(table.dims) if i not in found.dims]
    dims = (*rest[: found.first], *found.places, *rest[found.first :])
    atoms, start = found.shares.ndim - count, sum(len(d) for d in rest[: found.first])
    moments = np.moveaxis(moments, range(atoms), range(start, start + atoms))
    means = np.expand_dims(table.means.squeeze(axes), tuple(range(start, start + atoms)))
    return table.changed(np.asarray(moments), means, dims=dims, gaussian=table.gaussian)


def put_back(g: Signal, found: Lookup, shape: Sequence[int]) -> Signal:
    """Add gradients into the rows that they came from.

    Args:
        g: of what was looked up.
        found: which rows those were, each dimension of the table being one atom.
        shape: of the table.

    Returns:
        The gradient at the table.
    """
    count, last = len(found.sizes), found.first + len(found.places)
    g = plain(g, *range(found.first, last))
    g, shares = _same_places(g, found, {found.first + i: i for i in range(len(found.places))})
    start = sum(len(d) for d in g.dims[: found.first])
    where = range(start, start + shares.ndim - count)
    moved = np.moveaxis(g.moments, where, range(len(where)))
    many = shares * _pairs([g.atoms[i].size for i in where])
    total = np.tensordot(many, moved, (range(count, many.ndim), range(len(where))))
    total = total / _pairs(found.sizes).reshape((2,) * count + (1,) * (total.ndim - count))
    rest = [*g.dims[: found.first], *g.dims[last:]]
    dims = tuple(places((n,))[0] if d in found.dims else rest.pop(0) for d, n in enumerate(shape))
    starts = np.cumsum([0, *(len(d) for d in dims)])
    indexed = [int(starts[d]) for d in found.dims if dims[d]]
    moments = np.asarray(np.moveaxis(total, range(count), indexed))
    means = np.expand_dims(g.means.squeeze(tuple(where)), tuple(sorted(indexed)))
    many_times = math.prod(g.atoms[i].size for i in where) / math.prod(found.sizes)
    return g.changed(moments, means * many_times, dims=dims)


def picked(x: Signal, dim: int, found: Lookup) -> Signal:
    """Pick along one dimension, at each place of the others by its own index: moments(y)[p, o] = Σ_A P[A | p, o] ·
    moments(x)[A, o], the other dimensions o being common to both.

    Args:
        x: what is picked from.
        dim: the dimension of x along which.
        found: the index, of as many dimensions as x.
    """
    x, shares = _same_places(plain(x, dim), found, {d: d for d in range(len(x.dims)) if d != dim})
    count, axes = len(found.sizes), x.axes([dim])
    moved = np.moveaxis(x.moments, axes, range(count))
    before = sum(len(d) for d in x.dims[:dim])
    here = tuple(range(before, before + len(found.places[dim])))
    moments = (shares * np.expand_dims(moved, tuple(count + i for i in here))).sum(axis=tuple(range(count)))
    means = np.expand_dims(x.means.squeeze(axes), here)
    dims = (*x.dims[:dim], found.places[dim], *x.dims[dim + 1 :])
    return x.changed(np.asarray(moments), means, dims=dims, gaussian=x.gaussian)


def put_down(g: Signal, found: Lookup, dim: int, length: int) -> Signal:
    """Add gradients along one dimension into the entries that were picked.

    Args:
        g: of what was picked.
        found: the index, of g's shape.
        dim: the dimension along which.
        length: of that dimension in what was picked from.
    """
    g, shares = _same_places(plain(g, dim), found, {d: d for d in range(len(g.dims))})
    count, axes = len(found.sizes), g.axes([dim])
    many = _pairs([g.atoms[i].size for i in axes])
    many = many.reshape(tuple(2 if i in axes else 1 for i in range(g.moments.ndim)))
    total = (shares * many * g.moments).sum(axis=tuple(count + i for i in axes))
    total = total / _pairs(found.sizes).reshape((2,) * count + (1,) * (total.ndim - count))
    dims = (*g.dims[:dim], places((length,))[0], *g.dims[dim + 1 :])
    before = sum(len(d) for d in g.dims[:dim])
    moments = np.moveaxis(total, range(count), range(before, before + count))
    means = np.expand_dims(g.means.squeeze(axes), tuple(range(before, before + count)))
    return g.changed(np.asarray(moments), means * (g.shape[dim] / length), dims=dims)


def _same_places(x: Signal, found: Lookup, pairs: Mapping[int, int]) -> tuple[Signal, Array]:
    """Cut the atoms of a signal and of places, dimension by paired dimension, until both have the same."""
    count, parts = len(found.sizes), list[Array]()
    for pattern in np.ndindex((2,) * count):
        x, part = matched(x, Signal(found.places, np.asarray(found.shares[pattern])), list(pairs.items()))
        parts.append(part.moments)
    return x, np.asarray(parts).reshape((2,) * count + parts[0].shape)


def _pairs(sizes: Sequence[int]) -> Array:
    """Return how many pairs agree (0) and differ (1) in each of some axes."""
    found = np.ones(())
    for n in sizes:
        found = np.multiply.outer(found, np.array([n, n * (n - 1)], dtype=np.float64))
    return np.asarray(found)


def shuffled(x: Signal, dim: int, length: int) -> Signal:
    """Keep entries along a dimension that are picked at random: exchangeable ones stay what they are.

    Args:
        x: any signal.
        dim: the dimension.
        length: how many are kept.
    """
    x = _one_atom(x, dim)
    dims, axis = (*x.dims[:dim], places((length,))[0], *x.dims[dim + 1 :]), sum(len(d) for d in x.dims[:dim])
    moments, means = x.moments, x.means
    if x.dims[dim] and length == 1:
        moments, means = np.asarray(moments.take(0, axis)), np.asarray(means.take(0, axis))
    elif not x.dims[dim] and length > 1:
        moments, means = np.repeat(np.expand_dims(moments, axis), 2, axis), np.expand_dims(means, axis)
    return x.changed(np.asarray(moments), means, dims=dims, gaussian=x.gaussian).approximate(_SHUFFLED)


def scattered(g: Signal, dim: int, length: int) -> Signal:
    """Put entries along a dimension at places picked at random, each its own, with zeros elsewhere.

    Two places that differ both hold one with probability n(n − 1)/(length(length − 1)) for n entries.

    Args:
        g: the entries.
        dim: the dimension.
        length: how many places there are.

    Raises:
        UnknownSignalError: there are fewer places than entries.
    """
    g = _one_atom(g, dim)
    part, axis = g.shape[dim], sum(len(d) for d in g.dims[:dim])
    if part > length or length == 1:
        raise UnknownSignalError("more entries than places")
    agree, differ = (g.moments.take(i, axis) if g.dims[dim] else g.moments for i in (0, 1))
    share = part * (part - 1) / (length * (length - 1))
    moments = np.stack([agree * part / length, differ * share], axis)
    dims = (*g.dims[:dim], places((length,))[0], *g.dims[dim + 1 :])
    means = g.means if g.dims[dim] else np.expand_dims(g.means, axis)
    return g.changed(moments, means * (part / length), dims=dims).approximate(_SHUFFLED)


def _one_atom(x: Signal, dim: int) -> Signal:
    x = plain(x, dim)
    while len(x.dims[dim]) > 1:
        x = joined(x, x.axes([dim])[0])
    return x
