"""What a norm sends back to rows of which few features make nearly all: features times known numbers that differ much.

With x_j = √λ_j z_j, z_j Gaussian, rows are divided by √(S + ε), S = Σ a_j z_j² with a_j = λ_j/C of C features, which is
no gamma variable where one a_j is larger than all others together: it is next to 0 as z_j is, but for what the others
leave. What comes back to a feature loses what lies along x̂, whose share of it is a_j z_j²/(S + ε), large where S is:

    E[dx_j²] = E[g²]·E[(1 − 1/C − (2 − w)·a_j z_j²/(S + ε))/(S + ε)],     w = S/(S + ε)

All of it are integrals of L(t) = E[e^(−tS)] = Π (1 + 2 a_k t)^(−1/2), for E[a z² e^(−tS)] = a/(1 + 2at)·L(t):

    E[1/(S + ε)] = ∫ e^(−εt) L dt        E[(2 − w) a z²/(S + ε)²] = ∫ (t + εt²/2) e^(−εt) a/(1 + 2at) L dt

Assumption: a gradient is alike for all features, and independent of the row; the mean that is taken off is one
direction of C.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.remembered import Average
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.propagate.table import UnknowableError

# Rows that count as so few free features have a law of their own.
FEW = 16.0
_ROWS = 1 << 12
_STEPS, _LOWEST, _HIGHEST = 400, -14.0, 34.0


ALIKE = "what a norm sends back to few features that make nearly all of a row, of a gradient alike for all"
_ALONE = 0.05
UNKNOWN = "what a norm sends back to rows of which few features, of no Gaussian law, make nearly all"


def few(x: Signal, axes: Sequence[int]) -> tuple[int, Array, Array] | None:
    """Return the axis of features of which few make nearly all of a row, their sizes, and how many are of each.

    Args:
        x: rows of features times known numbers.
        axes: of the moments, that features lie along.

    Returns:
        The axis; mean squares by segment, those of features last; and counts. None where rows are of many features.
    """
    if len(axes) != 1 or not x.atoms[axes[0]].parts:
        return None
    counts = np.array(x.atoms[axes[0]].parts, float)
    sizes = np.moveaxis(x.diagonal, axes[0], -1)
    rows = sizes.reshape(-1, len(counts))
    free = (rows @ counts) ** 2 / np.maximum(rows**2 @ counts, 1e-300)
    return (axes[0], sizes, counts) if bool((free < FEW).any()) else None


def refuse_few(average: Average | None) -> None:
    """Refuse what a norm by hand sends to its scale where few features make nearly all of the rows.

    Raises:
        UnknowableError: so it is.
    """
    if average is not None and average.of.segmented and few(average.of, average.of.axes(average.dims)) is not None:
        raise UnknowableError(UNKNOWN)


def law_of_few(average: Average) -> list[tuple[Array, Array]] | None:
    """Return points and weights of averages of squares of few Gaussian features, by segment of rows; None of others.

    >>> from initwell.propagate.moments.signal import independent
    >>> law_of_few(Average("square", independent((4, 8), 1.0), (1,))) is None
    True
    """
    x = average.of
    those = few(x, x.axes(average.dims)) if x.segmented and x.gaussian and average.kind == "square" else None
    if those is None:
        return None
    _, sizes, counts = those
    squares = _drawn(tuple(counts))
    points = [squares @ (row * counts / counts.sum()) for row in sizes.reshape(-1, len(counts))]
    return [(found, np.full(_ROWS, 1 / _ROWS)) for found in points]


@lru_cache(maxsize=16)
def _drawn(counts: tuple[float, ...]) -> Array:
    """Return rows of averages of so many squares, evenly spread over their joint law: a Richtmyer sequence."""
    from scipy.special import gammaincinv

    roots = np.sqrt([float(p) for p in range(2, 200) if all(p % d for d in range(2, p))][: len(counts)])
    places = (0.5 + np.outer(np.arange(1, _ROWS + 1), roots)) % 1.0
    n = np.array(counts)
    return np.asarray(gammaincinv(n / 2, np.clip(places, 1e-9, 1 - 1e-9)) * 2 / n)


def of_few_features(g: Signal, x: Signal, axes: Sequence[int], eps: float, *, centred: bool) -> Array | None:
    """Return E[dx dx'] where few features make nearly all of each row; None where they do not.

    Args:
        g: the gradient at x̂.
        x: what was normalized, with the atoms of g.
        axes: of the moments, that features lie along.
        eps: of the norm.
        centred: whether it takes the mean off.

    Raises:
        UnknowableError: the features have no law that is known.
    """
    if (those := few(x, axes)) is None:
        return None
    if not x.gaussian or x.mean**2 > _ALONE * x.q:
        raise UnknowableError(UNKNOWN)
    axis, sizes, counts = those
    rows = sizes.reshape(-1, len(counts))
    found = np.array([sent_back(row, counts, eps, centred=centred) for row in rows]).reshape(sizes.shape)
    return np.asarray(g.moments * over_pairs(g.atoms, np.sqrt(np.moveaxis(found, -1, axis))))


def sent_back(sizes: Array, counts: Array, eps: float, *, centred: bool) -> Array:
    """Return E[dx²]/E[g²] of features of these sizes.

    Args:
        sizes: λ, by segment.
        counts: how many features are of each.
        eps: of the norm.
        centred: whether it takes the mean off.

    >>> sent_back(np.ones(1), np.array([6]), 0.0, centred=False).round(4)  # 6/(6 − 2)·(1 − 1/6)
    array([1.25])
    """
    total = float(counts.sum())
    a, level = sizes / total, float(counts @ sizes) / total
    t = np.exp(np.linspace(_LOWEST, _HIGHEST, _STEPS)) / level
    step = (_HIGHEST - _LOWEST) / (_STEPS - 1)
    bent = 1 + 2 * np.multiply.outer(t, a)
    law = np.exp(-eps * t - 0.5 * np.log(bent) @ counts) * t * step
    kept = 1 - 1 / total if centred else 1.0
    along = ((t + eps * t * t / 2) * law) @ (a / bent)
    return np.asarray(np.maximum(kept * law.sum() - along, 0.0))
