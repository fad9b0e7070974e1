"""Reading positions that are not all alike: what taps carry on of how places differ; see ``places``.

Assumption: that of ``places``, along each axis by itself.
"""

import math
from collections.abc import Sequence

import numpy as np

from initwell.propagate.laws.gaussian import Series, covariance, hermite, series_moments
from initwell.propagate.moments.alike import merged, plain
from initwell.propagate.moments.incidence import Axis, carried
from initwell.propagate.moments.places import (
    bent,
    by_axis,
    by_kinds,
    even,
    exactly,
    of_sizes,
    off_average,
    own_correlations,
    parted,
    settled,
    sizes,
)
from initwell.propagate.moments.segments import Array, along
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.scatter import Taken


def profiled(found: Signal, known: Sequence[Array], axes: Sequence[Axis], role: str) -> Signal:
    """Carry through taps how places differ: an output at p has the sum of what its inputs have.

    With it the borders, which are read by fewer taps and are smaller themselves, count as often as they are read.

    Args:
        found: what ``tapped`` gave, all positions taken as alike.
        known: how positions of what was read differ, from ``read_places``.
        axes: of the op.
        role: "p" when ``found`` is at the outputs, "x" when at the inputs.
    """
    scale, profile, moments = 1.0, [], found.moments
    rank = len(found.dims) - len(axes)
    for i, (matrix, places) in enumerate(by_axis(_read_through if role == "p" else _read_back, axes, known)):
        profile.append(places)
        if matrix is None:
            continue
        axes_here = found.axes([rank + i])
        moments = along(moments, matrix, axes_here[0]) if axes_here else moments * matrix[0, 0]
        scale *= float(matrix[0, 0])
    if moments is found.moments:
        return replace(found, profile=tuple(profile))
    return replace(found, moments=np.asarray(moments), means=found.means * math.sqrt(scale), profile=tuple(profile))


def _read_through(axis: Axis, places: Array, *, back: bool = False) -> tuple[Array | None, Array]:
    """Carry places through an axis: the matrix of what it does to (agree, differ), or None for nothing, and they."""
    if axis.one_to_one:
        return None, places
    here = carried(places, axis, back=back)
    return _corrected(axis, places, here), settled(here)


def _read_back(axis: Axis, places: Array) -> tuple[Array | None, Array]:
    return _read_through(axis, places, back=True)


def _corrected(axis: Axis, places: Array, here: Array) -> Array:
    """Return the matrix from (agree, differ) with all places alike to what they are.

    Args:
        axis: that was read.
        places: of what was read.
        here: what they carried.
    """
    n = here.shape[-1]
    every, pairs = float(axis.pairs[0, 0, 0]), float(axis.pairs[1, 1, 0])
    agree = float(sizes(here).sum()) / every
    if here.ndim == 1 or places.ndim == 1 or pairs == 0:
        return np.diag([agree, agree])
    # From what tapped gave back to (q, d) of what was read, to (a, q − a), and on.
    level, rest = parted(places) @ np.diag([n / every, n * (n - 1) / pairs])
    return np.array([[agree, 0.0], off_average(here[0]) * level + off_average(here[1]) * rest])


def read_places(source: Signal, count: int) -> list[Array]:
    """Return how places differ along the last dimensions of what is read.

    Of a function of a Gaussian they are known of the Gaussian. With c the correlation that all places have, S goes as
    the power d log E[φφ′]/d log c, and L as (κ(c + (1 − c)L) − κ(c))/(κ(1) − κ(c)), κ the correlation's E[φφ′].

    Args:
        source: what is read.
        count: how many dimensions are spatial.
    """
    if not source.profile or len(source.profile) != count:
        return [even(n) for n in source.shape[len(source.dims) - count :]]
    made = source.image
    if made is None or made.base is not None or made.pre.dims != source.dims:
        return list(source.profile)
    if all(p.ndim == 1 for p in source.profile):
        return list(source.profile)
    space = set(source.axes(range(len(source.dims) - count, len(source.dims))))
    pre = plain(made.pre, *range(len(source.dims))) if source.segmented else made.pre
    variance, correlations = covariance(pre)
    c = min(max(float(correlations[tuple(int(i in space) for i in range(correlations.ndim))]), 0.0), 0.999)
    series = hermite(made.phi.fn, made.phi.kinks, pre.mean, variance)
    return by_axis(_bent, source.profile, given=(series, exactly(c)))


