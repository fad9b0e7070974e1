"""Resampling: maps along one axis whose weights are known numbers, such as upsampling and reflection padding.

y_p = Σ_x W[p, x] x_x. With a the moment of positions that agree and d of those that differ,

    E[y_p²] = Σ_x W² · a + ((Σ_x W)² − Σ_x W²) · d

and averaged over the pairs p ≠ p', with W summed over p first, Σ_x (Σ_p W)² − ΣΣ W² pairs read the same x and have a,
all others d. So an axis is one 2×2 matrix, and the backward is the same with Wᵀ. W is what the op itself answers
to a unit vector. Assumption: that of ``places``.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from initwell.propagate.moments.alike import plain, refined
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.places import even, mixed
from initwell.propagate.moments.segments import Array, along
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.parts import moved, one_atom
from initwell.propagate.rules.reading import read_places, sized
from initwell.propagate.table import Call, Rule

_NEAR = "resampled positions: neighbours, which are more alike than distant ones, taken as alike"


def mapped(signal: Signal, dim: int, weights: Array, places: Array | None = None) -> tuple[Signal, Array]:
    """Apply a known matrix along one dimension.

    Args:
        signal: any signal.
        dim: the dimension, of length X.
        weights: shape (P, X).
        places: how its positions differ, if they do.

    Returns:
        The signal with length P there, and how these positions differ.

    >>> from initwell.propagate.moments.signal import independent
    >>> found, places = mapped(independent((4, 2), 1.0), 1, np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
    >>> found.moments[0].round(4).tolist(), places[0].diagonal().round(2).tolist()
    ([0.8333, 0.3333], [1.2, 0.6, 1.2])
    """
    signal = opened(signal, dim)
    axis, rows = signal.axes([dim])[0], len(weights)
    places = even(weights.shape[1]) if places is None else places
    matrix, table = mixed(places, weights, signal.averaged(()), signal.averaged((axis,)))
    moments, means = along(signal.moments, matrix, axis), signal.means * weights.sum(axis=1).mean()
    if rows == 1:
        moments, means = np.asarray(moments.take(0, axis)), np.asarray(means.take(0, axis))
    atoms = (Atom(rows, signal.atoms[axis].sample),) if rows > 1 else ()
    dims = (*signal.dims[:dim], atoms, *signal.dims[dim + 1 :])
    found = signal.changed(np.asarray(moments), means, dims=dims, gaussian=signal.gaussian)
    return found, table


def opened(signal: Signal, dim: int) -> Signal:
    """Return it with exactly one atom along a dimension, of one segment; at length 1 what differs is the same entry."""
    signal = plain(one_atom(signal, dim), dim)
    if signal.dims[dim]:
        return signal
    axis = sum(map(len, signal.dims[:dim]))
    dims = (*signal.dims[:dim], (Atom(1),), *signal.dims[dim + 1 :])
    return replace(
        signal, dims=dims, moments=np.stack([signal.moments] * 2, axis), means=np.expand_dims(signal.means, axis)
    )


def resampled(signal: Signal, weights: Sequence[Array], why: str = _NEAR) -> Signal:
    """Apply a known matrix along each of the last dimensions.

    Args:
        signal: any signal.
        weights: one of shape (P, X) for each of them.
        why: what it is marked as approximate for, unless nothing is done.
    """
    rank = len(signal.dims) - len(weights)
    signal = sized(signal, rank)
    known, profile, trivial = read_places(signal, len(weights)), [], True
    for i, matrix in enumerate(weights):
        signal, places = mapped(signal, rank + i, matrix, known[i])
        profile.append(places)
        trivial = trivial and bool(np.array_equal(matrix, np.eye(len(matrix))))
    found = replace(signal, profile=tuple(profile))
    return found if trivial or not why else found.approximate(why)


@lru_cache(maxsize=32)
def _response(name: str, inputs: int, outputs: int, rank: int, scale: float | None, align: bool | None) -> Array:
    """Ask an upsampling op for its answer to each unit vector along one axis: shape (outputs, inputs)."""
    op = getattr(torch.ops.aten, name).default
    given: dict[str, Any] = {"align_corners": align} if align is not None else {}
    scales = [a.name for a in op._schema.arguments if a.name.startswith("scales")]
    unit = torch.eye(inputs, dtype=torch.float64, device="cpu").reshape(1, inputs, *[1] * (rank - 1), inputs)
    answer = op(unit, [*[1] * (rank - 1), outputs], **given, **{scales[-1]: scale})
    return np.asarray(answer.reshape(inputs, outputs).T.numpy(), dtype=np.float64)


def _upsampling(call: Call, inputs: Sequence[int], outputs: Sequence[int]) -> list[Array]:
    name, rank = call.op.packet.removeprefix("aten.").removesuffix("_backward"), len(inputs)
    names = {1: ("scales",), 2: ("scales_h", "scales_w"), 3: ("scales_d", "scales_h", "scales_w")}[rank]
    columns = zip(inputs, outputs, names, strict=True)
    return [_response(name, n, m, rank, call[scale], call["align_corners"]) for n, m, scale in columns]


def _upsample(call: Call) -> Sequence[Signal]:
    x = call.signal("self" if "self" in call.op.arguments else "input")
    return [resampled(x, _upsampling(call, x.shape[2:], call.shape()[2:]))]


def _upsample_backward(call: Call) -> Sequence[Signal]:
    g = call.signal("grad_output")
    return [resampled(g, [w.T for w in _upsampling(call, call.shape()[2:], g.shape[2:])])]


def _padding(mode: str) -> tuple[Rule, Rule]:
    """Return the forward and backward rules of a padding whose border repeats entries: W has one 1 a row."""

    def weights(call: Call, inputs: Sequence[int]) -> list[Array]:
        pads = [int(p) for p in call["padding"]]
        # The last dimension's come first.
        given = [(pads[i], pads[i + 1]) for i in range(0, len(pads), 2)][::-1]
        found = []
        for n, (before, after) in zip(inputs[len(inputs) - len(given) :], given, strict=True):
            inner = np.arange(max(-before, 0), n - max(-after, 0))
            wide: Any = np.pad(inner, (max(before, 0), max(after, 0)), mode=mode)  # type: ignore[call-overload]
            found.append(np.eye(n)[wide])
        return found

    def forward(call: Call) -> Sequence[Signal]:
        x = call.signal("self")
        return [resampled(x, weights(call, x.shape))]

    def backward(call: Call) -> Sequence[Signal]:
        return [resampled(call.signal("grad_output"), [w.T for w in weights(call, call.shape())])]

    return forward, backward


def rolled(signal: Signal, dim: int, shift: int) -> Signal:
    """Move the entries of a dimension around its end: what is alike stays alike, and segments change places.

    Args:
        signal: any signal.
        dim: the dimension.
        shift: by how many places towards higher indices.

    >>> from initwell.propagate.rules.parts import padded
    >>> from initwell.propagate.moments.signal import independent
    >>> rolled(padded(independent((2,), 1.0), 0, 0, 3), 0, 1).atoms[0].parts
    (1, 2, 2)
    """
    n = signal.shape[dim]
    shift %= max(n, 1)
    inner = math.prod(a.size for a in signal.dims[dim][1:])
    if shift % inner:
        signal, inner = one_atom(signal, dim), 1
    if shift == 0 or not signal.dims[dim][0].parts:
        return signal
    axis, atom = signal.axes([dim])[0], signal.dims[dim][0]
    signal = _bordered(signal, axis, atom.size - shift // inner)
    parts = signal.atoms[axis].parts
    count = len(parts)
    first = int(np.searchsorted(np.cumsum(parts), atom.size - shift // inner, side="left")) + 1
    order = np.array([*range(first, count), *range(first)])
    new = Atom(atom.size, atom.sample, tuple(parts[i] for i in order))
    places = count + order[new.patterns.first] * count + order[new.patterns.second]
    places[:count] = order
    dims = (*signal.dims[:dim], (new, *signal.dims[dim][1:]), *signal.dims[dim + 1 :])
    return signal.regrouped(dims, signal.moments.take(places, axis), signal.means.take(order, axis))


def _bordered(signal: Signal, axis: int, place: int) -> Signal:
    """Split a segment so that one ends at this place."""
    parts = signal.atoms[axis].parts
    ends = sorted({0, place, *np.cumsum(parts).tolist()})
    return refined(signal, axis, tuple(int(n) for n in np.diff(ends)))


_MODES = {"reflection": "reflect", "replication": "edge"}


def _roll(call: Call) -> Sequence[Signal]:
    x, dims = call.signal("self"), call["dims"]
    if not dims:
        return [plain(x, *range(len(x.dims)))]
    for dim, shift in zip(dims, call["shifts"], strict=True):
        x = rolled(x, dim % len(x.dims), int(shift))
    return [moved(x)]


_UPSAMPLING = (
    *(f"aten.{name}{d}d" for name in ("upsample_nearest", "_upsample_nearest_exact") for d in (1, 2, 3)),
    *(f"aten.upsample_{name}" for name in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
    *(f"aten._upsample_{name}2d_aa" for name in ("bilinear", "bicubic")),
)
_PADS = {f"aten.{name}_pad{d}d": _padding(mode) for name, mode in _MODES.items() for d in (1, 2, 3)}

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_UPSAMPLING, _upsample),
    **{f"{name}_backward": _upsample_backward for name in _UPSAMPLING},
    **{name: rules[0] for name, rules in _PADS.items()},
    **{f"{name}_backward": rules[1] for name, rules in _PADS.items()},
    "aten.roll": _roll,
}
