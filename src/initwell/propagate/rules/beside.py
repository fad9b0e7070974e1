"""A value beside what few weights made of it: x + f(Σ w_k x_k), and the gradients that come back from both.

x_p goes with the even part of f at every place p′ that reads it, since y contains w_k x_p (see ``echoes``):

    E[x_p f(y_p′)] − E[x]E[f] = E[x·(F(αx̃) + F(−αx̃))]/2κ − E[x]·(…)        F(c) = E[f(c + √(1 − α²) z)]

for κ = (1 + t)n/(n + t), as the weight is 0 in the other cases. Where the sum Σ w_k x_k itself is added to a function
of x, w₀x is beside it, and (1 + w₀)x now larger, now smaller than x. What comes back through both has the same
gradient in it; that is not followed.
"""

import math
from collections.abc import Sequence

import numpy as np

from initwell.propagate.laws.functions import as_image, is_line
from initwell.propagate.laws.rectified import binned, distribution
from initwell.propagate.moments.centring import centred
from initwell.propagate.moments.incidence import Axis, geometry
from initwell.propagate.moments.remembered import Law
from initwell.propagate.moments.segments import Array, along
from initwell.propagate.moments.signal import Image, Signal, replace
from initwell.propagate.table import Call
from initwell.trace.ops import ACTIVATIONS
from initwell.trace.trace import Op, ValueRef

_NORM = "aten.native_batch_norm"
ALONE = "a value and what few weights made of it, neighbours taken as independent"
_STEPS = 4
_LEAST = 1e-4
_POINTS = 241


def beside(call: Call, first: str, second: str, beta: float) -> tuple[Array, Sequence[str]] | None:
    """Return E[a b′] + E[b a′] of a + βb, where few weights made one of the other; None where they did not.

    Args:
        call: of the sum.
        first: name of a.
        second: name of b.
        beta: factor of b.
    """
    refs = call.tensors(first, second) or []
    for x, made in zip(refs, refs[::-1], strict=True):
        conv = _few(call, made.id)
        if conv is not None and call.trace.shown(conv.arguments["input"].id) == call.trace.shown(x.id):
            found = _together(call, conv, call.of(x), call.of(made))
            return None if found is None else (2 * beta * found, [ALONE])
    return None


def _few(call: Call, value: int) -> Op | None:
    """Return the convolution of few weights that a value is a function of."""
    for _ in range(_STEPS):
        op = call.trace.producer(call.trace.shown(value))
        if op is None or op.phase != "forward":
            return None
        if op.functional == "aten.convolution":
            weight = call.known.get(op.arguments["weight"].id)
            fresh = weight is not None and bool(weight.scatter) and weight.mean == 0
            return op if fresh and not op.arguments["transposed"] else None
        if op.functional not in ACTIVATIONS and op.functional != _NORM:
            return None
        value = op.inputs[0]
    return None


def _together(call: Call, conv: Op, x: Signal, b: Signal) -> Array | None:
    """Return E[x b′] less the product of their means, by pattern."""
    u, f = as_image(x), b.image
    if f is None or f.base is not None or u.base is not None or x.dims != b.dims or x.segmented or f.pre.dims != b.dims:
        return None
    if u.pre.segmented:
        return None
    weight = call.known[conv.arguments["weight"].id]
    axes = geometry(Call(conv, call.trace, call.known, call.values), x.shape[2:], b.shape[2:], weight.shape[2:])
    count = weight.shape[1] * math.prod(axis.degrees[0] for axis in axes)
    tails, spread = weight.scatter[0], math.sqrt(max(f.pre.q - f.pre.mean**2, 0.0))
    size = float(centred(x, x.axes([0, *range(2, len(x.dims))])).flat[0])
    if weight.shape[1] > 1 or size <= 0 or any(axis.sizes[0] != axis.sizes[1] for axis in axes):
        return None
    alpha = math.sqrt((1 + tails) / (count + tails))
    z = np.linspace(-6.0, 6.0, _POINTS)
    normal = np.exp(-z * z / 2) / np.exp(-z * z / 2).sum()
    grid = np.linspace(-10.0, 10.0, _POINTS)
    inner = f.pre.mean + spread * (alpha * grid[:, None] + math.sqrt(max(1 - alpha**2, 0.0)) * z[None, :])
    even = f.phi.fn(inner.ravel()).reshape(inner.shape) @ normal
    points, weights = (row[0] for row in distribution(u.pre))
    values = u.phi.fn(points)
    centre = float(weights @ values)
    other = np.interp((values - centre) / math.sqrt(size), grid, (even + even[::-1]) / 2)
    same = float(weights @ ((values - centre) * other)) * (count + tails) / ((1 + tails) * count)
    return _by_places(x, axes, same) if abs(same) > _LEAST * math.sqrt(x.q * b.q) else None


