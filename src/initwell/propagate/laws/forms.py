"""Averages of few quadratic forms: how much larger E[1/m] is than 1/E[m], and the law that has it.

A row of causal linear attention is y = Σ_j c_j v_j, c_j = d_j s_j known numbers times scores s_j = q·k_j. Of wide v its
mean square is the form

    t = b Σ c_j² + a (Σ c_j)²        a the moment of two values v_j v_j′, b what else one has

and given q the scores are Gaussian about a mean that they have in common, so that with S = d(b + a 11ᵀ)d = U Λ Uᵀ

    E[e^(−λt) | q] = Π_k (1 + 2λΛ_k)^(−1/2) exp(−λΛ_k η_k²/(1 + 2λΛ_k)),      η = √(mean²/variance)·Uᵀ1

Scores are as large as |q| is, and values as |v|: t is multiplied by a gamma variable of mean 1. A norm of H such heads
side by side divides by m = Σ t_h, and E[1/m] = ∫ Π_h E[e^(−λ t_h)] dλ, which is infinite for two heads of one score.
"""

import math
from dataclasses import dataclass

import numpy as np

from initwell.propagate.laws.averages import gamma_law
from initwell.propagate.moments.segments import Array

# Every so many points of a gamma law, whose steps are far finer than is needed here.
_THINNED = 4
_STEPS, _LOWEST, _HIGHEST = 240, -9.0, 23.0
# What the integral has left at its end, were it to go on for ever.
_LEFT = 1e-3


@dataclass(frozen=True)
class Form:
    """The size of one head's row.

    Attributes:
        weights: d_j, of the scores that it is made of.
        common: mean²/variance of scores given the query.
        alike: a/b of the values.
        varies: relative variance of what the whole is multiplied by.
    """

    weights: Array
    common: float
    alike: float
    varies: float

    def spectrum(self) -> tuple[Array, Array]:
        """Return Λ and η²."""
        d = self.weights[self.weights != 0]
        values, vectors = np.linalg.eigh(np.diag(d * d) + self.alike * np.outer(d, d))
        return np.maximum(values, 0.0), self.common * vectors.sum(axis=0) ** 2


def inverse_growth(forms: list[Form]) -> float:
    """Return E[1/m]·E[m] of m = Σ t; inf where 1/m has no expectation.

    >>> round(inverse_growth([Form(np.ones(1), 0.0, 0.0, 0.0)] * 4), 3)  # 4/(4 − 2)
    2.0
    >>> inverse_growth([Form(np.ones(1), 0.0, 0.0, 0.0)] * 2)
    inf
    """
    spectra = [form.spectrum() for form in forms]
    level = sum(float(values @ (1 + shifts)) for values, shifts in spectra)
    if level <= 0:
        return 1.0
    steps = np.linspace(_LOWEST, _HIGHEST, _STEPS)
    rates = np.exp(steps)
    found = rates.copy()
    for form, (values, shifts) in zip(forms, spectra, strict=True):
        found = found * _transform(rates, values / level, shifts, form.varies)
    if found[-1] > _LEFT * found.max():
        return math.inf
    return max(float(found.sum() * (steps[1] - steps[0])), 1.0)


def _transform(rates: Array, values: Array, shifts: Array, varies: float) -> Array:
    """Return E[e^(−λt)]."""
    points, weights = gamma_law(1.0, varies) if varies > 0 else (np.ones(1), np.ones(1))
    points, weights = points[::_THINNED], weights[::_THINNED]
    x = np.multiply.outer(np.multiply.outer(rates, points), values)
    logs = -0.5 * np.log1p(2 * x).sum(-1) - (x * shifts / (1 + 2 * x)).sum(-1)
    return np.asarray(np.exp(logs) @ (weights / weights.sum()))
