"""Euclidean distances of each two rows: the norm of their difference, which is an average of squares.

Backward, row i gets Σ_j g_ij·u_ij with u_ij = (x_i − y_j)/d_ij of length 1. Assumption: rows are independent of each
other, so that E[u u'] is E[(x − y)(x' − y')]/E[d²]: exact for an entry with itself, and for others where distances
hardly differ, as those of long rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.moments.atoms import expanded, together
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.branch import added, multiplied, scaled
from initwell.propagate.rules.shape import summed
from initwell.propagate.rules.vector_norm import euclidean
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
    z = differences(*_operands(call, ("x1", "x2")))
    return [euclidean(z, [len(z.dims) - 1], keep=False)]


def _cdist_backward(call: Call) -> Sequence[Signal]:
    z, g = differences(*_operands(call, ("x1", "x2"))), call.signal("grad")
    size = z.q * z.shape[-1]
    unit = scaled(z, 1 / np.sqrt(size)) if size > 0 else z
    wide = expanded(g.regrouped((*g.dims, ()), g.moments, g.means), unit.shape, unit)
    directed = multiplied(*together(wide, unit, unit.shape))
    return [summed(directed, [len(z.dims) - 2], keep=False, mean=False).approximate(_ALIKE)]


RULES: Mapping[str, Rule] = {"aten._cdist_forward": _cdist, "aten._cdist_backward": _cdist_backward}