def _bent(places: Array, series: Series, c: float) -> Array:
    def kappa(at: Array) -> Array:
        return series_moments(series, series, at)

    one, more, whole = kappa(np.array([c, c * 1.001 + 1e-9, 1.0]))
    power = math.log(more / one) / math.log(1.001) if c > 0.02 and one > 0 else 0.0

    def own(at: Array) -> Array:
        return by_kinds(lambda kinds: (kappa(c + (1 - c) * kinds) - one) / max(whole - one, 1e-300), at)

    return bent(places, max(power, 0.0), own if _near(places) else None)


def _near(places: Array) -> bool:
    """Whether what is each place's own is like that of others."""
    return places.ndim == 3 and bool(np.add.reduce(np.abs(places[1]), axis=None) > (1 + 1e-9) * places[1].trace())


def sized(signal: Signal, rank: int) -> Signal:
    """Turn segments of the spatial dimensions, such as explicit padding, into E[x²] by position."""
    if not signal.segmented or not any(atom.parts for dim in signal.dims[rank:] for atom in dim):
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


def taken(known: Sequence[Array], axes: Sequence[Axis]) -> list[Taken]:
    """Return what the taps of each axis have in common; see ``scatter``.

    Args:
        known: the places of what is read, by axis.
        axes: of the op.
    """
    return by_axis(_taken, known, axes)


def _taken(places: Array, axis: Axis) -> Taken:
    if axis.one_to_one:
        return _alone(places)
    at, (_, inputs, taps) = axis.places, axis.sizes
    a = np.sqrt(np.maximum(sizes(places), 0.0))[at] * axis.inside
    both, n = a.T @ a / len(a), len(a)
    reads = np.bincount((at * taps + np.arange(taps)).ravel(), a.ravel(), inputs * taps).reshape(inputs, taps)
    mean, one = np.add.reduce(a) / n, reads.T @ reads / n**2
    own = own_correlations(places) if _near(places) else None
    if own is None:
        return Taken(both, mean, one, np.diag(both.diagonal()), 0.0)
    pairs = own[at[:, :, None], at[:, None, :]] * a[:, :, None] * a[:, None, :]
    return Taken(both, mean, one, np.add.reduce(pairs) / n, off_average(own))


def _alone(places: Array) -> Taken:
    """Return what one tap that reads every place, each at its own, has in common."""
    size = np.maximum(sizes(places), 0.0)
    n, both = len(size), np.array([[float(np.add.reduce(size)) / len(size)]])
    mean = np.array([float(np.add.reduce(np.sqrt(size))) / n])
    own = own_correlations(places) if _near(places) else None
    return Taken(both, mean, both / n, both, 0.0 if own is None else off_average(own))


def levelled(x: Signal, dims: Sequence[int], variance: float) -> tuple[Array, ...]:
    """Return how places differ of what is centred over them.

    What a channel has in common is less at the border than inside, so that taking one mean off leaves some there:

        E[(x_p − x̄)²] = q·s_p − 2μ·t_p + μ,    s the sizes, t_p = E[x_p x̄]/μ,  μ = E[x̄²]

    Args:
        x: what the mean is taken off.
        dims: over which it is taken.
        variance: E[(x − x̄)²].
    """
    rank = len(x.dims) - len(x.profile)
    if variance <= 0 or not set(range(rank, len(x.dims))) <= set(dims):
        return x.profile
    level = x.q - variance
    if x.mean**2 > level / 2:
        # Places have means of their own: a rectifier next cuts off what is below, and leaves more above.
        return x.profile
    return tuple(by_axis(_levelled, x.profile, given=(exactly(x.q / variance), exactly(level / variance))))


def _levelled(places: Array, whole: float, level: float) -> Array:
    # x̄ holds other samples' entries at this very place, too.
    row = np.add.reduce(places[0], axis=1) if places.ndim == 3 else np.sqrt(np.maximum(sizes(places), 0.0))
    found = whole * sizes(places) + level * (1 - 2 * row.size * row / np.add.reduce(row))
    return of_sizes(np.maximum(found, 0.0), own_correlations(places))
