"""Gram fluctuations: by how much the average product of two rows of a value differs from its expectation.

At finite width the average product of rows i and j over C features, G_ij = x_i·x_j/C, is no fixed number: over draws of
the layers before, and over pairs of rows, it varies by about q²/C. That is small, but two factors of a contraction may
vary *together*: of keys k_j = W_k x_j and score gradients u·W_v x_j, both linear images of the same rows, the sum over
T² pairs (i, j) of E[G_ij²] has T²·q²/C more than that of E[G_ij]², as much as the T pairs i = j alone if T is near C.

The relative variance is that of independent Gaussian rows of a population covariance Σ between features,

    var G_ij / (E[G_ii] − E[G_ij])² = Σ_cc' Σ_cc'² / (Σ_c Σ_cc)² = 1/C_eff

and a fresh layer of D outputs adds 1/D: G of its outputs is G of its inputs plus the noise of a sum of D terms.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache, reduce

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.moments.among import MOST, STRENGTH, by_pattern, typical, with_sources
from initwell.propagate.moments.axes import Atom, Source
from initwell.propagate.moments.segments import FEW, Array, Layout, average, over, patterns
from initwell.propagate.moments.signal import Signal, replace

# Of a table so many rows, of so many samples, show how its rows go together.
_ROWS, _SAMPLES = 256, 8


def fluctuation(x: Signal, features: Sequence[int]) -> float:
    """Compute the relative variance of the average product of two rows.

    Args:
        x: any signal.
        features: its dimensions that count features; the others count rows.

    Returns:
        1/C_eff and what earlier layers left, at most 1.

    >>> from initwell.propagate.moments.signal import independent
    >>> fluctuation(independent((3, 8), 2.0), [1])
    0.125
    """
    axes = x.axes(features)
    order, between, agree, every = _rows_of(x, axes)
    varied = x.moments.transpose(order).reshape(agree.size, -1).dot(between)
    size, left = float(agree.dot(varied)), x.spread / _matrices(x, axes) if x.spread else 0.0
    return min(left + float(every.dot(varied * varied)) / size / size, 1.0) if size > 0 else left


def _matrices(x: Signal, axes: Sequence[int]) -> int:
    """Return of how many products the features are made, each with a spread of its own: the heads of attention.

    Of a batched product both free axes follow something, and those of the batch nothing.
    """
    free = [x.atoms[i].size for i in axes if not x.atoms[i].follows]
    return math.prod(free) if len(free) < len(axes) else 1


def of_table(x: Signal, table: NDArray[np.float64]) -> Signal:
    """Return a measured signal that knows by how much more its rows' products vary than those of Gaussian rows.

    Rows of a table of sinusoids are alike by how near they stand: their products are of few, and large, kinds.

    Args:
        x: the signal.
        table: its numbers, the last dimension counting features and the last but one rows.

    >>> from initwell.propagate.moments.signal import independent
    >>> of_table(independent((4, 2), 0.5), np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])).spread.__round__(3)
    0.0
    """
    count, width = table.shape[-2:]
    every = max(count // _ROWS, 1)
    rows = table.reshape(-1, count, width)[:_SAMPLES, ::every]
    products = rows @ rows.transpose(0, 2, 1) / width
    own = ~np.eye(products.shape[-1], dtype=bool)
    apart = products[:, own]
    varies = float(np.trace(products, axis1=1, axis2=2).mean()) / products.shape[-1] - float(apart.mean())
    if varies <= 0 or products.shape[-1] < 3:
        return x
    return replace(x, spread=max(float(apart.var()) / varies**2 - fluctuation(x, [len(x.dims) - 1]), 0.0))


def varying(x: Signal, features: Sequence[int]) -> float:
    """Return the share of E[x²] that varies from row to row of a sample.

    Args:
        x: any signal.
        features: its dimensions that count features; the others count rows.
    """
    order, between, agree, _ = _rows_of(x, x.axes(features))
    varied = float(agree.dot(x.moments.transpose(order).reshape(agree.size, -1).dot(between)))
    return max(varied, 0.0) / x.q if x.q > 0 else 0.0


def _rows_of(x: Signal, axes: tuple[int, ...]) -> tuple[tuple[int, ...], Array, Array, Array]:
    work = _rows if x.moments.size <= FEW else _rows.__wrapped__
    return work(x.layout, tuple([a.sample for a in x.atoms]), axes)


@lru_cache(maxsize=4096)
def _rows(
    layout: Layout, samples: tuple[bool, ...], features: tuple[int, ...]
) -> tuple[tuple[int, ...], Array, Array, Array]:
    """Return what takes moments to those between features of a row, less those between rows.

    Args:
        layout: the segments of each axis.
        samples: which axes count samples: what rows of one sample have in common is no part of how they vary.
        features: the axes of features.

    Returns:
        The order that puts features first, weights of the others' patterns, and those of features' that average over
        all that agree and over all.
    """
    others = [i for i in range(len(layout)) if i not in features]
    apart = [k for k, i in enumerate(others) if not samples[i]] or range(len(others))
    rows, columns = (tuple([layout[i] for i in of]) for of in (others, features))
    between = over(rows, ()) - over(rows, apart) if others else np.ones(1)
    every = reduce(np.multiply.outer, [patterns(parts).every for parts in columns], np.ones(())).ravel()
    return (*features, *others), between, over(columns, ()), every


def mixed(a: Signal, b: Signal, alpha: float, beta: float) -> float:
    """Return the spread of alpha·a + beta·b of the same atoms, one of which may have been made from the other.

    G of the sum is that of the parts and of products across, which are noise of the width's own size; what is left is

        (v_a²·s_a + v_b²·s_b + 2·v_a·v_b·s_ab)/(v_a + v_b)²

    with v what varies from row to row. Of two branches, the younger has inherited what s_ab says.
    """
    rows = [i for i, (x, y) in enumerate(zip(a.atoms, b.atoms, strict=True)) if x.follows or y.follows]
    apart = [i for i in rows if not a.atoms[i].sample] or rows
    sizes = [factor**2 * max(x.q - x.averaged(apart), 0.0) if apart else x.q for x, factor in ((a, alpha), (b, beta))]
    total = sum(sizes)
    if total <= 0 or a.spread == b.spread == 0:
        return 0.0
    one, two = (size / total for size in sizes)
    width = math.prod(atom.size for i, atom in enumerate(a.atoms) if i not in rows)
    both = max(min(a.spread + 1 / width, b.spread), min(b.spread + 1 / width, a.spread))
    return one**2 * a.spread + two**2 * b.spread + 2 * one * two * both


def summed(found: Signal, a: Signal, b: Signal, alpha: float, beta: float) -> Signal:
    """Return the sum alpha·a + beta·b with the spread of one, its rows following what those of both followed.

    Each counts by its share of how rows vary: a bias added to scores makes them go less with their keys.

    Args:
        found: the sum, of the same atoms.
        a: one summand.
        b: the other.
        alpha: factor of a.
        beta: factor of b.
    """
    sources = {}
    for i, (one, two) in enumerate(zip(a.atoms, b.atoms, strict=True)):
        if one.follows or two.follows:
            if not two.follows and b.averaged([i]) == b.q:
                continue  # as a bias, which all rows have in common
            varies = [f**2 * max(x.q - x.averaged([i]), 0.0) for x, f in ((a, alpha), (b, beta))]
            total = sum(varies) or 1.0
            sources[i] = _shared(found.atoms[i], two, varies[0] / total, varies[1] / total)
    return with_sources(found, sources, mixed(a, b, alpha, beta))


def multiplied(found: Signal, a: Signal, b: Signal) -> Signal:
    """Return the product a·b, its rows following what those of both followed.

    Of factors a and b the products of two rows are (a₀ − a₁)·b₁ + a₁·(b₀ − b₁) + … less than that of a row with itself,
    by agreement 0 and difference 1; a rotation by the place of a row leaves of its keys' what nearby rows share.

    Args:
        found: the product, with the atoms of a.
        a: one factor, independent of the other.
        b: the other.
    """
    sources = {}
    for i, (one, two) in enumerate(zip(a.atoms, b.atoms, strict=True)):
        if one.follows or two.follows:
            (p, q), (r, s) = ((x.q, x.averaged([i])) for x in (a, b))
            total = p * r - q * s
            shares = (max((p - q) * s, 0.0) / total, max(q * (r - s), 0.0) / total) if total > 0 else (0.0, 0.0)
            sources[i] = _shared(found.atoms[i], two, *shares)
    return with_sources(found, sources)


def following(signal: Signal, dims: Sequence[int], source: Source) -> Signal:
    """Say that along these dimensions the rows are linear images of a value's rows, and of no other's that matters."""
    return with_sources(signal, dict.fromkeys(signal.axes(dims), (source,)))


def adding(signal: Signal, ends: Iterable[tuple[Sequence[int], Source]], spread: float | None = None) -> Signal:
    """Say that rows are linear images of one more value's rows.

    Args:
        signal: any signal.
        ends: dimensions that count rows, and what they follow.
        spread: of the signal, if it is another.
    """
    sources = {axis: source for dims, source in ends for axis in signal.axes(dims)}
    found = {i: (*[o for o in signal.atoms[i].follows if o.value != s.value], s) for i, s in sources.items()}
    return with_sources(signal, found, spread)


def image(
    found: Signal,
    rows: Sequence[int],
    x: Signal,
    features: Sequence[int],
    source: Source,
    taps: int = 1,
    older: Sequence[Source] = (),
) -> Signal:
    """Say of a fresh layer's outputs that their rows follow those of its inputs.

    Args:
        found: the outputs.
        rows: their dimensions that count rows.
        x: the inputs.
        features: their dimensions that count features.
        source: the inputs' id, and how much of one length their rows are.
        taps: positions that an output reads, each a row's share of its features.
        older: what those rows follow in their turn, if they are another such layer's.
    """
    spread = fluctuation(x, features) / taps
    sources = (source.of(math.sqrt(spread)), *older)[:MOST]
    return with_sources(found, dict.fromkeys(found.axes(rows), sources), spread)


def rescaled(signal: Signal, axis: int, factor: float, apart: float = 1.0) -> Signal:
    """Multiply how strongly rows along an axis of the moments follow others.

    Args:
        signal: any signal.
        axis: of the moments.
        factor: of the strength.
        apart: of it between entries that differ along others of its axes, too.
    """
    old = signal.atoms[axis].follows
    new = tuple([s._replace(strength=s.strength * factor, apart=s.apart * apart) for s in old])
    return with_sources(signal, {axis: new})


def shared_out(signal: Signal, other: Signal, axis: int, share: float, rest: float) -> Signal:
    """Let rows along an axis follow what both parts of a value followed, each by what it adds to how rows vary.

    Args:
        signal: the value, with the sources of one part.
        other: the other part.
        axis: of the moments of both.
        share: what of the signal's strength stays.
        rest: how much of the other's strength there is in it.
    """
    return with_sources(signal, {axis: _shared(signal.atoms[axis], other.atoms[axis], share, rest)})


def _shared(own: Atom, other: Atom, share: float, rest: float) -> tuple[Source, ...]:
    """Return what two parts of a value follow along an axis; the arguments are those of ``shared_out``."""
    sources = {s.value: s.of(s.strength * rest) for s in other.follows} if rest > 0 else {}
    for s in own.follows:
        old = sources.get(s.value)
        sources[s.value] = s.of(s.strength * share + (old.strength if old else 0.0))
    return tuple(sorted(sources.values(), key=STRENGTH, reverse=True)[:MOST])


def averaged(parts: Sequence[tuple[int, tuple[Source, ...]]]) -> tuple[Source, ...]:
    """Return what rows follow that were joined: of two rows drawn at random, each follows a value as its own part does.

    Args:
        parts: how many rows there are of each, and what they follow.
    """
    found = dict[int, Source]()
    total = sum(count for count, _ in parts)
    for count, sources in parts:
        for s in sources:
            old = found.get(s.value)
            share = s.strength * count / total
            found[s.value] = s.of(share + (old.strength if old else 0.0))
    return tuple(sorted(found.values(), key=STRENGTH, reverse=True)[:MOST])


def forgotten(dim: tuple[Atom, ...]) -> tuple[Atom, ...]:
    """Return atoms that follow nothing."""
    return tuple([atom.following(()) if atom.follows else atom for atom in dim])


def in_common(a: Signal, b: Signal, pairs: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    """Find along which of the contracted axes two signals follow one value: of several, that which they follow most.

    Args:
        a: a signal.
        b: another.
        pairs: axes of their moments, (of a, of b).

    Returns:
        Places in ``pairs``, and the value; no places where there is none.
    """
    shared: dict[int, tuple[list[int], float]] = {}
    for place, (i, j) in enumerate(pairs):
        others = b.atoms[j].follows
        for one in a.atoms[i].follows if others else ():
            for two in others:
                if one.value == two.value:
                    shared.setdefault(one.value, ([], one.strength * two.strength))[0].append(place)
    value = max(shared, key=lambda v: shared[v][1], default=-1)
    return (shared[value][0], value) if shared and shared[value][1] > 0 else ([], -1)


def _source(signal: Signal, axis: int, value: int) -> Source | None:
    return next((s for s in signal.atoms[axis].follows if s.value == value), None)


def strength(a: Signal, i: int, b: Signal, j: int) -> float:
    """Return the most that two axes have in common: the product of the strengths of one value that they follow."""
    rows, value = in_common(a, b, [(i, j)])
    one, two = (_source(x, k, value) for x, k in ((a, i), (b, j)))
    return typical(one) * typical(two) if rows and one and two else 0.0


def varied(signal: Signal, axes: Sequence[int], value: int) -> Array:
    """Return by pattern how far the average product of two rows goes with that of a value's rows.

    Args:
        signal: any signal.
        axes: of its moments that count rows.
        value: that they follow.

    Returns:
        √(E[x_i²] E[x_j²]) − E[x_i x_j] times what the rows' source says; 0 where they all agree.
    """
    source = _source(signal, axes[0], value) or Source(value, 0.0)
    found = (_roots(signal, axes) - signal.moments) * source.strength
    if source.among:
        found = found * by_pattern(signal, axes, source)
    if source.apart == 1:
        return np.asarray(found)
    others = [i for i, atom in enumerate(signal.atoms) if atom.follows and i not in axes]
    # Two rows go with it no more than each does: of tokens that are one and the same, as much.
    own = np.abs(_roots(replace(signal, moments=found), others))
    return np.where(_differ(signal, axes), np.clip(found * source.apart, -own, own), found)


def apart(signal: Signal, axis: int) -> float:
    """Return the average of ``varied`` over pairs that differ along an axis and agree along the others, at strength 1.

    Without segments it is E[x²] − E[x x'].

    Args:
        signal: any signal.
        axis: of its moments.
    """
    if not signal.atoms[axis].parts:
        return signal.averaged(()) - signal.averaged([axis])
    return average(_roots(signal, [axis]), signal.layout, [axis]) - signal.averaged([axis])


def _roots(signal: Signal, axes: Sequence[int]) -> Array:
    """Return √(E[x_i²] E[x_j²]), i and j the indices of a pair along some axes, by pattern."""
    found = signal.moments
    for axis in axes:
        pairs = signal.atoms[axis].patterns
        one, two = found.take(pairs.first, axis), found.take(pairs.second, axis)
        # Products of rows of two sizes vary by both: those with a row of zeros are 0.
        found = np.sign(one) * np.sqrt(np.maximum(one * two, 0.0))
    return np.asarray(found)


def _differ(signal: Signal, axes: Sequence[int]) -> NDArray[np.bool_]:
    """Say by pattern whether entries differ along other axes that follow something."""
    found = np.zeros((1,) * len(signal.atoms), dtype=bool)
    for i, atom in enumerate(signal.atoms):
        if atom.follows and i not in axes:
            found = found | differs(signal, i)
    return found


def differs(signal: Signal, axis: int) -> NDArray[np.bool_]:
    """Say by pattern whether indices of an axis differ; other axes are of length 1."""
    pairs = signal.atoms[axis].patterns
    found = np.arange(pairs.counts.size) >= len(pairs.parts)
    return found.reshape([-1 if i == axis else 1 for i in range(len(signal.atoms))])
