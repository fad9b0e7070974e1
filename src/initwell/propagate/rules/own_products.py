"""Rows times themselves, h hᵀ, as in attention without projections, or the similarities of one batch.

Its diagonal, Σ h_i², is C·q of C features, and all else of mean C·m and size √C·q, m what two rows have in common: as
one row with itself it is no product of independents, and is not like the others. A Signal says what entries differ in
and not where two indices of unlike axes are the same, so nothing is known of it but for rows that hardly differ.
"""

import math

from initwell.propagate.moments.signal import Signal
from initwell.propagate.table import Call, UnknowableError
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import ValueRef

_SCALES = frozenset({"aten.mul", "aten.div"})
_LEAST = 0.01
"""Of E[h²], what rows differ by: the diagonal is as the rest if less."""


def refuse_own(call: Call, one: str, two: str, over: tuple[int, int], *, batched: bool) -> None:
    """Refuse a product of rows and themselves.

    Args:
        call: of the product.
        one: the first operand's name.
        two: the second's.
        over: the dimension of each to sum over.
        batched: whether they share dimension 0.

    Raises:
        UnknowableError: it is one, and its diagonal is not like the rest.
    """
    first, last = call[one].id, call[two].id
    if call.op.phase != "forward" or first == last or not _same(call, first, last):
        return
    a, b = call.signal(one), call.signal(two)
    either = {1, 2} if batched else {0, 1}
    (row,), (column,) = either - {over[0]}, either - {over[1]}
    if a.shape[row] != b.shape[column] or a.shape[row] == 1 or not _varies(a, row):
        return
    raise UnknowableError("rows times themselves, whose products on the diagonal are not like the others")


def _varies(x: Signal, rows: int) -> bool:
    return x.q - x.averaged(x.axes([rows])) > _LEAST * x.q


def _same(call: Call, one: int, two: int) -> bool:
    """Whether two values show all entries of one, or numbers times them."""
    return _whole(call, one) == _whole(call, two)


def _whole(call: Call, value: int) -> int:
    """Return the value that one shows all entries of, or a number times."""
    trace, size = call.trace, math.prod(call.trace.values[value].shape)
    while (op := trace.producer(value)) is not None and op.inputs:
        plain = op.functional in _SCALES and not isinstance(op.arguments.get("other"), ValueRef)
        if not plain and op.functional not in VIEWS and op.functional not in COPIES:
            break
        if math.prod(trace.values[op.inputs[0]].shape) != size:
            break
        value = op.inputs[0]
    return value
