"""Cutting out positions that are not all alike, putting zeros around them, and joining channels that have them.

A gradient that comes back through a convolution of padded images is larger inside, where more outputs read, than at the
padding, which is cut off next: what is left is larger than the average. So where places are known to differ (see
``places``), a part of them is a known matrix of ones and zeros. Channels of several layers count together, each by how
much it has in common and of its own. Assumption: that of ``places``.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from initwell.propagate.given.mask import side_by_side
from initwell.propagate.moments.places import mixed, weighed
from initwell.propagate.moments.signal import Signal, constant, replace
from initwell.propagate.rules.ends import first_apart
from initwell.propagate.rules.parts import (
    MOVED,
    MOVED_TO_END,
    Multiple,
    at_one_place,
    bounds,
    concatenated,
    joined_tensors,
    padded,
    sliced,
)
from initwell.propagate.rules.reading import read_places
from initwell.propagate.rules.resample import mapped
from initwell.propagate.rules.staggered import staggered
from initwell.propagate.table import Call, Rule


def cropped(signal: Signal, dim: int, start: int, stop: int, step: int = 1) -> Signal:
    """Keep the indices start, start + step, … below stop of a dimension, by what is known of these places.

    Args:
        signal: any signal.
        dim: the dimension.
        start: the first index, from 0.
        stop: above the last.
        step: 1 or more.

    >>> from initwell.propagate.moments.places import of_sizes
    >>> from initwell.propagate.moments.signal import independent
    >>> uneven = replace(independent((4, 3), 1.0), profile=(of_sizes(np.array([0.5, 2.0, 0.5])),))
    >>> cropped(uneven, 1, 1, 2).q
    2.0
    """
    n = signal.shape[dim]
    place = dim - (len(signal.dims) - len(signal.profile))
    kept = range(start, stop, step)
    if place < 0 and signal.profile:
        # Other dimensions' indices are at the same places.
        known = read_places(signal, len(signal.profile))
        return replace(sliced(signal, dim, start, stop, step), profile=tuple(known))
    if place < 0 or len(kept) == n or signal.segmented:
        return sliced(signal, dim, start, stop, step)
    known = read_places(signal, len(signal.profile))
    found, here = mapped(signal, dim, np.eye(n)[kept], known[place])
    known[place] = here
    return replace(found.regrouped(found.dims, found.moments), profile=tuple(known), excess=signal.excess)


def surrounded(signal: Signal, pads: Mapping[int, tuple[int, int]], value: float) -> Signal:
    """Put a constant before and after; negative lengths take away.

    Args:
        signal: any signal.
        pads: how many entries before and behind, by dimension; of what is shorter than is taken away nothing is left.
        value: of them.

    >>> from initwell.propagate.moments.signal import independent
    >>> surrounded(independent((4, 1), 1.0), {1: (1, -1)}, 0.0).q
    0.0
    """
    if any(signal.shape[dim] + min(before, 0) + min(after, 0) <= 0 for dim, (before, after) in pads.items()):
        return constant([n + sum(pads.get(dim, ())) for dim, n in enumerate(signal.shape)], value)
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


def stacked(parts: Sequence[Signal], dim: int, of: Sequence[Multiple] = ()) -> Signal:
    """Join signals along a dimension, and what is known of their places if it has none.

    Args:
        parts: independent of each other but for those that ``of`` gives one value.
        dim: the dimension.
        of: for each part, the value that it is a multiple of, and the factor.
    """
    found, count = concatenated(parts, dim, of), max(len(p.profile) for p in parts)
    first = len(found.dims) - count
    if len(parts) == 1 or count == 0 or dim >= first:
        return found
    known, shares = [read_places(p, count) for p in parts], []
    for part in parts:
        level = part.averaged(part.axes(range(first, len(part.dims))))
        shares.append((part.shape[dim] * level, part.shape[dim] * (part.q - level)))
    axes = [[(k[i], *share) for k, share in zip(known, shares, strict=True)] for i in range(count)]
    return replace(found, profile=tuple(map(weighed, axes)))


def _cat(call: Call) -> Sequence[Signal]:
    parts, of = joined_tensors(call)
    rank = len(parts[0].dims)
    dim = call["dim"] % rank
    found = stacked(parts, dim, of)
    if dim < rank - 1 or all(p.mask is None for p in parts):
        return [found]
    return [replace(found, mask=side_by_side([p.mask for p in parts], [p.shape[-1] for p in parts], rank))]


def _constant_pad(call: Call) -> Sequence[Signal]:
    x, given = call.signal("self"), [int(p) for p in call["pad"]]
    pairs = zip(given[::2], given[1::2], strict=True)
    pads = {len(x.dims) - 1 - i: pair for i, pair in enumerate(pairs) if any(pair)}
    if (shifted := staggered(call)) is not None:
        return [shifted]
    return [surrounded(x, pads, float(call["value"] or 0.0))]


def _slice(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    dim = (call["dim"] or 0) % len(x.dims)
    if (shifted := staggered(call)) is not None:
        return [shifted]
    start, stop, step = bounds(call, x.shape[dim])
    found = cropped(at_one_place(x, dim, start) if stop - start == 1 else x, dim, start, stop, step)
    made = call.trace.producer(call["self"].id)
    if made is not None and made.functional == "aten.convolution" and len(x.dims) == 3 and dim == 2:
        apart = first_apart(found, dim)
        # Beside padding the first positions are not told from others.
        return [found.approximate(MOVED) if apart is found and MOVED_TO_END in found.reasons else apart]
    return [found]


def _narrow(call: Call) -> Sequence[Signal]:
    x, start = call.signal("self"), int(call["start"])
    return [cropped(x, call["dim"] % len(x.dims), start, start + int(call["length"]))]


def _split(call: Call) -> Sequence[Signal | None]:
    x = call.signal("self")
    dim = (call["dim"] or 0) % len(x.dims)
    ends = np.cumsum([0, *(call.shape(i)[dim] for i in range(len(call.op.outputs)))])
    return [cropped(x, dim, int(a), int(b)) if a < b else None for a, b in pairwise(ends)]


_SPLITS = ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk")

RULES: Mapping[str, Rule] = {
    "aten.slice": _slice,
    "aten.constant_pad_nd": _constant_pad,
    "aten.cat": _cat,
    "aten.narrow": _narrow,
    **{f"aten.{name}": _split for name in _SPLITS},
}
