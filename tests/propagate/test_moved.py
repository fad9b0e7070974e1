"""Token shifts: a value beside itself moved along a dimension, against counts of pairs and 12 draws of the weights."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initwell as iw
from initwell.propagate.moments.segments import Array, patterns
from initwell.propagate.rules.moved import Move, across

SEEDS = 12


def counted(new: tuple[int, ...], old: int, one: Move, two: Move) -> Array:
    """Return Cov(y, y') by pattern of two that x of variance 1 and covariance 0.5 was moved to, pair by pair."""
    made, count = patterns(new), len(new)
    at = np.repeat(np.arange(count), new)
    sums = np.zeros(len(made.counts))
    for p in range(one.start, one.stop):
        for q in range(two.start, two.stop):
            i, j = p - one.lag, q - two.lag
            if 0 <= i < old and 0 <= j < old:
                sums[at[p] if p == q else count + at[p] * count + at[q]] += 1.0 if i == j else 0.5
    return np.asarray(sums / np.maximum(made.counts, 1.0))


@pytest.mark.parametrize(
    ("new", "one", "two"),
    [
        ((1, 5), Move(0, 1, 1, 6), Move(0, 0, 0, 6)),
        ((2, 3, 1), Move(0, -2, 0, 4), Move(0, 1, 1, 6)),
        ((6,), Move(0, 1, 2, 5), Move(0, 1, 0, 3)),
    ],
)
def test_pairs_that_show_one_entry(new: tuple[int, ...], one: Move, two: Move) -> None:
    found = across(iw.signal((6, 3), overlap=0.5), one, two, new)
    assert found is not None
    assert found.moments[:, 0] == pytest.approx(counted(new, 6, one, two))


class Shift(nn.Module):
    """h + (shift(h) − h)·m behind a norm, m a parameter with a small net on top, as in RWKV-6."""

    def __init__(self, size: int, *, padded: bool, net: bool) -> None:
        super().__init__()
        self.padded, self.norm = padded, nn.LayerNorm(size)
        self.mix = nn.Parameter(torch.linspace(0, 1, size))
        self.down, self.up = nn.Linear(size, 8, bias=False) if net else None, nn.Linear(8, size, bias=False)
        self.read, self.out = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        moved = F.pad(h, (0, 0, 1, -1)) if self.padded else torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
        step = moved - h
        mix: Tensor = self.mix
        if self.down is not None:
            mix = mix + self.up(torch.tanh(self.down(h + step * mix)))
        y: Tensor = self.out(torch.relu(self.read(h + step * mix)))
        return y


@pytest.mark.parametrize(("padded", "net"), [(True, False), (False, False), (True, True)])
def test_a_token_shift_takes_off_what_it_adds(
    *, padded: bool, net: bool, measured_rms: Callable[..., np.ndarray]
) -> None:
    """Forward and backward: taken as independent, both were 60 to 80 % too large; a standard error is 1 %."""
    batch = torch.randn(16, 12, 16, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(16, 48), Shift(48, padded=padded, net=net))
    predicted = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    measured = measured_rms(model, batch, "kaiming", SEEDS)
    rows = {row["path"]: (row, sizes) for row, sizes in zip(predicted, measured, strict=True)}
    for place, (path, key) in enumerate((("1.read", "forward_rms"), ("1.norm", "gradient_rms"))):
        row, sizes = rows[path]
        assert row[key] == pytest.approx(sizes[place], rel=0.05), (path, key)


class Undone(nn.Module):
    """A product of a value and a gate, added to a branch and taken off again."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate, self.branch, self.out = (nn.Linear(48, 48) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = x * torch.sigmoid(self.gate(x))
        whole: Tensor = self.out((self.branch(x) + y) - y)
        return whole


def test_a_product_goes_with_itself_by_all_that_it_is() -> None:
    model = Undone()
    found = iw.predict(model, torch.randn(16, 48), plan=iw.plan(model, "kaiming"))
    sums = [row["forward_rms"] for row in found.rows if row["op"] in ("aten.addmm", "aten.sub")]
    assert sums[-2] == pytest.approx(sums[-3], rel=0.02)
