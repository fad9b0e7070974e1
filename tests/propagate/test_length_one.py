"""Dimensions of length 1, and what is left of nothing: one row, feature, token, sample, expert, number.

Each of these models stopped the walk with a RuleError. Their values are compared at 16 draws, to four standard errors
of measured squares: of so few numbers as these the standard error is 5 to 30 %.
"""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initwell as iw

SEEDS = 16


class Of(nn.Module):
    """A linear layer, then any function; then another layer, if asked for."""

    def __init__(self, of: Callable[[Tensor], Tensor], width: int, out: int = 0) -> None:
        super().__init__()
        self.first, self.of = nn.Linear(width, width), of
        self.last = nn.Linear(out, out) if out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.of(self.first(x)))
        return found


def _rms(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-3)


def _shifted(h: Tensor) -> Tensor:
    return h + (F.pad(h, (0, 0, 1, -1)) - h) * 0.5


def _renormed(h: Tensor) -> Tensor:
    weights, chosen = h.softmax(-1).topk(1, -1)
    return torch.zeros_like(h).scatter(-1, chosen, weights)


def _squares(y: Tensor) -> Tensor:
    return y.pow(2).mean()


def _to_zero(y: Tensor) -> Tensor:
    return F.mse_loss(y, torch.zeros_like(y))


def _dice(y: Tensor) -> Tensor:
    return 1 - (2 * y.sigmoid().sum() + 1) / (y.sigmoid().sum() + 3)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


MODELS: dict[str, tuple[Callable[[Tensor], Tensor], Sequence[int], int]] = {
    "a shift of one token": (_shifted, (8, 1, 4), 4),
    "a shift of one feature": (lambda h: F.pad(h, (1, -1)) + h, (4, 6, 1), 1),
    "a shift by all there is": (lambda h: F.pad(h, (0, 0, 0, 0, 2, -2)) + h, (2, 3, 4), 4),
    "the largest of one feature": (lambda h: h.topk(1, -1)[0] * 2, (4, 6, 1), 1),
    "features in order, of one": (lambda h: h.sort(-1)[0] * 2, (4, 6, 1), 1),
    "one chosen of one row a sample": (_renormed, (8, 1, 4), 4),
    "slopes of images joined": (lambda h: F.prelu(torch.cat([h, h], 1), torch.full((1,), 0.25)), (3, 2, 4), 4),
    "running products of one norm": (lambda h: _rms(h).cumprod(0), (1, 1, 1), 1),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_lengths_of_one(name: str) -> None:
    of, shape, width = MODELS[name]
    batch = _drawn(*shape)
    model = Of(of, shape[-1], width)
    predicted = iw.predict(model, batch, plan=iw.plan(model, "xavier")).rows
    runs = []
    for seed in range(SEEDS):
        iw.init_(model, "xavier", seed=seed)
        runs.append(iw.measure(model, batch, seed=seed).rows)
    for i, row in enumerate(predicted):
        for key in ("forward_rms", "gradient_rms"):
            squares = torch.tensor([float(run[i][key] or 0.0) ** 2 for run in runs], dtype=torch.float64)
            spread = 4 * float(squares.std()) / math.sqrt(SEEDS)
            if row[key] is not None and math.isfinite(row[key]):
                assert row[key] ** 2 == pytest.approx(float(squares.mean()), rel=0.05, abs=spread), (row["op"], key)


class _Alone(nn.Module):
    """Attention of a sequence to itself, and its output alone."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.attention(x, x, x)[0]
        return found


def _over_squares(h: Tensor) -> Tensor:
    return h / (h.pow(2).sum() + 1)


@pytest.mark.parametrize(
    ("model", "shape", "loss"),
    [
        (Of(lambda h: F.group_norm(h, 1), 1, 1), (4, 1, 1), _squares),
        (Of(lambda h: F.layer_norm(h, (2,)), 2, 2), (4, 2), _squares),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1)), (1, 1, 1, 1), _to_zero),
        (_Alone(), (1, 4, 4), _dice),
        (Of(lambda h: _over_squares(h.unsqueeze(-1) * h.unsqueeze(-2)), 4, 4), (8, 1, 4), None),
        (Of(lambda h: _over_squares(h.abs()[:, :1]), 4, 1), (1, 4), None),
        (Of(lambda h: _renormed(h[[-1]]), 4, 4), (2, 3, 4), None),
        (Of(lambda h: h / h.norm(), 1, 1), (1, 2, 2, 1), None),
        (Of(lambda h: F.pad(h / (h.pow(2).sum() + 1), (-1, 1)), 4), (1, 4), _squares),
        (Of(lambda h: F.glu(torch.cat([h, h], 2), 2) + h.sum(2, keepdim=True), 1, 1), (1, 1, 1), None),
    ],
)
def test_the_walk_goes_on(model: nn.Module, shape: Sequence[int], loss: Callable[[Tensor], Tensor] | None) -> None:
    assert iw.predict(model, _drawn(*shape), loss=loss, plan=iw.plan(model, "xavier")).rows


def test_one_expert_is_chosen_whatever_its_score() -> None:
    """With one expert in all softmax is 1, the choice is known, and experts get all of every gradient."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.expert = nn.Linear(16, 1), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            weight, chosen = self.router(x).softmax(-1).topk(1, -1)
            made = self.expert(x)[:, None].gather(1, chosen[..., None].expand(-1, -1, 16))
            found: Tensor = (made * weight[..., None]).sum(1)
            return found

    model, x = One(), _drawn(32, 16)
    found = iw.predict(model, x, plan=iw.plan(model, "xavier"))
    by_path = {row["path"]: row for row in found.rows}
    assert by_path["expert"]["gradient_rms"] == pytest.approx(1.0, rel=1e-6)
    assert next(row for row in found.rows if row["op"] == "aten.topk")["forward_rms"] == pytest.approx(1.0)
    assert not found.unsupported
