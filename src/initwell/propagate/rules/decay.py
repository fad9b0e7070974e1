"""Decays e^(a·y) of parameters that are as they are, such as a = −1 … −16 of a state, times a step y of its own.

What −a·y is distributed like is then no matter of a mean and a variance: over the numbers a, which are known, and the
Gaussian u that y = φ(u) is a function of,

    E[f(e^(a y))] = average over a of ∫ f(e^(a φ(u))) N(u) du

Assumption: all numbers a meet the same steps; entries of the result go together as those of a·y do.
"""

import numpy as np

from initwell.propagate.laws.functions import as_image
from initwell.propagate.moments.segments import Array
from initwell.propagate.table import Call
from initwell.trace.ops import COPIES, VIEWS

_LEVELS = 64
_STEPS = 12
_POINTS = 40


def law_of_decay(call: Call, value: int) -> tuple[Array, Array] | None:
    """Return points and weights of −a·y; None where a value is no such product, or grows.

    Args:
        call: of the exponential.
        value: what it is of.
    """
    op = call.trace.producer(value)
    if op is None or op.functional != "aten.mul" or len(op.inputs) != 2:
        return None
    for one, two in (op.inputs, op.inputs[::-1]):
        numbers, steps = _numbers(call, one, _STEPS), _steps(call, two)
        if numbers is not None and steps is not None:
            levels, counts = np.unique(numbers, return_counts=True)
            points = -np.multiply.outer(levels, steps[0])
            if len(levels) <= _LEVELS and (points >= 0).all():
                return points.ravel(), np.multiply.outer(counts / counts.sum(), steps[1]).ravel()
    return None


def _numbers(call: Call, value: int, steps: int) -> Array | None:
    """Return the numbers of a value that is made of a parameter that is as it is, in any order."""
    kept = call.values.kept.get(value)
    if kept is not None:
        return kept.detach().double().cpu().numpy().ravel()
    op = call.trace.producer(value)
    if op is None or len(op.inputs) != 1 or steps == 0:
        return None
    found = _numbers(call, op.inputs[0], steps - 1)
    if found is None or op.functional in VIEWS or op.functional in COPIES:
        return found
    return {"aten.exp": np.exp(found), "aten.neg": -found}.get(op.functional)


def _steps(call: Call, value: int) -> tuple[Array, Array] | None:
    """Return points and weights of a function of a Gaussian."""
    y = call.known.get(call.trace.shown(value))
    if y is None or y.segmented:
        return None
    image = as_image(y)
    u = image.pre
    if image.base is not None or u.segmented or u.average is not None or u.law is not None:
        return None
    z, weights = np.polynomial.hermite_e.hermegauss(_POINTS)
    values = image.phi.fn(u.mean + np.sqrt(max(u.q - u.mean**2, 0.0)) * z)
    return np.asarray(values), np.asarray(weights / weights.sum())
