"""Max pooling: the largest entry of each window of a Gaussian, or of a rising function of one.

max φ(u_k) = φ(max u_k) for a rising φ, so the moments are those of φ under the law of the largest (``peaks``). Two
windows go together by what all their entries share, and by the entries that they both hold.

Backward, the whole gradient of a window goes to its largest entry. Two windows of one image with the union U and the
intersection I have the same largest entry with probability |I|/|U|, as any of U is the largest equally likely; else
their two entries lie anywhere. In unlike images or channels both lie anywhere, but for what the images have in common.
So every pair of windows puts E[g g'] on pairs of inputs, an entry that is largest in several gets several gradients,
and it is a largest one: the gate before must know.
Assumption: entries of a window are independent given what they share.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

import numpy as np

from initwell.propagate.laws.gaussian import covariance
from initwell.propagate.laws.peaks import Near, covariance_of_largest, of_pairs, peak_law
from initwell.propagate.laws.rectified import discrete, marginal
from initwell.propagate.moments.alike import of_segments
from initwell.propagate.moments.atoms import matched, together
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.incidence import Axis, adaptive, axis_of, geometry, spread
from initwell.propagate.moments.places import LONGEST, by_axis, of_sizes, off_average, settled, sizes
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.behind import alone, behind
from initwell.propagate.rules.branch import multiplied
from initwell.propagate.rules.cropping import stacked
from initwell.propagate.rules.parts import padded, sliced
from initwell.propagate.rules.pooled import Unpadded, gate_of, unpadded, without_padding
from initwell.propagate.rules.reading import read_places
from initwell.propagate.table import Call, Rule

_WHY = "max pooling: entries of a window as independent but for what all positions share"


@dataclass(frozen=True)
class _Pair:
    """How many pairs of windows along one axis are alike: lengths of both, and of what they share."""

    first: int
    second: int
    overlap: int
    count: float


def window_pairs(axis: Axis) -> tuple[list[_Pair], list[_Pair]]:
    """List the pairs of windows of an axis: each with itself, and all that differ.

    >>> one, two = window_pairs(axis_of(np.array([[0, 1], [1, 2]]), np.ones((2, 2), bool), 3))
    >>> one[0].count, (two[0].overlap, two[0].count)
    (2.0, (1, 2.0))
    """
    lengths = axis.inside.sum(axis=1)
    first = np.where(axis.inside, axis.at, axis.sizes[1]).min(axis=1)
    alike = [_Pair(int(n), int(n), int(n), float(k)) for n, k in Counter(lengths.tolist()).items()]
    near: Counter[tuple[int, int, int]] = Counter()
    rest: Counter[tuple[int, int]] = Counter()
    for n, k in Counter(lengths.tolist()).items():
        for m, j in Counter(lengths.tolist()).items():
            rest[n, m] += k * j - (k if n == m else 0)
    for lag in range(1, axis.sizes[0]):
        overlap = _overlap(axis, lag) if (first[lag:] < first[:-lag] + _reach(axis)).any() else np.zeros(1, int)
        if not overlap.any():
            break
        for n, m, o in zip(lengths[:-lag].tolist(), lengths[lag:].tolist(), overlap.tolist(), strict=True):
            for pair in ((n, m), (m, n)):
                near[*pair, o] += 1
                rest[pair] -= 1
    apart = [_Pair(n, m, 0, float(k)) for (n, m), k in rest.items() if k > 0]
    return alike, [_Pair(*key, float(k)) for key, k in near.items()] + apart


def _reach(axis: Axis) -> int:
    return int(axis.at[0].max() - axis.at[0].min()) + 1


def _overlap(axis: Axis, lag: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    """Count the inputs that each window and the one ``lag`` further on both read."""
    one, two = axis.at[:-lag, :, None], axis.at[lag:, None, :]
    both = axis.inside[:-lag, :, None] & axis.inside[lag:, None, :] & (one == two)
    return np.asarray(both.sum(axis=(1, 2)), dtype=np.int64)


def largest(x: Signal, axes: Sequence[Axis]) -> Signal:
    """Take the largest entry of each window of the last dimensions."""
    first = len(x.dims) - len(axes)
    if (dim := _parted(x, first)) is not None:
        return stacked([largest(piece, axes) for piece in _pieces(x, dim, len(axes))], dim)
    x = alone(x, first)
    phi, u = behind(x, first)
    near = _near(u, axes)
    common = max(float(of_pairs(u, [n[0] for n in near]).flat[0]), 0.0)
    mean, within, between = 0.0, 0.0, 0.0
    drawn: list[tuple[Array, Array]] = []
    for count, share, size in _kinds(axes, read_places(u, len(axes))):
        points, chance = peak_law(u, count, common)
        values = phi.fn(points * math.sqrt(size))
        drawn.append((values, share * chance))
        centre = float(values @ chance)
        mean, between = mean + share * centre, between + share * centre**2
        within += share * (float((values * values) @ chance) - centre**2)
    together = _together(u, axes, near)
    # A window at the border has a smaller maximum, whatever the sample and the channel.
    here = np.zeros((1,) * len(x.axes(range(first))) + tuple(2 for a in axes if a.sizes[0] > 1))
    here[(0,) * here.ndim] = between - mean**2
    moments = mean**2 + here + within * together
    space = tuple((Atom(a.sizes[0]),) if a.sizes[0] > 1 else () for a in axes)
    found = x.changed(np.asarray(moments), mean, dims=(*x.dims[:first], *space))
    known = read_places(x, len(axes))
    law = discrete(*(np.concatenate(column)[None] for column in zip(*drawn, strict=True)))
    return replace(found, profile=tuple(by_axis(_of_windows, known, axes)), law=law).approximate(_WHY)


def _parted(x: Signal, first: int) -> int | None:
    """Return the dimension before the spatial ones whose parts are of several kinds, if only one has any."""
    found = [d for d in range(len(x.dims)) if any(atom.parts for atom in x.dims[d])]
    return found[0] if len(found) == 1 and found[0] < first and len(x.dims[found[0]]) == 1 else None


def _pieces(x: Signal, dim: int, count: int) -> list[Signal]:
    ends, law, places = np.cumsum([0, *x.dims[dim][0].parts]), marginal(x), tuple(read_places(x, count))
    found = [sliced(x, dim, int(a), int(b)) for a, b in pairwise(ends)]
    return [replace(p, law=of_segments(law, np.array([i])), profile=places) for i, p in enumerate(found)]


def _of_windows(places: Array, axis: Axis) -> Array:
    """Return how windows differ by where they are: as their entries do, on average."""
    weights = _membership(axis)
    if places.ndim == 1 or axis.sizes[0] > LONGEST:
        return of_sizes(weights @ sizes(places))
    common, own = places
    off = common.copy()
    np.fill_diagonal(off, 1.0)
    found = np.stack([weights @ off @ weights.T, weights @ own @ weights.T])
    root = np.sqrt(np.maximum(found[1].diagonal(), 1e-300))
    size = weights @ sizes(places)
    found[1] *= np.outer(np.sqrt(size) / root, np.sqrt(size) / root)
    np.fill_diagonal(found[0], size)
    return settled(found)


def _membership(axis: Axis) -> Array:
    """Return 1 over a window's length for each of its entries: shape (windows, inputs)."""
    found = np.zeros(axis.sizes[:2])
    rows = np.broadcast_to(np.arange(axis.sizes[0])[:, None], axis.at.shape)
    found[rows[axis.inside], axis.at[axis.inside]] = 1.0
    return np.asarray(found / np.maximum(found.sum(axis=1, keepdims=True), 1.0))


