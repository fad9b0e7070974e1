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
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from initwell.propagate.laws.few import of_few
from initwell.propagate.moments.alike import plain
from initwell.propagate.moments.atoms import joined, matched, permuted, together, viewed
from initwell.propagate.moments.axes import Atom, Dims, Source
from initwell.propagate.moments.gram import image
from initwell.propagate.moments.incidence import Axis, geometry
from initwell.propagate.moments.labels import Weights, bilinear, labels
from initwell.propagate.moments.segments import Array, Patterns, repeated
from initwell.propagate.moments.signal import Signal, merged_fidelity
from initwell.propagate.rules.again import of_convolution
from initwell.propagate.rules.answers import answered, bent_before
from initwell.propagate.rules.branch import added, scaled
from initwell.propagate.rules.contraction import source_of
from initwell.propagate.rules.filters import filtering
from initwell.propagate.rules.reading import profiled, read_places, sized, taken
from initwell.propagate.rules.resample import resampled
from initwell.propagate.rules.scatter import scattered
from initwell.propagate.rules.shape import summed
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
    space_of_both = (1,) * len(axes)
    ranks_a, ranks_b = ((*map(len, x.dims[:r]), *space_of_both) for x, r in ((a, rank_a), (b, rank_b)))
    names = labels(ranks_a, ranks_b, tuple(over), tuple(batch), len(axes))
    along = [a.atoms[i].patterns for i, _ in names.over]
    space = _space(tuple(axes), roles)
    order, lengths = space.order, space.lengths
    found = bilinear(names.moments, moments_a, moments_b, _weights(tuple(along), tuple(axes), order))[space.kept]
    dims = tuple([a.dims[d] for d in names.kept_a]) + tuple([b.dims[d] for d in names.kept_b])
    average: Array | float = 0.0
    if a.means.any() and b.means.any():
        parts = [np.array(p.parts, float) for p in along]
        number = math.prod(axis.pairs[0, 0, 0] / axis.sizes[order[2]] for axis in axes)
        flat = np.einsum(names.means, _flat(a, rank_a), _flat(b, rank_b), *parts) * number
        average = flat.reshape(flat.shape + (1,) * sum(n > 1 for n in lengths))
    return merged_fidelity(a.changed(found, average, dims=dims + space.dims, gaussian=True), b)


class _Space(NamedTuple):
    """Where the spatial dimensions of a result come from.

    Attributes:
        order: of p, x and k, as a, b and the result have them.
        lengths: of the result.
        kept: index that leaves out lengths of 1.
        dims: of the result.
    """

    order: tuple[int, ...]
    lengths: tuple[int, ...]
    kept: tuple[Any, ...]
    dims: Dims


@lru_cache(maxsize=1024)
def _space(axes: tuple[Axis, ...], roles: str) -> _Space:
    order = tuple(["pxk".index(r) for r in roles])
    lengths = tuple([axis.sizes[order[2]] for axis in axes])
    kept = (..., *[slice(None) if n > 1 else 0 for n in lengths])
    return _Space(order, lengths, kept, tuple([(Atom(n),) if n > 1 else () for n in lengths]))


def _flat(signal: Signal, rank: int) -> Array:
    """Return the means of a signal whose spatial dimensions have no segments, without these dimensions."""
    return signal.means.reshape(signal.means.shape[: len(signal.axes(range(rank)))])


@lru_cache(maxsize=1024)
def _weights(along: tuple[Patterns, ...], axes: tuple[Axis, ...], order: tuple[int, ...]) -> Weights:
    """Return what pairs of moments are weighed by: a vector for each axis summed over, a table for each of space."""
    return Weights((*[p.counts for p in along], *[_shares(axis, order) for axis in axes]))


@lru_cache(maxsize=1024)
def _shares(axis: Axis, order: tuple[int, ...]) -> Array:
    """Return N over the number of pairs of output indices, axes in this order, the output's last."""
    n = axis.sizes[order[2]]
    return np.asarray(axis.pairs.transpose(order) / np.array([n, max(n * (n - 1.0), 1.0)]))


