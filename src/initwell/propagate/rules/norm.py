"""Normalization over a set of axes: batch, layer, group and instance norm are one line with other axes.

x̂ = (x − x̄)/s, with x̄ the mean over the axes. E[x̄ x̄'] is the average of the moments over all pairs of these axes, and
so is E[x x̄']. Call it μ. Then E[(x − x̄)(x' − x̄')] = moments − μ, the variance is its value at "all agree", and

    moments(x̂) = (moments − μ) / (q − μ₀ + ε)

The backward projects the gradient off the constant and off x̂, over the same axes, and divides by s:

    dx = (g − ḡ − x̂·c)/s,   c = mean(g x̂)       E[dx dx'] = (G − avg G − avg(E[g x̂ g' x̂'])·X̂) / s²

since g − ḡ meets x̂·c only by what of it lies along x̂, which is x̂·c again: −2 + 1 times E[c c'] X̂, and E[c c'] is the
average of E[g x̂ g' x̂'] over all pairs. An ε takes a share r = var/(var + ε) of x̂², so that c enters with r(2 − r).

g is not independent of x̂ where a nonlinearity follows: see ``let_through``.

1/s² is larger than 1/E[s²]: over ν independent entries s² is a χ² with E[1/s²] = ν/(ν−2)/E[s²], correlated ones count
as 1/ν = the average of their squared correlations over all pairs, or part by part: see ``components``. (At ν below 2.5
there is next to no such expectation: 1/s² is left alone.) Channels of few weights differ in s² besides: ``scatter``.

Group norm takes its axes from a view that cuts the channels; instance norm reaches ATen as batch norm of such a view.
The scale's gradient is g·x̂ summed over all that the scale is shared by, and so is the same E[g x̂ g' x̂'].
Assumption: running statistics, where they are used, are independent of the values that they are applied to.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from initwell.propagate.given.measured import measured
from initwell.propagate.laws import epsilon
from initwell.propagate.laws.components import in_parts, inverse
from initwell.propagate.laws.few import normed
from initwell.propagate.laws.few_features import ALIKE, of_few_features
from initwell.propagate.laws.functions import composed, line
from initwell.propagate.laws.gaussian import variances
from initwell.propagate.laws.lengths import SENT_BACK, heavy
from initwell.propagate.laws.rectified import without
from initwell.propagate.laws.swing import inverse_square_of, over_places
from initwell.propagate.moments.atoms import together, viewed
from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.centring import centred as centred_moments
from initwell.propagate.moments.centring import over_all
from initwell.propagate.moments.remembered import Gate
from initwell.propagate.moments.segments import Array, along
from initwell.propagate.moments.signal import UNLIKE, Signal, merged_fidelity, replace
from initwell.propagate.rules.branch import added, multiplied, scaled, shifted
from initwell.propagate.rules.let_through import gates_of, with_itself
from initwell.propagate.rules.reading import levelled
from initwell.propagate.rules.scatter import (
    SIZES,
    by_samples,
    inverse_sizes,
    of_unlike_channels,
    relative_variance,
    sent_to,
    unlike,
)
from initwell.propagate.rules.shape import summed
from initwell.propagate.rules.states import refuse_rows
from initwell.propagate.table import Call, Rule

# Of rows of fewer free entries 1/s² has next to no expectation but for ε.
_FEWEST = 2.5


def normalized(x: Signal, dims: Sequence[int], eps: float, *, centred: bool = True, tag: int = -1) -> Signal:
    """Normalize over some dimensions.

    Args:
        x: the signal.
        dims: dimensions over which mean and variance are taken.
        eps: added to the variance.
        centred: False for RMS norm, which takes no mean off.
        tag: under which later sums remember this value.

    >>> from initwell.propagate.moments.signal import independent
    >>> normalized(independent((4, 3), 2.0), [0], 0.0).moments.round(3).tolist()
    [[1.0, 0.0], [-0.333, 0.0]]
    """
    moments, variance = _centred(x, tuple(dims), centred)
    moments = in_parts(x, moments, x.axes(dims)) if centred else moments
    scale = 1 / np.sqrt(variance + eps)
    found = x.changed(
        moments * over_pairs(x.atoms, scale),
        0.0 if centred else x.means * scale,
        gaussian=x.gaussian,
        roots=((tag, 1.0),),
        profile=levelled(x, dims, x.changed(moments, 0.0).q) if centred and x.profile else x.profile,
        swing=x.swing if 0 in dims else 0.0,
        floor=x.floor if 0 in dims else 0.0,
    )
    found = _as_distributed(found, x, scale if centred else None)
    if not epsilon.matters(None if 0 in dims else x, variance, eps):
        return found
    return epsilon.shrunk(found, x, dims, variance, eps, _free(x, _unit(x, tuple(dims), centred)[0], dims))


def _free(x: Signal, hat: Array, dims: Sequence[int]) -> Array:
    """Return as how many independent entries those of a row count, by segment."""
    axes = x.axes(dims)
    here = tuple([slice(n if i not in axes else 1) for i, n in enumerate(x.means.shape)])
    return np.asarray(1 / np.maximum(over_all(x, hat * hat, axes)[here], 1e-12))


def _average(array: Array) -> float:
    return float(np.add.reduce(array, axis=None)) / array.size if array.size != 1 else float(array.flat[0])


def _as_distributed(hat: Signal, x: Signal, scale: Array | None, *, by_channel: bool = False) -> Signal:
    """Say how x̂ is distributed, where it is known of x: divided by its channel's own size, it has lighter tails."""
    if x.law is None or len(x.law.values) != hat.means.size:
        return hat
    spread = relative_variance(x) if by_channel else 0.0
    mean, variance = hat.means.ravel(), variances(hat).ravel()
    if scale is not None and x.law.near is None and spread == 0:
        return replace(hat, law=without(x.law, np.broadcast_to(scale, x.means.shape).ravel(), mean, variance))
    law = normed(x.law, spread, mean, variance)
    return replace(hat, law=law, gaussian=law is None)


