"""Averages by positive scores, Σ a v/Σ a of a = φ(q)·φ(k), in the forms that they are written in, against 8 draws.

By rules, of parts that go together as independents, gradients of whole scores were up to 1500 times too large behind
Kaiming weights and 5 times behind PyTorch's, and of running sums 5 and 6 times.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import elu

import initwell as iw
from initwell.propagate.played import stretches
from initwell.propagate.result.prediction import Prediction
from predict_bench.compare import paired

SEEDS, WIDTH, HEADS = 8, 32, 4
Average = Callable[[Tensor, Tensor, Tensor], Tensor]


class _Kernel(nn.Module):
    def __init__(self, average: Average) -> None:
        super().__init__()
        self.norm, self.average = nn.LayerNorm(WIDTH), average
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        found: Tensor = x + self.out(self.average(elu(q) + 1, elu(k) + 1, v).transpose(1, 2).flatten(2))
        return found


def _whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = q @ k.mT
    return (a / (a.sum(-1, keepdim=True) + 1e-6)) @ v


def _late(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = q @ k.mT
    return (a @ v) / a.sum(-1, keepdim=True).clamp(min=1e-6)


def _padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = (q @ k.mT) * (torch.arange(k.shape[2]) < 8)
    return (a / a.sum(-1, keepdim=True)) @ v


def _running(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    state = (k.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(2)
    return (q.unsqueeze(-2) @ state).squeeze(-2) / (q * k.cumsum(2)).sum(-1, keepdim=True)


def _ahead(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ (k.mT @ v)) * (1 / (q @ k.sum(2).unsqueeze(-1)))


AVERAGES: dict[str, Average] = {
    "whole scores": _whole,
    "divided late": _late,
    "padding": _padded,
    "running sums": _running,
    "keys and values ahead": _ahead,
}


def _model(average: Average) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), _Kernel(average), nn.Linear(WIDTH, 10))


def _batch() -> Tensor:
    return torch.randn(16, 12, WIDTH, generator=torch.Generator().manual_seed(0))


def _predicted(model: nn.Module) -> Prediction:
    return iw.predict(model, _batch(), plan=iw.plan(model, "kaiming"))


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_by_positive_scores(name: str) -> None:
    torch.manual_seed(0)
    model, runs = _model(AVERAGES[name]), []
    found = _predicted(model)
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed)
        runs.append(iw.measure(model, _batch(), seed=seed).rows)
    for value in paired(found.rows, runs)[0]:
        assert value.predicted is not None, value
        bar = (0.08 if value.direction == "forward" else 0.25) + 2 * value.standard_error
        assert value.predicted == pytest.approx(value.measured, rel=bar), value


@pytest.mark.parametrize(("name", "forward"), [("whole scores", False), ("running sums", True)])
def test_what_is_too_large_to_be_played_is_unknown(name: str, forward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "_SCORES", 1)
    found = _predicted(_model(AVERAGES[name]))
    assert (found.rows[-1]["forward_rms"] is not None) is forward
    assert next(r for r in found.rows if r["path"] == "1.qkv")["gradient_rms"] is None
    assert any("too much lies around them" in note for note in found.notes)


def test_long_sequences_are_played_with_few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of 4·8·576² numbers were too large to be played, and all that is made of them was unknown."""
    monkeypatch.setattr(stretches, "_LARGEST", 1)
    assert _predicted(_model(_whole)).rows[-1]["forward_rms"] is not None
    assert stretches._SCORES > 4 * 8 * 576**2