def _near(u: Signal, axes: Sequence[Axis]) -> list[tuple[Near, Near]]:
    """Return along each axis the places of two entries of one window, and of two entries of two windows."""
    return by_axis(_near_along, read_places(u, len(axes)), axes)


def _near_along(places: Array, axis: Axis) -> tuple[Near, Near]:
    members = (_membership(axis) > 0).astype(np.float64)
    shared, windows = members @ members.T, np.eye(len(members), dtype=bool)
    every = np.outer(members.sum(axis=1), members.sum(axis=1))
    both = []
    for chosen in (windows, ~windows):
        same, apart = float(shared[chosen].sum()), float((every - shared)[chosen].sum())
        if places.ndim == 1 or apart == 0:
            both.append(Near(same, apart))
            continue
        off = [table - np.diag(table.diagonal()) for table in places]
        common, own = (float((members @ table @ members.T)[chosen].sum()) / apart for table in off)
        both.append(Near(same, apart, common, own, off_average(places[1])))
    return both[0], both[1]


def _kinds(axes: Sequence[Axis], places: Sequence[Array]) -> list[tuple[int, float, float]]:
    """Return (entries, how often, E[u²] of them over that of all) of windows with as many entries.

    Windows read the places inside more often than the border, which is smaller where what was pooled was padded.
    """
    found: dict[int, tuple[float, float]] = {}
    for chosen in product(*by_axis(_kinds_along, places, axes)):
        entries, number, size = (math.prod(column) for column in zip(*chosen, strict=True))
        before = found.get(int(entries), (0.0, 0.0))
        found[int(entries)] = before[0] + number, before[1] + number * size
    total = sum(number for number, _ in found.values())
    return [(n, number / total, size / number) for n, (number, size) in found.items()]


