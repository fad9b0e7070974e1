"""What gradients of softmax weights send to scores, keys and values that are images of the same rows, by sampling."""

import math

import numpy as np
import pytest

from initwell.propagate.laws.concentration import Weights
from initwell.propagate.laws.scores import sent

DRAWS, WIDTH = 40_000, 16


@pytest.mark.parametrize("variance", [0.01, 1.0, 9.0])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_gradients_of_weights_that_go_with_their_scores(variance: float, level: float) -> None:
    """48 rows of 16 features: without what both have in common, the first is a fifth of it at the smallest variance.

    Standard errors are estimated; bounds are five of them, at most 8 % of what is sampled.
    """
    rng = np.random.default_rng(3)
    sums = []
    for _ in range(40):
        x = rng.standard_normal((DRAWS // 40, 48, WIDTH))
        if level:
            x *= math.sqrt(WIDTH) / np.linalg.norm(x, axis=-1, keepdims=True)
        a, b = rng.standard_normal((2, len(x), WIDTH, 1))
        s, d = (np.squeeze(x @ (w / np.linalg.norm(w, axis=1, keepdims=True)), -1) for w in (a, b))
        weights = np.exp(s * math.sqrt(variance))
        p = weights / weights.sum(-1, keepdims=True)
        g = p * (d - (p * d).sum(-1, keepdims=True))
        each = [(s * g).sum(-1) ** 2 * variance, (s * g) ** 2, g**2, s * g * p * d]
        sums.append([e.sum(-1).mean() if e.ndim > 1 else e.mean() for e in each])
    sampled, error = np.mean(sums, 0), np.std(sums, 0) / math.sqrt(len(sums))
    assert (5 * error < 0.08 * sampled).all()
    found = sent(Weights(48, width=WIDTH if level else math.inf), variance, 1 / WIDTH, level)
    assert (np.abs(found - sampled) < 5 * error).all()
