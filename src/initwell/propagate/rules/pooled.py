"""What a max pooling sees: its input without padding that is never the largest, and without a gate over whole images.

Padding of minus infinity, or of 0 around rectified values, is never more than the largest: it only leaves windows at
the border shorter. A positive gate h that is one number for all positions does not choose: max h·φ(u) = h·max φ(u), and
φ(u) is known better than the product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from initwell.propagate.laws.functions import evaluated
from initwell.propagate.moments.alike import plain
from initwell.propagate.moments.incidence import Axis, axis_of
from initwell.propagate.moments.signal import Image, Signal
from initwell.propagate.rules.parts import one_atom, selected
from initwell.propagate.table import Call
from initwell.trace.trace import ValueRef

_LOWEST = -1e4


@dataclass(frozen=True)
class Unpadded:
    """A pooling's input before it was padded, and how long its padding is: (before, after) by dimension."""

    ref: Any
    shape: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]


def unpadded(call: Call) -> Unpadded:
    """Look behind padding that is never the largest."""
    ref = call["self"]
    shape = call.trace.values[ref.id].shape
    op = call.trace.producer(ref.id)
    behind = op.arguments.get("self") if op is not None and op.functional == "aten.constant_pad_nd" else None
    value = float(op.arguments.get("value") or 0.0) if op is not None else 0.0
    if op is None or not isinstance(behind, ValueRef) or value > max(_LOWEST, _least(call, behind)):
        return Unpadded(ref, shape, ((0, 0),) * len(shape))
    pads = [int(n) for n in op.arguments["pad"]]
    ends = list(zip(pads[::2], pads[1::2], strict=True))
    before = ((0, 0),) * (len(shape) - len(ends)) + tuple(reversed(ends))
    if min(pads) < 0:
        return Unpadded(ref, shape, ((0, 0),) * len(shape))
    return Unpadded(behind, call.trace.values[behind.id].shape, before)


def _least(call: Call, ref: ValueRef) -> float:
    """Return the least that a value can be: 0 of a rectified one, −∞ of one that is not known to have any."""
    image = call.known[ref.id].image if ref.id in call.known else None
    if image is None or (image.base is not None and gate_of(call.known[ref.id], 2) is None):
        return -np.inf
    return float(image.phi.fn(image.pre.mean + max(image.pre.rms, 1e-150) * np.linspace(-12.0, 12.0, 97)).min())


def without_padding(axes: Sequence[Axis], lengths: Sequence[int], padding: Sequence[tuple[int, int]]) -> list[Axis]:
    """Return the axes of windows over what lies inside the padding.

    >>> axis = axis_of(np.array([[0, 1], [2, 3]]), np.ones((2, 2), bool), 4)
    >>> without_padding([axis], [3], [(1, 0)])[0].inside.tolist()
    [[False, True], [True, True]]
    """
    found = []
    for axis, n, (before, after) in zip(axes, lengths, padding, strict=True):
        at = axis.at - before
        found.append(axis_of(at, axis.inside & (at >= 0) & (at < n), n) if before or after else axis)
    return found


def gate_of(x: Signal, first: int) -> tuple[Signal, Signal] | None:
    """Return (gate, φ(u)) of a value that is their product, the gate positive and the same at all positions; else None.

    Args:
        x: any signal.
        first: of its dimensions that count positions; the gate has length 1 from there on.
    """
    image = x.image
    if image is None or image.base is None or image.pre.dims != x.dims or x.segmented or image.base.segmented:
        return None
    gate = image.base
    inner = evaluated(Image(image.phi, image.pre))
    here = (0,) * gate.moments.ndim
    apart = tuple(int(i in gate.axes(range(first, len(gate.dims)))) for i in range(gate.moments.ndim))
    flat = gate.dims == x.dims and np.isclose(gate.moments[here], gate.moments[apart], rtol=1e-6)
    if not flat or gate.mean <= 0 or gate.mean**2 < 0.5 * gate.q:
        return None
    gate = plain(gate, *range(len(gate.dims)))
    for d in range(first, len(gate.dims)):
        if gate.dims[d]:
            gate = selected(one_atom(gate, d), d, 0)
            gate = gate.regrouped((*gate.dims[:d], (), *gate.dims[d:]), gate.moments)
    return gate, inner
