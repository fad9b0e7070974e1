"""What gradients of softmax weights send to rows of scores, to keys and to values, along themselves and in all.

With weights p, gradients d of them and r_t = p_t(s_t − Σ p s), scores get g_t = Σ_u J_tu d_u, J_tu = p_t(δ_tu − p_u),
and since J s = r, along the row of scores itself they get Σ s_t g_t = Σ r_t d_t. Of d independent of the scores

    E[(Σ s g)²] = Σ E[r²]    E[Σ s² g²] = Σ E[s_t² J_tu²]    E[Σ g²] = Σ E[J_tu²]    E[Σ s g p d] = Σ E[s_t J_tt p_t]

But scores s_t = a·x_t and gradients d_t = b·x_t are images of the same C features x. Of a direction b drawn at random a
share c = 1/C lies along a: that share of the gradients is s/√v itself, and by it the four are

    E[(Σ s r)²]/v        E[Σ s² r²]/v        E[Σ r²]/v        E[Σ s r p s]/v

The rest is independent of s where x is Gaussian. Where all x are of one length (level 1) it is smaller where s is
large, by (1 − c s²/v)/(1 − c), which takes c(E[s_u²/v · f_uu] − E[f_uu]) off a form Σ f_uu' d_u d_u'.
"""

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from initwell.propagate.laws.concentration import Weights, beyond, gamma_nodes, of_scores
from initwell.propagate.moments.segments import Array

# How the four grow with the variance of a row's scores, beside the gradients' own.
_GROWTH = np.array([0.0, 1.0, 0.0, 0.5])


def sent(rows: Weights, variance: float, common: float = 0.0, level: float = 0.0) -> Array:
    """Compute what gradients of weights, of variance 1, send to a row of scores, along it and in all.

    Args:
        rows: the weights.
        variance: of a score, v.
        common: share c of a gradient that goes with the scores, 1/C where both are images of the same C features.
        level: how much of one length those features are.

    Returns:
        E[(Σ s_t g_t)²], Σ_t E[s_t² g_t²]/v, which is what the keys get along themselves, Σ_t E[g_t²], and
        Σ_t E[s_t g_t p_t d_t]/√v, how the second goes with what the values get. At a small variance and no c the second
        and third are equal, the first is v times that, and the last √v times 2 − 3/T.

    >>> (sent(Weights(8), 1e-6) * 8 / (1 - 1 / 8) / np.array([1e-6, 1, 1, 1e-3])).round(3).tolist()
    [1.0, 1.0, 1.0, 1.625]
    """
    if rows.count <= 1 or variance <= 0:
        return np.zeros(4)
    alone, itself, alike = beyond(variance, lambda v: _sent(v, rows), np.zeros((3, 4)))
    found = (1 - common) * alone + common * itself - level * common * (alike - alone)
    # Of less than 1.5 weights the formula has another sign, which no row has.
    return np.asarray(np.maximum(found, 0.0))


@lru_cache(maxsize=1024)
def _sent(variance: float, rows: Weights) -> Array:
    """Return the four for gradients independent of the scores, along them, and those times s²/v of their own place."""
    if rows.spread >= 1e-9:
        nodes, weights = gamma_nodes(round(1 / rows.spread, 6))
        each = [_sent(variance * x, replace(rows, spread=0.0)) * x**_GROWTH for x in nodes.tolist()]
        return np.asarray(np.tensordot(weights, each, 1))
    one = _OneRow(variance, rows)
    of, root = one.of, math.sqrt(variance)
    largest = of((2, 1)) - of((3, 1)), of((2, 3)) - of((3, 3))
    pairs = of((2, 4)) - 2 * of((3, 4)) + of((4, 4)) + (rows.count - 1) * of((2, 2), (2, 2))
    around, keys = [one.around(b) for b in (0, 2)], [one.sent(b) for b in (0, 2)]
    alone = [around[0], keys[1] / variance, keys[0], largest[0] / root]
    itself = [one.whole() / variance, around[1] / variance**2, around[0] / variance]
    itself.append((of((2, 3)) - one.times(2, 2, 1)) / root**3)
    alike = [around[1] / variance, pairs / variance**2, keys[1] / variance, largest[1] / root**3]
    return rows.count * np.array([alone, itself, alike])


class _OneRow:
    """Moments of weights p and scores s of a row of one variance, for each of its T places."""

    def __init__(self, variance: float, rows: Weights) -> None:
        self._variance, self._rows = variance, rows

    def of(self, *several: tuple[int, int]) -> float:
        """Return E[p_1^a s_1^b p_2^c s_2^d …]."""
        return of_scores(self._variance, self._rows, several)

    def times(self, a: int, b: int, power: int) -> float:
        """Return E[p_1^a s_1^b (Σ p s)^power], by which places of the sum are one: power 1, 2 or 3."""
        of, n, own = self.of, self._rows.count, (a, b)
        one, two = (a + 1, b + 1), (a + 2, b + 2)
        if power == 1:
            return of(one) + (n - 1) * of(own, (1, 1))
        apart = (n - 1) * (n - 2)
        if power == 2:
            return of(two) + (n - 1) * (2 * of(one, (1, 1)) + of(own, (2, 2))) + apart * of(own, (1, 1), (1, 1))
        found = of((a + 3, b + 3)) + (n - 1) * (3 * of(two, (1, 1)) + 3 * of(one, (2, 2)) + of(own, (3, 3)))
        found += 3 * apart * (of(one, (1, 1), (1, 1)) + of(own, (2, 2), (1, 1)))
        return found + apart * (n - 3) * of(own, (1, 1), (1, 1), (1, 1))

    def around(self, b: int) -> float:
        """Return E[s_1^b r_1²]."""
        return self.of((2, b + 2)) - 2 * self.times(2, b + 1, 1) + self.times(2, b, 2)

    def sent(self, b: int) -> float:
        """Return Σ_u E[s_1^b J_1u²]."""
        of = self.of
        return of((2, b)) - 2 * of((3, b)) + of((4, b)) + (self._rows.count - 1) * of((2, b), (2, 0))

    def whole(self) -> float:
        """Return E[(Σ s r)²]/T, Σ s r = Σ p s² − (Σ p s)²."""
        square = self.of((2, 4)) + (self._rows.count - 1) * self.of((1, 2), (1, 2))
        return square - 2 * self.times(1, 2, 2) + self.times(1, 1, 3)