def _kinds_along(places: Array, axis: Axis) -> list[tuple[int, int, float]]:
    entries, size = axis.inside.sum(axis=1), _membership(axis) @ sizes(places)
    return [(n, k, float(size[entries == n].mean())) for n, k in Counter(entries.tolist()).items()]


def _together(u: Signal, axes: Sequence[Axis], near: Sequence[tuple[Near, Near]]) -> Array:
    """Return the correlation of the maxima of two windows, by pattern of the result."""
    first = len(u.dims) - len(axes)
    own = _same_place(u, first)
    inside = of_pairs(u, [n[0] for n in near])
    common = min(max(float(inside.flat[0]), 0.0), 1 - 1e-9)
    local = (own - inside) / (1 - common)
    classes = [window_pairs(a) for a in axes]
    found = np.zeros((*own.shape, *(2 if a.sizes[0] > 1 else 1 for a in axes)))
    for place in np.ndindex(found.shape[own.ndim :]):
        shared = of_pairs(u, [n[d] for n, d in zip(near, place, strict=True)]) if any(place) else inside
        overlap = _mean_overlap([c[d] for c, d in zip(classes, place, strict=True)])
        found[(..., *place)] = shared + _local(local, _entries(axes), overlap) * (1 - common)
    size = float(found[(0,) * found.ndim])
    gone = tuple(0 if a.sizes[0] == 1 else slice(None) for a in axes)
    return np.asarray((found / (size if size > 0 else 1.0))[(..., *gone)])


def _same_place(u: Signal, first: int) -> Array:
    """Return the correlation of entries at one place, by pattern of the dimensions before ``first``."""
    table = _with_all(covariance(u)[1], u, first)
    return table.reshape(*table.shape[: len(u.axes(range(first)))], -1)[..., 0]


def _mean_overlap(classes: Sequence[Sequence[_Pair]]) -> list[tuple[int, float]]:
    """Return (entries that two windows share, how often)."""
    found: dict[int, float] = {}
    for chosen in product(*classes):
        overlap = math.prod(p.overlap for p in chosen)
        found[overlap] = found.get(overlap, 0.0) + math.prod(p.count for p in chosen)
    total = sum(found.values())
    return [(o, k / total) for o, k in found.items()] if total else [(0, 1.0)]


def _local(correlations: Array, count: int, overlaps: Sequence[tuple[int, float]]) -> Array:
    """Return the covariance of two maxima whose own entries correlate so, where they overlap."""
    flat = [
        sum(share * covariance_of_largest(count, min(o, count), min(max(r, 0.0), 1.0)) for o, share in overlaps)
        for r in correlations.ravel().round(3).tolist()
    ]
    return np.array(flat).reshape(correlations.shape)