@lru_cache(maxsize=4)
def _centred(x: Signal, dims: tuple[int, ...], centred: bool) -> tuple[Array, Array]:
    """Return moments about the mean over these dimensions, and the variance: by segment, of length 1 along them."""
    axes = x.axes(dims)
    moments = centred_moments(x, axes) if centred else x.moments
    variance = moments[tuple([slice(n) for n in x.means.shape])]
    for axis in axes if x.segmented else ():
        atom = x.atoms[axis].patterns
        variance = along(variance, atom.agree[None, : len(atom.parts)], axis)
    return np.asarray(moments), np.maximum(variance, 0.0)


def normalized_backward(
    g: Signal,
    x: Signal,
    dims: Sequence[int],
    eps: float,
    *,
    centred: bool = True,
    tag: int = -1,
    gates: Sequence[Gate] = (),
    channels: bool = False,
) -> Signal:
    """Take a gradient back through a normalization.

    Args:
        g: the gradient at x̂.
        x: the forward's input.
        dims: as in the forward.
        eps: as in the forward.
        centred: as in the forward.
        tag: as in the forward.
        gates: the masks that g went through last, where it does not itself remember them.
        channels: whether each channel is divided by its own size, which scatters as x says.

    Returns:
        The gradient at x.
    """
    g, x = together(g, x, x.shape)
    axes = g.axes(dims)
    if x.segmented and (alone := of_few_features(g, x, axes, eps, centred=centred)) is not None:
        return merged_fidelity(g.changed(alone, 0.0), x).approximate(ALIKE)
    hat, variance = _unit(x, tuple(dims), centred)
    share = variance / (variance + eps)
    taken, free, rows = share * (2 - share), _free(g, hat, dims), None if 0 in dims else over_places(x, dims)
    many, undone = float(free.min()) > _FEWEST, 1.0
    gain, grown = inverse_square_of(rows if many else None, _average(free))
    as_one = np.where(free > _FEWEST, free / np.maximum(free - 2, 0.5), 1.0)
    as_parts = inverse(x, _centred(x, tuple(dims), centred)[0], axes) if centred and many else None
    less = 1.0 if as_parts is None else as_parts / _average(as_one)
    if channels and unlike(x):
        level = _average(variance)
        left = by_samples(x, few := _average(2 / free) if many else 0.0)
        sizes = inverse_sizes(x, eps / max(level, 1e-300), few * left)
        varies = (1 + left * (less - 1)) * sizes.inverse * (variance + eps) / level
        undone = math.sqrt(sizes.undone / sizes.inverse)
    elif epsilon.matters(rows, variance, eps):
        free = free if as_parts is None else np.full_like(free, 2 * as_parts / max(as_parts - 1, 1e-12))
        lefts = epsilon.by_segment(rows, dims, variance, eps, free)
        varies, taken = (lefts.of(name) for name in ("back", "taken"))
        varies, grown = varies * (variance + eps) / variance, epsilon.grown(rows or x, dims, variance, eps, free)
    else:
        varies = gain * (1 + share * (less * as_one - 1))
    cross = over_all(g, _met(g, x, tuple(dims), centred, tag, tuple(gates or g.gates)), axes)
    inner = centred_moments(g, axes) if centred else g.moments
    found = inner - cross * hat * over_pairs(x.atoms, np.sqrt(taken))
    moments = found * over_pairs(g.atoms, np.sqrt(varies / (variance + eps)))
    sent = merged_fidelity(g.changed(moments, 0.0, profile=g.profile, undone=undone, **grown), x)
    return sent.approximate(SENT_BACK) if x.lengths > UNLIKE or heavy(x, math.prod(x.shape[d] for d in dims)) else sent