def _spatial(signal: Signal, rank: int) -> tuple[Signal, Array]:
    """Return a signal with at most one atom a spatial dimension, and its moments with exactly one axis for each."""
    space = range(rank, len(signal.dims))
    while more := [d for d in space if len(signal.dims[d]) > 1]:
        signal = joined(signal, signal.axes(more)[0])
    signal = plain(signal, *space)
    missing = [i for i, d in enumerate(space) if not signal.dims[d]]
    first = len(signal.axes(range(rank))) if missing else 0
    return signal, repeated(signal.moments, [(first + i, 2) for i in missing]) if missing else signal.moments


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
    value = call.trace.shown(call[name].id)
    source, *older = source_of(call, x, value, 1) if name == "input" else (Source(value),)
    return image(y, [0, *range(2, len(y.dims))], x, [1], source, taps, older if taps == 1 else ())


def _convolution(call: Call) -> Sequence[Signal]:
    x = sized(call.signal("input"), 2)
    conv = _conv(call, x.shape, call.shape())
    known = read_places(x, len(conv.axes))
    filters = filtering(call, x.shape[2:], call.shape()[2:])
    if filters is not None:
        y = resampled(x, filters, why="")
    else:
        roles = conv.roles["x"] + "k" + conv.roles["y"]
        y = conv.tapped(_grouped(x, conv.groups), conv.weight, roles, (1, 1), (1, 0))
        y = profiled(_back_together(y, call.shape()), known, conv.axes, conv.roles["y"])
    if call["bias"] is not None:
        bias = viewed(call.signal("bias"), (1, call.shape()[1], *[1] * len(conv.axes)))
        y = added(*together(y, bias, call.shape()), gaussian=True)
    y = _image(call, "input", y, x)
    weight = call.signal("weight")
    if call["transposed"]:
        return [y]
    y = scattered(y, x, weight, taken(known, conv.axes), weight.shape[1])
    return [of_convolution(call, of_few(y, call.signal("input"), weight, conv.axes))]


def _convolution_backward(call: Call) -> Sequence[Signal | None]:
    g, x = sized(call.signal("grad_output"), 2), sized(call.signal("input"), 2)
    conv = _conv(call, x.shape, g.shape)
    wanted = call["output_mask"]
    grouped = _grouped(g, conv.groups)
    found: list[Signal] = []
    if wanted[0]:
        filters = filtering(call, x.shape[2:], g.shape[2:])
        if filters is not None:
            dx = resampled(g, [w.T for w in filters], why="")
        else:
            roles = conv.roles["y"] + "k" + conv.roles["x"]
            dx = conv.tapped(grouped, conv.weight, roles, (1, 0), (1, 0))
            known = read_places(g, len(conv.axes))
            dx = scaled(profiled(_back_together(dx, x.shape), known, conv.axes, conv.roles["x"]), g.undone)
        found.append(of_convolution(call, _answered(call, _image(call, "grad_output", dx, g), x, conv)))
    if wanted[1]:
        roles = conv.roles["y"] + conv.roles["x"] + "k"
        dw = conv.tapped(grouped, _grouped(x, conv.groups), roles, (0, 0), (1, 1))
        if call["transposed"]:
            dw = _turned(dw, conv.groups)
        found.append(viewed(dw, call.signal("weight").shape))
    if wanted[2]:
        found.append(summed(g, [0, *range(2, len(g.dims))], keep=False, mean=False))
    return found


def _answered(call: Call, dx: Signal, x: Signal, conv: _Conv) -> Signal:
    """Mind that what arrives depends on the weights that it is taken back through, if they are few."""
    weight = call.signal("weight")
    count = weight.shape[1] * math.prod(axis.degrees[0] for axis in conv.axes)
    if call["transposed"] or count > _FEW:
        return dx
    roles = conv.roles["y"] + "k" + conv.roles["x"]

    def sent(g: Signal, through: Signal) -> Signal:
        through = viewed(through, conv.weight.shape)
        return _back_together(conv.tapped(_grouped(g, conv.groups), through, roles, (1, 0), (1, 0)), x.shape)

    return bent_before(call, answered(call, dx, x, weight, count, sent))


_FEW = 64

RULES: Mapping[str, Rule] = {
    "aten.convolution": _convolution,
    "aten.convolution_backward": _convolution_backward,
}