def to_largest(g: Signal, x: Signal, axes: Sequence[Axis]) -> Signal:
    """Give the gradient of each window of the last dimensions to its largest entry.

    Args:
        g: the gradient, one entry a window.
        x: what was pooled.
        axes: one for each of the last dimensions.
    """
    first, rank = len(g.dims) - len(axes), len(axes)
    g, u = alone(g, first), behind(alone(x, first), first)[1]
    g, u = matched(g, u, [(d, d) for d in range(first)])
    lead = len(g.axes(range(first)))
    table = _with_all(g.moments, g, first)
    sums = (range(lead, lead + rank), range(rank, 2 * rank))
    same, apart = (np.tensordot(table, matrix, sums) for matrix in _destinations(tuple(axes)))
    alike = _alike(u, axes).reshape(*(2,) * lead, *(1,) * rank)
    sizes = [a.sizes[1] for a in axes]
    moments = (alike * same + (1 - alike) * apart)[(..., *(slice(None) if n > 1 else 0 for n in sizes))]
    space = tuple((Atom(n),) if n > 1 else () for n in sizes)
    means = g.means.reshape((1,) * (lead + sum(map(len, space)))) * math.prod(a.sizes[0] / a.sizes[1] for a in axes)
    found = g.changed(np.asarray(moments), means, dims=(*g.dims[:first], *space))
    profile = tuple(by_axis(_of_largest, read_places(g, rank), axes))
    return replace(found, profile=profile, peak=_entries(axes)).approximate(_WHY)


def _of_largest(places: Array, axis: Axis) -> Array:
    """Return how inputs differ by where they are: two of them get what two windows have, if each is the largest."""
    weights = _membership(axis)
    size = sizes(places) @ weights
    if places.ndim == 1 or axis.sizes[1] > LONGEST:
        return settled(size)
    # Of two entries of one window only one is the largest.
    off = places * ~np.eye(axis.sizes[0], dtype=bool)
    found = np.stack([weights.T @ table @ weights for table in off])
    for table in found:
        np.fill_diagonal(table, size)
    return settled(found)


def _entries(axes: Sequence[Axis]) -> int:
    """Return how many entries a window has, on average."""
    return max(round(math.prod(float(a.pairs[0, 0, 0]) / a.sizes[0] for a in axes)), 1)


def _with_all(moments: Array, signal: Signal, first: int) -> Array:
    """Return moments with two patterns for every dimension from ``first`` on, those of length 1 included."""
    lead, space = len(signal.axes(range(first))), signal.dims[first:]
    table = moments.reshape((*moments.shape[:lead], *(2 if d else 1 for d in space)))
    return np.broadcast_to(table, (*moments.shape[:lead], *(2,) * len(space)))


def _alike(u: Signal, axes: Sequence[Axis]) -> Array:
    """Return how far two images agree in where their largest entry is, by pattern of the leading dimensions.

    Of two entries with correlation r, both images have the same larger one with probability 1 − arccos(r)/π: from 1/2
    it goes (2/π)·arcsin(r) of the way to 1. Of K entries that share was found by sampling to go as a power of it.
    """
    first = len(u.dims) - len(axes)
    inside = of_pairs(u, [n[0] for n in _near(u, axes)])
    common = min(max(float(inside.flat[0]), 0.0), 1 - 1e-9)
    local = np.clip((_same_place(u, first) - inside) / (1 - common), 0.0, 1.0)
    count = _entries(axes)
    found = np.asarray((np.arcsin(local) * 2 / math.pi) ** (1 + max(math.log2(count) - 1, 0.0) / 6))
    found[(0,) * found.ndim] = 1.0
    return found