@lru_cache(maxsize=4)
def _met(g: Signal, x: Signal, dims: tuple[int, ...], centred: bool, tag: int, gates: tuple[Gate, ...]) -> Array:
    """Return E[g x̂ g' x̂'], which the gradients of x and of the scale are both made of."""
    return with_itself(g, _unit(x, dims, centred)[0], tag, gates)


@lru_cache(maxsize=4)
def _unit(x: Signal, dims: tuple[int, ...], centred: bool) -> tuple[Array, Array]:
    """Return the moments of x̂ at eps = 0, and the variance that x was divided by."""
    moments, variance = _centred(x, dims, centred)
    return moments / over_pairs(x.atoms, np.sqrt(np.maximum(variance, 1e-300))), variance


def times_hat(
    g: Signal, x: Signal, dims: Sequence[int], eps: float, *, tag: int = -1, gates: Sequence[Gate] = ()
) -> Signal:
    """Multiply a gradient by x̂, entry by entry, for the scale's gradient; arguments as of ``normalized_backward``."""
    g, x = together(g, x, x.shape)
    hat, variance = _unit(x, tuple(dims), True)
    met = _met(g, x, tuple(dims), True, tag, tuple(gates or g.gates))
    moments = met * over_pairs(x.atoms, np.sqrt(variance / (variance + eps)))
    if epsilon.matters(None if 0 in dims else x, variance, eps):
        moments = epsilon.shrunk(g.changed(moments, 0.0), x, dims, variance, eps, _free(x, hat, dims)).moments
    return merged_fidelity(g.changed(moments, 0.0), x)


def _affine(call: Call, hat: Signal, shape: Sequence[int]) -> Signal:
    """Multiply by the weight and add the bias, where there are any; ``shape`` lays them out along the input."""
    found = hat
    if call["weight"] is not None:
        weight = viewed(call.signal("weight"), shape)
        if _fixed(weight):
            found = scaled(found, weight.mean)
        else:
            product = multiplied(*together(found, weight, call.shape()))
            roots = tuple((tag, a * weight.rms) for tag, a in found.roots)
            found = replace(product, gaussian=found.gaussian, profile=found.profile, roots=roots)
    if call["bias"] is None:
        return found
    if call.signal("bias").q > 0:
        bias = viewed(call.signal("bias"), shape)
        if _fixed(bias):
            return shifted(found, bias.mean)
        found = replace(added(*together(found, bias, call.shape()), gaussian=found.gaussian), roots=found.roots)
    # Unless x̂ is a function of what came before, it is a value of its own, which later ones may be functions of.
    return found if hat.image is not None else replace(found, image=None)


def _unscaled(call: Call, g: Signal, shape: Sequence[int]) -> Signal:
    if call["weight"] is None:
        return g
    weight = viewed(call.signal("weight"), shape)
    if _fixed(weight):
        return scaled(g, weight.mean)
    return replace(multiplied(*together(g, weight, g.shape)), profile=g.profile)


