"""Gated rows of unlike sizes: what cannot be known is said to be, and where, and what can be is as before."""

import math

import pytest
import torch
from torch import Tensor, nn

import initwell as iw


class Dual(nn.Module):
    """Rows h = Σ a·b·x over tokens, a softmax weights, b a projection or nothing, gated by a function of themselves."""

    def __init__(self, *, weighed: bool, sharp: float, width: int = 64, states: int = 32) -> None:
        super().__init__()
        self.scores, self.other = nn.Linear(width, states, bias=False), nn.Linear(width, states, bias=False)
        self.both, self.last = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, width, bias=False)
        self.weighed, self.sharp = weighed, sharp

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.sharp * self.scores(x).transpose(1, 2)).softmax(-1)
        if self.weighed:
            weights = weights * self.other(x).transpose(1, 2)
        one, two = self.both(weights @ x).chunk(2, -1)
        found: Tensor = self.last(one * nn.functional.silu(two))
        return found


def product_of(model: nn.Module, batch: Tensor) -> tuple[float | None, float, tuple[str, ...]]:
    plan = iw.plan(model, "lecun")
    found = iw.predict(model, batch, plan=plan)
    squares = 0.0
    for seed in range(8):
        iw.init_(model, "lecun", seed=seed)
        rows = iw.measure(model, batch, seed=seed).rows
        at = max(i for i, row in enumerate(rows) if row["op"] == "aten.mul")
        squares += rows[at]["forward_rms"] ** 2 / 8
    return found.rows[at]["forward_rms"], math.sqrt(squares), tuple(found.notes)


def test_a_product_of_two_values_of_rows_of_unlike_sizes_is_not_known() -> None:
    # Taken as alike, its size would be less than half of what it is.
    batch = torch.randn(16, 16, 64, generator=torch.Generator().manual_seed(0))
    predicted, measured, notes = product_of(Dual(weighed=True, sharp=3.0), batch)
    assert predicted is None
    assert measured > 0
    assert any("rows Σ a·b·x" in note and "aten.mul at the model itself" in note for note in notes)


@pytest.mark.parametrize(("weighed", "sharp", "tokens"), [(False, 0.5, 64), (True, 0.2, 64)])
def test_rows_of_about_one_size_are_known(weighed: bool, sharp: float, tokens: int) -> None:
    batch = torch.randn(8, tokens, 64, generator=torch.Generator().manual_seed(1))
    predicted, measured, _ = product_of(Dual(weighed=weighed, sharp=sharp), batch)
    # 8 draws of 2048 weights and as many rows: a standard error of 2 %.
    assert predicted == pytest.approx(measured, rel=0.1)
