"""What a convolution of few weights sends back that goes with what it read; the derivation is in ``echoes``."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from initwell.propagate.laws.channels import sent_back
from initwell.propagate.laws.echoes import Echo
from initwell.propagate.laws.functions import Function, as_image, composed, function_moments, line
from initwell.propagate.laws.rectified import distribution
from initwell.propagate.moments.centring import centred, over_all
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Image, Pointwise, Signal, constant, independent, replace
from initwell.propagate.rules.scatter import added_up, divided, undone_of_own
from initwell.propagate.table import Call
from initwell.trace.trace import Op

Sent = Callable[[Signal, Signal], Signal]
_NORM = "aten.native_batch_norm_backward"
_ALONE = "what few weights send back that goes with what they read, neighbours taken as independent"
# Of a gradient's square; less is not worth following.
_LEAST = 1e-3
# Of x's variance; where so much of it is about channels' means, there is next to nothing in these.
_ALIKE = 0.95
_REACH, _POINTS, _STEPS = 10.0, 161, 400


@dataclass(frozen=True, eq=False)
class Bend:
    """How a gradient g at y depends on y: it goes as h·slope(v), and v contains y.

    Attributes:
        source: h.
        slope: of v.
        pre: v.
        share: what of v is y, in units of y's own size.
        factor: of g, behind a norm in units of y's own size.
        normed: whether there is one.
    """

    source: Signal
    slope: Pointwise
    pre: Signal
    share: float
    factor: float
    normed: bool

    def responses(self, alpha: float, read: float) -> tuple[Function, Function]:
        """Return r, and E[slope²] given x̃ over its average, as tables over x̃.

        Args:
            alpha: the size of ω.
            read: the size of what is read, in that of y by the weights' own.
        """
        z = np.linspace(-6.0, 6.0, _STEPS)
        weights = np.exp(-z * z / 2)
        weights /= weights.sum()
        own = self.share * alpha * read
        rest = math.sqrt(max(self.pre.q - self.pre.mean**2 - own**2, 0.0))
        grid = np.linspace(-_REACH, _REACH, _POINTS)
        points = self.pre.mean + own * grid[:, None] + rest * z[None, :]
        slopes = self.slope.fn(points.ravel()).reshape(points.shape)
        once, twice = slopes @ weights, slopes**2 @ weights
        return _table(grid, (once - once[::-1]) / (2 * alpha)), _table(grid, (twice + twice[::-1]) / 2)


def _table(grid: Array, values: Array) -> Function:
    return Function(lambda x: np.interp(x, grid, values))


def answered(call: Call, dx: Signal, x: Signal, weight: Signal, count: float, sent: Sent) -> Signal:
    """Add to the gradient that a convolution sends back what of it goes with what the convolution read.

    Args:
        call: of the backward op.
        dx: the gradient, all weights taken as independent of what arrives.
        x: what was read.
        weight: the convolution's.
        count: of weights that made an entry, on average.
        sent: takes a gradient back through weights of these moments.
    """
    made = as_image(x)
    if not weight.scatter or dx.dims != x.dims or x.segmented or made.base is not None or made.pre.dims != x.dims:
        return dx
    bend = bend_of(call)
    parts = None if bend is None else centred(x, x.axes([0, *range(2, len(x.dims))])) if bend.normed else x.moments
    if bend is None or parts is None or parts.flat[0] <= 0:
        return dx
    size, tails = float(parts.flat[0]), weight.scatter[0]
    whole = max(size, _by_weight(call, bend, weight.q * count))
    moments = _by_pairs(bend, weight, tails, count, whole, sent)
    alpha = math.sqrt((1 + tails) / (count + tails))
    rise, power = bend.responses(alpha, math.sqrt(size / whole))
    of_means = bend.normed and size < _ALIKE * (x.q - x.mean**2)
    unit = math.sqrt(x.q - x.mean**2 if of_means else size)
    to_one = line(1 / unit, -x.mean / unit if bend.normed else 0.0)
    hat = Image(composed(to_one, made), made.pre)
    echo = Echo(composed(rise, hat), made.pre, moments)
    if of_means:
        echo = _about_means(echo, rise, x, parts / size)
    added = echo.moments * function_moments(echo.phi, echo.pre)[1]
    if size < whole:
        added = added + (1 - size / whole) * _of_borders(bend, alpha, moments, x)
    echoes = (echo, *_grown(dx, composed(power, hat), made.pre))
    return replace(dx, moments=dx.moments + added, echoes=echoes, image=None).approximate(_ALONE)


def _about_means(echo: Echo, rise: Pointwise, x: Signal, correlations: Array) -> Echo:
    """Leave out of an echo what channels have in common, which a norm takes off: x̃ is about the mean of its channel."""
    own = function_moments(rise, replace(x.changed(correlations, 0.0), gaussian=True))[1]
    pairs = function_moments(echo.phi, echo.pre)[1]
    ratio = np.where(pairs != 0, own / np.where(pairs != 0, pairs, 1.0), 1.0)
    return replace(echo, moments=np.asarray(echo.moments * ratio))


def _by_weight(call: Call, bend: Bend, square: float) -> float:
    """Return the variance that a norm divides by, over Σ w² and as 1/s² averages it; 0 where there is none.

    Beside that of what is read it has what zeros around it make of its mean: borders read less of it.
    """
    y = call.known.get(call.forward().outputs[0])
    if y is None or not bend.normed or square <= 0:
        return 0.0
    level = float(centred(y, y.axes([0, *range(2, len(y.dims))])).flat[0])
    return level / square / undone_of_own(y)


def _of_borders(bend: Bend, alpha: float, moments: Array, x: Signal) -> Array:
    """Return what goes with what borders read less of, at each place by itself: it adds up to nothing over places."""
    z = np.linspace(-6.0, 6.0, _STEPS)
    weights = np.exp(-z * z / 2)
    square = float(weights @ bend.responses(alpha, 1.0)[0].fn(z) ** 2 / weights.sum())
    here = [slice(None)] * moments.ndim
    for axis in x.axes(range(2, len(x.dims))):
        here[axis] = slice(0, 1)
    found = np.zeros_like(moments)
    found[tuple(here)] = square * moments[tuple(here)]
    return found


def _by_pairs(bend: Bend, weight: Signal, tails: float, count: float, size: float, sent: Sent) -> Array:
    """Return E[base base′], base the sum of h over the weights that read a place, in what units r leaves it in."""
    rate = bend.factor**2 / (size * count**2) if bend.normed else weight.q / count
    alike = sent(bend.source, constant(weight.shape, math.sqrt(rate))).moments
    own = sent(bend.source, independent(weight.shape, rate)).moments
    # Of normalized weights E[ω_k²ω_l²] = 1/(n(n + t)), and E[ω⁴] = (1 + t) times that.
    even = count / (count + tails) if bend.normed else 1.0
    moments = even * (alike + tails * own)
    moments.flat[0] = even * max(float((alike - own).flat[0]), 0.0)
    return np.asarray(moments)


def _grown(dx: Signal, power: Pointwise, u: Signal) -> list[Echo]:
    """Return the terms that say how E[dx²] depends on u: what is more than its least is an echo of its own."""
    points, weights = (row[0] for row in distribution(u))
    values = power.fn(points)
    average = float(weights @ values)
    least = float(values.min())
    if average <= 0 or 1 - least / average < _LEAST:
        return []
    moments = np.zeros_like(dx.moments)
    moments.flat[0] = dx.q / average
    return [Echo(Function(lambda v: np.sqrt(np.maximum(power.fn(v) - least, 0.0)), power.kinks), u, moments)]


def bend_of(call: Call) -> Bend | None:
    """Find how the gradient that arrives at a convolution depends on what the convolution made."""
    trace, value = call.trace, call.trace.shown(call["grad_output"].id)
    op, y = trace.producer(value), call.forward().outputs[0]
    if op is None:
        return None
    if op.functional == _NORM:
        return _behind_norm(call, op, y) if op.arguments["train"] and op.outputs[0] == value else None
    g, out = call.known.get(value), call.known.get(y)
    made = g.image if g is not None else None
    if made is None or made.base is None or out is None or made.pre is not out or not _plain(out, made.base):
        return None
    return Bend(made.base, made.phi, made.pre, math.sqrt(out.q - out.mean**2), 1.0, False)


def _behind_norm(call: Call, op: Op, y: int) -> Bend | None:
    if op.of is None or call.trace.shown(op.arguments["input"].id) != y:
        return None
    forward = call.trace.ops[op.of]
    g, weight = call.known.get(op.arguments["grad_out"].id), forward.arguments["weight"]
    made = g.image if g is not None else None
    if made is None or made.base is None or not _plain(made.pre, made.base):
        return None
    scale = call.known[weight.id].rms if weight is not None and weight.id in call.known else 1.0
    share = sum(a for tag, a in made.pre.roots if tag == forward.outputs[0])
    return Bend(made.base, made.phi, made.pre, share, scale, True) if share else None


def bent_before(call: Call, dx: Signal) -> Signal:
    """Mind that a norm behind a convolution divided by sizes that each channel had before: see ``channels``."""
    trace, value, y = call.trace, call.trace.shown(call["grad_output"].id), call.forward().outputs[0]
    op, made = trace.producer(value), call.known.get(y)
    if made is None or made.channels is None or op is None or op.functional != _NORM or op.outputs[0] != value:
        return dx
    if not op.arguments["train"] or trace.shown(op.arguments["input"].id) != y:
        return dx
    level = float(centred(made, made.axes([0, *range(2, len(made.dims))])).flat[0])
    if level <= 0:
        return dx
    floor = float(op.arguments["eps"]) / level
    share = added_up(made, floor)
    if share < 1 and dx.q > 0:
        moments = dx.moments - (1 - share) * over_all(dx, dx.moments, dx.axes(range(2, len(dx.dims))))
        dx = replace(dx, moments=moments * (dx.q / moments.flat[0]))
    return sent_back(dx, made.channels.made.pre, divided(made, made.channels, floor, undone=True))


def _plain(u: Signal, h: Signal) -> bool:
    return u.dims == h.dims and not u.segmented and u.q > u.mean**2 and len(u.dims) > 2
