"""Places: how entries along a spatial axis differ in size, and how two of them go together, by where they are.

The moments of a Signal average over all pairs of positions. Zero padding makes positions unlike: an entry at the border
is a sum of fewer terms, and of other ones than an entry inside. So with an axis of n positions goes a table S(p, p′),

    E[x_p x_p′] = S(p, p′) · (the moment of positions that agree, or of those that differ, along this axis)

whose diagonal averages to 1, and so do all other entries together. It is exact where the moments are products over the
axes, as those of a convolution of what is even are. A convolution of fresh weights carries it on exactly,

    S_y(p, p′) ∝ Σ_k S_x(p + k, p′ + k)

as does a known linear map. Of an axis longer than ``LONGEST`` only the diagonal is kept, and S is taken as the product
of its roots, by which pairs differ in size alone.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.segments import Array

T = TypeVar("T")

LONGEST = 160


@cache
def even(n: int) -> Array:
    """Return the table of positions that are all alike.

    >>> even(2).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    return np.ones((n, n) if n <= LONGEST else n)


def by_axis(work: Callable[..., T], *columns: Iterable[Any]) -> list[T]:
    """Apply to each axis what there is of it; axes of the very same objects, as of square images, share the work."""
    done: dict[tuple[int, ...], T] = {}
    keys = []
    for row in zip(*columns, strict=True):
        keys.append(tuple(map(id, row)))
        if keys[-1] not in done:
            done[keys[-1]] = work(*row)
    return [done[key] for key in keys]


def sizes(places: Array) -> Array:
    """Return E[x²] by position over its mean."""
    return np.asarray(places.diagonal() if places.ndim == 2 else places)


def of_sizes(size: Array) -> Array:
    """Return the table of positions that differ in size alone."""
    if size.size > LONGEST:
        return settled(size)
    root = np.sqrt(np.maximum(size, 0.0))
    return settled(np.outer(root, root))


def settled(places: Array) -> Array:
    """Make the diagonal average to 1, and all else."""
    own = float(sizes(places).mean()) or 1.0
    if places.ndim == 1:
        return np.asarray(places / own)
    n = len(places)
    other = (float(places.sum()) - own * n) / max(n * (n - 1), 1)
    found = places / other if other > 0 else np.ones_like(places)
    np.fill_diagonal(found, places.diagonal() / own)
    return found


def bent(places: Array, power: float) -> Array:
    """Return the table of φ(x): what it has of sizes stays, and correlations are raised to a power.

    Args:
        places: of x.
        power: by how much E[φφ′] grows in proportion with the correlation.
    """
    if places.ndim == 1:
        return places
    root = np.sqrt(np.maximum(sizes(places), 1e-300))
    scale = np.outer(root, root)
    found = settled(scale * np.maximum(places / scale, 0.0) ** power)
    np.fill_diagonal(found, places.diagonal())
    return found


def carried(places: Array, at: NDArray[np.int64], inside: NDArray[np.bool_], inputs: int, *, back: bool) -> Array:
    """Add up, for each two positions, what they read through the same tap; not settled.

    Args:
        places: of what is read.
        at: shape (outputs, taps): the input that an output reads.
        inside: whether it does.
        inputs: how many there are.
        back: from outputs to inputs.
    """
    if places.ndim == 1 or (inputs if back else len(at)) > LONGEST:
        size = sizes(places)
        if back:
            each = np.broadcast_to(size[:, None], at.shape)[inside]
            return np.bincount(at[inside], weights=each, minlength=inputs).astype(np.float64)
        return np.asarray(np.where(inside, size[np.where(inside, at, 0)], 0.0).sum(axis=1))
    found = np.zeros((inputs, inputs) if back else (len(at), len(at)))
    for k in range(at.shape[1]):
        outputs = np.nonzero(inside[:, k])[0]
        read = at[outputs, k]
        one, two = (outputs, read) if back else (read, outputs)
        found[np.ix_(two, two)] += places[np.ix_(one, one)]
    return found


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
    n, size = len(weights), sizes(places)
    pairs = max(n * (n - 1), 1)
    if places.ndim == 2 and n <= LONGEST:
        same = (weights * size) @ weights.T
        off = places.copy()
        np.fill_diagonal(off, 0.0)
        apart = weights @ off @ weights.T
        table = settled(own * same + other * apart)
    else:
        rooted = weights * np.sqrt(size)
        alone, whole = (rooted**2).sum(axis=1), rooted.sum(axis=1)
        table = of_sizes(own * alone + other * (whole**2 - alone))
        square = float((rooted.sum(axis=0) ** 2).sum())
        every = float(rooted.sum()) ** 2
        matrix = [[alone.sum() / n, (whole**2 - alone).sum() / n]]
        matrix += [[(square - alone.sum()) / pairs, (every - (whole**2).sum() - square + alone.sum()) / pairs]]
        return np.array(matrix), table
    diagonals = np.array([same.trace(), apart.trace()])
    return np.array([diagonals / n, (np.array([same.sum(), apart.sum()]) - diagonals) / pairs]), table
