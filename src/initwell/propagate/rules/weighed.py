"""Scores times known numbers, as linear attention weighs them: a triangle of ones, or of decays.

Of y = (D ∘ (q kᵀ)) v, D known, row i is as large as Σ_j D_ij² has it: the first row of a triangle has one term, the
last all. A norm behind it takes that off, row by row, and what it sends back is divided by it. So rows and columns of D
whose mean squares differ by more than a factor of two become segments, 1, 1, 2, 4, … of a triangle, and of two entries

    E[D_ij D_i′j′]        by the segments of i, i′, j and j′, and by whether i = i′ and j = j′

is what the numbers themselves have on average. Assumption: rows of one segment are of one size; that a row of few
scores is as large as these few happen to be is left out.
"""

from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor

from initwell.propagate.given.measured import in_parts, measured
from initwell.propagate.moments.alike import UNLIKE
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.segments import Array, stretches
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.branch import multiplied, operand
from initwell.propagate.rules.masks import are_scores
from initwell.propagate.rules.parts import IN_ORDER
from initwell.propagate.table import Call, UnknowableError
from initwell.trace.trace import ValueRef

# Segments of rows, at most; and numbers of a table.
_MOST = 12
_LARGEST = 1 << 22
# Numbers whose squares vary by less are of one size.
_ALIKE = 0.05
# How much squares of one stretch may differ: as little as leaves no more stretches than there may be.
_OCTAVES = (1e-3, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0)


def weighed_scores(call: Call) -> Signal | None:
    """Multiply scores by known numbers whose rows are of unlike size; None where that is not what happens.

    Args:
        call: of the product.
    """
    found = weights_of(call)
    if found is None or found[1].mask is not None or found[1].shape != call.shape():
        return None
    weights = call.values.once(f"weighed {call.op.index}", partial(_by_segments, found[0]))
    return None if weights is None else multiplied(*together(found[1], weights, call.shape()))


def weights_of(call: Call) -> tuple[Tensor, Signal] | None:
    """Return known numbers and the scores that are multiplied by them; None where that is not what happens.

    Args:
        call: of a product.
    """
    for name, other in (("other", "self"), ("self", "other")):
        known, ref = call.value(name), call[other]
        if (
            known is None
            or known.ndim < 2
            or min(known.shape[-2:]) < 2
            or not isinstance(ref, ValueRef)
            or not call.has(other)
        ):
            continue
        if are_scores(call, ref):
            return known, call.signal(other)
    return None


def by_index(call: Call, name: str, *, inverse: bool = False) -> Signal:
    """Return an operand; of known numbers that are one for each index of one dimension, by segments of about one size.

    What is multiplied by them is as unlike as they are, and a norm divides each of its rows by its own size.

    Args:
        call: of a product, or of a quotient.
        name: which operand.
        inverse: whether to return 1/x of such numbers; only of such.

    Raises:
        UnknownSignalError: the operand is neither known numbers nor a signal.
    """
    known, ref = call.value(name), call[name]
    if known is not None and 1 < known.numel() == max(known.shape, default=0) <= _LARGEST and isinstance(ref, ValueRef):
        first = call.values.folded.first[ref.id]
        work = partial(_in_stretches, known, call.values.sample(ref.id), inverse=inverse)
        if (found := call.values.once(f"stretches of {first} {inverse}", work)) is not None:
            return found
    return operand(call, name)


def refuse_two_orders(call: Call, a: Signal, b: Signal) -> None:
    """Refuse a product with numbers that count as sorted where the other operand has rows of unlike size as well.

    Args:
        call: of the product.
        a: one operand.
        b: the other.

    Raises:
        UnknowableError: the orders of the two are not one and the same.
    """
    for name, numbers, other in (("self", a, b), ("other", b, a)):
        sorted_ones = call.value(name) is not None and IN_ORDER in numbers.reasons
        if not sorted_ones or not numbers.segmented or not other.segmented:
            continue
        for dim, atoms in enumerate(reversed(numbers.dims)):
            there = other.dims[-1 - dim] if dim < len(other.dims) else ()
            unlike = [atom.parts for atom in there] != [atom.parts for atom in atoms] or call.op.phase == "forward"
            if any(atom.parts for atom in atoms) and any(atom.parts for atom in there) and unlike:
                raise UnknowableError("rows times known numbers of unlike size that are unlike in another order, too")


def by_number(call: Call, name: str, one: Signal, two: Signal) -> bool:
    """Whether a product with known numbers is Gaussian: stretch by stretch one number times what is.

    Args:
        call: of the product.
        name: the operand that is known numbers.
        one: an operand, or its inverse.
        two: the other.
    """
    if call.value(name) is None or one.gaussian == two.gaussian:
        return False
    numbers = two if one.gaussian else one
    return numbers.segmented and bool((numbers.means**2 >= (1 - _ALIKE) * numbers.diagonal).all())


def _in_stretches(known: Tensor, sample: int | None, *, inverse: bool) -> Signal | None:
    """Measure numbers by stretches of about one size; None where all are, or where there are too many stretches."""
    if known.dtype == torch.bool or known.is_complex() or not bool(torch.isfinite(known).all()):
        return None
    if inverse and bool((known == 0).any()):
        return None
    data: Array = known.detach().double().numpy()
    data = 1 / data if inverse else data
    squares = data.ravel() ** 2
    if squares.var() <= _ALIKE * squares.mean() ** 2:
        return None
    order = np.argsort(squares, kind="stable")
    for turned, octaves in product((False, True), _OCTAVES):
        parts = _parts(squares[order] if turned else squares, octaves)
        if 1 < len(parts) <= _MOST:
            numbers = data.ravel()[order].reshape(data.shape) if turned else data
            found = in_parts(numbers, [parts if n > 1 else (1,) for n in data.shape], sample=sample)
            return found.approximate(IN_ORDER) if turned else found
    return measured(torch.as_tensor(data), sample=sample).approximate(UNLIKE)


def _by_segments(known: Tensor) -> Signal | None:
    """Measure known numbers by segments of their last two dimensions; None where these are alike."""
    if not known.is_floating_point() or known.numel() > _LARGEST or not bool(torch.isfinite(known).all()):
        return None
    data: Array = known.detach().double().numpy()
    squares = (data**2).reshape(-1, *data.shape[-2:]).mean(0)
    rows, columns = _parts(squares.mean(1)), _parts(squares.mean(0))
    if len(rows) * len(columns) == 1 or max(len(rows), len(columns)) > _MOST:
        return None
    return in_parts(data, [*[(n,) for n in data.shape[:-2]], rows, columns])


def _parts(sizes: Array, octaves: float = 1.0) -> tuple[int, ...]:
    """Return lengths of stretches that are of one size but for a factor of two, or so many octaves."""
    level = np.ceil(np.log2(np.maximum(sizes / (sizes.max() or 1.0), 1e-12)) / octaves - 1e-9)
    return stretches(level.astype(np.int64))
