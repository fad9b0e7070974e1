"""Softmax weights of rows whose scores are of two kinds, by quadrature: those of tokens, and of the zeros around them.

Windows are cut from images that were padded with zeros: some of the keys of a row are zero, and so are their scores,
but for a bias. Of n_1 scores of variance v_1, which share a Gaussian of variance d beside, and n_2 of variance v_2,

    E[Π p_i^a Π p_j^b] = ∫ x^(k−1)/(k−1)! Π E[e^(as) e^(−x e^s)] · F_1(x)^(n_1 − …) · F_2(x)^(n_2 − …) dx

with F(x) = E[e^(−x e^s)] of either kind and k the sum of all powers, as in ``concentration`` for one kind. What the
first kind shares is averaged over with Gauss's nodes, and so is the variance of a row of products q·k. Scores of the
first kind may be coordinates of points on a sphere, as there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest

import numpy as np

from initwell.propagate.laws.concentration import density, gamma_nodes, points
from initwell.propagate.moments.segments import Array
from initwell.records import Record

_STEP = 0.35
_REACH = 8.0
_LONGEST = 1e6
# Above this variance of scores, one takes nearly all.
_LARGE = 400.0

Powers = tuple[int, ...]
# The powers of different weights of the first kind, and of the second.
Monomial = tuple[Powers, Powers]
Sum = dict[Monomial, float]


@dataclass(frozen=True)
class TwoKinds(Record):
    """Rows of scores of two kinds.

    Attributes:
        counts: how many a row has of each kind.
        variances: of the scores of each kind, but for what those of a kind share.
        offset: variance of what the first kind shares, and the second does not.
        spread: relative variance of the rows' variances of the first kind.
        width: dimensions of the sphere that the inputs of the first kind's keys lie on; infinite for Gaussian ones.
    """

    counts: tuple[float, float]
    variances: tuple[float, float]
    offset: float = 0.0
    spread: float = 0.0
    width: float = math.inf

    def moment(self, powers: Monomial) -> float:
        """Compute E[p_1^a p_2^b …] of different weights of a row.

        Args:
            powers: of those of the first kind, and of the second; not all empty.

        >>> round(TwoKinds((3, 5), (0.0, 0.0)).moment(((2,), (1,))) * 8**3, 6)
        1.0
        """
        one, two = (tuple(sorted(p)) for p in powers)
        return _moment(self, (one, two))

    def coupled(self, powers: Powers) -> float:
        """Say how strongly a moment of the first kind goes with what its first two scores are images of.

        As of ``concentration.Weights``: E[p_1^a p_2^b … t_1 t_2].

        Args:
            powers: a, b, …, two or more.
        """
        return self._with_scores(powers, (1, 1))

    def coupled_itself(self, powers: Powers) -> float:
        """Say how strongly a moment of the first kind goes with the square of what its first score is an image of.

        Args:
            powers: a, b, …
        """
        return self._with_scores(powers, (2,)) - self._with_scores(powers, ())

    def _with_scores(self, powers: Powers, scores: Powers) -> float:
        """Return E[p_1^a t_1^c p_2^b t_2^d …] of the first kind, scores s = √v·t."""
        if self.counts[0] < len(powers) or self.variances[0] <= 0:
            return 0.0
        return _moment(self, (powers, ()), scores)

    def sum(self, terms: Sum) -> float:
        """Compute the expectation of a sum of monomials."""
        return sum(factor * self.moment(powers) for powers, factor in terms.items() if factor)

    def summed(self, terms: Sum, kind: int, power: int) -> Sum:
        """Multiply monomials by Σ p^power over all weights of a kind: those that are in them already, and the others.

        >>> TwoKinds((3, 5), (1.0, 0.0)).summed({((1,), ()): 1.0}, 0, 2)
        {((3,), ()): 1.0, ((1, 2), ()): 2.0}
        """
        found: Sum = {}
        for powers, factor in terms.items():
            here = powers[kind]
            raised = [(*here[:i], p + power, *here[i + 1 :]) for i, p in enumerate(here)]
            times = [(new, 1.0) for new in raised] + [((*here, power), max(self.counts[kind] - len(here), 0.0))]
            for new, count in times:
                ordered = tuple(sorted(new))
                key = (ordered, powers[1]) if kind == 0 else (powers[0], ordered)
                found[key] = found.get(key, 0.0) + factor * count
        return {key: factor for key, factor in found.items() if factor}


@lru_cache(maxsize=8192)
def _moment(rows: TwoKinds, powers: Monomial, scores: Powers = ()) -> float:
    shared, weights = _normal_nodes(rows.offset)
    first, second = (min(max(v, 0.0), _LARGE) for v in rows.variances)
    sizes, shares = gamma_nodes(round(1 / rows.spread, 6)) if rows.spread > 1e-9 else (np.ones(1), np.ones(1))
    total = 0.0
    for size, share in zip(sizes.tolist(), shares.tolist(), strict=True):
        for u, weight in zip(shared, weights, strict=True):
            variances = first * size, second
            total += share * weight * _integral(rows.counts, variances, round(u, 9), rows.width, powers, scores)
    return total


@lru_cache(maxsize=65536)
def _integral(
    counts: tuple[float, float],
    variances: tuple[float, float],
    shift: float,
    width: float,
    powers: Monomial,
    scores: Powers,
) -> float:
    """Return E[p_1^a t_1^c …] of rows of one variance, the c, … of the first kind's first weights."""
    wide = round(math.sqrt(max(*variances, shift**2)), 1) + 0.1
    inside = np.ones(1)
    kinds = zip(counts, variances, powers, (shift, 0.0), (width, math.inf), (scores, ()), strict=True)
    for count, variance, here, move, sphere, times in kinds:
        inside = inside * _transform(variance, wide, move, sphere, 0) ** max(count - len(here), 0.0)
        for power, score in zip_longest(here, times, fillvalue=0):
            inside = inside * _transform(variance, wide, move, sphere, power, score)
    return float(inside.sum()) * _STEP / math.factorial(sum(map(sum, powers)) - 1)


@lru_cache(maxsize=2048)
def _transform(variance: float, wide: float, shift: float, sphere: float, power: int, score: int = 0) -> Array:
    """Return x^a E[t^c e^(as) e^(−x e^s)] over equal steps of log x."""
    low, high = -_REACH * wide - 14 - math.log(_LONGEST), _REACH * wide + 6
    at = low + _STEP * np.arange(math.ceil((high - low) / _STEP))
    std = math.sqrt(variance)
    z = points(variance, _REACH) if std > 0 else np.zeros(1)
    grown = np.exp(np.minimum(at[:, None] + shift + std * z, 7.0))
    found = (np.exp(-grown) * grown**power) @ (density(z, sphere) * z**score)
    return np.maximum(np.asarray(found), 1e-300) if power == 0 else np.asarray(found)


def _normal_nodes(variance: float) -> tuple[Sequence[float], Sequence[float]]:
    """Return Gauss's nodes and weights of a Gaussian."""
    if variance < 1e-4:
        return (0.0,), (1.0,)
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    return (nodes * math.sqrt(variance)).tolist(), (weights / weights.sum()).tolist()
