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
from numpy.typing import NDArray

from initwell.propagate.atoms import joined, matched, merged, permuted, plain, together, viewed
from initwell.propagate.gaussian import covariance, pair_moments
from initwell.propagate.gram import image
from initwell.propagate.places import bent, carried, even, of_sizes, settled, sizes
from initwell.propagate.rules.branch import added, scaled
from initwell.propagate.rules.contraction import base
from initwell.propagate.rules.scatter import scattered
from initwell.propagate.rules.shape import summed
from initwell.propagate.segments import Array
from initwell.propagate.signal import Atom, Signal, Source, merged_fidelity, replace
from initwell.propagate.table import Call, Rule


@dataclass(frozen=True, eq=False)
class Axis:
    """One spatial axis: how many pairs of incidences agree in what.

    Attributes:
        pairs: N[p, x, k], 0 for agree and 1 for differ.
        sizes: number of output positions, input positions and taps.
        at: shape (outputs, taps): the input position that an output reads through a tap.
        inside: whether there is such a position, and not padding.
    """

    pairs: Array
    sizes: tuple[int, int, int]
    at: NDArray[np.int64]
    inside: NDArray[np.bool_]


def spatial_axis(inputs: int, outputs: int, taps: int, stride: int, padding: int, dilation: int) -> Axis:
    """Count the incidences of one axis of a convolution or pooling.

    >>> spatial_axis(4, 4, 3, 1, 1, 1).pairs[0, 0, 0].item()  # of 12 taps, 2 fall on padding
    10.0
    """
    at = np.arange(outputs)[:, None] * stride - padding + np.arange(taps)[None, :] * dilation
    return axis_of(at, (at >= 0) & (at < inputs), inputs)


def axis_of(at: NDArray[np.int64], inside: NDArray[np.bool_], inputs: int) -> Axis:
    """Count the pairs of a list of incidences; the arguments are those of an ``Axis``."""
    every = float(inside.sum())
    by_output, by_tap = inside.sum(axis=1).astype(float), inside.sum(axis=0).astype(float)
    by_input = np.bincount(at[inside], minlength=inputs).astype(float)
    pairs = np.zeros((2, 2, 2))
    pairs[0, 0, 0] = every
    pairs[0, 1, 1], pairs[1, 0, 1], pairs[1, 1, 0] = (float(d @ d) - every for d in (by_output, by_input, by_tap))
    pairs[1, 1, 1] = every**2 - pairs.sum()
    return Axis(pairs, (at.shape[0], inputs, at.shape[1]), at, inside)


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


def profiled(found: Signal, source: Signal, axes: Sequence[Axis], role: str) -> Signal:
    """Carry through taps how places differ: an output at p has the sum of what its inputs have.

    With it the borders, which are read by fewer taps and are smaller themselves, count as often as they are read.

    Args:
        found: what ``tapped`` gave, all positions taken as alike.
        source: what was read.
        axes: of the op.
        role: "p" when ``found`` is at the outputs, "x" when at the inputs.
    """
    own, profile, moments = 1.0, [], found.moments
    rank = len(found.dims) - len(axes)
    for i, (axis, places) in enumerate(zip(axes, read_places(source, len(axes)), strict=True)):
        here = carried(places, axis.at, axis.inside, axis.sizes[1], back=role == "x")
        n, agree = here.shape[0], float(sizes(here).sum() / axis.pairs[0, 0, 0])
        pairs = float(axis.pairs[1, 1, 0])
        differ = float(here.sum() - sizes(here).sum()) / pairs if here.ndim == 2 and pairs else agree
        if found.dims[rank + i]:
            shape = [1] * moments.ndim
            shape[found.axes([rank + i])[0]] = 2
            moments = moments * np.array([agree, differ]).reshape(shape)
        else:
            moments = moments * agree
        own *= agree
        profile.append(settled(here) if here.ndim == 2 else of_sizes(here * n / here.sum()))
    # It is no number times what ``tapped`` gave: that was a step on the way, without the sizes.
    scale = math.sqrt(own)
    return replace(scaled(found, scale), moments=np.asarray(moments), profile=tuple(profile), image=None)


def read_places(source: Signal, count: int) -> list[Array]:
    """Return how places differ along the last dimensions of what is read.

    Of a function of a Gaussian they are known of the Gaussian: E[φ(u)φ(u′)] goes as the power d log E[φφ′]/d log c of
    the correlation c.

    Args:
        source: what is read.
        count: how many dimensions are spatial.
    """
    if not source.profile or len(source.profile) != count:
        return [even(n) for n in source.shape[len(source.dims) - count :]]
    made = source.image
    if made is None or made.base is not None or made.pre.dims != source.dims or source.segmented:
        return list(source.profile)
    if all(p.ndim == 1 for p in source.profile):
        return list(source.profile)
    space = set(source.axes(range(len(source.dims) - count, len(source.dims))))
    variance, correlations = covariance(made.pre)
    c = float(correlations[tuple(int(i in space) for i in range(correlations.ndim))])
    if c <= 0.02 or c >= 0.999:
        return [bent(p, 0.0 if c < 0.5 else 1.0) for p in source.profile]
    _, near = pair_moments(made.phi.fn, made.phi.kinks, made.pre.mean, variance, np.array([c, c * 1.001]))
    power = math.log(near[1] / near[0]) / math.log(1.001) if near[0] > 0 else 0.0
    return [bent(p, max(power, 0.0)) for p in source.profile]


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