def _fixed(weight: Signal) -> bool:
    return abs(weight.q - weight.mean**2) <= 1e-12 * weight.q


def _channels(call: Call, name: str = "input") -> tuple[list[int], tuple[int, ...]]:
    shape = call.signal(name).shape
    return [0, *range(2, len(shape))], (1, shape[1], *[1] * (len(shape) - 2))


def _batch_norm(call: Call) -> Sequence[Signal | None]:
    x, eps = call.signal("input"), float(call["eps"])
    dims, layout = _channels(call)
    if call["training"] or call["running_var"] is None:
        scale = 1 / np.sqrt(_centred(x, tuple(dims), True)[1] + eps)
        hat = _as_distributed(normalized(x, dims, eps, tag=call.op.outputs[0]), x, scale, by_channel=True)
        hat = scaled(_remembered(hat, x), _smaller(x, dims, eps))
    else:
        hat = replace(_running(call, x, layout, eps), roots=((call.op.outputs[0], 1.0),))
    return [_affine(call, hat, layout), *[None] * (len(call.op.outputs) - 1)]


def _remembered(hat: Signal, x: Signal) -> Signal:
    """Say that x̂ is a function of a Gaussian if x is, and all channels have about one mean and size: a line of it."""
    made, mean, variance = x.image, x.mean, x.q - x.mean**2
    if made is None or made.base is not None or x.segmented or x.gaussian or x.law is not None or variance <= 0:
        return hat
    slope = math.sqrt(hat.q / variance)
    return replace(hat, image=replace(made, phi=composed(line(slope, -slope * mean), made)))


def _smaller(x: Signal, dims: Sequence[int], eps: float) -> float:
    """Return by how much x̂ is smaller than if all channels were of one size: E[s²/(s² + ε)] over its value there."""
    variance = _average(_centred(x, tuple(dims), True)[1])
    if variance <= 0 or not unlike(x):
        return 1.0
    return math.sqrt(inverse_sizes(x, eps / variance).share * (1 + eps / variance))


def _running(call: Call, x: Signal, layout: Sequence[int], eps: float) -> Signal:
    mean = viewed(call.signal("running_mean"), layout)
    centred = x if mean.q == 0 else added(*together(x, mean, x.shape), 1.0, -1.0, gaussian=x.gaussian)
    return _by_running_variance(call, centred, layout, eps)


def _by_running_variance(call: Call, x: Signal, layout: Sequence[int], eps: float) -> Signal:
    """Divide by √(v + eps), v the running variances: the average of 1/(v + eps) is larger than 1 over that of v."""
    v = call.value("running_var")
    if v is None:
        return scaled(x, 1 / math.sqrt(call.signal("running_var").mean + eps))
    factor = viewed(measured((v.double() + eps).rsqrt()), layout)
    if _fixed(factor):
        return scaled(x, factor.mean)
    product = multiplied(*together(x, factor, x.shape))
    return replace(product, gaussian=x.gaussian, profile=x.profile).approximate(_UNEVEN)


_UNEVEN = "running variances that differ between channels, as independent of the values that they divide"


def _batch_norm_backward(call: Call) -> Sequence[Signal | None]:
    g, x, eps = call.signal("grad_out"), call.signal("input"), float(call["eps"])
    dims, layout = _channels(call)
    tag, gates = call.forward().outputs[0], gates_of(call)
    inner = _unscaled(call, g, layout)
    if call["train"]:
        dx = normalized_backward(inner, x, dims, eps, tag=tag, gates=gates, channels=True)
        if (x.image is not None or x.law is not None) and inner.q > 0 and dx.dims == inner.dims:
            # What it is a function of is remembered, so that a mask that comes next may be that of a later one.
            share = dx.q / inner.q
            kept = [replace(g, moments=g.moments * share, power=g.power * share) for g in inner.gates]
            dx = replace(dx, gates=tuple(kept), echoes=tuple(echo.times(share) for echo in inner.echoes))
        dx = sent_to(dx, x, eps / max(_average(_centred(x, tuple(dims), True)[1]), 1e-300))
        dx = dx.approximate(SIZES) if of_unlike_channels(call) else dx
        product = times_hat(g, x, dims, eps, tag=tag, gates=gates)
    else:
        dx = replace(_by_running_variance(call, inner, layout, eps), gates=())
        product = multiplied(*together(g, _running(call, x, layout, eps), x.shape))
    dweight = summed(product, dims, keep=False, mean=False)
    return _masked(call, [dx, dweight, summed(g, dims, keep=False, mean=False)])


