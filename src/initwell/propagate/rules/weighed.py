"""Scores times known numbers, as linear attention weighs them: a triangle of ones, or of decays.

Of y = (D ∘ (q kᵀ)) v, D known, row i is as large as Σ_j D_ij² has it: the first row of a triangle has one term, the
last all. A norm behind it takes that off, row by row, and what it sends back is divided by it. So rows and columns of D
whose mean squares differ by more than a factor of two become segments, 1, 1, 2, 4, … of a triangle, and of two entries

    E[D_ij D_i′j′]        by the segments of i, i′, j and j′, and by whether i = i′ and j = j′

is what the numbers themselves have on average. Assumption: rows of one segment are of one size; that a row of few
scores is as large as these few happen to be is left out.
"""

from functools import reduce
from itertools import product

import numpy as np
import torch
from torch import Tensor

from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.segments import Array, patterns
from initwell.propagate.moments.signal import Atom, Signal
from initwell.propagate.rules.branch import multiplied
from initwell.propagate.rules.masks import are_scores
from initwell.propagate.table import Call
from initwell.trace.trace import ValueRef

# Segments of rows, at most; and numbers of a table.
_MOST = 12
_LARGEST = 1 << 22


def weighed_scores(call: Call) -> Signal | None:
    """Multiply scores by known numbers whose rows are of unlike size; None where that is not what happens.

    Args:
        call: of the product.
    """
    for name, other in (("other", "self"), ("self", "other")):
        known, ref = call.value(name), call[other]
        if known is None or known.ndim < 3 or not isinstance(ref, ValueRef) or not call.has(other):
            continue
        x = call.signal(other)
        if x.shape != call.shape() or x.mask is not None or not are_scores(call, ref):
            continue
        weights = call.values.once(f"weighed {call[name].id}", lambda known=known: _in_parts(known))
        if weights is not None:
            return multiplied(*together(x, weights, call.shape()))
    return None


def _in_parts(known: Tensor) -> Signal | None:
    """Measure known numbers by segments of their last two dimensions; None where these are alike."""
    if not known.is_floating_point() or known.numel() > _LARGEST or not bool(torch.isfinite(known).all()):
        return None
    data: Array = known.detach().double().numpy()
    squares = (data**2).reshape(-1, *data.shape[-2:]).mean(0)
    rows, columns = _parts(squares.mean(1)), _parts(squares.mean(0))
    if len(rows) * len(columns) == 1 or max(len(rows), len(columns)) > _MOST:
        return None
    return measured_in_parts(data, [*[(n,) for n in data.shape[:-2]], rows, columns])


def _parts(sizes: Array) -> tuple[int, ...]:
    """Return lengths of stretches that are of one size but for a factor of two."""
    level = np.ceil(np.log2(np.maximum(sizes / (sizes.max() or 1.0), 1e-12)) - 1e-9)
    borders = np.flatnonzero(np.diff(level)) + 1
    return tuple(int(n) for n in np.diff([0, *borders, sizes.size]))


def measured_in_parts(data: Array, parts: list[tuple[int, ...]]) -> Signal:
    """Measure numbers by segments of each of their dimensions.

    Args:
        data: the numbers.
        parts: lengths of the segments of each dimension.

    >>> found = measured_in_parts(np.tril(np.ones((1, 4, 4))), [(1,), (1, 1, 2), (4,)])
    >>> found.q, found.means.tolist()
    (0.625, [[0.25], [0.5], [0.875]])
    """
    kept = [d for d, n in enumerate(data.shape) if n > 1]
    values, segments = data.reshape([data.shape[d] for d in kept]), [parts[d] for d in kept]
    members = [np.repeat(np.eye(len(p)), p, axis=0) for p in segments]
    means = values
    for d, member in enumerate(members):
        means = np.moveaxis(np.tensordot(means, member / member.sum(0), (d, 0)), -1, d)
    sums = {summed: _sums(values, members, summed) for summed in product((False, True), repeat=len(kept))}
    for d in range(len(kept) - 1, -1, -1):
        sums = {head: _patterned(sums[(*head, False)], sums[(*head, True)], d + sum(head)) for head in _heads(d)}
    counts = reduce(np.multiply.outer, [patterns(p).counts for p in segments], np.ones(()))
    moments = np.where(counts > 0, sums[()] / np.maximum(counts, 1.0), 0.0)
    for d, p in enumerate(segments):
        # A segment of length 1 has no pair that differs within it: any number serves there.
        alone = np.flatnonzero(patterns(p).counts == 0)
        moments[(slice(None),) * d + (alone,)] = moments.take(patterns(p).first[alone], d)
    atoms = iter(segments)
    dims = tuple((Atom(n, parts=p if len(p := next(atoms)) > 1 else ()),) if n > 1 else () for n in data.shape)
    return Signal(dims, np.ascontiguousarray(moments), means)


def _heads(count: int) -> list[tuple[bool, ...]]:
    return list(product((False, True), repeat=count))


def _sums(values: Array, members: list[Array], summed: tuple[bool, ...]) -> Array:
    """Sum x x′ by segments: over all pairs of indices along axes that are summed, over equal ones along the others."""
    part = values
    for d, whole in enumerate(summed):
        if whole:
            part = np.moveaxis(np.tensordot(part, members[d], (d, 0)), -1, d)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    one, two, rest, found = "", "", list[str](), ""
    for whole in summed:
        first, second = next(letters), next(letters)
        one, two = one + first, two + (second if whole else first)
        found += first + second if whole else second
        rest += [] if whole else [first + second]
    others = [member for member, whole in zip(members, summed, strict=True) if not whole]
    return np.asarray(np.einsum(",".join([one, two, *rest]) + "->" + found, part, part, *others, optimize=True))


def _patterned(agree: Array, every: Array, axis: int) -> Array:
    """Return sums by pattern of one axis from those of equal indices and those of all pairs, on two axes."""
    count = agree.shape[axis]
    differ = every.reshape(*every.shape[:axis], count * count, *every.shape[axis + 2 :]).copy()
    differ[(slice(None),) * axis + (np.arange(count) * (count + 1),)] -= agree
    return np.concatenate([agree, differ], axis)
