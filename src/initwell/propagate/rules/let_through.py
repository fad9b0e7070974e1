"""What a gradient that met a mask has to do with the normalized value that the mask was of: E[g x̂ g′ x̂′].

g = φ′(u)·h, and u contains a·x̂. Given a Gaussian u, x̂ has the mean a(u − E u)/var u and the variance 1 − a²/var u; so
E[(g x̂)²] and m = E[g x̂]/E[g] are expectations over u alone. Two different entries, whose x̂ correlate by X̂, have
G·(m² + X̂(1 − m²)).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from initwell.propagate.laws.gaussian import covariance
from initwell.propagate.laws.rectified import distribution, interpolated
from initwell.propagate.moments.remembered import Gate
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.propagate.table import Call
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op


def with_itself(g: Signal, hat: Array, tag: int, gates: Sequence[Gate]) -> Array:
    """Return E[g x̂ g' x̂'], for a gradient that may have been gated by what x̂ is part of."""
    gate = gates[0] if len(gates) == 1 and not g.segmented else None
    a = sum(c for t, c in gate.pre.roots if t == tag) if gate else 0.0
    if gate is None or a == 0.0:
        return np.asarray(g.moments * hat)
    given = _given(gate, a)
    if given is None:
        return np.asarray(g.moments * hat)
    first, second = given
    factors = first**2 + hat * (1 - first**2)
    factors[(0,) * factors.ndim] = second
    return np.asarray(g.moments * factors)


@lru_cache(maxsize=4)
def _given(gate: Gate, a: float) -> tuple[float, float] | None:
    """Return E[x̂] and E[x̂²] of what a gate lets through, where a·x̂ is in what it is of; None where nothing is."""
    u = gate.pre
    if u.segmented:
        return None
    points, weights = (row[0] for row in distribution(u))
    if u.law is None:
        variance, centre = covariance(u)[0], np.asarray(u.mean)
    else:
        variance, centre = float(u.law.variance[0]), np.repeat(u.law.values[0], points.size // u.law.values.size)
    if abs(a * a - (u.q - u.mean**2)) < 1e-3 * a * a:
        # It is x̂ itself, whatever its law.
        variance, centre = a * a, np.asarray(u.mean)
    slope = gate.slope(points)
    once = weights * slope * interpolated(points[None], gate.grid, gate.passed)[0]
    twice = weights * slope**2 * interpolated(points[None], gate.grid, gate.power)[0]
    whole_once, whole_twice = np.add.reduce(once), np.add.reduce(twice)
    if variance <= 0 or whole_once == 0 or whole_twice == 0:
        return None
    # Given u and its non-Gaussian part, x̂ has this mean, and the variance 1 − a²/variance.
    given = a * (points - centre) / variance
    first = float(once @ given / whole_once)
    return first, float(twice @ given**2 / whole_twice) + 1 - a * a / variance


def gates_of(call: Call) -> Sequence[Gate]:
    """Return the masks that the arriving gradient met last: before views, if nothing but views came after."""
    ref = call["grad_out"]
    g = call.of(ref)
    op = call.trace.producer(ref.id)
    while not g.gates and op is not None and _shows(op) and op.inputs[0] in call.known:
        g, op = call.known[op.inputs[0]], call.trace.producer(op.inputs[0])
    return g.gates


def _shows(op: Op) -> bool:
    return op.functional in VIEWS or op.functional in COPIES