def _masked(call: Call, found: Sequence[Signal]) -> Sequence[Signal | None]:
    # Only what was asked for is among the trace's outputs.
    return [signal for signal, wanted in zip(found, call["output_mask"], strict=True) if wanted]


def _last(call: Call) -> tuple[list[int], tuple[int, ...]]:
    rank, n = len(call.signal("input").dims), len(call["normalized_shape"])
    return list(range(rank - n, rank)), tuple(call["normalized_shape"])


def _layer_norm(call: Call) -> Sequence[Signal | None]:
    dims, layout = _last(call)
    hat = normalized(call.signal("input"), dims, float(call["eps"]), tag=call.op.outputs[0])
    return [_affine(call, hat, layout), *[None] * (len(call.op.outputs) - 1)]


def _layer_norm_backward(call: Call) -> Sequence[Signal | None]:
    g, x = call.signal("grad_out"), call.signal("input")
    dims, layout = _last(call)
    refuse_rows(call, call["input"].id, math.prod(layout))
    tag, eps, gates = call.forward().outputs[0], float(call.forward().arguments["eps"]), gates_of(call)
    dx = normalized_backward(_unscaled(call, g, layout), x, dims, eps, tag=tag, gates=gates)
    others = [d for d in range(len(x.dims)) if d not in dims]
    dweight = summed(times_hat(g, x, dims, eps, tag=tag, gates=gates), others, keep=False, mean=False)
    return _masked(call, [dx, dweight, summed(g, others, keep=False, mean=False)])


def _in_groups(call: Call, signal: Signal) -> tuple[Signal, list[int]]:
    """Return it as (N, groups, channels of one, space), and the dimensions that are normalized over."""
    n, channels, *space = signal.shape
    groups = int(call["group"])
    shape = (n, groups, channels // groups, *space)
    return replace(viewed(signal, shape), profile=signal.profile), list(range(2, len(shape)))


def _group_norm(call: Call) -> Sequence[Signal | None]:
    x, dims = _in_groups(call, call.signal("input"))
    hat = normalized(x, dims, float(call["eps"]), tag=call.op.outputs[0])
    whole = replace(viewed(hat, call.shape()), roots=hat.roots, profile=hat.profile)
    layout = (1, call.shape()[1], *[1] * (len(call.shape()) - 2))
    return [_affine(call, whole, layout), *[None] * (len(call.op.outputs) - 1)]


def _group_norm_backward(call: Call) -> Sequence[Signal | None]:
    g, shape = call.signal("grad_out"), call.signal("input").shape
    forward = call.forward()
    tag, eps, gates = forward.outputs[0], float(forward.arguments["eps"]), gates_of(call)
    x, dims = _in_groups(call, call.signal("input"))
    if len(shape) == 2:
        refuse_rows(call, call["input"].id, x.shape[2])
    inner, _ = _in_groups(call, _unscaled(call, g, (1, shape[1], *[1] * (len(shape) - 2))))
    dx = normalized_backward(inner, x, dims, eps, tag=tag, gates=gates)
    product = viewed(times_hat(_in_groups(call, g)[0], x, dims, eps, tag=tag, gates=gates), shape)
    others = [0, *range(2, len(shape))]
    dweight, dbias = (summed(s, others, keep=False, mean=False) for s in (product, g))
    return _masked(call, [replace(viewed(dx, shape), profile=dx.profile), dweight, dbias])


RULES: Mapping[str, Rule] = {
    "aten.native_batch_norm": _batch_norm,
    "aten._native_batch_norm_legit": _batch_norm,
    "aten._native_batch_norm_legit_no_training": _batch_norm,
    "aten.native_batch_norm_backward": _batch_norm_backward,
    "aten.native_layer_norm": _layer_norm,
    "aten.native_layer_norm_backward": _layer_norm_backward,
    "aten.native_group_norm": _group_norm,
    "aten.native_group_norm_backward": _group_norm_backward,
}
