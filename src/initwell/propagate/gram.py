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
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from initwell.propagate.segments import Array
from initwell.propagate.signal import Atom, Signal, Source


def fluctuation(x: Signal, features: Sequence[int]) -> float:
    """Compute the relative variance of the average product of two rows.

    Args:
        x: any signal.
        features: its dimensions that count features; the others count rows.

    Returns:
        1/C_eff and what earlier layers left, at most 1.

    >>> from initwell.propagate.signal import independent
    >>> fluctuation(independent((3, 8), 2.0), [1])
    0.125
    """
    varied = _from_row_to_row(x, features)
    squares = varied**2
    # One axis is left for every column; take the last one off, and again.
    for i in reversed(x.axes(features)):
        atom = x.atoms[i].patterns
        squares, varied = squares @ atom.every, varied @ atom.agree
    size = float(varied)
    return min(x.spread + float(squares) / size**2, 1.0) if size > 0 else x.spread


def varying(x: Signal, features: Sequence[int]) -> float:
    """Return the share of E[x²] that varies from row to row of a sample.

    Args:
        x: any signal.
        features: its dimensions that count features; the others count rows.
    """
    varied = _from_row_to_row(x, features)
    for i in reversed(x.axes(features)):
        varied = varied @ x.atoms[i].patterns.agree
    return max(float(varied), 0.0) / x.q if x.q > 0 else 0.0


def _from_row_to_row(x: Signal, features: Sequence[int]) -> Array:
    """Return the moments between features of a row, less those between rows: one axis for each atom of features."""
    others = [i for i in range(x.moments.ndim) if i not in x.axes(features)]
    # What rows of one sample have in common is no part of how they vary.
    apart = [i for i in others if not x.atoms[i].sample] or others
    own = common = x.moments
    for i in reversed(others):
        atom = x.atoms[i].patterns
        own = np.tensordot(own, atom.agree, (i, 0))
        common = np.tensordot(common, atom.differ if i in apart else atom.agree, (i, 0))
    return np.asarray(own - common) if others else own


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
    width = math.prod(atom.size for i, atom in enumerate(a.atoms) if i not in rows)
    both = max(min(a.spread + 1 / width, b.spread), min(b.spread + 1 / width, a.spread))
    return (sizes[0] ** 2 * a.spread + sizes[1] ** 2 * b.spread + 2 * sizes[0] * sizes[1] * both) / total**2


def following(signal: Signal, dims: Sequence[int], source: Source) -> Signal:
    """Say that along these dimensions the rows are linear images of a value's rows."""
    axes = signal.axes(dims)
    return _with_sources(signal, axes, lambda old: (*(s for s in old if s.value != source.value), source))


def rescaled(signal: Signal, dim: int, factor: float) -> Signal:
    """Multiply how strongly rows along a dimension follow others."""

    def change(old: tuple[Source, ...]) -> tuple[Source, ...]:
        return tuple(replace(s, strength=s.strength * factor) for s in old)

    return _with_sources(signal, signal.axes([dim]), change)


def _with_sources(
    signal: Signal, axes: Sequence[int], change: Callable[[tuple[Source, ...]], tuple[Source, ...]]
) -> Signal:
    atoms = [replace(atom, follows=change(atom.follows)) if i in axes else atom for i, atom in enumerate(signal.atoms)]
    ends = np.cumsum([0, *map(len, signal.dims)])
    return replace(signal, dims=tuple(tuple(atoms[a:b]) for a, b in pairwise(ends)))


def forgotten(dim: tuple[Atom, ...]) -> tuple[Atom, ...]:
    """Return atoms that follow nothing."""
    return tuple(replace(atom, follows=()) for atom in dim)


def varied(signal: Signal, axes: Sequence[int]) -> Array:
    """Return by pattern how far the product of two rows can be from its expectation: E[x_i x_i] − E[x_i x_j].

    Args:
        signal: any signal.
        axes: of its moments that count rows; 0 where they all agree.
    """
    same = signal.moments
    for axis in axes:
        pairs = signal.atoms[axis].patterns
        same = (same.take(pairs.first, axis) + same.take(pairs.second, axis)) / 2
    return np.asarray(same - signal.moments)


def in_common(a: Signal, b: Signal, pairs: Sequence[tuple[int, int]]) -> tuple[list[int], float]:
    """Find along which of the contracted axes two signals follow one value.

    Args:
        a: a signal.
        b: another.
        pairs: axes of their moments, (of a, of b).

    Returns:
        Places in ``pairs``, and the product of the strengths.
    """
    for value in dict.fromkeys(s.value for i, _ in pairs for s in a.atoms[i].follows):
        strengths = [
            [s.strength for atom in (a.atoms[i], b.atoms[j]) for s in atom.follows if s.value == value]
            for i, j in pairs
        ]
        both = [place for place, found in enumerate(strengths) if len(found) == 2]
        if both:
            return both, strengths[both[0]][0] * strengths[both[0]][1]
    return [], 0.0
