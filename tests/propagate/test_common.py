"""Sums that hold one normalized value more than once, against 24 draws of the weights; a standard error is 1 to 2 %."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initwell as iw

SEEDS = 24


class Twice(nn.Module):
    """A value of mean and size unlike 0 and 1, two batch norms of it, and a sum of them."""

    def __init__(self, join: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.join, self.enter, self.act = join, nn.Conv2d(8, 96, 3, padding=1), nn.ReLU()
        self.one, self.two, self.out = nn.BatchNorm2d(96), nn.BatchNorm2d(96), nn.Conv2d(96, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.enter(x))
        y: Tensor = self.out(self.join(x, self.one(x), self.two(x)))
        return y


SUMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "x + bn(x)": lambda x, a, b: x + a,
    "x - bn(x)": lambda x, a, b: x - a,
    "bn(x) + bn(x)": lambda x, a, b: a + b,
    "x + 0.3 (bn(x) + bn(x))": lambda x, a, b: x + 0.3 * (a + b),
    "x + bn(x) - bn(x)": lambda x, a, b: x + (a - b),
}


def summed_squares(model: nn.Module, batch: Tensor) -> dict[tuple[str, str], float]:
    """Return (path, key) → the sum over all seeds of squared rms values."""
    squares = dict[tuple[str, str], float]()
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed)
        for row in iw.measure(model, batch, seed=seed).rows:
            for key in ("forward_rms", "gradient_rms"):
                place = (row["path"], key)
                squares[place] = squares.get(place, 0.0) + (row[key] or 0.0) ** 2
    return squares


@pytest.mark.parametrize("join", SUMS.values(), ids=SUMS.keys())
def test_a_value_with_what_batch_norm_made_of_it(join: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Forward and backward; taken as independent, x − bn(x) was 2.4 times too large, and x + bn(x) 26 % too small."""
    batch = torch.randn(16, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Twice(join)
    predicted = iw.predict(model, batch, plan=iw.plan(model, "kaiming"))
    squares = summed_squares(model, batch)
    rows = {row["path"]: row for row in predicted.rows}
    # What a difference leaves is compared with what it was taken from.
    gradient = np.sqrt(squares["one", "gradient_rms"] / SEEDS)
    for path, key, size in (("out", "forward_rms", 1.0), ("act", "gradient_rms", gradient)):
        measured = np.sqrt(squares[path, key] / SEEDS)
        assert rows[path][key] == pytest.approx(measured, rel=0.03, abs=0.04 * size), (path, key)


class Stepped(nn.Module):
    """A step of a learned length from a value towards a branch of it, as in EfficientViM, and a fixed one."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(32, 64), nn.Linear(64, 16)
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
        self.length = nn.Parameter(torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + torch.sigmoid(self.length) * (self.one(x) - x)
        y: Tensor = self.out(x + 0.25 * (self.two(torch.relu(x)) - x))
        return y


def test_a_step_towards_a_branch_takes_off_what_it_adds() -> None:
    """Forward and backward: taken as independent, x and s (f − x) add up to a sum that is a third too large."""
    batch = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    model = Stepped()
    plan = iw.plan(model, "kaiming")
    rows = {row["path"]: row for row in iw.predict(model, batch, plan=plan).rows}
    squares = summed_squares(model, batch)
    for path, key in (("out", "forward_rms"), ("enter", "gradient_rms")):
        assert rows[path][key] == pytest.approx(np.sqrt(squares[path, key] / SEEDS), rel=0.05), (path, key)


class Skewed(nn.Module):
    """A rectified value's batch norm beside a fresh branch of it, rectified again, as in RepGhost."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.first, self.act = nn.Conv2d(16, 96, 1), nn.BatchNorm2d(96), nn.ReLU()
        self.deep, self.norm = nn.Conv2d(96, 96, 1), nn.BatchNorm2d(96)
        self.same, self.again, self.out = nn.BatchNorm2d(96), nn.ReLU(), nn.Conv2d(96, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(self.enter(x)))
        y: Tensor = self.out(self.again(self.norm(self.deep(x)) + self.same(x)))
        return y


def test_batch_norm_of_a_rectified_value_is_skewed() -> None:
    """bn(relu(u)) is a line of relu(u): rectified beside a Gaussian it keeps 16 % more of its square than half.

    And its gradient meets u's mask again. As a Gaussian, it was 7 % too small; a standard error is below 1 %.
    """
    batch = torch.randn(32, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Skewed()
    rows = {row["path"]: row for row in iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows}
    squares = summed_squares(model, batch)
    for path, key in (("again", "forward_rms"), ("act", "gradient_rms"), ("first", "gradient_rms")):
        assert rows[path][key] == pytest.approx(np.sqrt(squares[path, key] / SEEDS), rel=0.03), (path, key)


class Squeezed(nn.Module):
    """Squeeze-excitation behind a convolution, and a head of batch norm over the average of a sum of branches."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate, self.out = nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
        self.head, self.last = nn.BatchNorm1d(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        y: Tensor = self.last(self.head((x + self.out(x)).mean((2, 3))))
        return y


WHY = ("a gate's gradient", "channels of a sum")


def test_what_is_taken_as_independent_is_marked() -> None:
    found = iw.predict(Squeezed(), torch.randn(16, 8, 8, 8))
    fidelity = {row["path"]: row["fidelity"] for row in found.rows}
    assert (fidelity["gate"], fidelity["out"], fidelity["last"]) == ("approximate", "approximate", "exact")
    assert {note.split(",")[0] for note in found.notes} >= {
        "Approximate: a gate's gradient",
        "Approximate: channels of a sum",
    }


@pytest.mark.parametrize("shift", [1, -1, 2])
def test_a_token_and_the_one_before_it_mixed_by_a_learned_share(shift: int) -> None:
    """h + (shift(h) − h)·m, as in RWKV-6, is h·(1 − m) + shift(h)·m; where zeros come in it is h·(1 − m).

    It was taken as h + |shift(h) − h|·m of independents: 61 % too large for m uniform in 0 to 1.
    """

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.share, self.out = nn.Parameter(torch.linspace(0, 1, 64)), nn.Linear(64, 64, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = F.layer_norm(x, (64,))
            mixed: Tensor = self.out(h + (F.pad(h, (0, 0, shift, -shift)) - h) * self.share)
            return mixed

    model, x = Mixed(), torch.randn(64, 12, 64, generator=torch.Generator().manual_seed(0))
    row = iw.predict(model, x, plan=iw.plan(model, "xavier")).rows[-1]
    share = model.share.detach()
    squares = (1 - share) ** 2 + share**2 * (12 - abs(shift)) / 12
    assert row["op"] == "aten.mm"
    assert row["forward_rms"] == pytest.approx(float(squares.mean()) ** 0.5, rel=0.01)
