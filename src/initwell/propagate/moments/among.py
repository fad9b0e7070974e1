"""Rows whose features come from several layers: what each part of the features follows, and how strongly.

Keys of some models are joined of two parts, a latent's image and one that is rotated; values are images of that latent
alone. Products of two rows then go with the latent's by the features of the first part, and not by the others, whose
share of the strength is another: see ``gram``.
"""

from collections.abc import Mapping, Sequence
from operator import attrgetter

import numpy as np

from initwell.propagate.moments.axes import Atom, Source
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace

STRENGTH = attrgetter("strength")
MOST = 4
"""Of more values than these, rows follow the rest too little to matter."""


def typical(source: Source) -> float:
    """Return the strength of a source, on average over the features that it is followed among."""
    if not source.among:
        return source.strength
    whole = sum(n for n, _ in source.among)
    return source.strength * sum(n * share for n, share in source.among) / whole if whole else source.strength


def with_sources(signal: Signal, sources: Mapping[int, tuple[Source, ...]], spread: float | None = None) -> Signal:
    """Say what rows follow along these axes of the moments, and what spread a signal has, if it is another."""
    more = {} if spread is None else {"spread": spread}
    changed = {i: new for i, new in sources.items() if new != signal.atoms[i].follows}
    if not changed:
        return replace(signal, **more) if more else signal
    atoms = list(signal.atoms)
    for i, new in changed.items():
        atoms[i] = atoms[i].following(new)
    return _relabelled(signal, atoms, **more)


def _relabelled(signal: Signal, atoms: Sequence[Atom], **changes: float) -> Signal:
    """Return a copy whose atoms, of the same sizes and segments, are others; what was worked out stays as it is."""
    found = object.__new__(Signal)
    dims = tuple([tuple(atoms[span.start : span.stop]) for span in signal.spans])
    state = found.__dict__
    state.update(signal.__dict__, dims=dims, atoms=tuple(atoms), **changes)
    state.pop("cuts", None)
    return found


def by_pattern(signal: Signal, axes: Sequence[int], source: Source) -> Array | float:
    """Return by pattern which share of its strength a source has among the features of each segment."""
    sizes, shares = (np.array(column) for column in zip(*source.among, strict=True))
    for i, atom in enumerate(signal.atoms):
        if i not in axes and atom.parts == tuple(sizes.tolist()):
            pairs = atom.patterns
            found = np.sqrt(shares[pairs.first] * shares[pairs.second])
            return np.asarray(found.reshape([-1 if i == k else 1 for k in range(len(signal.atoms))]))
    return typical(source) / source.strength


def beside(found: Signal, parts: Sequence[Signal], axis: int) -> Signal:
    """Let rows whose features were joined follow what those of each part followed, by its own features alone.

    Keys of two layers, of which one rotates: gradients of the queries' other half go with values as the other's do.

    Args:
        found: the whole, with the sources of the first part.
        parts: of each segment of the axis, that which it comes from.
        axis: along which they were joined.
    """
    live = [p for p in parts if p.q > 0]
    if len(live) < 2 or any(p.atoms[axis].follows for p in live):
        return found
    sources = {}
    for i in (i for i in range(len(found.atoms)) if i != axis):
        own = [{s.value: s for s in p.atoms[i].follows} for p in parts]
        if all(p.atoms[i].follows == live[0].atoms[i].follows for p in live):
            continue
        values = dict.fromkeys(value for one in own for value in one)
        most = [max([one[v] for one in own if v in one], key=STRENGTH) for v in values]
        sources[i] = tuple(
            s._replace(among=_shares(s, found.atoms[axis].parts, parts, own))
            for s in sorted(most, key=STRENGTH, reverse=True)[:MOST]
            if s.strength > 0
        )
    return with_sources(found, sources)


def _shares(
    most: Source, sizes: Sequence[int], parts: Sequence[Signal], own: Sequence[Mapping[int, Source]]
) -> tuple[tuple[int, float], ...]:
    found = [typical(one[most.value]) if most.value in one else 0.0 for one in own]
    return tuple((n, s / most.strength if p.q > 0 else 1.0) for n, s, p in zip(sizes, found, parts, strict=True))


def shared_by(signal: Signal, axis: int, rows: Sequence[int], part: Array, whole: Array) -> Signal:
    """Multiply how strongly those along an axis follow others by part/whole, by segment of the one other that has any.

    Of a row of scores that are all 0 the gradient goes with all that its weights' own goes with, of a row of large
    ones with a small share of it.

    Args:
        signal: any signal.
        axis: of the moments, along which something is followed.
        rows: others of its axes.
        part: by segment of those, an axis for each, how much of the whole goes with what is followed, of one entry.
        whole: the same of the whole.
    """
    for k, i in enumerate(rows):
        lengths = np.array(signal.atoms[i].patterns.parts, float)
        shape = [-1 if j == k else 1 for j in range(len(rows))]
        part, whole = part * lengths.reshape(shape), whole * lengths.reshape(shape)
    unlike = [k for k, i in enumerate(rows) if signal.atoms[i].parts]
    average, old = float(part.sum()) / max(float(whole.sum()), 1e-300), signal.atoms[axis].follows
    if len(unlike) == 1 and (part >= 0).all() and average > 0 and not any(s.among for s in old):
        others = tuple(k for k in range(len(rows)) if k not in unlike)
        each = part.sum(others) / np.maximum(whole.sum(others), 1e-300)
        most = float(each.max())
        among = tuple(zip(signal.atoms[rows[unlike[0]]].parts, (each / most).tolist(), strict=True))
        return with_sources(signal, {axis: tuple(s.of(s.strength * most)._replace(among=among) for s in old)})
    return with_sources(signal, {axis: tuple(s.of(s.strength * average) for s in old)})


def is_apart(signal: Signal, axis: int) -> bool:
    """Whether rows follow something among the segments of this axis, in some more than in others."""
    sizes = [*signal.atoms[axis].parts]
    return any([n for n, _ in s.among] == sizes for atom in signal.atoms for s in atom.follows if s.among)


def cut(signal: Signal, parts: Sequence[int], kept: Sequence[int], sizes: Sequence[int]) -> Signal:
    """Let rows of which these segments' features are kept follow what these followed.

    Args:
        signal: what is left.
        parts: sizes of all segments.
        kept: which of them there are still.
        sizes: of these.
    """
    sources = {}
    for i, atom in enumerate(signal.atoms):
        if any(s.among and [n for n, _ in s.among] == [*parts] for s in atom.follows):
            sources[i] = tuple(_of_parts(s, kept, sizes) if len(s.among) == len(parts) else s for s in atom.follows)
    return with_sources(signal, sources) if sources else signal


def _of_parts(source: Source, kept: Sequence[int], sizes: Sequence[int]) -> Source:
    shares = [source.among[k][1] for k in kept]
    if len(shares) == 1:
        return source._replace(strength=source.strength * shares[0], among=())
    return source._replace(among=tuple(zip(sizes, shares, strict=True)))
