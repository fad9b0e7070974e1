"""Rows multiplied by a number of their own, before and behind a norm, against 24 draws; standard errors near 2 %."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw

SEEDS = 24
LEVELS = 6


class Gated(nn.Module):
    """Levels of a token's features, each times a gate of the token, summed and normalized, as in FocalNet."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gates = nn.Linear(64, 128), nn.Linear(128, LEVELS)
        self.levels = nn.ModuleList(nn.Linear(128, 128) for _ in range(LEVELS))
        self.mixed, self.norm, self.out = nn.Linear(128, 128), nn.LayerNorm(128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        gates, whole = self.gates(x), torch.zeros(())
        for i, level in enumerate(self.levels):
            whole = whole + level(x) * gates[..., i : i + 1]
        y: Tensor = self.out(self.norm(self.mixed(whole)))
        return y


def test_a_norm_divides_by_sizes_that_gates_of_rows_have_made() -> None:
    """Of six Gaussian gates E[1/s²] is 6/4 of 1/E[s²]; at the levels that is undone, and a sixth of the gates' is lost.

    With rows of one size, gradients behind the norm were 18 % too small. Few gates would have heavy tails.
    """
    model = Gated()
    batch = torch.randn(8, 16, 64, generator=torch.Generator().manual_seed(0))
    found = iw.predict(model, batch, plan=iw.plan(model, "lecun"))
    squares = np.zeros(len(found.rows))
    for seed in range(SEEDS):
        iw.init_(model, "lecun", seed=seed)
        squares += [row["gradient_rms"] ** 2 for row in iw.measure(model, batch, seed=seed).rows]
    measured = {
        (row["path"], row["op"]): value for row, value in zip(found.rows, np.sqrt(squares / SEEDS), strict=True)
    }
    rows = {(row["path"], row["op"]): row["gradient_rms"] for row in found.rows}
    for path in ("mixed", "gates", "levels.0", "levels.2", "enter"):
        assert rows[path, "aten.addmm"] == pytest.approx(measured[path, "aten.addmm"], rel=0.1), path
