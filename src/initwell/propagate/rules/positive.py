"""Inverses and roots of sums of positive numbers, as of what kernel attention divides by: q·k of positive features.

Such a sum is positive, too, and its inverse has the moments that a Gaussian's of the same mean and variance has not.
It is taken as e^z, z Gaussian: with m its means and M its moments,

    E[z z'] − E[z] E[z'] = log(M/(m m'))        E[z] = log m − var(z)/2

so that 1/x, and what is made of it, are functions of z. Assumption: the sum is log-normal.
"""

import numpy as np

from initwell.propagate.laws.averages import is_average_of_squares
from initwell.propagate.laws.functions import Function, as_image, evaluated, nowhere_zero
from initwell.propagate.laws.gaussian import variances
from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.signal import Image, Pointwise, Signal, merged_fidelity
from initwell.propagate.table import Call
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import ValueRef

_SUMS = frozenset({"aten.bmm", "aten.mm", "aten.mul", "aten.sum", "aten.mean", "aten.cumsum"})
INVERSE = Function(lambda u: 1 / u)
_STEPS = 12
# The standard deviation over the mean from which on a Gaussian is next to 0 in a thousandth of all draws.
_WIDE = 0.1
LOG_NORMAL = "a function of a sum of positive numbers, taken as log-normal"


def of_positive(call: Call, name: str, phi: Pointwise = INVERSE) -> Signal | None:
    """Return φ(x) of a sum of positive numbers that varies so much that as a Gaussian it would be next to 0; else None.

    Args:
        call: of the function, or of a quotient.
        name: of its argument.
        phi: the function.
    """
    ref = call[name]
    if not isinstance(ref, ValueRef):
        return None
    x = call.signal(name)
    # Averages of squares have a law of their own.
    if not x.gaussian or x.law is not None or is_average_of_squares(as_image(x).pre) or not (x.means > 0).all():
        return None
    relative = variances(x) / x.means**2
    if relative.max() > 1 or not (relative > _WIDE**2).any() or not _positive(call, ref.id, _STEPS):
        return None
    both = over_pairs(x.atoms, x.means)
    covariance = np.log(np.maximum(x.moments, 1e-3 * both) / both)
    own = covariance[tuple([slice(n) for n in x.means.shape])]
    means = np.log(x.means) - own / 2
    z = x.changed(covariance + over_pairs(x.atoms, means), means, gaussian=True)
    return merged_fidelity(evaluated(Image(Function(lambda u: phi.fn(np.exp(u))), z)), x).approximate(LOG_NORMAL)


def _positive(call: Call, value: int, steps: int) -> bool:
    """Whether a value is positive by how it was made."""
    op = call.trace.producer(value)
    if op is None or steps == 0:
        return False
    if steps < _STEPS and value in call.known and nowhere_zero(call.known[value]):
        return True
    if op.functional in VIEWS or op.functional in COPIES:
        return _positive(call, op.inputs[0], steps)
    if op.functional == "aten.add" and not isinstance(op.arguments["other"], ValueRef):
        return op.arguments["other"] >= 0 and _positive(call, op.inputs[0], steps - 1)
    return op.functional in _SUMS and all(_positive(call, i, steps - 1) for i in op.inputs)
