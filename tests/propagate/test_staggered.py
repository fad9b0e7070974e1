"""Rows that are shifted by padding, viewing and cutting: their moments, and gradients of queries times distances."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.moments.signal import independent
from initwell.propagate.rules.staggered import moved

SEEDS = 16
LENGTH = 8


def shifted(scores: Tensor) -> Tensor:
    """Take of row t the distances to its own place: column s of what is returned was s − t + T − 1."""
    rows, columns = scores.shape[-2:]
    wide = nn.functional.pad(scores, (1, 0)).view(*scores.shape[:-2], -1, rows)
    return wide[..., 1:, :].view(*scores.shape[:-2], rows, columns)[..., :rows]


def looked_up(scores: Tensor) -> Tensor:
    """Take the same of one distance more, as XLNet does: column s of what is returned was s − t + T."""
    rows, columns = scores.shape[-2:]
    wide = scores.reshape(*scores.shape[:-2], columns, rows)[..., 1:, :]
    return torch.index_select(wide.reshape(*scores.shape[:-2], rows, columns - 1), -1, torch.arange(rows))


class Relative(nn.Module):
    """Attention by distance alone, of which near ones are nearly alike."""

    distances: Tensor

    def __init__(self, shift: Callable[[Tensor], Tensor], first: int) -> None:
        super().__init__()
        self.q, self.r, self.v = (nn.Linear(64, 64, bias=False) for _ in range(3))
        angles = torch.arange(first, -LENGTH, -1)[:, None] * 10_000 ** (-torch.arange(32) / 32)
        self.register_buffer("distances", torch.cat([angles.sin(), angles.cos()], -1))
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        table = self.r(self.distances).expand(x.shape[0], -1, -1)
        out: Tensor = (self.shift(self.q(x) @ table.mT) / 8).softmax(-1) @ self.v(x)
        return out


def by_pattern(x: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[list[float]]:
    """Average products of two entries of (draws, rows, columns) by whether they differ in row, and in column."""
    rows, columns = x.shape[1:]
    entry, row, column = (float((x.sum(axis) ** 2).sum()) / len(x) for axis in ((), 2, 1))
    every = float((x.sum((1, 2)) ** 2).mean())
    pairs = rows * columns * np.array([[1, columns - 1], [rows - 1, (rows - 1) * (columns - 1)]])
    sums = np.array([[entry, row - entry], [column - entry, every - row - column + entry]])
    return [[float(x) for x in row] for row in sums / pairs]


def test_moments_of_what_is_moved_within_its_rows() -> None:
    """5000 draws of 8·15 entries, of which 8 of each row are left: standard errors below 0.01."""
    generator = torch.Generator().manual_seed(2)
    sizes = ((0.6, (LENGTH, 15)), (0.2, (LENGTH, 1)), (0.1, (1, 15)), (0.1, (1, 1)))
    x = sum(math.sqrt(q) * torch.randn(5000, *shape, generator=generator) for q, shape in sizes)
    assert isinstance(x, Tensor)
    given = independent((LENGTH, 15), 1.0)
    given = given.changed(np.array([[1.0, 0.3], [0.2, 0.1]]), 0.0)
    places = shifted(torch.arange(15).expand(1, LENGTH, 15))[0].numpy()
    found = moved(given, places)
    assert found.shape == (LENGTH, LENGTH)
    assert found.moments.tolist() == [pytest.approx(row, abs=0.03) for row in by_pattern(shifted(x).double().numpy())]
    # And back: what is put at these places among zeros.
    back = np.full((LENGTH, 15), -1)
    np.put_along_axis(back, places, np.arange(LENGTH)[None], 1)
    wide = np.zeros((5000, LENGTH, 15))
    np.put_along_axis(wide, np.broadcast_to(places, (5000, LENGTH, LENGTH)), x[..., :LENGTH].double().numpy(), 2)
    found = moved(independent((LENGTH, LENGTH), 1.0).changed(given.moments, 0.0), back)
    assert found.moments.tolist() == [pytest.approx(row, abs=0.03) for row in by_pattern(wide)]


def test_one_distance_more_is_looked_up_at_the_same_places() -> None:
    columns = torch.arange(16).expand(1, LENGTH, 16)
    assert torch.equal(looked_up(columns)[0], shifted(columns[..., 1:])[0])


@pytest.mark.parametrize(("shift", "first"), [(shifted, LENGTH - 1), (looked_up, LENGTH)], ids=["padded", "looked up"])
def test_gradients_of_queries_of_distances(shift: Callable[[Tensor], Tensor], first: int) -> None:
    """16 draws of 16·8 rows: a standard error of 2 %. Rows that forget what they add up to make it 2.5 times as large.

    Distances of a row are nearer to each other than those of all rows, which leaves 24 %.
    """
    model, batch = Relative(shift, first), torch.randn(16, LENGTH, 64, generator=torch.Generator().manual_seed(1))
    found = iw.predict(model, batch, plan=iw.plan(model, "xavier")).rows
    place = next(i for i, row in enumerate(found) if row["path"] == "q")
    squares = np.zeros(SEEDS)
    for seed in range(SEEDS):
        iw.init_(model, "xavier", seed=seed)
        squares[seed] = iw.measure(model, batch, seed=seed).rows[place]["gradient_rms"] ** 2
    error = squares.std() / math.sqrt(SEEDS) / squares.mean() / 2
    assert error < 0.05
    assert found[place]["gradient_rms"] == pytest.approx(math.sqrt(squares.mean()), rel=0.3)
