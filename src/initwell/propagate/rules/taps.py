"""Convolution: a contraction in which output p reads input x through tap k, along each spatial axis.

All that a convolution does is the list of its incidences (p, x, k), padding left out. E[y y'] sums over pairs of
incidences, and each pair counts by which of p, x and k agree. Any two of them give the third, so with E incidences and
degrees d (how many incidences an index has) there are

    N[p, x, k agree] = E                     N[only p agrees] = Σ_p d_p² − E
    N[only x agrees] = Σ_x d_x² − E          N[only k agrees] = Σ_k d_k² − E          N[none] = E² − all of these

and the moments of whichever of the three is the output are Σ N · a · b over the other two, divided by its number of
pairs, n or n(n−1). One table serves the forward (x, k → p), the input's gradient (p, k → x), the weight's gradient
(p, x → k), and any kernel that is a constant. Zero padding, stride and dilation are in the degrees, exactly. Channels
contract by the contraction rule. Assumption: positions are exchangeable but for what ``places`` says of them, along
each axis by itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from initwell.propagate.atoms import joined, matched, permuted, plain, together, viewed
from initwell.propagate.gram import image
from initwell.propagate.incidence import Axis, geometry
from initwell.propagate.rules.branch import added, scaled
from initwell.propagate.rules.contraction import base
from initwell.propagate.rules.reading import likeness, profiled, read_places, really_read, sized
from initwell.propagate.rules.scatter import scattered
from initwell.propagate.rules.shape import summed
from initwell.propagate.segments import Array
from initwell.propagate.signal import Atom, Signal, Source, merged_fidelity
from initwell.propagate.table import Call, Rule


def tapped(
    a: Signal,
    b: Signal,
    axes: Sequence[Axis],
    roles: str,
    over: Sequence[tuple[int, int]] = (),
    batch: Sequence[tuple[int, int]] = (),
) -> Signal:
    """Contract two independent signals through taps.

    Args:
        a: its last ``len(axes)`` dimensions are spatial.
        b: the same.
        axes: one for each spatial dimension.
        roles: which of "p", "x", "k" the spatial dimensions of a, of b and of the result are, such as "xkp".
        over: pairs of dimensions summed over by the plain contraction rule.
        batch: pairs of dimensions shared.

    Returns:
        Dimensions: the shared ones, the rest of a, the rest of b, then the spatial ones.
    """
    a, b = matched(a, b, [*over, *batch])
    rank_a, rank_b = len(a.dims) - len(axes), len(b.dims) - len(axes)
    (a, moments_a), (b, moments_b) = _spatial(a, rank_a), _spatial(b, rank_b)
    names_a = list(range(moments_a.ndim))
    names_b = [20 + i for i in range(moments_b.ndim)]
    for da, db in (*over, *batch):
        for i, j in zip(a.axes([da]), b.axes([db]), strict=True):
            names_b[j] = names_a[i]
    operands: list[object] = [moments_a, names_a, moments_b, names_b]
    means: list[object] = [_flat(a, rank_a), names_a[: len(a.axes(range(rank_a)))]]
    means += [_flat(b, rank_b), names_b[: len(b.axes(range(rank_b)))]]
    number = 1.0
    for i in a.axes([d for d, _ in over]):
        counts = a.atoms[i].patterns
        operands += [counts.counts, [names_a[i]]]
        means += [np.array(counts.parts, float), [names_a[i]]]
    order = tuple("pxk".index(r) for r in roles)
    last_a, last_b = names_a[len(names_a) - len(axes) :], names_b[len(names_b) - len(axes) :]
    for i, axis in enumerate(axes):
        operands += [_shares(axis, order), [last_a[i], last_b[i], 40 + i]]
        number *= axis.pairs[0, 0, 0] / axis.sizes[order[2]]
    kept_a = [*(d for d, _ in batch), *_rest(rank_a, [d for d, _ in (*over, *batch)])]
    kept_b = _rest(rank_b, [d for _, d in (*over, *batch)])
    out = [names_a[i] for i in a.axes(kept_a)] + [names_b[i] for i in b.axes(kept_b)]
    found = np.asarray(np.einsum(*operands, [*out, *range(40, 40 + len(axes))]))  # type: ignore[call-overload]
    average = np.asarray(np.einsum(*means, out) * number)  # type: ignore[call-overload]
    lengths = [axis.sizes[order[2]] for axis in axes]
    found = found[(..., *(slice(None) if n > 1 else 0 for n in lengths))]
    space = tuple((Atom(n),) if n > 1 else () for n in lengths)
    dims = tuple(a.dims[d] for d in kept_a) + tuple(b.dims[d] for d in kept_b) + space
    average = average.reshape(average.shape + (1,) * sum(n > 1 for n in lengths))
    return merged_fidelity(a.changed(found, average, dims=dims, gaussian=True), b)


def _flat(signal: Signal, rank: int) -> Array:
    """Return the means of a signal whose spatial dimensions have no segments, without these dimensions."""
    return signal.means.reshape(signal.means.shape[: len(signal.axes(range(rank)))])


def _shares(axis: Axis, order: Sequence[int]) -> Array:
    """Return N over the number of pairs of output indices, axes in this order, the output's last."""
    n = axis.sizes[order[2]]
    return np.asarray(axis.pairs.transpose(order) / np.array([n, max(n * (n - 1.0), 1.0)]))


