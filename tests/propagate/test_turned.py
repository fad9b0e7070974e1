"""Rotary embeddings by complex numbers, as Llama's reference code has them, against measurement."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import initwell as iw

SEEDS = 8
HEADS, PLACES, WIDTH = 4, 24, 64


def _angles(places: int, features: int) -> Tensor:
    rates = 1.0 / 100.0 ** (torch.arange(0, features, 2) / features)
    return torch.outer(torch.arange(places).float(), rates)


def _in_complex(x: Tensor) -> Tensor:
    turns = torch.polar(torch.ones(PLACES, WIDTH // HEADS // 2), _angles(PLACES, WIDTH // HEADS))
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns[None, :, None]).flatten(3)


def _in_reals(x: Tensor) -> Tensor:
    angles = _angles(PLACES, WIDTH // HEADS)[None, :, None]
    one, two = x[..., ::2], x[..., 1::2]
    cosine, sine = angles.cos(), angles.sin()
    return torch.stack([one * cosine - two * sine, one * sine + two * cosine], -1).flatten(3)


class Attention(nn.Module):
    """A norm by hand, and attention with rotary embeddings, beside a stream."""

    def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.turn = turn
        self.inner, self.outer = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        parts = self.inner(normed).view(x.shape[0], PLACES, 3, HEADS, -1).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (self.turn(parts[0]), self.turn(parts[1]), parts[2]))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        found: Tensor = x + self.outer((weights @ v).transpose(1, 2).flatten(2))
        return found


def _model(turn: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), Attention(turn), Attention(turn), nn.Linear(WIDTH, 16))


@pytest.fixture(scope="module")
def batch() -> Tensor:
    return torch.randn(16, PLACES, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scheme", ["xavier", "kaiming"])
def test_rotary_by_complex_numbers_is_as_measured(batch: Tensor, scheme: str) -> None:
    """All within 4 % forward and 10 % backward of 8 draws, beyond two standard errors; nothing unknown."""
    model = _model(_in_complex)
    found = iw.predict(model, batch, plan=iw.plan(model, scheme))
    runs = []
    for seed in range(SEEDS):
        iw.init_(model, scheme, seed=seed)
        runs.append(iw.measure(model, batch, seed=seed).rows)
    for row, *drawn in zip(found.rows, *runs, strict=True):
        for name, bar in (("forward_rms", 0.04), ("gradient_rms", 0.1)):
            squares = torch.tensor([float(d[name]) ** 2 for d in drawn], dtype=torch.float64)
            measured = float(squares.mean().sqrt())
            error = float(squares.std() / math.sqrt(SEEDS) / (2 * squares.mean()))
            assert row[name] is not None, row
            assert abs(row[name] / measured - 1) < bar + 2 * error, (row["path"], row["op"], name, row[name], measured)


def test_complex_and_real_numbers_turn_alike(batch: Tensor) -> None:
    """What comes out, and what comes back to the first layer, is one number however rotary embeddings are written."""
    ends = []
    for turn in (_in_complex, _in_reals):
        model = _model(turn)
        rows = iw.predict(model, batch, plan=iw.plan(model, "xavier")).rows
        ends.append((rows[-1]["forward_rms"], rows[0]["gradient_rms"]))
    assert ends[0] == pytest.approx(ends[1], rel=0.02)


def test_complex_numbers_times_unknown_ones_are_unknown(batch: Tensor) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(WIDTH, 32), nn.Linear(WIDTH, 32)

        def forward(self, x: Tensor) -> Tensor:
            one, two = (torch.view_as_complex(y.unflatten(-1, (-1, 2))) for y in (self.one(x), self.two(x)))
            return torch.view_as_real(one * two).flatten(-2)

    model = Both()
    found = iw.predict(model, batch, plan=iw.plan(model, "xavier"))
    assert found.rows[-1]["forward_rms"] is None
