"""Sums over rows of products of two images of one value: marked where its rows' products vary by an unsure amount.

What products of two rows vary by is what the last layer's inputs make of it, 1/C, and what layers before have left
(``gram``). A function φ leaves of that, to first order, only the square of

    ∂E[φ(u_i) φ(u_j)]/∂E[u_i u_j] · (E[u²] − E[u_i u_j]) / (E[φ²] − E[φ(u_i) φ(u_j)])

as 0.54 of ReLU and 0.9 of tanh, and a product of two values next to nothing; it is counted as if all were left. Such
a sum is too large, by up to a half of the share that is not there.
"""

from collections.abc import Sequence
from functools import reduce

import numpy as np

from initwell.propagate.laws.functions import function_moments
from initwell.propagate.moments import gram
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules import own_gates
from initwell.propagate.rules.two_images import STEP, image_of_rows, source_along
from initwell.propagate.table import Call
from initwell.trace.ops import ACTIVATIONS, COPIES, TRANSPARENT, VIEWS

_COMMON = (
    "sums over rows of products of two images of one value, whose rows' products vary by much, or have much in common"
)
# Normalized rows that have less than a twentieth of their size in common; relative variance of products of two rows,
# and the share of it that functions and products may have taken.
_ALMOST, _MUCH, _UNSURE = 0.9, 0.1, 0.1
_LINEAR = frozenset({"aten.mm", "aten.addmm", "aten.convolution", "aten.add", "aten.sub", "aten.mul", "aten.div"})


def summed(call: Call, x: Signal, found: Signal, dims: Sequence[int]) -> Signal:
    """Return a sum over rows of a product, marked where what its rows have in common is not followed in full.

    Args:
        call: of the sum.
        x: what is summed.
        found: the sum.
        dims: the dimensions.
    """
    op = call.trace.producer(call["self"].id)
    if op is None or op.functional != "aten.mul" or len(op.inputs) != 2:
        return found
    factors = op.inputs[0], op.inputs[1]
    for why in (_reason(call, x, factors, dims), own_gates.reason(call, x, factors, dims)):
        found = found if why is None else found.approximate(why)
    return found


def _reason(call: Call, x: Signal, factors: tuple[int, int], dims: Sequence[int]) -> str | None:
    a, b = (call.known.get(i) for i in factors)
    if a is None or b is None or a.dims != b.dims or not any(x.atoms[axis].follows for axis in x.axes(dims)):
        return None
    if call.op.phase == "forward":
        one, two = factors
        a, b = own_gates.with_itself(call, a, one, b), own_gates.with_itself(call, b, two, a)
    rows, value = gram.in_common(a, b, [(i, i) for i in range(len(a.atoms))])
    if not rows:
        return None
    source = source_along(a, rows, value)
    varies, level = source.strength**2, source.level if 0 < source.level < _ALMOST else 0.0
    return _COMMON if level or varies > _MUCH or _unsure(call, value) > _UNSURE * varies else None


def _unsure(call: Call, value: int) -> float:
    """Return how much of what products of a value's rows vary by may not be there, of what earlier layers left."""
    found, share = 0.0, 1.0
    while (x := call.known.get(value)) is not None and x.spread > 0:
        op = call.trace.producer(value)
        if op is None:
            break
        read = [i for i in op.inputs if i in call.trace.moving]
        kept = op.functional in _LINEAR or op.functional in VIEWS or op.functional in COPIES
        if len(read) != 1 or value not in op.outputs:
            return found + share * x.spread
        if op.functional in ACTIVATIONS:
            passed = _passed(x)
            found, share = found + share * (1 - passed) * x.spread, share * passed
        elif not kept and op.functional not in TRANSPARENT:
            return found + share * x.spread
        value = read[0]
    return found


def _passed(x: Signal) -> float:
    """Return which share a function leaves of what products of two rows of its argument vary by."""
    u, rows = image_of_rows(x), [i for i, atom in enumerate(x.atoms) if atom.follows]
    if u is x or x.image is None or not rows or u.q <= 0:
        return 0.0
    differ = reduce(np.logical_or, [gram.differs(u, i) for i in rows])
    moved = replace(u, moments=u.moments + STEP * u.q * differ)
    images = [replace(x, moments=function_moments(x.image.phi, s)[1]).averaged(rows) for s in (moved, u)]
    slope = (images[0] - images[1]) / (STEP * u.q)
    apart = x.q - images[1]
    return min((slope * (u.q - u.averaged(rows)) / apart) ** 2, 1.0) if apart > 0 else 0.0
