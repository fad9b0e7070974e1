"""Tables that a small net makes of known rows, such as the position bias of Swin v2: their rows are not exchangeable.

Rows that are looked up are counted as alike; but what layers of fresh weights and ReLUs make of known coordinates is as
large as these are: row r has E[y_r²] ∝ |x_r|², up to biases, and a row near the origin, which most pairs of places look
up, is a small one. With the sizes s_r, 1 on average, a look-up of n_r places each shows E[y²]·Σ n_r s_r/Σ n_r.
Assumption: pairs of rows are as much larger or smaller as rows are.
"""

import math

import numpy as np
from torch import Tensor

from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.branch import scaled
from initwell.propagate.table import Call
from initwell.trace.ops import COPIES
from initwell.trace.trace import Op, ValueRef

_SAME = frozenset({*COPIES, "aten.view", "aten._unsafe_view", "aten.reshape", "aten.detach", "aten.alias"})
# So many ops lie between known rows and the table that is made of them.
_STEPS = 16


def as_often_as_shown(call: Call, table: ValueRef, found: Signal, index: Tensor) -> Signal:
    """Scale what was looked up in a table by how large its rows are, as often as each is shown.

    Args:
        call: of the look-up.
        table: what is looked up, along its first dimension.
        found: what was found with all rows alike.
        index: of the rows.
    """
    rows = call.trace.values[table.id].shape[0]
    size = _sizes(call, table.id, rows, _STEPS)
    if size is None:
        return found
    shown = float(size[index.cpu().numpy().ravel() % rows].mean())
    return scaled(found, math.sqrt(shown)) if shown > 0 else found


def _sizes(call: Call, value: int, rows: int, steps: int) -> Array | None:
    """Return E[y²] of each row of a value over its average; None where it is not made of known rows alone."""
    shape = call.trace.values[value].shape
    if not shape or math.prod(shape[:-1]) != rows:
        return None
    if value in call.values:
        numbers = call.values[value].detach().double().cpu().numpy().reshape(rows, -1)
        squares = np.asarray((numbers**2).mean(axis=1))
        return squares / squares.mean() if squares.any() else None
    op = call.trace.producer(value)
    if op is None or steps == 0 or value != op.outputs[0]:
        return None
    if op.functional == "aten.relu" or op.functional in _SAME:
        return _sizes(call, op.inputs[0], rows, steps - 1)
    name = {"aten.mm": "self", "aten.addmm": "mat1"}.get(op.functional, "")
    source = op.arguments.get(name)
    found = _sizes(call, source.id, rows, steps - 1) if isinstance(source, ValueRef) else None
    return None if found is None else _with_bias(call, op, found)


def _with_bias(call: Call, op: Op, size: Array) -> Array | None:
    """Return the sizes of a layer's outputs: a bias is the same for all rows."""
    bias, whole = op.arguments.get("self"), call.known.get(op.outputs[0])
    if op.functional == "aten.mm" or not isinstance(bias, ValueRef):
        return size
    own = call.known.get(bias.id)
    if own is None or whole is None or whole.q <= 0:
        return None
    share = min(own.q / whole.q, 1.0)
    return (1 - share) * size + share
