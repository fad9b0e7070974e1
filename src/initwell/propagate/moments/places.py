"""Places: how entries along a spatial axis differ in size, and how two of them go together, by where they are.

The moments of a Signal average over all pairs of positions. But entries at a zero-padded border are sums of fewer
terms, and of other ones than those inside; and neighbours of an image are more alike than distant places. So with an
axis of n positions go two tables, S and L, both with the sizes E[x_p²] over their mean on the diagonal:

    E[x_p x_p′] = a·S(p, p′) + (q − a)·L(p, p′)

q is the moment of positions that agree and a is what all positions have in common, however far apart: S, which averages
to 1 over pairs that differ, says how much of it, and L is the correlation of what is each place's own, 0 where only an
entry itself is like itself. The moment of positions that differ is d = a + (q − a)·λ, with λ the average of L. It is
exact where S and L are products over the axes, as of a convolution of what is even, or of a separable random field.

A convolution of fresh weights carries both on exactly, S_y(p, p′) ∝ Σ_k S_x(p + k, p′ + k), and a known linear map
does too. Of an axis longer than ``LONGEST`` only the sizes are kept; S is taken as the product of their roots.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar

import numpy as np

from initwell.propagate.moments.segments import Array

T = TypeVar("T")

LONGEST = 256


@cache
def even(n: int) -> Array:
    """Return the tables of positions that are all alike: shape (2, n, n), or (n,) of a long axis.

    >>> even(2).tolist()
    [[[1.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]]
    """
    return np.stack([np.ones((n, n)), np.eye(n)]) if n <= LONGEST else np.ones(n)


class Remembered:
    """What was worked out of tables of places, which change little from walk to walk: of the last walk, and of this.

    Tables count as the same where they are the very same objects, which is why they must not be written to.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._before: dict[Any, tuple[Any, Any]] = {}
        self._now: dict[Any, tuple[Any, Any]] = {}

    def found(self, work: Callable[..., T], row: Sequence[Any], given: tuple[Any, ...]) -> T:
        """Return ``work(*row, *given)``, the numbers and functions ``given`` told apart by what they are."""
        key = (work, given, *map(id, row))
        held = self._now.get(key)
        if held is None:
            held = self._now[key] = self._before.get(key) or (work(*row, *given), row)
        found: T = held[0]
        return found

    @contextmanager
    def during(self) -> Iterator[None]:
        """Let ``by_axis`` remember here, throughout one walk."""
        self._before, self._now = self._now, {}
        token = _REMEMBERED.set(self)
        try:
            yield
        finally:
            _REMEMBERED.reset(token)


_REMEMBERED: ContextVar[Remembered | None] = ContextVar("remembered", default=None)


def by_axis(work: Callable[..., T], *columns: Iterable[Any], given: tuple[Any, ...] = ()) -> list[T]:
    """Apply to each axis what there is of it; axes of the very same objects, as of square images, share the work.

    Args:
        work: a function of a module, by which it is known again.
        columns: of each axis, what is told apart by identity: tables, axes of incidence, or None.
        given: what else the function is given, for all axes: numbers, which ``exactly`` rounded, and functions.
    """
    remembered = _REMEMBERED.get() or Remembered()
    return [remembered.found(work, row, given) for row in zip(*columns, strict=True)]


def exactly(number: float) -> float:
    """Round to ten digits, so that what differs by rounding alone is the same number."""
    return float(f"{number:.9e}")


def sizes(places: Array) -> Array:
    """Return E[x²] by position over its mean."""
    return np.asarray(places[0].diagonal() if places.ndim == 3 else places)


def of_sizes(size: Array, own: Array | None = None) -> Array:
    """Return the tables of positions that differ in size alone.

    Args:
        size: E[x²] by position.
        own: correlations of what is each place's own, if it has any with others.
    """
    if size.size > LONGEST:
        return settled(size)
    root = np.sqrt(np.maximum(size, 0.0))
    found = np.empty((2, size.size, size.size))
    np.multiply(root[:, None], root, out=found[0])
    np.multiply(found[0], np.eye(size.size) if own is None else own, out=found[1])
    return settled(found)


def own_correlations(places: Array) -> Array | None:
    """Return L as correlations; None of a long axis."""
    if places.ndim == 1:
        return None
    root = np.sqrt(np.maximum(sizes(places), 1e-300))
    return _within(places[1] / (root[:, None] * root))


def _within(table: Array) -> Array:
    """Cut a table of correlations off at −1 and 1, in its place."""
    return np.minimum(np.maximum(table, -1.0, out=table), 1.0, out=table)


def by_kinds(work: Callable[[Array], Array], correlations: Array) -> Array:
    """Apply a function to correlations, to three digits: of a table many are alike.

    >>> by_kinds(lambda c: c**2, np.array([[1.0, 0.5004], [0.5, 1.0]])).tolist()
    [[1.0, 0.25], [0.25, 1.0]]
    """
    kinds = np.rint(correlations * 1000.0).astype(np.int64) + 1000
    there = np.flatnonzero(np.bincount(kinds.ravel(), minlength=2001))
    found = np.empty(2001)
    found[there] = work((there - 1000) / 1000)
    return np.asarray(found[kinds])


def off_average(table: Array) -> float:
    """Return the average of a table over pairs of places that differ."""
    n = len(table)
    return float(np.add.reduce(table, axis=None) - table.trace()) / max(n * (n - 1), 1)


def settled(places: Array) -> Array:
    """Make sizes average to 1, and S over pairs that differ."""
    size = sizes(places)
    own = float(np.add.reduce(size)) / size.size or 1.0
    if places.ndim == 1:
        return np.asarray(places / own)
    other = off_average(places[0])
    found = places / np.array([other if other > 0 else 1.0, own])[:, None, None]
    if other <= 0:
        found[0] = 1.0
    found.reshape(2, -1)[:, :: size.size + 1] = size / own
    return np.asarray(found)


def parted(places: Array) -> Array:
    """Return the matrix from (q, d) to (a, q − a)."""
    share = 0.0 if places.ndim == 1 else min(off_average(places[1]), 1 - 1e-6)
    return np.array([[-share, 1.0], [1.0, -1.0]]) / (1 - share)


def bent(places: Array, power: float, own: Callable[[Array], Array] | None) -> Array:
    """Return the tables of φ(x): sizes stay.

    Args:
        places: of x.
        power: S but for sizes is raised to it: by how much E[φφ′] grows in proportion with the correlation.
        own: from correlations of L to those of φ's; None where L has none.
    """
    if places.ndim == 1:
        return places
    size = sizes(places)
    root = np.sqrt(np.maximum(size, 1e-300))
    scale = root[:, None] * root
    found = np.empty_like(places)
    np.multiply(scale, np.maximum(places[0] / scale, 0.0) ** power, out=found[0])
    found[1] = places[1] if own is None else scale * own(_within(places[1] / scale))
    np.fill_diagonal(found[0], size)
    return settled(found)


def weighed(kinds: Sequence[tuple[Array, float, float]]) -> Array:
    """Return the tables of entries of several kinds, such as channels of several layers, taken together.

    Args:
        kinds: the tables of each, and its share of a and of q − a.

    >>> weighed([(even(2), 1.0, 0.0), (settled(np.array([[[1.0, 1], [1, 3]]] * 2)), 0.0, 3.0)])[1].round(2).tolist()
    [[0.62, 0.5], [0.5, 1.38]]
    """
    shares = np.array([shares for _, *shares in kinds])
    shares = np.maximum(shares, 0.0) + 1e-300
    whole = shares.sum(axis=1) / shares.sum()
    size = sum(w * sizes(places) for w, (places, *_) in zip(whole, kinds, strict=True))
    if kinds[0][0].ndim == 1:
        return np.asarray(size)
    found = sum(w[:, None, None] * places for w, (places, *_) in zip(shares / shares.sum(axis=0), kinds, strict=True))
    found = np.asarray(found)
    for table in found:
        np.fill_diagonal(table, size)
    return settled(found)


def mixed(places: Array, weights: Array, own: float, other: float) -> tuple[Array, Array]:
    """Apply a known matrix to a value of these places.

    Args:
        places: of x.
        weights: shape (outputs, inputs).
        own: E[x²].
        other: E[x x′] of positions that differ.

    Returns:
        The 2×2 matrix from (agree, differ) of x to that of y, and the places of y.
    """
    n = len(weights)
    if places.ndim == 1 or n > LONGEST:
        return _mixed_sizes(sizes(places), weights, own, other)
    tables = np.stack([weights @ table @ weights.T for table in places])
    diagonals = np.array([table.trace() / n for table in tables])
    parts = parted(places)
    matrix = np.stack([diagonals, [off_average(table) for table in tables]]) @ parts
    level, rest = parts @ np.array([own, other])
    size = level * tables[0].diagonal() + rest * tables[1].diagonal()
    left = float(size.mean()) - level * off_average(tables[0])
    found = np.stack([tables[0], rest * tables[1] / left if abs(left) > 1e-12 * abs(own) else tables[1]])
    # The diagonal of both: what makes S and L average to the sizes.
    mean = float(size.mean()) or 1.0
    common = off_average(tables[0])
    found[0] = tables[0] / common if common > 0 else 1.0
    for table in found:
        np.fill_diagonal(table, np.maximum(size, 0.0) / mean)
    return matrix, found


def _mixed_sizes(size: Array, weights: Array, own: float, other: float) -> tuple[Array, Array]:
    n = len(weights)
    pairs, inputs = max(n * (n - 1), 1), len(size)
    rooted = weights * np.sqrt(size)
    # S averages to 1 over pairs, which the product of the roots does not.
    common = (float(np.sqrt(size).sum()) ** 2 - float(size.sum())) / max(inputs * (inputs - 1), 1) or 1.0
    alone, whole = (rooted**2).sum(axis=1), rooted.sum(axis=1)
    square, every = float((rooted.sum(axis=0) ** 2).sum()), float(rooted.sum()) ** 2
    matrix = [[alone.sum() / n, (whole**2 - alone).sum() / n / common]]
    apart = (every - (whole**2).sum() - square + alone.sum()) / pairs
    matrix += [[(square - alone.sum()) / pairs, apart / common]]
    return np.array(matrix), of_sizes(own * alone + other * (whole**2 - alone) / common)


def times(one: tuple[Array, float, float], two: tuple[Array, float, float]) -> tuple[Array, Array]:
    """Return what positions of a product of independent values have, as E[xy x'y'] = E[x x'] E[y y'] place by place.

    Args:
        one: the tables of x, E[x²], and E[x x'] of positions that differ.
        two: those of y.

    Returns:
        By how much E[x²y²] and E[xy x'y'] are larger than the products of the averages, and the tables of xy.

    >>> uneven = of_sizes(np.array([0.5, 1.5]))
    >>> factors, found = times((uneven, 1.0, 0.0), (uneven, 2.0, 0.0))
    >>> factors.round(6).tolist(), sizes(found).round(6).tolist()
    ([1.25, 1.0], [0.2, 1.8])
    """
    size = sizes(one[0]) * sizes(two[0])
    agree = float(size.mean())
    if one[0].ndim == 1 or two[0].ndim == 1:
        return np.array([agree, 1.0]), settled(np.asarray(size))
    (a, own_a), (b, own_b) = (parted(places) @ np.array([q, d]) for places, q, d in (one, two))
    whole = (a * one[0][0] + own_a * one[0][1]) * (b * two[0][0] + own_b * two[0][1])
    common = one[0][0] * two[0][0]
    apart, product = off_average(whole), one[2] * two[2]
    level = a * b * off_average(common)
    rest = one[1] * two[1] * agree - level
    own = (whole - a * b * common) / rest if abs(rest) > 1e-12 * one[1] * two[1] else np.eye(len(common))
    found = np.stack([common, own * agree])
    for table in found:
        np.fill_diagonal(table, size)
    return np.array([agree, apart / product if abs(product) > 1e-9 * one[1] * two[1] else 1.0]), settled(found)


def spread(profile: Sequence[Array], common: float, own: float) -> float:
    """Return the relative variance of products of two rows, from how alike places are by where they are.

    Rows are places, as where a map is flattened to tokens. A padded border has a part of its sums alone, and rows there
    differ from those inside by much the same: what rows vary by then has few dimensions. With K = a·S + (q − a)·L, the
    expected products, less their row means and column means, it is the average square of K off the diagonal over that
    of its diagonal; see ``gram``. Of products of tables over the axes, sums are products of sums.

    Args:
        profile: the tables of each axis.
        common: a.
        own: q − a.

    >>> round(spread([even(4), even(4)], 3.0, 1.0), 12)
    0.0
    >>> border = np.outer([1, 1, 1, 0.5], [1, 1, 1, 0.5])
    >>> round(spread([np.stack([border, np.eye(4)]), even(4)], 3.0, 0.1), 2)
    0.32
    """
    if any(tables.ndim == 1 for tables in profile):
        return 0.0
    count = math.prod(tables.shape[-1] for tables in profile)
    rows = [tables.sum(axis=2) for tables in profile]
    squares = math.prod(np.einsum("sij,tij->st", tables, tables) for tables in profile)
    sums = math.prod(sum_ @ sum_.T for sum_ in rows)
    kinds = np.array([common, own])
    every = float(kinds @ math.prod(sum_.sum(axis=1) for sum_ in rows))
    diagonal = float(kinds @ math.prod(np.trace(tables, axis1=1, axis2=2) for tables in profile))
    size = (diagonal - every / count) / count
    whole = float(kinds @ (squares - 2 / count * sums) @ kinds) + (every / count) ** 2
    if count < 3 or size <= 0:
        return 0.0
    # Rows of nothing but their own have −1/n of their size with each other, once their mean is off.
    apart = (whole / size**2 - count**2 / (count - 1)) / (count * (count - 1)) * ((count - 1) / count) ** 2
    return float(max(apart, 0.0))
