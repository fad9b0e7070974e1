"""Euclidean distances of each two rows: the norm of their difference, which is an average of squares.

Backward, row i gets Σ_j g_ij·u_ij with u_ij = (x_i − y_j)/d_ij of length 1. Assumption: rows are independent of each
other, so that E[u u'] is E[(x − y)(x' − y')]/E[d²]: exact for an entry with itself, and for others where distances
hardly differ, as those of long rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.moments.atoms import expanded, together
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.branch import added, multiplied, scaled
from initwell.propagate.rules.shape import summed
from initwell.propagate.rules.vector_norm import mean_square, root_of_sum
from initwell.propagate.table import Call, Rule, UnknownSignalError

_ALIKE = "directions between rows, by the average distance of two"


def differences(x: Signal, y: Signal) -> Signal:
    """Return x_i − y_j of all pairs of rows: dimensions (…, rows of x, rows of y, features)."""
    one = x.regrouped((*x.dims[:-1], (), x.dims[-1]), x.moments, x.means)
    two = y.regrouped((*y.dims[:-2], (), *y.dims[-2:]), y.moments, y.means)
    shape = np.broadcast_shapes(one.shape, two.shape)
    return added(*together(one, two, shape), 1.0, -1.0)


def _operands(call: Call, names: Sequence[str]) -> tuple[Signal, Signal]:
    if call["p"] != 2:
        raise UnknownSignalError("distances that are not the Euclidean ones")
    one, two = (call.trace.shown(call[name].id) for name in names)
    if one == two:
        raise UnknownSignalError("distances of rows from themselves")
    return call.signal(names[0]), call.signal(names[1])


def _cdist(call: Call) -> Sequence[Signal]:
    x, y = _operands(call, ("x1", "x2"))
    z = differences(x, y)
    squares = mean_square(z, [len(z.dims) - 1], keep=False)
    return [root_of_sum(_of_own_length(squares, x, y), z.shape[-1])]


def _of_own_length(squares: Signal, x: Signal, y: Signal) -> Signal:
    """Let the average squares of x_i − y_j vary with the lengths of rows i and j.

    A layer makes of long rows long ones: given what went in, the average of its squares has the variance 2/D of D
    independent entries, and 2f besides, f the fluctuation of what went in, relative to its square; pairs of one row i
    have that in common.
    """
    if squares.segmented:
        return squares
    moments, (rows, columns) = squares.moments.copy(), (squares.axes([len(squares.dims) - i]) for i in (2, 1))
    batch = [i for i in range(moments.ndim) if i not in rows and i not in columns]
    for part, own in ((x, rows), (y, columns)):
        varied = max(part.q - part.averaged(part.axes([len(part.dims) - 2])), 0.0) if own else part.q
        place = tuple(0 if i in own or i in batch else slice(None) for i in range(moments.ndim))
        moments[place] += 2 * part.spread * varied**2
    return replace(squares, moments=moments)


def _cdist_backward(call: Call) -> Sequence[Signal]:
    z, g = differences(*_operands(call, ("x1", "x2"))), call.signal("grad")
    size = z.q * z.shape[-1]
    unit = scaled(z, 1 / np.sqrt(size)) if size > 0 else z
    wide = expanded(g.regrouped((*g.dims, ()), g.moments, g.means), unit.shape, unit)
    directed = multiplied(*together(wide, unit, unit.shape))
    return [summed(directed, [len(z.dims) - 2], keep=False, mean=False).approximate(_ALIKE)]


RULES: Mapping[str, Rule] = {"aten._cdist_forward": _cdist, "aten._cdist_backward": _cdist_backward}