@lru_cache(maxsize=64)
def _destinations(axes: tuple[Axis, ...]) -> tuple[Array, Array]:
    """Return how moments of inputs (first axes) come from those of windows (last axes), by pattern of each.

    Returns:
        For two windows of one image, and for two that choose their entries independently.
    """
    rank = len(axes)
    same, apart = np.zeros((2,) * 2 * rank), np.zeros((2,) * 2 * rank)
    classes = [window_pairs(a) for a in axes]
    for place in np.ndindex(*(2,) * rank):
        for chosen in product(*(c[d] for c, d in zip(classes, place, strict=True))):
            number = math.prod(p.count for p in chosen)
            one, two, overlap = (
                math.prod(n) for n in zip(*((p.first, p.second, p.overlap) for p in chosen), strict=True)
            )
            if one * two == 0:
                continue
            both, rest = overlap / (one + two - overlap), one * two - overlap
            for to in np.ndindex(*(2,) * rank):
                ways = [p.first * p.second - p.overlap if d else p.overlap for p, d in zip(chosen, to, strict=True)]
                apart[(*to, *place)] += number * math.prod(ways) / (one * two)
                share = (1 - both) * math.prod(ways) / rest if any(to) and rest else 0.0
                same[(*to, *place)] += number * (share if any(to) else both)
    for to in np.ndindex(*(2,) * rank):
        pairs = math.prod(a.sizes[1] * (a.sizes[1] - 1 if d else 1) for a, d in zip(axes, to, strict=True))
        same[to], apart[to] = same[to] / max(pairs, 1), apart[to] / max(pairs, 1)
    return same, apart


def _windows(call: Call, inputs: Sequence[int], outputs: Sequence[int]) -> list[Axis]:
    if "output_size" in call.op.arguments and "kernel_size" in call.op.arguments:
        return [_fractional(n, m, k) for n, m, k in zip(inputs, outputs, call["kernel_size"], strict=True)]
    if "kernel_size" not in call.op.arguments:
        return adaptive(inputs, outputs)
    return geometry(call, inputs, outputs, spread(call["kernel_size"], len(inputs)))


def _fractional(inputs: int, outputs: int, taps: int) -> Axis:
    """Spread windows evenly, where the op draws their places at random."""
    starts = (np.arange(outputs) * (inputs - taps)) // max(outputs - 1, 1)
    at = starts[:, None] + np.arange(taps)[None, :]
    return axis_of(at, np.ones_like(at, dtype=bool), inputs)


def _space(call: Call) -> int:
    return 3 if "3d" in call.op.packet else 2


def _max_pool(call: Call) -> Sequence[Signal | None]:
    n, source = _space(call), unpadded(call)
    x = call.of(source.ref)
    axes = _inside(call, source, call.shape()[-n:])
    gate = gate_of(x, len(x.dims) - n)
    if gate is None:
        return [largest(x, axes), None]
    return [multiplied(*together(gate[0], largest(gate[1], axes), call.shape())), None]


def _max_pool_backward(call: Call) -> Sequence[Signal]:
    g, n, source = call.signal("grad_output"), _space(call), unpadded(call)
    x = call.of(source.ref)
    gate = gate_of(x, len(x.dims) - n)
    found = to_largest(g, x if gate is None else gate[1], _inside(call, source, g.shape[-n:]))
    whole = found
    for d, (before, after) in enumerate(source.padding):
        whole = padded(whole, d, before, after) if before or after else whole
    return [replace(whole, peak=found.peak, crest=found.crest)]


def _inside(call: Call, source: Unpadded, outputs: Sequence[int]) -> list[Axis]:
    n = len(outputs)
    padding = source.padding[-n:]
    inputs = [length + sum(pads) for length, pads in zip(source.shape[-n:], padding, strict=True)]
    return without_padding(_windows(call, inputs, outputs), source.shape[-n:], padding)


_POOLS = ("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d")
_FRACTIONAL = ("fractional_max_pool2d", "fractional_max_pool3d")

RULES: Mapping[str, Rule] = {
    **{f"aten.{name}": _max_pool for name in (*_POOLS, *_FRACTIONAL)},
    **{f"aten.{name}_backward": _max_pool_backward for name in (*_POOLS, *_FRACTIONAL)},
}
