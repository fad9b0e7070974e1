"""Nonlinearities with a second operand: PReLU's learned slopes, RReLU's drawn ones, GLU's gate.

PReLU is a leaky ReLU whose slope a is given; E[φ²] has E[a²] in it, so slopes that differ count by their rms. Its
slope's gradient is g·min(u, 0). RReLU draws its slope r anew for every entry: two entries have E[r]², one has E[r²],

    E[y²] = E[leaky(u)²] + Var(r)·E[min(u, 0)²]        E[dx²] = E[g²]·(E[leaky′²] + Var(r)·P(u < 0))

GLU is a·σ(b) of the two halves of a dimension; da = g·σ(b), db = g·a·σ′(b).
Assumption: slopes and the two halves are independent of each other and of u, as outputs of fresh weights are.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from initwell.propagate.laws.functions import Function, as_image, function_moments
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.branch import fixed, multiplied
from initwell.propagate.rules.parts import concatenated, sliced
from initwell.propagate.rules.pointwise import applied, pulled_back
from initwell.propagate.table import Call, Rule
from initwell.theory.activation import Activation
from initwell.theory.activations import activation

_SLOPES = "a PReLU's slopes that differ, by their root mean square"


def _below(u: Array) -> Array:
    return np.minimum(u, 0.0)


def _negative(u: Array) -> Array:
    return np.where(u < 0, 1.0, 0.0)


@cache
def _leaky(slope: float) -> Activation:
    return activation("leaky_relu", slope=slope)


def _slope(call: Call) -> Activation:
    weight = call.signal("weight")
    return _leaky(math.copysign(weight.rms, weight.mean))


def _noted(call: Call, signal: Signal) -> Signal:
    return signal if fixed(call.signal("weight")) else signal.approximate(_SLOPES)


def _prelu(call: Call) -> Sequence[Signal]:
    return [_noted(call, applied(_slope(call), call.signal("self")))]


def _prelu_backward(call: Call) -> Sequence[Signal]:
    u = call.signal("self")
    g, pre = _alike(call.signal("grad_output"), u, call.shape())
    below = Activation("min(u, 0)", _below, _below, kinks=(0.0,))
    return [_noted(call, pulled_back(_slope(call), pre, g, u)), pulled_back(below, pre, g, u)]


def _drawn(call: Call) -> tuple[Activation, float]:
    """Return the leaky ReLU of the mean slope, and the variance of the slopes that are drawn about it."""
    low, high = float(call["lower"]), float(call["upper"])
    return _leaky((low + high) / 2), (high - low) ** 2 / 12 if call["training"] else 0.0


def _with_own(signal: Signal, q: Array) -> Signal:
    """Add what each entry has for itself, by segment; it is then no function of u alone."""
    moments = signal.moments.copy()
    moments[tuple(slice(n) for n in signal.means.shape)] += q
    return replace(signal, moments=moments, image=None)


def _rrelu(call: Call) -> Sequence[Signal | None]:
    phi, spread = _drawn(call)
    u = call.signal("self")
    found = applied(phi, u)
    if spread:
        found = _with_own(found, spread * _diagonal(Function(_below, (0.0,)), u))
    return [found] + [None] * (len(call.op.outputs) - 1)


def _diagonal(f: Function, u: Signal) -> Array:
    _, moments = function_moments(f, u)
    return np.asarray(moments[tuple(slice(n) for n in u.means.shape)])


def _rrelu_backward(call: Call) -> Sequence[Signal]:
    phi, spread = _drawn(call)
    origin = call.signal("self")
    g, u = _alike(call.signal("grad_output"), origin, call.shape())
    found = pulled_back(phi, u, g, origin)
    if spread:
        found = _with_own(found, spread * g.diagonal * _diagonal(Function(_negative, (0.0,)), u))
    return [found]


def _halves(call: Call) -> tuple[Signal, Signal, int]:
    x = call.signal("self")
    dim = call["dim"] % len(x.dims)
    middle = x.shape[dim] // 2
    return sliced(x, dim, 0, middle), sliced(x, dim, middle, 2 * middle), dim


def _glu(call: Call) -> Sequence[Signal]:
    a, b, _ = _halves(call)
    gate = applied(activation("sigmoid"), b)
    found = multiplied(*_alike(a, gate, call.shape()))
    return [replace(found, image=replace(gate.image, base=a)) if gate.image is not None and a.dims == b.dims else found]


def _about(call: Call, g: Signal, b: Signal) -> Signal:
    """Say that what goes with the gate as the forward made it goes with b."""
    made = call.known.get(call.forward().outputs[0])
    if not g.echoes or made is None or made.image is None:
        return g
    then, now = made.image.pre, as_image(b).pre
    return replace(g, echoes=tuple([replace(e, pre=now) if e.pre is then else e for e in g.echoes]))


def _beside(g: Signal, a: Signal) -> Signal:
    """Multiply a gradient by the other half, which what it goes with may go with too."""
    found = multiplied(g, a)
    own = [e for e in g.echoes if e.moments.shape == a.moments.shape]
    sizes = [(e, function_moments(e.phi, e.pre)[1]) for e in own]
    echoes = [replace(e, phi=e.gated or e.phi, moments=e.moments * a.moments) for e in own]
    added = sum([e.moments * function_moments(e.phi, e.pre)[1] for e in echoes], 0.0)
    taken = sum([e.moments * size * a.moments for e, size in sizes], 0.0)
    return replace(found, moments=found.moments - taken + added, echoes=tuple(echoes)) if own else found


def _alike(a: Signal, b: Signal, shape: Sequence[int]) -> tuple[Signal, Signal]:
    return (a, b) if a.dims == b.dims else together(a, b, shape)


def _glu_backward(call: Call) -> Sequence[Signal]:
    a, b, dim = _halves(call)
    g = _about(call, call.signal("grad_output"), b)
    sigmoid = activation("sigmoid")
    opened = Activation("sigmoid", sigmoid.derivative, sigmoid.fn)
    g, b = _alike(g, b, g.shape)
    g, a = _alike(g, a, g.shape)
    da = pulled_back(opened, b, g)
    db = pulled_back(sigmoid, b, _beside(g, a))
    return [concatenated([da, db], dim)]


RULES: Mapping[str, Rule] = {
    "aten._prelu_kernel": _prelu,
    "aten._prelu_kernel_backward": _prelu_backward,
    "aten.rrelu_with_noise": _rrelu,
    "aten.rrelu_with_noise_backward": _rrelu_backward,
    "aten.glu": _glu,
    "aten.glu_backward": _glu_backward,
}
