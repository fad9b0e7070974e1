"""A gradient that came back through φ(u), times a term of u: what a gate gets beside a residual stream, relu(x + s·y).

The gradient at s is Σ g φ′(u) y over what s multiplies. y is a term of u, and goes with φ′(u): of a Gaussian t = s·y
and u = t + r of the law Σ w_i N(v_i, V), V ≥ var t, r independent of t,

    E[t | u, i] = (var t/V)(u − v_i)        var(t | u, i) = var t (1 − var t/V)

so that φ′(u) y has a mean, which positions whose g is one number add up, as behind an average over them. Assumption: s
hardly varies, so that y is t over its mean.
"""

import math

import numpy as np

from initwell.propagate.laws.rectified import as_bell
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Pointwise, Signal, replace
from initwell.propagate.table import Call
from initwell.trace.trace import Op, ValueRef

_SUMS = frozenset({"aten.add"})
_NODES, _REACH = 401, 6.0
# Of E[s²], what the mean of a gate has at least; of E[y²], what that of a term has at most.
_STEADY, _CENTRED = 0.5, 0.01
_WHY = "a term of what a nonlinearity read, times its slope, the gate at its mean"


def of_masked_term(call: Call, found: Signal, g: Signal, y: Signal) -> Signal:
    """Return g·φ′(u)·y where y, times a gate, is a term of u.

    Args:
        call: of the product, in the backward.
        found: it, as of independents.
        g: the gradient, base·φ′(u).
        y: the factor.
    """
    image = g.image
    if image is None or image.base is None or image.pre.segmented or found.dims != image.base.dims or y.q <= 0:
        return found
    made = call.trace.ops[call.op.of] if call.op.of is not None else None
    term = _term(call, made, image.pre) if made is not None and made.functional == "aten.mul" else None
    other = _other(call, made, term) if made is not None and term is not None else None
    if term is None or other is None or other.mean**2 < _STEADY * other.q or y.mean**2 > _CENTRED * y.q:
        return found
    u, variance = image.pre, min(term.q - term.mean**2, image.pre.q - image.pre.mean**2)
    if variance <= 0:
        return found
    mean, square = _expected(image.phi, u, variance)
    more = image.base.moments * (mean / other.mean) ** 2
    moments = found.moments + more
    own = (0,) * moments.ndim
    moments[own] = found.moments[own] * square
    return replace(found, moments=moments, image=None, joint=True).approximate(_WHY)


def _term(call: Call, made: Op, u: Signal) -> Signal | None:
    """Return the product that an op makes where it is a Gaussian term of u; else None."""
    value = made.outputs[0]
    for op in call.trace.consumers(value):
        if op.functional in _SUMS and call.known.get(op.outputs[0]) is u:
            term, rest = call.known.get(value), [i for i in op.inputs if i != value]
            plain = op.arguments.get("alpha", 1) == 1 and len(rest) == 1
            return term if term is not None and plain and as_bell(term) else None
    return None


def _other(call: Call, made: Op, term: Signal) -> Signal | None:
    """Return the gate: what the factor that the gradient meets was multiplied by."""
    refs = [made.arguments.get(name) for name in ("self", "other")]
    met = call.trace.shown(call["other"].id)
    gates = [r.id for r in refs if isinstance(r, ValueRef) and call.trace.shown(r.id) != met]
    return call.known.get(gates[0]) if len(refs) == 2 and len(gates) == 1 else None


def _expected(slope: Pointwise, u: Signal, variance: float) -> tuple[float, float]:
    """Return E[φ′ t], and E[φ′² t²] over E[φ′²] E[t²], of a term t of u of this variance."""
    if u.law is None:
        values, weights, whole = np.array([u.mean]), np.ones(1), u.q - u.mean**2
    else:
        values, weights, whole = u.law.values[0], u.law.weights[0], float(u.law.variance[0])
    whole = max(whole, variance)
    share, z = variance / whole, np.linspace(-_REACH, _REACH, _NODES)
    density = np.exp(-z * z / 2) / np.exp(-z * z / 2).sum()
    steep: Array = slope.fn((values[:, None] + math.sqrt(whole) * z).ravel()).reshape(-1, _NODES)
    centre = share * math.sqrt(whole) * z
    mean, square, apart = (
        float(weights @ (f @ density))
        for f in (steep * centre, steep**2 * (centre**2 + variance * (1 - share)), steep**2)
    )
    return mean, square / (variance * apart) if apart > 0 else 1.0
