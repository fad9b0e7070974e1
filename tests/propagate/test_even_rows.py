"""Norms of rows that hold a normalized value: these are of one length, and 1/s² is no larger than 1/E[s²]."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw

WIDTH, SEEDS = 16, 40


def normalized(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Stream(nn.Module):
    """A norm, a branch of some share beside it, and a norm of both."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.first, self.last = (
            share,
            nn.Linear(WIDTH, WIDTH, bias=False),
            nn.Linear(WIDTH, 256, bias=False),
        )
        self.branch = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = normalized(self.first(x))
        found: Tensor = self.last(normalized(y + self.share * self.branch(y)))
        return found


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_norm_of_what_was_normalized_divides_by_one_length(
    share: float, measured_rms: Callable[..., np.ndarray]
) -> None:
    """40 draws of 512 rows, standard errors of 0.5 %. As of Gaussian rows, gradients at the sum are 2 to 7 % larger."""
    model, batch = Stream(share), torch.randn(512, WIDTH, generator=torch.Generator().manual_seed(0))
    predicted = iw.predict(model, batch, plan=iw.plan(model, "lecun")).rows
    measured = measured_rms(model, batch, "lecun", SEEDS)
    (place,) = (i for i, row in enumerate(predicted) if row["op"] == "aten.add" and row["shape"] == (512, WIDTH))
    assert predicted[place]["gradient_rms"] == pytest.approx(measured[place, 1], rel=0.02)
