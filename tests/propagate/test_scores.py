"""What gradients of softmax weights send to scores, keys and values that are images of the same rows, by sampling."""

import math

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("variance", [0.1, 4.0, 100.0, 2000.0])
def test_what_lies_along_a_row_of_scores(variance: float) -> None:
    """Sampled with 10⁵ rows of 24 scores: a standard error below 1 % (2 % at the largest)."""
    scores = np.random.default_rng(0).standard_normal((100_000, 24)) * math.sqrt(variance)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    sampled = (p**2 * (scores - (p * scores).sum(-1, keepdims=True)) ** 2).sum(-1).mean()
    assert sent(Weights(24), variance)[0] == pytest.approx(sampled, rel=0.05)


@pytest.mark.parametrize("variance", [0.1, 4.0, 60.0])
@pytest.mark.parametrize("count", [2, 20])
def test_what_keys_and_values_get_along_themselves(variance: float, count: int) -> None:
    """Sampled with 2·10⁵ rows: standard errors are estimated, and bounds are five of them, at most 15 %."""
    generator = torch.Generator().manual_seed(1)
    s = torch.randn(200_000, count, dtype=torch.float64, generator=generator) * math.sqrt(variance)
    g = torch.randn(200_000, count, dtype=torch.float64, generator=generator)
    p = s.softmax(1)
    given = p * (g - (p * g).sum(1, keepdim=True))
    _, keys, alone, both = sent(Weights(count), variance).tolist()
    sampled = ((s * given).square() / variance, given.square(), s * given * p * g / math.sqrt(variance))
    for found, size, draws in zip((keys, alone, both), (keys, alone, alone), sampled, strict=True):
        sums = draws.sum(1)
        error = float(sums.std()) / math.sqrt(len(sums))
        assert 5 * error < 0.15 * size
        assert found == pytest.approx(float(sums.mean()), abs=5 * error)
