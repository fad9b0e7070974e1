"""Normalization over a set of axes: batch, layer, group and instance norm are one line with other axes.

x̂ = (x − x̄)/s, with x̄ the mean over the axes. E[x̄ x̄'] is the average of the moments over all pairs of these axes, and
so is E[x x̄']. Call it μ. Then E[(x − x̄)(x' − x̄')] = moments − μ, the variance is its value at "all agree", and

    moments(x̂) = (moments − μ) / (q − μ₀ + ε)

The backward projects the gradient off the constant and off x̂, over the same axes, and divides by s:

    dx = (g − ḡ − x̂·c)/s,   c = mean(g x̂)       E[dx dx'] = (G − avg G − avg(E[g x̂ g' x̂'])·X̂) / s²

g is not independent of x̂ where a nonlinearity follows: g = φ′(u)·h, and u contains x̂. Given a Gaussian u = a·x̂ + rest,
x̂ has the mean a(u − E u)/var u and the variance 1 − a²/var u; so E[(g x̂)²] and E[g x̂]² are expectations over u alone.

1/s² is larger than 1/E[s²]: over ν independent entries s² is a χ² with E[1/s²] = ν/(ν−2)/E[s²], and correlated ones
count as 1/ν = the average of their squared correlations over all pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from initwell.propagate.atoms import centred as centred_moments
from initwell.propagate.atoms import over_all, together, viewed
from initwell.propagate.gaussian import covariance
from initwell.propagate.laws import distribution
from initwell.propagate.rules.branch import added, multiplied, scaled
from initwell.propagate.rules.shape import summed
from initwell.propagate.segments import Array, along
from initwell.propagate.signal import Signal, merged_fidelity, over_pairs
from initwell.propagate.table import Call, Rule


def normalized(x: Signal, dims: Sequence[int], eps: float, *, centred: bool = True, tag: int = -1) -> Signal:
    """Normalize over some dimensions.

    Args:
        x: the signal.
        dims: dimensions over which mean and variance are taken.
        eps: added to the variance.
        centred: False for RMS norm, which takes no mean off.
        tag: under which later sums remember this value.

    >>> from initwell.propagate.signal import independent
    >>> normalized(independent((4, 3), 2.0), [0], 0.0).moments.round(3).tolist()
    [[1.0, 0.0], [-0.333, 0.0]]
    """
    moments, variance = _centred(x, dims, centred=centred)
    scale = 1 / np.sqrt(variance + eps)
    found = x.changed(moments * over_pairs(x.atoms, scale), 0.0 if centred else x.means * scale)
    return replace(found, gaussian=x.gaussian, roots=((tag, 1.0),), profile=x.profile)


def _centred(x: Signal, dims: Sequence[int], *, centred: bool = True) -> tuple[Array, Array]:
    """Return moments about the mean over these dimensions, and the variance: by segment, of length 1 along them."""
    axes = x.axes(dims)
    moments = centred_moments(x, axes) if centred else x.moments
    variance = moments[tuple(slice(n) for n in x.means.shape)]
    for axis in axes:
        atom = x.atoms[axis].patterns
        variance = along(variance, atom.agree[None, : len(atom.parts)], axis)
    return np.asarray(moments), np.maximum(variance, 0.0)


def normalized_backward(
    g: Signal, x: Signal, dims: Sequence[int], eps: float, *, centred: bool = True, tag: int = -1
) -> tuple[Signal, Signal]:
    """Take a gradient back through a normalization.

    Args:
        g: the gradient at x̂.
        x: the forward's input.
        dims: as in the forward.
        eps: as in the forward.
        centred: as in the forward.
        tag: as in the forward.

    Returns:
        The gradient at x, and g·x̂ averaged over the dimensions: the scale's gradient over their size.
    """
    g, x = together(g, x, x.shape)
    axes = g.axes(dims)
    moments, variance = _centred(x, dims, centred=centred)
    positive = np.maximum(variance, 1e-300)
    share = variance / (variance + eps)
    hat = moments / over_pairs(x.atoms, np.sqrt(positive))
    cross = over_all(g, _with_itself(g, hat, tag), axes)
    inner = centred_moments(g, axes) if centred else g.moments
    found = inner - cross * hat * over_pairs(x.atoms, np.sqrt(share * (2 - share)))
    free = 1 / np.maximum(over_all(g, hat**2, axes)[tuple(slice(n) for n in share.shape)], 1e-12)
    varies = np.where(free > 2.5, 1 + share * (free / np.maximum(free - 2, 0.5) - 1), 1.0)
    scale = np.sqrt(varies / (variance + eps))
    dx = replace(g.changed(found * over_pairs(g.atoms, scale), 0.0), profile=g.profile)
    kept = tuple(() if d in dims else dim for d, dim in enumerate(g.dims))
    cross = cross * over_pairs(g.atoms, np.sqrt(share))
    cross = cross[tuple(0 if i in axes else slice(None) for i in range(cross.ndim))]
    return merged_fidelity(dx, x), g.changed(np.asarray(cross), 0.0, dims=kept)


def _with_itself(g: Signal, hat: Array, tag: int) -> Array:
    """Return E[g x̂ g' x̂'], for a gradient that may have been gated by what x̂ is part of."""
    gate = g.gates[0] if len(g.gates) == 1 and not g.segmented else None
    a = sum(c for t, c in gate.pre.roots if t == tag) if gate else 0.0
    if gate is None or a == 0.0:
        return np.asarray(g.moments * hat)
    u = gate.pre
    points, weights = distribution(u)
    if u.law is None:
        variance, centre = covariance(u)[0], np.full_like(points, u.mean)
    else:
        variance, centre = u.law.variance, np.repeat(u.law.values, points.size // u.law.values.size)
    slope = gate.slope(points)
    once = weights * slope * np.interp(points, gate.grid, gate.passed)
    twice = weights * slope**2 * np.interp(points, gate.grid, gate.power)
    if variance <= 0 or once.sum() == 0 or twice.sum() == 0:
        return np.asarray(g.moments * hat)
    # Given u and its non-Gaussian part, x̂ has this mean, and the variance 1 − a²/variance.
    given = a * (points - centre) / variance
    first = float(once @ given / once.sum())
    second = float(twice @ given**2 / twice.sum()) + 1 - a * a / variance
    factors = first**2 + hat * (1 - first**2)
    factors[(0,) * factors.ndim] = second
    return np.asarray(g.moments * factors)


def _affine(call: Call, hat: Signal, shape: Sequence[int]) -> Signal:
    """Multiply by the weight and add the bias, where there are any; ``shape`` lays them out along the input."""
    found = hat
    if call["weight"] is not None:
        weight = viewed(call.signal("weight"), shape)
        if abs(weight.q - weight.mean**2) <= 1e-12 * weight.q:
            found = scaled(found, weight.mean)
        else:
            found = replace(
                multiplied(*together(found, weight, call.shape())), gaussian=found.gaussian, profile=found.profile
            )
    if call["bias"] is not None:
        roots = found.roots
        bias = viewed(call.signal("bias"), shape)
        found = replace(added(*together(found, bias, call.shape()), gaussian=found.gaussian), roots=roots)
    return found


def _unscaled(call: Call, g: Signal, shape: Sequence[int]) -> Signal:
    if call["weight"] is None:
        return g
    weight = viewed(call.signal("weight"), shape)
    if abs(weight.q - weight.mean**2) <= 1e-12 * weight.q:
        return scaled(g, weight.mean)
    return multiplied(*together(g, weight, g.shape))


def _channels(call: Call, name: str = "input") -> tuple[list[int], tuple[int, ...]]:
    shape = call.signal(name).shape
    return [0, *range(2, len(shape))], (1, shape[1], *[1] * (len(shape) - 2))


def _statistics(call: Call) -> list[Signal | None]:
    return [None] * (len(call.op.outputs) - 1)


def _batch_norm(call: Call) -> Sequence[Signal | None]:
    x, eps = call.signal("input"), float(call["eps"])
    dims, layout = _channels(call)
    if call["training"] or call["running_var"] is None:
        hat = normalized(x, dims, eps, tag=call.op.outputs[0])
    else:
        hat = replace(_running(call, x, layout, eps), roots=((call.op.outputs[0], 1.0),))
    return [_affine(call, hat, layout), *_statistics(call)]


def _running(call: Call, x: Signal, layout: Sequence[int], eps: float) -> Signal:
    mean, variance = viewed(call.signal("running_mean"), layout), call.signal("running_var")
    centred = x if mean.q == 0 else added(*together(x, mean, x.shape), 1.0, -1.0, gaussian=x.gaussian)
    found = scaled(centred, 1 / math.sqrt(variance.mean + eps))
    varies = variance.q - variance.mean**2 > 1e-9 * variance.q
    return found.approximate("running variances that vary between channels count by their mean") if varies else found


def _batch_norm_backward(call: Call) -> Sequence[Signal | None]:
    g, x, eps = call.signal("grad_out"), call.signal("input"), float(call["eps"])
    dims, layout = _channels(call)
    n = math.prod(x.shape[d] for d in dims)
    tag = call.forward().outputs[0]
    inner = _unscaled(call, g, layout)
    if call["train"]:
        dx, cross = normalized_backward(inner, x, dims, eps, tag=tag)
    else:
        factor = 1 / math.sqrt(call.signal("running_var").mean + eps)
        dx, cross = scaled(inner, factor), normalized_backward(inner, x, dims, eps, tag=tag)[1]
    dx = replace(dx, gates=())
    dweight = scaled(viewed(cross, (x.shape[1],)), n / _weight_mean(call))
    dbias = summed(g, dims, keep=False, mean=False)
    return _masked(call, [dx, dweight, dbias])


def _weight_mean(call: Call) -> float:
    return (call.signal("weight").mean or 1.0) if call["weight"] is not None else 1.0


def _masked(call: Call, found: Sequence[Signal]) -> Sequence[Signal | None]:
    # Only what was asked for is among the trace's outputs.
    return [signal for signal, wanted in zip(found, call["output_mask"], strict=True) if wanted]


def _last(call: Call) -> tuple[list[int], tuple[int, ...]]:
    rank, n = len(call.signal("input").dims), len(call["normalized_shape"])
    return list(range(rank - n, rank)), tuple(call["normalized_shape"])


def _layer_norm(call: Call) -> Sequence[Signal | None]:
    dims, layout = _last(call)
    hat = normalized(call.signal("input"), dims, float(call["eps"]), tag=call.op.outputs[0])
    return [_affine(call, hat, layout), *_statistics(call)]


def _layer_norm_backward(call: Call) -> Sequence[Signal | None]:
    g, x = call.signal("grad_out"), call.signal("input")
    dims, layout = _last(call)
    inner = _unscaled(call, g, layout)
    forward = call.forward()
    eps = float(forward.arguments["eps"])
    dx, _ = normalized_backward(inner, x, dims, eps, tag=forward.outputs[0])
    others = [d for d in range(len(x.dims)) if d not in dims]
    hat = normalized(x, dims, eps)
    dweight = summed(multiplied(*together(g, hat, x.shape)), others, keep=False, mean=False)
    return _masked(call, [dx, dweight, summed(g, others, keep=False, mean=False)])


RULES: Mapping[str, Rule] = {
    "aten.native_batch_norm": _batch_norm,
    "aten.native_batch_norm_backward": _batch_norm_backward,
    "aten.native_layer_norm": _layer_norm,
    "aten.native_layer_norm_backward": _layer_norm_backward,
}
