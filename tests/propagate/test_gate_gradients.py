"""The gradient of a gate, Σ x·g over positions, where x and g have to do with one another; against 16 draws."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw

SEEDS = 16


class Excited(nn.Module):
    """Squeeze and excitation of a normalized convolution, and what comes after it."""

    def __init__(self, act: nn.Module, after: nn.Module, width: int = 128) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), act)
        self.squeeze: nn.Module = nn.Conv2d(width, width, 1)
        self.gate = nn.Sigmoid()
        self.after, self.out = after, nn.Conv2d(width, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y: Tensor = self.out(self.after(x * self.gate(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return y


CASES = {
    "max pooling of what was gated": (nn.ReLU(), nn.MaxPool2d(2)),
    "a nonlinearity of what was gated": (nn.Identity(), nn.Sequential(nn.ReLU6(), nn.AvgPool2d(8))),
    "a curved one": (nn.Identity(), nn.Sequential(nn.SiLU(), nn.AvgPool2d(8))),
}


@pytest.mark.parametrize("case", CASES)
def test_a_gate_whose_gradient_goes_with_what_it_is_for(case: str) -> None:
    """Behind max pooling x is as the largest of its window where there is a gradient: 45 % too small otherwise.

    And φ′(s·x) is large where x is: taken as independent, what that makes alike at all positions was not there at all.
    Compared with the gradient at the product; a standard error is 1 %.
    """
    model = Excited(*CASES[case])
    batch = torch.randn(16, 128, 8, 8, generator=torch.Generator().manual_seed(0))
    predicted = iw.predict(model, batch, plan=iw.plan(model, "kaiming"))
    squares = np.zeros(len(predicted.rows))
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed)
        squares += [row["gradient_rms"] ** 2 for row in iw.measure(model, batch, seed=seed).rows]
    sizes = np.sqrt(squares / SEEDS)
    found = [(r["path"], r["op"], r["gradient_rms"] / s) for r, s in zip(predicted.rows, sizes, strict=True)]
    gate = next(ratio for path, _, ratio in found if path == "gate")
    product = next(ratio for path, op, ratio in found if op == "aten.mul" and not path)
    assert gate / product == pytest.approx(1.0, abs=0.04)


def test_positions_share_the_gate_that_a_nonlinearity_came_after() -> None:
    """What is left of relu(s·x), averaged over positions, without its mean over samples is mostly what s is there.

    A norm divides by it: without, the gradient at its input was 2.3 times too large. A standard error is 2 %.
    """
    act = nn.Sequential(nn.ReLU(), nn.AvgPool2d(8), nn.Conv2d(128, 64, 1), nn.BatchNorm2d(64))
    model, squares = Excited(nn.Identity(), act), 0.0
    model.squeeze, model.out = nn.Sequential(nn.Conv2d(128, 128, 1), nn.BatchNorm2d(128)), nn.Conv2d(64, 8, 1)
    batch = torch.randn(16, 128, 8, 8, generator=torch.Generator().manual_seed(0))
    place = ("after.2", "gradient_rms")
    predicted = {
        row["path"]: row["gradient_rms"] for row in iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    }
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed)
        rows = {row["path"]: row[place[1]] for row in iw.measure(model, batch, seed=seed).rows}
        squares += rows[place[0]] ** 2 / SEEDS
    assert predicted[place[0]] == pytest.approx(np.sqrt(squares), rel=0.08)


class Sharpened(nn.Module):
    """Attention whose queries are multiplied by one number a position and head, the same for all samples."""

    def __init__(self, sharp: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(64, 64, bias=False) for _ in range(4))
        self.slope, self.level, self.sharp = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4)), sharp

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (4, 16)).transpose(1, 2) for f in (self.query, self.key, self.value))
        place = (torch.arange(x.shape[1])[None] + 1).float().log()
        scale = self.slope[None, :, None] * place[:, None, :] + self.level[None, :, None]
        weights = (q * scale.unsqueeze(-1) @ k.transpose(2, 3) * (self.sharp / 4)).softmax(-1)
        y: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return y


@pytest.mark.parametrize("sharp", [0.3, 3.0])
def test_a_number_that_multiplies_a_position_of_all_samples(sharp: float) -> None:
    """What it gets lies along rows of scores: of sharp weights, as of independent numbers, 2.2 times too much.

    And of even ones keys and values are images of the same 64 features, at 32 places: 0.88 of it without that. The sum
    goes over 16 draws of 128 numbers: a standard error of 2 %.
    """
    model = Sharpened(sharp)
    batch = torch.randn(16, 32, 64, generator=torch.Generator().manual_seed(0))
    predicted = iw.predict(model, batch, plan=iw.plan(model, "xavier")).rows
    place = next(i for i, row in enumerate(predicted) if row["op"] == "aten.add")
    square = 0.0
    for seed in range(SEEDS):
        iw.init_(model, "xavier", seed=seed)
        square += iw.measure(model, batch, seed=seed).rows[place]["gradient_rms"] ** 2
    assert predicted[place]["gradient_rms"] == pytest.approx(math.sqrt(square / SEEDS), rel=0.07)
