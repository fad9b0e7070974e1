"""Moments of softmax weights where the scores' variance is beyond what is integrated, by sampling."""

import math

import numpy as np
import pytest

from initwell.propagate.laws.concentration import Weights, between
from initwell.propagate.laws.scores import sent


@pytest.mark.parametrize("variance", [400.0, 2000.0, 20000.0])
def test_rows_in_which_one_score_takes_nearly_all(variance: float) -> None:
    """Sampled with 2·10⁵ rows of 24 scores: standard errors: 2 % of p²(1 − p)², 0.3 % of others."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((2, 200_000, 24)) * math.sqrt(variance)
    scores[1] = 0.6 * scores[0] + 0.8 * scores[1]
    p, other = np.exp(scores - scores.max(-1, keepdims=True))
    p, other = p / p.sum(-1, keepdims=True), other / other.sum(-1, keepdims=True)
    two, three, four = Weights(24).moments(variance, [(2,), (3,), (4,)])
    assert two == pytest.approx((p**2).mean(), rel=0.01)
    assert two - 2 * three + four == pytest.approx((p**2 * (1 - p) ** 2).mean(), rel=0.08)
    assert between(variance, 24, 0.6, [((1,), (1,))])[0] == pytest.approx((p * other).mean(), rel=0.01)


@pytest.mark.parametrize("count", [1.05, 4 / 3, 1.7])
def test_fewer_weights_than_a_moment_has(count: float) -> None:
    """Rows that leave between one and two scores open on average: finite, and between those of one and of two."""
    for variance in np.geomspace(0.1, 300.0, 25).tolist():
        found, two = sent(Weights(count), variance), sent(Weights(2.0), variance)
        assert (found[:3] > 0).all()
        assert (found >= 0).all()
        assert (found < two * 1.05).all()
