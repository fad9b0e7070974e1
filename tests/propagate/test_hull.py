"""Scores that are padded to a block and masked: their weights are those of the open ones, against measurement."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.given.mask import Mask
from initwell.propagate.moments.signal import independent, replace
from initwell.propagate.rules.hull import hull, opened

SEEDS, WIDTH, LENGTH = 16, 32, 12


class Blocks(nn.Module):
    """Attention in a block of three times the length, of which two thirds are zeros before and after, shut by −10¹⁰."""

    def __init__(self, before: int, *, rows: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.before, self.after, self.rows = before, 2 * LENGTH - before, rows

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (nn.functional.pad(f(x), (0, 0, self.before, self.after)) for f in (self.q, self.k, self.v))
        there = nn.functional.pad(torch.ones(LENGTH), (self.before, self.after))
        is_open = there[:, None] * there if self.rows else there[None, :].expand(3 * LENGTH, -1)
        scores = q @ k.transpose(1, 2) / 2 + torch.where(is_open > 0, 0.0, -1e10)
        found = (scores.softmax(-1) @ v)[:, self.before : self.before + LENGTH]
        out: Tensor = self.out(found)
        return out


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("before", [0, 7, 24])
def test_attention_in_a_padded_block(before: int, rows: bool) -> None:
    """16 draws of 24·12 rows: standard errors of 1 to 3 %.

    With the scores' variance taken over the whole block, the values that are read come out a fifth of their size.
    """
    torch.manual_seed(0)
    model, batch = Blocks(before, rows=rows), torch.randn(24, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    predicted = iw.predict(model, batch, plan=iw.plan(model, "lecun")).rows
    squares = np.zeros((SEEDS, len(predicted), 2))
    for seed in range(SEEDS):
        iw.init_(model, "lecun", seed=seed)
        for i, row in enumerate(iw.measure(model, batch, seed=seed).rows):
            squares[seed, i] = [(row[key] or 0.0) ** 2 for key in ("forward_rms", "gradient_rms")]
    for row, (forward, backward) in zip(predicted, np.sqrt(squares.mean(0)), strict=True):
        if row["op"] in ("aten.mm", "aten.bmm", "aten._softmax"):
            assert row["forward_rms"] == pytest.approx(forward, rel=0.08), row["path"]
            assert row["gradient_rms"] == pytest.approx(backward, rel=0.12), row["path"]


def test_where_scores_are_open() -> None:
    """A causal mask has no row or column that is shut; one of the same corner alone has."""
    scores = independent((4, 6, 6), 1.0)
    causal = np.tril(np.ones((1, 6, 6), bool))
    assert hull(replace(scores, mask=Mask(causal))) is None
    corner = causal.copy()
    corner[:, :, 3:] = corner[:, :1] = False
    assert hull(replace(scores, mask=Mask(corner))) == ((1, 6), (0, 3))
    cut = opened(replace(scores, mask=Mask(corner)))
    assert cut.shape == (4, 5, 3)
    assert cut.mask is not None
    assert cut.mask.open.tolist() == corner[:, 1:, :3].tolist()
    assert math.isclose(cut.q, 1.0)
