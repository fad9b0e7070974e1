"""Labels of axes in a contraction: which axes of two operands and of their product are the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, reduce
from itertools import accumulate, chain
from string import ascii_letters

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.moments.copies import worked_out

Array = NDArray[np.float64]
Pairs = tuple[tuple[int, int], ...]
# Tables of as many entries are made once and kept.
_MOST = 1 << 13


@dataclass(frozen=True)
class Labels:
    """What is the same of two operands, as ``np.einsum`` wants to be told.

    Attributes:
        moments: of both moments, of a vector for each axis summed over, and of a table for each spatial axis.
        means: the same of means, without spatial axes.
        kept_a: dimensions of the first operand that the product has, shared ones first.
        kept_b: dimensions of the second that it has beside.
        over: axes that are summed over, (of the first operand, of the second).
    """

    moments: str
    means: str
    kept_a: tuple[int, ...]
    kept_b: tuple[int, ...]
    over: Pairs


@lru_cache(maxsize=4096)
def labels(ranks_a: Sequence[int], ranks_b: Sequence[int], over: Pairs, batch: Pairs, space: int = 0) -> Labels:
    """Label the axes of two operands and of their product.

    Args:
        ranks_a: how many axes each dimension of the first operand has.
        ranks_b: the same of the second.
        over: pairs of dimensions that are summed over.
        batch: pairs of dimensions that are shared.
        space: how many of the last dimensions of both, of one axis each, meet in a table.

    >>> labels((1, 1), (1, 1), ((1, 0),), ()).moments
    'ab,bd,b->ad'
    """
    letters = iter(ascii_letters)
    one, two = (["".join(next(letters) for _ in range(r)) for r in ranks] for ranks in (ranks_a, ranks_b))
    for da, db in (*over, *batch):
        two[db] = one[da]
    flat_a, flat_b = len(one) - space, len(two) - space
    used_a, used_b = ({d for d, _ in (*over, *batch)}, {d for _, d in (*over, *batch)})
    kept_a = (*(d for d, _ in batch), *(d for d in range(flat_a) if d not in used_a))
    kept_b = tuple(d for d in range(flat_b) if d not in used_b)
    out = "".join(chain((one[d] for d in kept_a), (two[d] for d in kept_b)))
    summed = "".join("," + letter for d, _ in over for letter in one[d])
    new = [next(letters) for _ in range(space)]
    tables = "".join(f",{a}{b}{c}" for a, b, c in zip(one[flat_a:], two[flat_b:], new, strict=True))
    return Labels(
        f"{''.join(one)},{''.join(two)}{summed}{tables}->{out}{''.join(new)}",
        f"{''.join(one[:flat_a])},{''.join(two[:flat_b])}{summed}->{out}",
        kept_a,
        kept_b,
        tuple([pair for d, e in over for pair in zip(spans(ranks_a)[d], spans(ranks_b)[e], strict=True)]),
    )


@cache
def spans(counts: tuple[int, ...]) -> tuple[range, ...]:
    """Return which axes belong to each dimension, of so many axes each.

    >>> spans((2, 0, 1))
    (range(0, 2), range(2, 2), range(2, 3))
    """
    return tuple([range(end - n, end) for end, n in zip(accumulate(counts), counts, strict=True)])


@dataclass(frozen=True, eq=False)
class Weights:
    """What pairs of moments are weighed by where two operands are contracted; the same object each time.

    Attributes:
        tables: one for each axis summed over, and for each spatial axis, as ``Labels.moments`` has them.
    """

    tables: tuple[Array, ...]

    @worked_out
    def every(self) -> Array:
        """The products of an entry of each."""
        return np.asarray(reduce(np.multiply.outer, self.tables, np.ones(())).ravel())


def bilinear(names: str, a: Array, b: Array, weights: Weights) -> Array:
    """Contract moments as labels say: small ones by one table of all pairs of their entries, which is kept.

    >>> one = Weights((np.array([4.0, 12.0]),))
    >>> bilinear("ab,bd,b->ad", np.ones((2, 2)), np.ones((2, 2)), one).tolist()
    [[16.0, 16.0], [16.0, 16.0]]
    """
    table = _table(names, a.shape, b.shape, weights)
    if table is None:
        return _multiplied(names, a, b, weights)
    every, shape = table
    return np.asarray(every.dot(np.multiply.outer(a, b).reshape(-1)).reshape(shape))


def _multiplied(names: str, a: Array, b: Array, weights: Weights) -> Array:
    """Contract as a product of matrices, where nothing but single axes are summed over; else entry by entry."""
    plan = _plan(names)
    if plan is None:
        return np.asarray(np.einsum(names, a, b, *weights.tables))
    (first, shared, free), second, order = plan
    a, b = a.transpose(first), b.transpose(second)
    summed = a.shape[shared + free :]
    batch, rows, columns = a.shape[:shared], a.shape[shared : shared + free], b.shape[shared + len(summed) :]
    left = a.reshape(*batch, math.prod(rows), -1) * weights.every
    found = left @ b.reshape(*batch, left.shape[-1], -1)
    return np.asarray(found.reshape((*batch, *rows, *columns)).transpose(order))


@lru_cache(maxsize=1024)
def _plan(names: str) -> tuple[tuple[tuple[int, ...], int, int], tuple[int, ...], tuple[int, ...]] | None:
    """Return the orders of axes of a, with how many it shares and has alone, of b, and of the product."""
    (one, two, *others), out = names[: names.index("-")].split(","), names[names.index(">") + 1 :]
    shared, own = [c for c in one if c in two and c in out], [c for c in one if c not in two]
    summed, rest = list("".join(others)), [c for c in two if c not in one]
    if set(summed) != {c for c in one if c in two and c not in out} or not set(own + rest) <= set(out):
        return None
    first, second = [*shared, *own, *summed], [*shared, *summed, *rest]
    made = [*shared, *own, *rest]
    orders = [tuple([of.index(c) for c in by]) for of, by in ((one, first), (two, second))]
    return (orders[0], len(shared), len(own)), orders[1], tuple([made.index(c) for c in out])


@lru_cache(maxsize=1024)
def _table(
    names: str, a: tuple[int, ...], b: tuple[int, ...], weights: Weights
) -> tuple[Array, tuple[int, ...]] | None:
    """Return the matrix from all products of an entry of a and one of b to the contraction's, and its shape."""
    (one, two, *others), out = names[: names.index("-")].split(","), names[names.index(">") + 1 :]
    sizes = dict(zip(one + two, a + b, strict=True))
    for letters, table in zip(others, weights.tables, strict=True):
        sizes.update(zip(letters, table.shape, strict=True))
    shape, letters = tuple([sizes[c] for c in out]), "".join(dict.fromkeys(out + one + two))
    if not others or math.prod((*shape, *a, *b)) > _MOST:
        return None
    found = np.zeros((*shape, *a, *b))
    # A view of the entries whose indices agree where their letters do.
    there = np.einsum(f"{out}{one}{two}->{letters}", found)
    some = "".join(dict.fromkeys("".join(others)))
    factor = np.einsum(f"{','.join(others)}->{some}", *weights.tables)
    order = [some.index(c) for c in letters if c in some]
    there[...] = factor.transpose(order).reshape([sizes[c] if c in some else 1 for c in letters])
    return found.reshape(math.prod(shape), -1), shape
