"""Pointwise nonlinearities: φ of a Gaussian with this mean and these covariances, and φ′ in the backward.

Each moment of φ(u) is E[φ(u)φ(v)] at the correlation of its own agreement pattern. The gradient φ′(u)·g, with g
independent of u, has the moments of g times E[φ′(u)φ′(v)]. Assumption: u is Gaussian; where it is not, it says so.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from initwell.errors import ArgumentError
from initwell.propagate.laws.echoes import about, through_slope
from initwell.propagate.laws.functions import (
    Function,
    as_image,
    by_law,
    combined,
    composed,
    evaluated,
    function_moments,
    line,
    multiple,
    unscaled,
)
from initwell.propagate.laws.gaussian import covariance, hermite
from initwell.propagate.laws.lengths import SENT_BACK, behind
from initwell.propagate.laws.peaks import masked, peak_law, within_window
from initwell.propagate.laws.rectified import distribution, expected, grid_of, interpolated, of_known_law, through
from initwell.propagate.laws.unlike_rows import WHY, of_few_channels, of_unlike_rows
from initwell.propagate.moments import gram
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.remembered import Gate
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import UNLIKE, Image, Pointwise, Signal, merged_fidelity, replace
from initwell.propagate.rules.responses import before
from initwell.propagate.rules.targets import of_judged
from initwell.propagate.table import Call, Rule, UnknownSignalError
from initwell.theory.activation import Activation
from initwell.theory.activations import activation
from initwell.trace.ops import ACTIVATIONS
from initwell.trace.trace import Op

# Argument of the op → parameter of the catalogue.
_PARAMETERS: Mapping[str, Mapping[str, str]] = {
    "aten.leaky_relu": {"negative_slope": "slope"},
    "aten.hardtanh": {"min_val": "low", "max_val": "high"},
    "aten.softplus": {"beta": "beta"},
    "aten.softshrink": {"lambd": "threshold"},
    "aten.hardshrink": {"lambd": "threshold"},
    "aten.threshold": {"threshold": "threshold", "value": "value"},
}
# These have rules of their own: of two inputs, or, as sines, of angles that may have no numbers.
_OWN = frozenset({"aten.sin", "aten.glu", "aten.prelu", "aten._prelu_kernel", "aten.rrelu_with_noise"})


def phi_of(op: Op) -> Activation:
    """Return the activation that a forward op computes, with its parameters."""
    arguments = op.arguments
    if op.functional == "aten.gelu" and arguments.get("approximate") == "tanh":
        return activation("gelu_tanh")
    if op.functional == "aten.elu":
        return _elu(arguments)
    known = _PARAMETERS.get(op.functional, {})
    try:
        return _catalogued(ACTIVATIONS[op.functional], tuple([(p, float(arguments[a])) for a, p in known.items()]))
    except ArgumentError as error:  # PyTorch takes more, such as a softshrink of threshold 0
        raise UnknownSignalError(str(error)) from error


@lru_cache(maxsize=256)
def _catalogued(name: str, parameters: tuple[tuple[str, float], ...]) -> Activation:
    return activation(name, **dict(parameters))


def _elu(arguments: Mapping[str, Any]) -> Activation:
    alpha, scale, inner = (float(arguments[k]) for k in ("alpha", "scale", "input_scale"))
    if (scale, inner) == (1.0, 1.0):
        return activation("elu", alpha=alpha)

    def fn(u: Array) -> Array:
        return np.where(u > 0, scale * u, scale * alpha * np.expm1(np.minimum(inner * u, 0)))

    def derivative(u: Array) -> Array:
        return np.where(u > 0, scale, scale * alpha * inner * np.exp(np.minimum(inner * u, 0)))

    return Activation("elu", fn, derivative, kinks=(0.0,))


def applied(phi: Pointwise, u: Signal) -> Signal:
    """Apply φ to a Gaussian signal, a function of one, or one of known law; the result remembers it.

    >>> from initwell.propagate.moments.signal import independent
    >>> applied(activation("relu"), independent((4, 3), 1.0)).moments.round(4).tolist()
    [[0.5, 0.1592], [0.1592, 0.1592]]
    """
    inner = as_image(u)
    if isinstance(phi, Activation) and (found := _of_gated(phi, u, inner)) is not None:
        return found
    if inner.base is not None or inner.pre.dims != u.dims:
        inner = Image(line(1.0), u)
    found = merged_fidelity(evaluated(Image(composed(phi, inner), inner.pre)), u)
    return of_unlike_rows(phi, u, found) if u.lengths > UNLIKE else found


def _of_gated(phi: Activation, u: Signal, inner: Image) -> Signal | None:
    """Apply φ to s·ψ(v), s a gate that varies little: what entries have of s in common is no correlation of theirs.

    With m² = E[s²], and to first order in what s varies by,

        E[φ(sψ)φ(s'ψ')] = E[φ(mψ)φ(mψ')] − (E[s²] − E[s s'])·E[ψφ′(mψ) ψ'φ′(mψ')]
    """
    s, v = inner.base, inner.pre
    if s is None or s.dims != v.dims or v.dims != u.dims or u.segmented or not 0 < s.q < _VARIES * s.mean**2:
        return None
    size = Image(composed(line(s.rms), inner), v)
    whole = evaluated(Image(composed(phi, size), v))
    slope = composed(Function(phi.derivative, phi.kinks), size)
    steep = function_moments(combined(inner.phi, slope, np.multiply), v)[1]
    found = replace(whole, moments=whole.moments - (s.q - s.moments) * steep, image=Image(phi, u))
    return merged_fidelity(found, u).approximate(_GATED)


_VARIES = 1.3
_GATED = "a nonlinearity of what was gated, as far as gates vary little"


def pulled_back(phi: Activation, u: Signal, g: Signal, origin: Signal | None = None) -> Signal:
    """Multiply a gradient by φ′(u); the result remembers the gate.

    A gradient that comes from max pooling reaches an entry only where it is the largest of ``g.peak``: there u has the
    law of a maximum, not a Gaussian's. A part of the gradient that met a later mask, of w = a·φ(u) + b with b Gaussian,
    is not independent of u: given u, it has the power E_b[power(w)], and passes E_b[φ′(w)·passed(w)].

    Args:
        phi: the activation.
        u: what it was applied to, with the atoms of g.
        g: the gradient at φ(u).
        origin: u as later values remember it.
    """
    inner = as_image(u)
    if inner.base is not None or inner.pre.dims != u.dims:
        inner = Image(line(1.0), u)
    slope: Pointwise = composed(Function(phi.derivative, phi.kinks), inner)
    earlier = g.image
    base, factor = unscaled(g)
    steep = behind(g, _with_slope(composed(phi, inner), slope, inner.pre)) if g.tilt else 1.0
    slope = multiple(slope, factor * steep)
    if earlier is not None and earlier.base is not None and earlier.pre is inner.pre:
        base, slope = earlier.base, combined(earlier.phi, slope, np.multiply)
    found = merged_fidelity(gated(slope, inner.pre, base, origin if inner.pre is u else inner.pre), u, g)
    found = found.approximate(SENT_BACK) if u.lengths > UNLIKE else found
    if g.answer and inner.pre is u:
        found = replace(found, answer=before(g.answer, Function(phi.derivative, phi.kinks), phi, u))
    return by_law(found, inner.pre)


def _with_slope(value: Pointwise, slope: Pointwise, u: Signal) -> float | None:
    """Return E[f²f′²]/(E[f²]E[f′²]) of a function of a value of known law."""
    if not of_known_law(u):
        return None
    points, weights = distribution(u)
    f, steep = value.fn(points) ** 2, slope.fn(points) ** 2
    apart = expected(weights, f) * expected(weights, steep)
    return float((expected(weights, f * steep) / apart).mean()) if (apart > 0).all() else None


def gated(slope: Pointwise, u: Signal, g: Signal, origin: Signal | None = None) -> Signal:
    """Return g·slope(u), for a gradient g that is independent of u but for masks that it may have met.

    Args:
        slope: φ′, or a product of several.
        u: Gaussian, or of known law.
        g: the gradient, with the atoms of u.
        origin: u as later values remember it; None where no later mask can contain it.
    """
    image = Image(slope, u, g)
    segmented = g.segmented or u.segmented
    if segmented and (g.dims != u.dims or not (g.gates or u.law is not None)):
        factor = evaluated(Image(slope, u))
        found = gram.multiplied(g.changed(g.moments * factor.moments, g.means * factor.means), g, factor)
        return merged_fidelity(replace(found, image=image, profile=g.profile), factor)
    mean, slopes = function_moments(slope, u)
    if segmented:
        return replace(_with_gates(slope, u, g, origin, mean, slopes), image=image, profile=g.profile)
    average, variance = float(mean.flat[0]), covariance(u)[0]
    if g.peak > 1 and variance > 0:
        average, slopes = _at_largest(slope, u, g, average, slopes)
        places = masked(g, u, slopes)
    else:
        places = masked(g, u, slopes, hermite(slope.fn, slope.kinks, u.mean, variance))
    averages = np.full_like(u.means, average)
    return replace(_with_gates(slope, u, g, origin, averages, slopes), image=image, profile=places)


def _at_largest(slope: Pointwise, u: Signal, g: Signal, average: float, slopes: Array) -> tuple[float, Array]:
    """Return E[slope] and its pair moments where a part of g came to the largest of each window's entries alone.

    Args:
        slope: a function of u.
        u: Gaussian.
        g: the gradient; the part is ``g.crest`` of its second moment, and met no later mask.
        average: E[slope] where g is independent of u.
        slopes: its pair moments there.
    """
    space = max(len(u.dims) - 2, 1)
    common = within_window(u, [round(g.peak ** (1 / space))] * space)
    points, weights = peak_law(u, g.peak, common)
    values = slope.fn(points)
    top, q = float(values @ weights), float((values * values) @ weights)
    rest = g.q - sum(float(gate.moments.flat[0]) for gate in g.gates if gate.moments.shape == g.moments.shape)
    share = min(g.crest * g.q / rest, 1.0) if rest > 0 else 0.0
    mixed = share * (top**2 + (q - top**2) * covariance(u)[1]) + (1 - share) * slopes
    return share * top + (1 - share) * average, np.asarray(mixed)


def _with_gates(f: Pointwise, u: Signal, g: Signal, origin: Signal | None, mean: Array, slopes: Array) -> Signal:
    """Multiply by φ′(u), of these means and pair moments, a gradient whose parts may have met later masks."""
    gates = [gate for gate in g.gates if gate.moments.shape == g.moments.shape]
    here = tuple(slice(n) for n in u.means.shape)
    grid = grid_of(u)
    rest = g.moments - sum([gate.moments for gate in gates], 0.0)
    heard: tuple[Array | float, Array | float] = (0.0, 0.0)
    for echo in about(g.echoes, u, origin, rest.shape):
        before, after = through_slope(echo, f, u)
        square = echo.moments[here].reshape(-1, 1) * echo.phi.fn(grid) ** 2
        rest, heard = rest - before, (heard[0] + after, heard[1] + square)
    level = np.empty(grid.shape)
    level[...] = rest[here].reshape(-1, 1)
    moments, power, passed = rest * slopes + heard[0], level + heard[1], level
    for gate in gates:
        points, weights = distribution(u, f.kinks)
        slope = f.fn(points)
        powers, passes = through(gate, grid, origin)
        carried, squares = (interpolated(points, grid, table) for table in (passes, powers))
        alone = expected(weights, carried)
        both = mean.ravel() * alone
        twice = np.where(both != 0, expected(weights, slope * carried) / np.where(both != 0, both, 1.0), 1.0)
        part = np.asarray(gate.moments * slopes * over_pairs(u.atoms, twice.reshape(mean.shape)))
        part[here] = expected(weights, slope**2 * squares).reshape(mean.shape)
        moments, power = moments + part, power + powers
        passed = passed + gate.moments[here].reshape(-1, 1) * passes / np.where(alone != 0, alone, 1.0)[:, None]
    found, size = g.changed(np.asarray(moments), g.means * mean), g.moments[here].reshape(-1, 1)
    gate = Gate(f.fn, u, found.moments, grid, np.asarray(power), passed / np.where(size != 0, size, 1.0))
    return merged_fidelity(replace(found, gates=(gate,)), u)


def _forward(call: Call) -> Sequence[Signal | None]:
    phi, u = phi_of(call.op), call.signal("self")
    found, made = applied(phi, u), call.trace.producer(call["self"].id)
    if made is not None and made.functional == "aten.convolution" and u.gaussian and not made.arguments["transposed"]:
        weight = call.trace.values[made.arguments["weight"].id].shape
        found = of_few_channels(phi, u, found, math.prod(weight[1:])) if made.arguments["groups"] == 1 else found
    return [found] + [None] * (len(call.op.outputs) - 1)


def _backward(call: Call) -> Sequence[Signal]:
    forward = call.forward()
    g = call.signal("grad_output" if "grad_output" in call.op.arguments else "grad_out")
    u = call.of(forward.arguments["self"])
    gradient, pre = (g, u) if g.dims == u.dims else together(g, u, call.shape())
    found = pulled_back(phi_of(forward), pre, gradient, u)
    made = call.known.get(forward.outputs[0])
    found = found.approximate(WHY) if made is not None and WHY in made.reasons else found
    return [of_judged(call, found, g, call.op.arguments.get("grad_output"))]


def _derivative_names() -> Sequence[str]:
    special = {"aten.relu": "aten.threshold_backward", "aten.log_sigmoid_forward": "aten.log_sigmoid_backward"}
    names = [special.get(name, f"{name}_backward") for name in ACTIVATIONS if name not in _OWN]
    return list(dict.fromkeys(names))


RULES: Mapping[str, Rule] = {
    **{name: _forward for name in ACTIVATIONS if name not in _OWN},
    **dict.fromkeys(_derivative_names(), _backward),
}
