"""Sums of a value and of averages over its neighbours, against PyTorch and against the matrix written out."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.moments.places import even
from initwell.propagate.rules.neighbours import _WHY, _places

SEEDS = 16
GENERATOR = torch.Generator().manual_seed(0)


class Mixed(nn.Module):
    """Blocks x + pool(gn(x)) − gn(x), then a layer whose gradients differ by position."""

    def __init__(self, depth: int = 2, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Conv2d(32, width, 1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(1, width, affine=False) for _ in range(depth)])
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.last = nn.Conv2d(width, 16, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for norm in self.norms:
            y = norm(x)
            x = x + (self.pool(y) - y)
        found: Tensor = self.last(x)
        return found


def test_a_stream_that_takes_its_own_neighbours_average() -> None:
    model, batch = Mixed(), torch.randn(16, 32, 12, 12, generator=GENERATOR)
    rows = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    squares = np.zeros((2, len(rows)))
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed)
        found = iw.measure(model, batch, seed=seed).rows
        squares += [[row[name] ** 2 / SEEDS for row in found] for name in ("forward_rms", "gradient_rms")]
    for row, forward, gradient in zip(rows, *np.sqrt(squares), strict=True):
        # 16 draws of 2048 weights: a standard error below 0.5 %. Pooling by itself takes the places of both axes as a
        # product, which they are no longer. As sums of independent terms, gradients are 5 times too large.
        by_itself = row["path"] == "pool"
        assert row["forward_rms"] == pytest.approx(forward, rel=0.07 if by_itself else 0.025), row
        assert row["gradient_rms"] == pytest.approx(gradient, rel=0.025), row


class Difference(nn.Module):
    """What a layer makes less three tenths of it, averaged over neighbours, borders over zeros, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 16, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        found: Tensor = nn.functional.avg_pool2d(y, 3, 1, 1) - 0.3 * y
        return found


def test_a_known_matrix_is_one_at_the_border_too() -> None:
    # Of noise: the square is ΣW² of the matrix W, which has two kinds of rows along each axis.
    inside = np.eye(6, k=-1) + np.eye(6) + np.eye(6, k=1)
    whole = np.kron(inside, inside) / 9 - 0.3 * np.eye(36)
    model, batch = Difference(), iw.signal((64, 16, 6, 6))
    found = iw.predict(model, batch, plan=iw.plan(model, "lecun"))
    assert found.rows[-1]["forward_rms"] ** 2 == pytest.approx((whole**2).sum() / 36, rel=1e-6)
    assert any(_WHY in note for note in found.notes)


def test_places_that_are_all_alike_have_nothing_of_their_own() -> None:
    """What is left of them is rounding error: divided by 1e-300, it made a gradient of 0."""
    error = 1e-17 * np.random.default_rng(0).standard_normal((5, 5))
    found = _places(np.stack([np.full((5, 5), 3.0), error - error.mean()]))
    assert np.allclose(found, even(5))


def test_of_a_single_place_an_average_is_a_number_times_it() -> None:
    """(1/9 − 0.3) y over zeros; 0 where padding does not count: as of two values it was 1.4 times as large as one."""
    model, batch = Difference(), iw.signal((64, 16, 1, 1))
    found = iw.predict(model, batch, plan=iw.plan(model, "lecun"))
    assert found.rows[-1]["forward_rms"] == pytest.approx(0.3 - 1 / 9, rel=1e-6)
    stream = Mixed(depth=1)
    rows = iw.predict(stream, torch.randn(16, 32, 1, 1), plan=iw.plan(stream, "lecun")).rows
    assert next(row["forward_rms"] for row in rows if row["op"].startswith("aten.sub")) == 0
