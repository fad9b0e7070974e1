"""Cutting out positions that are not all alike, and putting zeros around them.

A gradient that comes back through a convolution of padded images is larger inside, where more outputs read, than at the
padding, which is cut off next: what is left is larger than the average. So where places are known to differ (see
``places``), a part of them is a known matrix of ones and zeros. Assumption: that of ``places``.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.places import mixed
from initwell.propagate.rules.parts import bounds, padded, sliced
from initwell.propagate.rules.reading import read_places
from initwell.propagate.rules.resample import mapped
from initwell.propagate.signal import Signal, replace
from initwell.propagate.table import Call, Rule


def cropped(signal: Signal, dim: int, start: int, stop: int, step: int = 1) -> Signal:
    """Keep the indices start, start + step, … below stop of a dimension, by what is known of these places.

    Args:
        signal: any signal.
        dim: the dimension.
        start: the first index, from 0.
        stop: above the last.
        step: 1 or more.

    >>> from initwell.propagate.places import of_sizes
    >>> from initwell.propagate.signal import independent
    >>> uneven = replace(independent((4, 3), 1.0), profile=(of_sizes(np.array([0.5, 2.0, 0.5])),))
    >>> cropped(uneven, 1, 1, 2).q
    2.0
    """
    n = signal.shape[dim]
    place = dim - (len(signal.dims) - len(signal.profile))
    kept = range(start, stop, step)
    if place < 0 or len(kept) == n or signal.segmented:
        return sliced(signal, dim, start, stop, step)
    known = read_places(signal, len(signal.profile))
    found, here = mapped(signal, dim, np.eye(n)[kept], known[place])
    known[place] = here
    return replace(found.regrouped(found.dims, found.moments), profile=tuple(known))


def surrounded(signal: Signal, pads: Mapping[int, tuple[int, int]], value: float) -> Signal:
    """Put a constant before and after; negative lengths take away.

    Args:
        signal: any signal.
        pads: how many entries before and behind, by dimension.
        value: of them.
    """
    for dim, (before, after) in pads.items():
        signal = cropped(signal, dim, max(-before, 0), signal.shape[dim] - max(-after, 0))
    first = len(signal.dims) - len(signal.profile)
    profile = () if value or any(dim < first for dim in pads) else tuple(read_places(signal, len(signal.profile)))
    for i, places in enumerate(profile):
        before, after = (max(p, 0) for p in pads.get(first + i, (0, 0)))
        n = places.shape[-1]
        own = signal.averaged(()), signal.averaged(signal.axes([first + i]))
        around = np.eye(before + n + after)[:, before : before + n]
        profile = (*profile[:i], mixed(places, around, *own)[1], *profile[i + 1 :])
    for dim, (before, after) in pads.items():
        signal = padded(signal, dim, max(before, 0), max(after, 0), value)
    return replace(signal, profile=profile)


def _constant_pad(call: Call) -> Sequence[Signal]:
    x, given = call.signal("self"), [int(p) for p in call["pad"]]
    pairs = zip(given[::2], given[1::2], strict=True)
    pads = {len(x.dims) - 1 - i: pair for i, pair in enumerate(pairs) if any(pair)}
    return [surrounded(x, pads, float(call["value"] or 0.0))]


def _slice(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    dim = (call["dim"] or 0) % len(x.dims)
    return [cropped(x, dim, *bounds(call, x.shape[dim]))]


RULES: Mapping[str, Rule] = {"aten.slice": _slice, "aten.constant_pad_nd": _constant_pad}