def law_beside(call: Call, found: Signal, first: str, second: str, beta: float) -> Signal:
    """Say how a + βb is distributed where a is f(x) and b the sum Σ w_k x_k itself, behind its norm.

    Args:
        call: of the sum.
        found: the sum, its law one that takes a and b as independent.
        first: name of a.
        second: name of b.
        beta: factor of b.
    """
    a, b = call[first], call[second]
    for one, two, (alpha, factor) in ((a, b, (1.0, beta)), (b, a, (beta, 1.0))):
        if found.law is None or found.segmented or not isinstance(one, ValueRef) or not isinstance(two, ValueRef):
            return found
        f, y, conv = call.of(one), call.of(two), _few(call, two.id)
        x = call.known.get(conv.arguments["input"].id) if conv is not None else None
        if conv is None or x is None or x.image is None or f.image is None or f.image.pre is not x.image.pre:
            continue
        if y.law is None or y.law.near is None or not is_line(as_image(y).phi) or x.image.base or f.image.base:
            continue
        return replace(found, law=_with_own(call, conv, x, f.image, y, (alpha, factor))).approximate(ALONE)
    return found


def _with_own(call: Call, conv: Op, x: Signal, f: Image, y: Signal, factors: tuple[float, float]) -> Law:
    """Return the law of αf(u) + βy, y of the weight ±ω or 0 at x itself, and a Gaussian rest."""
    weight, (alpha, beta) = call.known[conv.arguments["weight"].id], factors
    tails, count = weight.scatter[0], float(math.prod(weight.shape[1:]))
    own, size = math.sqrt((1 + tails) / (count + tails)), beta**2 * max(y.q - y.mean**2, 0.0)
    points, weights = (row[0] for row in distribution(f.pre))
    values = x.image.phi.fn(points) if x.image is not None else points
    centre = float(weights @ values)
    hat = (values - centre) / math.sqrt(max(float(weights @ (values - centre) ** 2), 1e-300))
    some = (count + tails) / ((1 + tails) * count)
    z = np.linspace(-3.0, 3.0, 13)
    normal = np.exp(-z * z / 2) / np.exp(-z * z / 2).sum()
    there, step = alpha * f.phi.fn(points), own * math.sqrt(size)
    spots = [there + step * hat, there - step * hat, *(there + step * shift for shift in z / math.sqrt(normal @ z**2))]
    masses = [weights * some / 2, weights * some / 2, *(weights * (1 - some) * mass for mass in normal)]
    flat, mass = binned(np.concatenate(spots), np.concatenate(masses))
    offset = beta * y.mean
    rest, factor, moved_by = (np.full(1, n) for n in ((1 - own**2) * size, alpha, offset))
    return Law((flat + offset)[None], mass[None], rest, Image(f.phi, f.pre), factor, moved_by, np.zeros(()))


def _by_places(x: Signal, axes: Sequence[Axis], same: float) -> Array:
    """Return by pattern what two entries have in common if one of them reads the other: of one sample and channel."""
    found = np.zeros_like(x.moments)
    found.flat[0] = same
    for place, axis in enumerate(axes, 2):
        for i in x.axes([place]):
            own, read = reading(axis)
            found = along(found, np.array([[own, 0.0], [read, 0.0]]), i)
    return found


def reading(axis: Axis) -> tuple[float, float]:
    """Return how many taps of an output read the input at its own place, and one at another, on average."""
    n = axis.sizes[0]
    own = float((axis.inside & (axis.at == np.arange(n)[:, None])).sum())
    return own / n, (float(axis.inside.sum()) - own) / max(n * (n - 1), 1)
