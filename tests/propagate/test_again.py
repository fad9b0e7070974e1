"""A depthwise convolution that is applied to what it made, against draws: of new weights each time it were less."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.rules.again import AGAIN

SEEDS = 16


class Again(nn.Module):
    """One depthwise convolution, used three times, beside what it reads or alone; a branch before the last use."""

    def __init__(self, width: int = 128, *, skip: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, width, 1, bias=False)
        self.shared = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.branch = nn.Conv2d(width, width, 1, bias=False)
        self.last = nn.Conv2d(width, 16, 1, bias=False)
        self.skip = skip

    def used(self, x: Tensor) -> Tensor:
        return self.shared(x) + x if self.skip else torch.as_tensor(self.shared(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.used(self.used(self.first(x)))
        x = x + self.branch(x.tanh())
        found: Tensor = self.last(self.used(x))
        return found


@pytest.mark.parametrize("skip", [True, False])
def test_few_weights_that_are_used_again_meet_themselves(skip: bool) -> None:
    # The last value is 5.1 or 6 times, but for the branch, what it were in squares with new weights: 40 % too small.
    batch = torch.randn(16, 16, 12, 12, generator=torch.Generator().manual_seed(0))
    model = Again(skip=skip)
    found = iw.predict(model, batch, plan=iw.plan(model, "kaiming"))
    squares = np.zeros((2, len(found.rows)))
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed)
        rows = iw.measure(model, batch, seed=seed).rows
        squares += [[row[name] ** 2 / SEEDS for row in rows] for name in ("forward_rms", "gradient_rms")]
    for row, forward, gradient in zip(found.rows, *np.sqrt(squares), strict=True):
        # 2048 channels, whose squares after three uses have a relative variance of some 15: a standard error of 4 %.
        assert row["forward_rms"] == pytest.approx(forward, rel=0.12), row
        assert row["gradient_rms"] == pytest.approx(gradient, rel=0.12), row
    assert any(AGAIN in note for note in found.notes)


def test_squares_of_one_complex_gaussian() -> None:
    """E|ŵ|²|1 + ŵ|² and E|1 + ŵ|⁴ against sampling, as the sum and its second term have them."""
    from initwell.propagate.rules.again import _alone, _power

    rng = np.random.default_rng(0)
    v = 1.5
    w = math.sqrt(v / 2) * (rng.normal(size=10**6) + 1j * rng.normal(size=10**6))
    one = abs(1 + w) ** 2
    # A million draws: standard errors of 0.3 %.
    assert _power(2, v) == pytest.approx(float((one**2).mean()), rel=0.015)
    assert v * _power(1, v) * _alone(1, v, skip=True) == pytest.approx(float((abs(w) ** 2 * one).mean()), rel=0.015)
