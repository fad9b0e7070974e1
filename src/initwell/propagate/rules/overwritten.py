"""Entries written over others at known places, as a spectrogram's masked frames or the tokens of an image in a text.

With m = 1 where something is written and 0 elsewhere, y = (1 − m)·x + m·v. Take the means a of x and b of v off both:

    y = (1 − m)(x − a) + m·(v − b) + (a + (b − a)·m)

The last term is a known tensor, and so is what the first is multiplied by; no two of the three have a product on
average. Assumption: x and v are independent of each other, and of which places are written.

One row that is written at places of each sample's own makes two kinds of rows: those agree, whatever the sample, and
the others do as before. What attention or a norm makes of rows does not ask where they are, so that they are the same
as if the places at one end were written, as many as are on average: segments. Assumption: neighbours do not matter more
than other places do. What is at one place alone is then not known, but for the end where padding never is.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from initwell.propagate.given.measured import measured
from initwell.propagate.moments.atoms import expanded, joined, together, viewed
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.signal import Signal, constant, replace
from initwell.propagate.rules.branch import added, multiplied, operand, shifted
from initwell.propagate.rules.parts import MOVED, MOVED_TO_END, concatenated, padded, sliced
from initwell.propagate.rules.weighted import sent_back
from initwell.propagate.table import Call, UnknownSignalError
from initwell.trace.trace import ValueRef


def written_over(x: Signal, put: Signal | None, mean: float, given: Mapping[int, Tensor]) -> Signal:
    """Write entries over others.

    Args:
        x: what is written over.
        put: what is written, less its mean, where it lies among zeros, of x's shape; None for a number.
        mean: of what is written.
        given: indexed dimension of x → known whole numbers, of shapes that broadcast.

    Raises:
        UnknownSignalError: the parts of x have means of their own.

    >>> from initwell.propagate.moments.signal import independent
    >>> written_over(independent((4,), 1.0), None, 2.0, {0: torch.tensor([1])}).moments.round(3).tolist()
    [1.75, 0.0]
    """
    if x.means.size > 1:
        raise UnknownSignalError("entries written over others whose parts have means of their own")
    kept = torch.ones([n if d in given else 1 for d, n in enumerate(x.shape)])
    kept[tuple(given[d] if d in given else slice(None) for d in range(len(x.shape)))] = 0.0
    sample = next((d for d in given if any(atom.sample for atom in x.dims[d])), None)
    left = multiplied(*together(shifted(x, -x.mean), measured(kept, sample=sample), x.shape))
    if put is not None:
        left = added(*together(left, put, x.shape))
    level = mean + (x.mean - mean) * kept
    if bool(level.any()):
        left = added(*together(left, measured(level, sample=sample), x.shape))
    return replace(left, gaussian=x.gaussian)


@dataclass(frozen=True)
class WholeRows:
    """Which rows of each sample are written.

    Attributes:
        some: (start, stop) of the places that stand for them, at the nearer end, as many as there are on average.
        others: those of the other rows.
        count: how many there are in all samples.
        at_end: whether in each sample they are the first or the last ones, as padding is.
    """

    some: tuple[int, int]
    others: tuple[int, int]
    count: int
    at_end: bool = False


def whole_rows(mask: Tensor, shape: Sequence[int]) -> WholeRows | None:
    """Say which rows a mask names; None where it is not one of whole rows, or names none or all of them.

    Args:
        mask: boolean, of shape (samples, places), or with 1 or all features as a third dimension.
        shape: of the value that it is of: (samples, places, features).

    >>> whole_rows(torch.tensor([[True, False, False], [True, True, False], [False, False, False]]), (3, 3, 4))
    WholeRows(some=(0, 1), others=(1, 3), count=3, at_end=True)
    """
    if len(shape) != 3 or mask.dtype is not torch.bool or mask.ndim not in (2, 3) or mask.shape[:2] != tuple(shape[:2]):
        return None
    if mask.ndim == 3:
        if not bool((mask == mask[:, :, :1]).all()):
            return None
        mask = mask[:, :, 0]
    count, length = int(mask.sum()), mask.shape[1]
    many = round(count / len(mask))
    if not 0 < many < length:
        return None
    if float(mask.nonzero()[:, 1].double().mean()) > (length - 1) / 2:
        return WholeRows((length - many, length), (0, length - many), count, _rises(mask))
    return WholeRows((0, many), (many, length), count, _rises(~mask))


def _rises(mask: Tensor) -> bool:
    """Whether no row of a mask falls from 1 to 0."""
    return bool((mask[:, 1:] >= mask[:, :-1]).all())


def rows_written(x: Signal, row: Signal, rows: WholeRows) -> Signal | None:
    """Write one row, or number, at places of each sample's own, as at one end; None where that does not fit.

    Args:
        x: of shape (samples, places, features).
        row: of shape (features,) or ().
        rows: which.
    """
    if row.shape not in ((), (1,), x.shape[2:]):
        return None
    some, others = rows.some, rows.others
    if not _even(x):
        if row.q > 0 or not _falls_into(x, rows):
            return None
        # A gradient at what such a row was written over.
        return padded(sliced(x, 1, *others), 1, others[0], x.shape[1] - others[1])
    written = expanded(row, (x.shape[0], some[1] - some[0], x.shape[2]), sliced(x, 1, *some))
    both = [written, sliced(x, 1, *others)]
    return concatenated(both if some < others else both[::-1], 1).approximate(MOVED_TO_END if rows.at_end else MOVED)


def rows_named(
    call: Call, ref: object, shape: Sequence[int], how: Callable[[Tensor], Tensor] = torch.clone
) -> WholeRows | None:
    """Say which rows a known operand names, worked out once.

    Args:
        call: of the op.
        ref: the operand.
        shape: of the value that it is of.
        how: what makes a mask of it.
    """
    known = call.value_of(ref)
    if known is None or not isinstance(ref, ValueRef) or len(shape) != 3 or known.shape[:2] != tuple(shape[:2]):
        return None
    what = f"rows {call.values.folded.first[ref.id]} {tuple(shape)} {how.__name__}"
    return call.values.once(what, lambda: whole_rows(how(known), shape))


def rows_chosen(call: Call, condition: str, kept: str, fill: str, *, shut: bool) -> Signal | None:
    """Fill whole rows that a known condition names; None where that is not what happens.

    Args:
        call: of where or masked_fill.
        condition: its argument's name.
        kept: that of what stays.
        fill: that of what is filled in.
        shut: whether the condition holds where it is filled in.
    """
    if (found := sent_back(call)) is not None:
        return found
    rows = rows_named(call, call[condition], call.shape(), torch.clone if shut else torch.logical_not)
    if rows is None or not call.has(kept) or call.signal(kept).shape != call.shape():
        return None
    row = operand(call, fill)
    if len(row.shape) > 1 and math.prod(row.shape) == row.shape[-1]:
        row = viewed(row, row.shape[-1:])
    return rows_written(call.signal(kept), row, rows)


def rows_kept(call: Call) -> Signal | None:
    """Multiply whole rows by a known mask of 0 and 1; None where that is not what happens."""
    for name, other in (("other", "self"), ("self", "other")):
        rows = rows_named(call, call[name], call.shape(), _shut)
        if rows is not None and call.has(other) and call.signal(other).shape == call.shape():
            return rows_written(call.signal(other), constant((), 0.0), rows)
    return None


def _shut(known: Tensor) -> Tensor:
    """Return where a mask of 0 and 1 is 0; nowhere if it is none."""
    return (known == 0) & bool(((known == 0) | (known == 1)).all())


def rows_of(g: Signal, rows: WholeRows) -> Signal | None:
    """Return a gradient where a row was written, one after the other; None where that is not a segment."""
    if not _falls_into(g, rows):
        return None
    part = sliced(g, 1, *rows.some)
    flat = part.regrouped(((*part.dims[0], *part.dims[1]), *part.dims[2:]), part.moments)
    while len(flat.dims[0]) > 1:
        flat = joined(flat, 0)
    return flat.regrouped(((Atom(rows.count),), *flat.dims[1:]), flat.moments)


def _falls_into(g: Signal, rows: WholeRows) -> bool:
    """Whether there are segments that begin or end where those places do."""
    ends = {0, *itertools.accumulate(g.dims[1][0].patterns.parts)} if len(g.dims[1]) == 1 else set()
    return not _even(g) and set(rows.some) <= ends


def _even(x: Signal) -> bool:
    return len(x.dims[1]) == 1 and len(x.dims[1][0].patterns.parts) == 1
