"""Windows of an axis (im2col, unfold, and their sums) and rearrangements: pixel and channel shuffle, repeats, copies.

A window op lists the incidences (output p, input x, tap k) of ``taps`` and keeps both p and k. By its table N of pairs
of incidences, with a and d the moments of positions that agree and differ,

    k and p agree: N[0,0,0]·a    only k: N[1,1,0]·d    only p: N[0,1,1]·d    neither: N[1,0,1]·a + N[1,1,1]·d

each over its number of pairs. Its transpose, which adds up what falls on one x, is the same table read the other way.
Windows that tile the axis are a view, and exact. All else here only moves entries, which atoms follow without loss.
Assumption: positions are exchangeable.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.moments.atoms import expanded, permuted, together, viewed
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.incidence import Axis, spatial_axis, spread
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.pointwise import applied, phi_of, pulled_back
from initwell.propagate.rules.resample import opened, resampled
from initwell.propagate.shared.linearized import gradient_of
from initwell.propagate.shared.reuse import BENT, SLOPES
from initwell.propagate.table import Call, Rule, UnknownSignalError
from initwell.propagate.writes import box_of

_OVERLAP = "overlapping windows: which entries of two windows are one and the same was averaged over"


def _tiles(axis: Axis) -> bool:
    """Whether windows lie side by side and cover all."""
    outputs, inputs, taps = axis.sizes
    return outputs * taps == inputs and bool(np.array_equal(axis.at.ravel(), np.arange(inputs)))


def windows(signal: Signal, dim: int, axis: Axis) -> Signal:
    """Put the windows of a dimension in its place: two dimensions, tap and position.

    Args:
        signal: any signal.
        dim: the dimension.
        axis: which entries each window has.

    >>> from initwell.propagate.moments.signal import independent
    >>> windows(independent((4,), 1.0), 0, spatial_axis(4, 3, 2, 1, 0, 1)).moments.round(3).tolist()
    [[1.0, 0.0], [0.0, 0.333]]
    """
    outputs, _, taps = axis.sizes
    head, tail = signal.shape[:dim], signal.shape[dim + 1 :]
    if _tiles(axis):
        cut = viewed(signal, (*head, outputs, taps, *tail))
        return permuted(cut, [*range(dim), dim + 1, dim, *range(dim + 2, len(cut.dims))])
    signal = opened(signal, dim)
    place = signal.axes([dim])[0]
    a, d = signal.moments.take(0, place), signal.moments.take(1, place)
    n, k, p = axis.pairs, max(taps * (taps - 1), 1), max(outputs * (outputs - 1), 1)
    tap = [n[0, 0, 0] * a / taps / outputs, n[1, 1, 0] * d / taps / p]
    other = [n[0, 1, 1] * d / outputs / k, (n[1, 0, 1] * a + n[1, 1, 1] * d) / k / p]
    moments = np.stack([np.stack(tap, place), np.stack(other, place)], place)
    means = np.expand_dims(signal.means * n[0, 0, 0] / taps / outputs, place)
    dims = (*signal.dims[:dim], (Atom(taps),), (Atom(outputs),), *signal.dims[dim + 1 :])
    return _closed(signal.changed(moments, means, dims=dims, gaussian=signal.gaussian)).approximate(_OVERLAP)


def overlaid(signal: Signal, dim: int, axis: Axis) -> Signal:
    """Add windows up where they lie: two dimensions, tap and position, become one.

    Args:
        signal: any signal.
        dim: the dimension of the taps; that of the positions follows it.
        axis: which entries each window has.

    >>> from initwell.propagate.moments.signal import constant
    >>> overlaid(constant((2, 3), 1.0), 0, spatial_axis(4, 3, 2, 1, 0, 1)).q  # 1, 2, 2, 1
    2.5
    """
    inputs = axis.sizes[1]
    if _tiles(axis):
        turned = permuted(signal, [*range(dim), dim + 1, dim, *range(dim + 2, len(signal.dims))])
        return viewed(turned, (*signal.shape[:dim], inputs, *signal.shape[dim + 2 :]))
    signal = opened(opened(signal, dim), dim + 1)
    place = signal.axes([dim])[0]
    m = np.moveaxis(signal.moments, (place, place + 1), (0, 1))
    n = axis.pairs
    agree = (n[0, 0, 0] * m[0, 0] + n[1, 0, 1] * m[1, 1]) / inputs
    differ = (n[0, 1, 1] * m[1, 0] + n[1, 1, 0] * m[0, 1] + n[1, 1, 1] * m[1, 1]) / max(inputs * (inputs - 1), 1)
    means = signal.means.take(0, place) * n[0, 0, 0] / inputs
    dims = (*signal.dims[:dim], (Atom(inputs),), *signal.dims[dim + 2 :])
    return _closed(signal.changed(np.stack([agree, differ], place), means, dims=dims)).approximate(_OVERLAP)


def _closed(signal: Signal) -> Signal:
    """Take away atoms of length 1."""
    for axis in range(len(signal.atoms) - 1, -1, -1):
        if signal.atoms[axis].size == 1:
            dims, start = [list(d) for d in signal.dims], 0
            for dim in dims:
                if start <= axis < start + len(dim):
                    del dim[axis - start]
                    break
                start += len(dim)
            moments, means = np.asarray(signal.moments.take(0, axis)), np.asarray(signal.means.take(0, axis))
            signal = signal.changed(moments, means, dims=tuple(map(tuple, dims)), gaussian=signal.gaussian)
    return signal


def _grid(call: Call, image: Sequence[int]) -> list[Axis]:
    arguments = (spread(call[name], 2) for name in ("kernel_size", "stride", "padding", "dilation"))
    found = []
    for n, k, s, p, d in zip(image, *arguments, strict=True):
        found.append(spatial_axis(n, (n + 2 * p - d * (k - 1) - 1) // s + 1, k, s, p, d))
    return found


def _im2col(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    rank = len(x.dims) - 2
    axes = _grid(call, x.shape[rank:])
    cut = windows(windows(x, rank + 1, axes[1]), rank, axes[0])
    # (…, taps, positions, taps, positions) → (…, taps, taps, positions, positions)
    return [viewed(permuted(cut, [*range(rank), rank, rank + 2, rank + 1, rank + 3]), call.shape())]


def _col2im(call: Call) -> Sequence[Signal]:
    x, shape = call.signal("self"), call.shape()
    rank = len(shape) - 2
    axes = _grid(call, shape[rank:])
    if (image := _bent(call)) is not None and not all(map(_tiles, axes)):
        # As often as windows have it.
        often = [np.diag(np.bincount(a.at[a.inside], minlength=a.sizes[1]).astype(float)) for a in axes]
        return [resampled(image, often)]
    lengths = (*(a.sizes[2] for a in axes), *(a.sizes[0] for a in axes))
    cut = viewed(x, (*shape[:rank], *lengths))
    turned = permuted(cut, [*range(rank), rank, rank + 2, rank + 1, rank + 3])
    return [overlaid(overlaid(turned, rank + 2, axes[1]), rank, axes[0])]


def _bent(call: Call) -> Signal | None:
    """Return y, φ(y) or φ′(y)·g where what is added up are windows of y, bent entry by entry: copies stay copies.

    Windows by which indices agree do not say which of their entries show one entry of y, which a function bends alike.
    """
    if (shown := _image(call, call["self"].id)) is not None:
        return shown
    op = call.trace.producer(call["self"].id)
    if op is not None and op.functional in BENT:
        y = _image(call, op.inputs[0])
        return None if y is None else applied(phi_of(op), y)
    if op is None or op.functional not in SLOPES or op.of is None:
        return None
    forward, gradient = call.trace.ops[op.of], gradient_of(op)
    y = _image(call, forward.inputs[0]) if forward.functional in BENT else None
    g = None if gradient is None else _image(call, gradient)
    if y is None or g is None:
        return None
    g, u = together(g, y, y.shape)
    return pulled_back(phi_of(forward), u, g, y)


def _image(call: Call, value: int) -> Signal | None:
    """Return the image whose windows a value shows, cut as those that are added up here."""
    op = call.trace.producer(value)
    if op is None or op.functional != "aten.im2col" or op.inputs[0] not in call.known:
        return None
    same = all(op.arguments[name] == call[name] for name in ("kernel_size", "stride", "padding", "dilation"))
    image = call.known[op.inputs[0]]
    return image if same and image.shape == call.shape() else None


def _sliding(length: int, size: int, step: int) -> Axis:
    return spatial_axis(length, (length - size) // step + 1, size, step, 0, 1)


def _unfold(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    dim = call["dimension"] % len(x.dims)
    cut = windows(x, dim, _sliding(x.shape[dim], int(call["size"]), int(call["step"])))
    return [permuted(cut, [*range(dim), *range(dim + 1, len(cut.dims)), dim])]


def _unfold_backward(call: Call) -> Sequence[Signal]:
    g, shape = call.signal("grad_in"), call.shape()
    dim, last = call["dim"] % len(shape), len(g.dims) - 1
    turned = permuted(g, [*range(dim), last, *range(dim, last)])
    return [overlaid(turned, dim, _sliding(shape[dim], int(call["size"]), int(call["step"])))]


def _pixel_shuffle(call: Call) -> Sequence[Signal]:
    x, r = call.signal("self"), int(call["upscale_factor"])
    *lead, c, h, w = x.shape
    n = len(lead)
    cut = viewed(x, (*lead, c // r**2, r, r, h, w))
    return [viewed(permuted(cut, [*range(n + 1), n + 3, n + 1, n + 4, n + 2]), call.shape())]


def _pixel_unshuffle(call: Call) -> Sequence[Signal]:
    x, r = call.signal("self"), int(call["downscale_factor"])
    *lead, c, h, w = x.shape
    n = len(lead)
    cut = viewed(x, (*lead, c, h // r, r, w // r, r))
    return [viewed(permuted(cut, [*range(n + 1), n + 2, n + 4, n + 1, n + 3]), call.shape())]


def _channel_shuffle(call: Call) -> Sequence[Signal]:
    x, groups = call.signal("self"), int(call["groups"])
    cut = viewed(x, (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
    return [viewed(permuted(cut, [0, 2, 1, *range(3, len(cut.dims))]), call.shape())]


def _repeat(call: Call) -> Sequence[Signal]:
    x, times = call.signal("self"), [int(n) for n in call["repeats"]]
    lengths = [1] * (len(times) - len(x.dims)) + list(x.shape)
    apart = viewed(x, [n for length in lengths for n in (1, length)])
    whole = expanded(apart, [n for pair in zip(times, lengths, strict=True) for n in pair])
    return [viewed(whole, call.shape())]


def _copy(call: Call) -> Sequence[Signal]:
    return [expanded(call.signal("src"), call.shape())]


def _as_strided(call: Call) -> Sequence[Signal]:
    """A part of a dense tensor, written as strides."""
    x, box = call.signal("self"), box_of(call.trace, call.op)
    if box is None:
        raise UnknownSignalError("strides that show no box of a dense tensor")
    return [box.shown(x)]


RULES: Mapping[str, Rule] = {
    "aten.im2col": _im2col,
    "aten.col2im": _col2im,
    "aten.unfold": _unfold,
    "aten.unfold_backward": _unfold_backward,
    "aten.pixel_shuffle": _pixel_shuffle,
    "aten.pixel_unshuffle": _pixel_unshuffle,
    "aten.channel_shuffle": _channel_shuffle,
    "aten.repeat": _repeat,
    "aten.copy": _copy,
    "aten.as_strided": _as_strided,
}