def sized(signal: Signal, rank: int) -> Signal:
    """Turn segments of the spatial dimensions, such as explicit padding, into E[x²] by position."""
    if not any(atom.parts for dim in signal.dims[rank:] for atom in dim):
        return signal
    profile = []
    for i, d in enumerate(range(rank, len(signal.dims))):
        here = even(signal.shape[d]) if not signal.profile else signal.profile[i]
        if not signal.profile and len(signal.dims[d]) == 1 and signal.dims[d][0].parts:
            axis = signal.axes([d])[0]
            kept = signal
            for other in range(len(signal.atoms)):
                kept = kept if other == axis else merged(kept, other, (0,) * kept.means.shape[other])
            size = np.moveaxis(kept.diagonal, axis, 0).ravel() / (signal.q or 1.0)
            here = of_sizes(np.repeat(size, signal.dims[d][0].parts))
        profile.append(np.asarray(here))
    return replace(plain(signal, *range(rank, len(signal.dims))), profile=tuple(profile))


def geometry(call: Call, inputs: Sequence[int], outputs: Sequence[int], kernel: Sequence[int]) -> list[Axis]:
    """Return the axes of an op with stride, padding and dilation arguments."""
    n = len(kernel)
    stride, padding, dilation = (spread(call[k], n) for k in ("stride", "padding", "dilation"))
    stride = stride if call["stride"] not in ((), None) else tuple(kernel)
    columns = (inputs, outputs, kernel, stride, padding, dilation)
    return [spatial_axis(i, o, k, s, p, d) for i, o, k, s, p, d in zip(*columns, strict=True)]


def spread(value: object, n: int) -> tuple[int, ...]:
    """Return an argument that may be given once for all axes as one number an axis."""
    if value is None or value == ():
        return (1,) * n
    if isinstance(value, int):
        return (value,) * n
    whole = tuple(int(v) for v in value)  # type: ignore[attr-defined]
    return whole * n if len(whole) == 1 else whole


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
    y = profiled(_back_together(y, call.shape()), x, conv.axes, conv.roles["y"])
    if call["bias"] is not None:
        bias = viewed(call.signal("bias"), (1, call.shape()[1], *[1] * len(conv.axes)))
        y = added(*together(y, bias, call.shape()), gaussian=True)
    y = _image(call, "input", y, x)
    weight = call.signal("weight")
    return [y if call["transposed"] else scattered(y, x, weight, _reads(x, conv.axes), weight.shape[1])]


def _reads(x: Signal, axes: Sequence[Axis]) -> list[tuple[Array, Array]]:
    """Return where each output reads through each tap, and the root of the size of what is there; 0 for padding."""
    found = []
    for i, axis in enumerate(axes):
        size = sizes(x.profile[i]) if x.profile else np.ones(axis.sizes[1])
        at = np.where(axis.inside, axis.at, 0)
        found.append((at, np.where(axis.inside, np.sqrt(np.maximum(size[at], 0.0)), 0.0)))
    return found


def _convolution_backward(call: Call) -> Sequence[Signal | None]:
    g, x = sized(call.signal("grad_output"), 2), sized(call.signal("input"), 2)
    conv = _conv(call, x.shape, g.shape)
    wanted = call["output_mask"]
    grouped = _grouped(g, conv.groups)
    found: list[Signal] = []
    if wanted[0]:
        roles = conv.roles["y"] + "k" + conv.roles["x"]
        dx = tapped(grouped, conv.weight, conv.axes, roles, over=[(2, 1)], batch=[(1, 0)])
        dx = scaled(profiled(_back_together(dx, x.shape), g, conv.axes, conv.roles["x"]), g.undone)
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


def adaptive(inputs: Sequence[int], outputs: Sequence[int]) -> list[Axis]:
    """Return the axes of adaptive pooling: window i goes from ⌊i·n/m⌋ to ⌈(i + 1)·n/m⌉."""
    axes = []
    for n, m in zip(inputs, outputs, strict=True):
        starts = np.arange(m) * n // m
        ends = -((-(np.arange(m) + 1) * n) // m)
        at = starts[:, None] + np.arange(int((ends - starts).max()))[None, :]
        axes.append(axis_of(at, at < ends[:, None], n))
    return axes


RULES: Mapping[str, Rule] = {
    "aten.convolution": _convolution,
    "aten.convolution_backward": _convolution_backward,
}
