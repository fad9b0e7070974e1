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
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.atoms import joined, matched, merged, permuted, plain, together, viewed
from initwell.propagate.gaussian import covariance, pair_moments
from initwell.propagate.gram import image
from initwell.propagate.labels import labels
from initwell.propagate.places import bent, by_axis, carried, even, of_sizes, settled, sizes
from initwell.propagate.rules.branch import added, scaled
from initwell.propagate.rules.contraction import base
from initwell.propagate.rules.scatter import fan_of, scattered
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

    @cached_property
    def one_to_one(self) -> bool:
        """Whether each output reads the input at its own place, and no other."""
        n = self.sizes[0]
        return self.sizes == (n, n, 1) and bool((self.at[:, 0] == np.arange(n)).all())


@lru_cache(maxsize=1024)
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
    ranks = (tuple([max(len(d), i >= r) for i, d in enumerate(x.dims)]) for x, r in ((a, rank_a), (b, rank_b)))
    names = labels(*ranks, tuple(over), tuple(batch), len(axes))
    along = [a.atoms[i].patterns for i in a.axes([d for d, _ in over])]
    order = tuple(["pxk".index(r) for r in roles])
    tables = [_shares(axis, order) for axis in axes]
    found = np.einsum(names.moments, moments_a, moments_b, *(p.counts for p in along), *tables)
    lengths = [axis.sizes[order[2]] for axis in axes]
    found = found[(..., *(slice(None) if n > 1 else 0 for n in lengths))]
    dims = tuple([a.dims[d] for d in names.kept_a]) + tuple([b.dims[d] for d in names.kept_b])
    average: Array | float = 0.0
    if a.means.any() and b.means.any():
        parts = [np.array(p.parts, float) for p in along]
        number = math.prod(axis.pairs[0, 0, 0] / axis.sizes[order[2]] for axis in axes)
        flat = np.einsum(names.means, _flat(a, rank_a), _flat(b, rank_b), *parts) * number
        average = flat.reshape(flat.shape + (1,) * sum(n > 1 for n in lengths))
    space = tuple([(Atom(n),) if n > 1 else () for n in lengths])
    return merged_fidelity(a.changed(found, average, dims=dims + space, gaussian=True), b)


def _flat(signal: Signal, rank: int) -> Array:
    """Return the means of a signal whose spatial dimensions have no segments, without these dimensions."""
    return signal.means.reshape(signal.means.shape[: len(signal.axes(range(rank)))])


@lru_cache(maxsize=1024)
def _shares(axis: Axis, order: tuple[int, ...]) -> Array:
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
    read = by_axis(_read_through if role == "p" else _read_back, axes, read_places(source, len(axes)))
    for i, (agree, differ, places) in enumerate(read):
        if found.dims[rank + i]:
            shape = [1] * moments.ndim
            shape[found.axes([rank + i])[0]] = 2
            moments = moments * np.array([agree, differ]).reshape(shape)
        else:
            moments = moments * agree
        own *= agree
        profile.append(places)
    return replace(found, moments=np.asarray(moments), means=found.means * math.sqrt(own), profile=tuple(profile))


def _read_through(axis: Axis, places: Array, *, back: bool = False) -> tuple[float, float, Array]:
    """Carry places through an axis: by what moments that agree and that differ along it change, and places there."""
    if axis.one_to_one:
        return 1.0, 1.0, places
    here = carried(places, axis.at, axis.inside, axis.sizes[1], back=back)
    own, n = float(sizes(here).sum()), here.shape[0]
    agree, pairs = own / float(axis.pairs[0, 0, 0]), float(axis.pairs[1, 1, 0])
    if here.ndim == 1:
        return agree, agree, of_sizes(here * n / own)
    return agree, (float(here.sum()) - own) / pairs if pairs else agree, settled(here)


def _read_back(axis: Axis, places: Array) -> tuple[float, float, Array]:
    return _read_through(axis, places, back=True)


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
        return by_axis(lambda p: bent(p, 0.0 if c < 0.5 else 1.0), source.profile)
    _, near = pair_moments(made.phi.fn, made.phi.kinks, made.pre.mean, variance, np.array([c, c * 1.001]))
    power = math.log(near[1] / near[0]) / math.log(1.001) if near[0] > 0 else 0.0
    return by_axis(lambda p: bent(p, max(power, 0.0)), source.profile)


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
    """The weight and the axes, in the direction in which it is no transposed convolution.

    Attributes:
        weight: (out, in, taps…); of several groups, (group, out, in, taps…).
        groups: how many.
        axes: of space.
        roles: of y and of x.
    """

    weight: Signal
    groups: int
    axes: Sequence[Axis]
    roles: Mapping[str, str]

    def tapped(self, a: Signal, b: Signal, roles: str, over: tuple[int, int], batch: tuple[int, int]) -> Signal:
        """Contract dimensions of a and b; several groups are dimension 1 of values and 0 of the weight: ``batch``."""
        if self.groups == 1:
            return tapped(a, b, self.axes, roles, over=[over])
        lifted = [d + (d >= g) for d, g in zip(over, batch, strict=True)]
        return tapped(a, b, self.axes, roles, over=[(lifted[0], lifted[1])], batch=[batch])