def _rest(rank: int, gone: Sequence[int]) -> list[int]:
    return [d for d in range(rank) if d not in gone]


def _spatial(signal: Signal, rank: int) -> tuple[Signal, Array]:
    """Return a signal with at most one atom a spatial dimension, and its moments with exactly one axis for each."""
    for d in range(rank, len(signal.dims)):
        while len(signal.dims[d]) > 1:
            signal = joined(signal, signal.axes([d])[0])
    signal = plain(signal, *range(rank, len(signal.dims)))
    moments, place = signal.moments, len(signal.axes(range(rank)))
    for d in range(rank, len(signal.dims)):
        if not signal.dims[d]:
            moments = np.repeat(np.expand_dims(moments, place), 2, place)
        place += 1
    return signal, moments


@dataclass(frozen=True)
class _Conv:
    """The weight as (group, out, in, taps…) and the axes, in the direction in which it is no transposed convolution."""

    weight: Signal
    groups: int
    axes: Sequence[Axis]
    roles: Mapping[str, str]


def _conv(call: Call, x_shape: Sequence[int], y_shape: Sequence[int]) -> _Conv:
    weight, groups = call.signal("weight"), int(call["groups"])
    first, second, *kernel = weight.shape
    weight = viewed(weight, (groups, first // groups, second, *kernel))
    if call["transposed"]:
        # It is the gradient of a convolution that goes from its output to its input.
        weight = permuted(weight, [0, 2, 1, *range(3, len(weight.dims))])
        axes = geometry(call, y_shape[2:], x_shape[2:], kernel)
        return _Conv(weight, groups, axes, {"y": "x", "x": "p"})
    return _Conv(weight, groups, geometry(call, x_shape[2:], y_shape[2:], kernel), {"y": "p", "x": "x"})


def _grouped(signal: Signal, groups: int) -> Signal:
    n, channels, *rest = signal.shape
    return viewed(signal, (n, groups, channels // groups, *rest))


def _back_together(signal: Signal, shape: Sequence[int]) -> Signal:
    # (group, N, channels of a group, space) → (N, channels, space)
    return viewed(permuted(signal, [1, 0, *range(2, len(signal.dims))]), shape)


def _image(call: Call, name: str, y: Signal, x: Signal) -> Signal:
    """Say that positions of y follow those of the operand of this name."""
    taps = math.prod(call.signal("weight").shape[2:])
    return image(y, [0, *range(2, len(y.dims))], x, [1], Source(base(call.trace, call[name].id)), taps)


def _convolution(call: Call) -> Sequence[Signal]:
    x = sized(call.signal("input"), 2)
    conv = _conv(call, x.shape, call.shape())
    roles = conv.roles["x"] + "k" + conv.roles["y"]
    y = tapped(_grouped(x, conv.groups), conv.weight, conv.axes, roles, over=[(2, 2)], batch=[(1, 0)])
    known = read_places(x, len(conv.axes))
    y = profiled(_back_together(y, call.shape()), known, conv.axes, conv.roles["y"])
    if call["bias"] is not None:
        bias = viewed(call.signal("bias"), (1, call.shape()[1], *[1] * len(conv.axes)))
        y = added(*together(y, bias, call.shape()), gaussian=True)
    y = _image(call, "input", y, x)
    weight = call.signal("weight")
    if call["transposed"]:
        return [y]
    return [scattered(y, x, weight, *really_read(x, weight.shape, conv.axes), near=likeness(known, conv.axes))]


def _convolution_backward(call: Call) -> Sequence[Signal | None]:
    g, x = sized(call.signal("grad_output"), 2), sized(call.signal("input"), 2)
    conv = _conv(call, x.shape, g.shape)
    wanted = call["output_mask"]
    grouped = _grouped(g, conv.groups)
    found: list[Signal] = []
    if wanted[0]:
        roles = conv.roles["y"] + "k" + conv.roles["x"]
        dx = tapped(grouped, conv.weight, conv.axes, roles, over=[(2, 1)], batch=[(1, 0)])
        known = read_places(g, len(conv.axes))
        dx = scaled(profiled(_back_together(dx, x.shape), known, conv.axes, conv.roles["x"]), g.undone)
        found.append(_image(call, "grad_output", dx, g))
    if wanted[1]:
        roles = conv.roles["y"] + conv.roles["x"] + "k"
        dw = tapped(grouped, _grouped(x, conv.groups), conv.axes, roles, over=[(0, 0)], batch=[(1, 1)])
        if call["transposed"]:
            dw = permuted(dw, [0, 2, 1, *range(3, len(dw.dims))])
        found.append(viewed(dw, call.signal("weight").shape))
    if wanted[2]:
        found.append(summed(g, [0, *range(2, len(g.dims))], keep=False, mean=False))
    return found


RULES: Mapping[str, Rule] = {
    "aten.convolution": _convolution,
    "aten.convolution_backward": _convolution_backward,
}
