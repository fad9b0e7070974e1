"""Rows times themselves, h hᵀ, as in attention without projections, or the similarities of one batch.

Its diagonal, Σ h_i², is C·q of C features, and all else of mean C·m and size √C·q, m what two rows have in common: as
one row with itself it is no product of independents, and is not like the others. A Signal says what entries differ in
and not where two indices of unlike axes are the same. So it is played (``products``), and where that cannot be nothing
is known of it but for rows that hardly differ.
"""

import math

from initwell.propagate.moments.signal import Signal
from initwell.propagate.shared.twins import Twins
from initwell.propagate.table import Call, UnknowableError
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, Trace, ValueRef

PRODUCTS = frozenset({"aten.mm", "aten.bmm"})
_SCALES = frozenset({"aten.mul", "aten.div"})
_NORMS = frozenset({"aten.native_layer_norm", "aten._fused_rms_norm"})
_SPREAD = frozenset({"aten.expand", "aten.clone", "aten.detach"})
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
    if call.op.phase != "forward" or first == last:
        return
    a, b = call.signal(one), call.signal(two)
    either = {1, 2} if batched else {0, 1}
    (row,), (column,) = either - {over[0]}, either - {over[1]}
    if a.shape[row] != b.shape[column] or a.shape[row] == 1:
        return
    twins = call.values.once("twins", lambda: Twins(call.trace))
    if not is_itself(call.trace, twins, first, last) or not _varies(a, row):
        return
    raise UnknowableError("rows times themselves, whose products on the diagonal are not like the others")


def _varies(x: Signal, rows: int) -> bool:
    return x.q - x.averaged(x.axes([rows])) > _LEAST * x.q


def is_itself(trace: Trace, twins: Twins, one: int, two: int) -> bool:
    """Whether two values show all entries of one, or numbers times them, or times its rows.

    Args:
        trace: from ``record``.
        twins: of its values: what one layer makes of the same rows in two calls is one value, too.
        one: id of a value.
        two: of another.
    """
    return twins.first(_whole(trace, one)) == twins.first(_whole(trace, two))


def _whole(trace: Trace, value: int) -> int:
    """Return the value that one shows all entries of, or rows of which it is, each times a number."""
    size = math.prod(trace.values[value].shape)
    while (op := trace.producer(value)) is not None and op.inputs:
        if op.functional in _SCALES:
            plain = _is_one_a_row(trace, op)
        elif op.functional in _NORMS:
            plain = op.outputs[0] == value
        else:
            plain = op.functional in VIEWS or op.functional in COPIES
        if not plain or math.prod(trace.values[op.inputs[0]].shape) != size:
            break
        value = op.inputs[0]
    return value


def _is_one_a_row(trace: Trace, op: Op) -> bool:
    """Whether a value is multiplied by a number, one for each row or feature at most."""
    other = op.arguments.get("other")
    if not isinstance(other, ValueRef):
        return True
    number, rows = other.id, trace.values[op.inputs[0]].shape
    while (made := trace.producer(number)) is not None and made.functional in _SPREAD:
        number = made.inputs[0]
    shape = trace.values[number].shape
    return len(op.inputs) > 1 and number != op.inputs[0] and (not shape or 1 in shape[-2:] or shape == rows[-1:])