def _conv(call: Call, x_shape: Sequence[int], y_shape: Sequence[int]) -> _Conv:
    weight, groups = call.signal("weight"), int(call["groups"])
    first, second, *kernel = weight.shape
    weight = viewed(weight, (groups, first // groups, second, *kernel)) if groups > 1 else weight
    if call["transposed"]:
        # It is the gradient of a convolution that goes from its output to its input.
        weight = _turned(weight, groups)
        axes = geometry(call, y_shape[2:], x_shape[2:], kernel)
        return _Conv(weight, groups, axes, {"y": "x", "x": "p"})
    return _Conv(weight, groups, geometry(call, x_shape[2:], y_shape[2:], kernel), {"y": "p", "x": "x"})


def _turned(weight: Signal, groups: int) -> Signal:
    """Swap outputs and inputs."""
    lead, rank = int(groups > 1), len(weight.dims)
    return permuted(weight, [*range(lead), lead + 1, lead, *range(lead + 2, rank)])


def _grouped(signal: Signal, groups: int) -> Signal:
    if groups == 1:
        return signal
    n, channels, *rest = signal.shape
    return viewed(signal, (n, groups, channels // groups, *rest))


def _back_together(signal: Signal, shape: Sequence[int]) -> Signal:
    # (group, N, channels of a group, space) → (N, channels, space)
    if len(signal.dims) == len(shape):
        return signal
    return viewed(permuted(signal, [1, 0, *range(2, len(signal.dims))]), shape)


def _image(call: Call, name: str, y: Signal, x: Signal) -> Signal:
    """Say that positions of y follow those of the operand of this name."""
    taps = math.prod(call.signal("weight").shape[2:])
    return image(y, [0, *range(2, len(y.dims))], x, [1], Source(base(call.trace, call[name].id)), taps)


def _convolution(call: Call) -> Sequence[Signal]:
    x = sized(call.signal("input"), 2)
    conv = _conv(call, x.shape, call.shape())
    roles = conv.roles["x"] + "k" + conv.roles["y"]
    y = conv.tapped(_grouped(x, conv.groups), conv.weight, roles, (1, 1), (1, 0))
    y = profiled(_back_together(y, call.shape()), x, conv.axes, conv.roles["y"])
    if call["bias"] is not None:
        bias = viewed(call.signal("bias"), (1, call.shape()[1], *[1] * len(conv.axes)))
        y = added(*together(y, bias, call.shape()), gaussian=True)
    y = _image(call, "input", y, x)
    weight = call.signal("weight")
    return [y if call["transposed"] else scattered(y, x, weight, *_read(x, weight.shape, conv.axes))]


def _read(x: Signal, weight: Sequence[int], axes: Sequence[Axis]) -> tuple[float, float]:
    """Return (taps, fan-in) of what is there to be read: taps that fall on padding, or on small entries, count less.

    Of taps that read the sizes s_k, over all positions, as many count as have (Σ s_k)²/Σ s_k².
    """
    taps, fan = fan_of(weight)
    there = 1.0
    for i, axis in enumerate(axes):
        if axis.one_to_one:
            continue
        size = sizes(x.profile[i]) if x.profile else np.ones(axis.sizes[1])
        read = np.where(axis.inside, size[np.where(axis.inside, axis.at, 0)], 0.0).sum(axis=0)
        there *= float(read.sum() ** 2 / max((read**2).sum(), 1e-300)) / axis.sizes[2]
    return taps * there, fan * there


def _convolution_backward(call: Call) -> Sequence[Signal | None]:
    g, x = sized(call.signal("grad_output"), 2), sized(call.signal("input"), 2)
    conv = _conv(call, x.shape, g.shape)
    wanted = call["output_mask"]
    grouped = _grouped(g, conv.groups)
    found: list[Signal] = []
    if wanted[0]:
        roles = conv.roles["y"] + "k" + conv.roles["x"]
        dx = conv.tapped(grouped, conv.weight, roles, (1, 0), (1, 0))
        dx = scaled(profiled(_back_together(dx, x.shape), g, conv.axes, conv.roles["x"]), g.undone)
        found.append(_image(call, "grad_output", dx, g))
    if wanted[1]:
        roles = conv.roles["y"] + conv.roles["x"] + "k"
        dw = conv.tapped(grouped, _grouped(x, conv.groups), roles, (0, 0), (1, 1))
        if call["transposed"]:
            dw = _turned(dw, conv.groups)
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
