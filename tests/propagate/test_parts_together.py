"""Parts of one value that meet again, and numbers that kept parameters make, as in differential attention.

Against 16 draws of the weights; a standard error is 1 to 2 %, that of a scalar's gradient is not looked at.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import initwell as iw

Measured = Callable[[nn.Module, Tensor, str, int], NDArray[np.float64]]


class Differential(nn.Module):
    """Two heads that weigh the same values, and the second taken off the first with a learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys = nn.Linear(32, 32), nn.Linear(32, 32)
        self.values, self.out = nn.Linear(32, 32), nn.Linear(32, 32)
        numbers = torch.linspace(-0.8, 1.0, 8)
        self.one, self.two = nn.Parameter(numbers), nn.Parameter(-0.3 * numbers.flip(0))

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k = (layer(x).view(b, t, 2, 16).transpose(1, 2) for layer in (self.queries, self.keys))
        v = self.values(x).view(b, 1, t, 32).repeat(1, 2, 1, 1)
        heads = (torch.softmax(q @ k.transpose(2, 3) / 4, -1) @ v).transpose(1, 2)
        first, second = heads.chunk(2, dim=2)
        factor = torch.exp((self.one * self.two).sum()) - 0.3
        found: Tensor = self.out((first - factor * second).reshape(b, t, 32))
        return found


def test_heads_that_read_the_same_values_are_told_from_independent_ones(measured_rms: Measured) -> None:
    torch.manual_seed(0)
    model, batch = Differential(), torch.randn(16, 8, 32)
    measured = measured_rms(model, batch, "pytorch", 16)
    found = iw.predict(model, batch, plan=iw.plan(model, "pytorch"))
    for row, (forward, gradient) in zip(found.rows, measured, strict=True):
        if row["op"] == "aten.sub" and row["shape"]:
            # Of independent heads it would be 1.6 times as large.
            assert row["forward_rms"] == pytest.approx(forward, rel=0.05)
        if row["path"] == "values" and row["op"] == "aten.addmm":
            assert row["gradient_rms"] == pytest.approx(gradient, rel=0.06)
            assert row["forward_rms"] == pytest.approx(forward, rel=0.05)


def test_a_number_made_of_kept_parameters_is_that_number() -> None:
    torch.manual_seed(0)
    model, batch = Differential(), torch.randn(16, 8, 32)
    found = iw.predict(model, batch, plan=iw.plan(model, "kaiming"))
    row = next(row for row in found.rows if row["op"] == "aten.exp")
    number = torch.exp((model.one * model.two).sum()).item()
    assert row["forward_rms"] == pytest.approx(number, rel=1e-6)


@pytest.mark.parametrize("factor", [-1.0, 0.5])
def test_a_value_joined_with_its_own_multiple(factor: float, measured_rms: Measured) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(48, 48, bias=False), nn.Linear(48, 48, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            found: Tensor = self.last(torch.stack([h, h * factor], 1).sum(1))
            return found

    torch.manual_seed(0)
    model, batch = Joined(), torch.randn(16, 48)
    measured = measured_rms(model, batch, "kaiming", 16)
    found = iw.predict(model, batch, plan=iw.plan(model, "kaiming"))
    largest = measured[:, 0].max()
    for row, (forward, _) in zip(found.rows, measured, strict=True):
        assert row["forward_rms"] == pytest.approx(forward, rel=0.05, abs=1e-5 * largest)


class Recurrence(nn.Module):
    """s ← 0.9·s + h_t over the places of one layer's output, all of which hold its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        state, states = h[:, 0], []
        for place in range(1, h.shape[1]):
            state = 0.9 * state + h[:, place]
            states.append(state)
        out: Tensor = self.leave(torch.stack(states, 1))
        return out


def test_places_of_one_value_that_are_added_up_have_their_mean_in_common(measured_rms: Measured) -> None:
    """8 draws of 64 rows, standard errors of 1 %: taken as independent, states were up to 28 % too small."""
    model, batch = Recurrence(), torch.randn(64, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = iw.predict(model, batch, plan=iw.plan(model, "pytorch")).rows
    measured = measured_rms(model, batch, "pytorch", 8)
    for row, found in zip(rows, measured, strict=True):
        assert row["forward_rms"] == pytest.approx(found[0], rel=0.05), row["op"]


def test_gradients_of_more_places_than_segments_are_added_up_in_few(measured_rms: Measured) -> None:
    """Each place has a gradient of its own; 48 segments of it would be 2400 pairs, and those of 256 places 9 GB."""
    model, batch = Recurrence(), torch.randn(16, 48, 16, generator=torch.Generator().manual_seed(0))
    found = iw.predict(model, batch, plan=iw.plan(model, "pytorch"))
    measured = measured_rms(model, batch, "pytorch", 8)
    assert found.rows[0]["gradient_rms"] == pytest.approx(measured[0, 1], rel=0.05)
    assert found.rows[0]["fidelity"] == "approximate"


class Doubled(nn.Module):
    """Attention of rows and of a token that stands twice before them: what becomes of both, put together."""

    def __init__(self, together: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 32))
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))
        self.together = together

    def attended(self, x: Tensor, n: int) -> Tensor:
        q, k, v = (layer(x) for layer in self.layers[n : n + 3])
        out: Tensor = x + (q @ k.mT / math.sqrt(32)).softmax(-1) @ v
        return out

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(len(x), -1, -1)
        h = self.attended(self.first(torch.cat([token, token, x], 1)), 0)
        h = self.attended(self.second(h), 3)
        return self.together(h[:, 0], h[:, 1])


def test_two_tokens_that_are_one_add_up() -> None:
    """Whatever the weights, to twice one of them, and to 0; as two of their own their sum is a third less."""
    ways: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        lambda a, b: 2 * a,
        lambda a, b: a + b,
        lambda a, b: a - b,
    )
    batch, sizes = torch.randn(8, 16, 32, generator=torch.Generator().manual_seed(0)), []
    for together in ways:
        model = Doubled(together)
        sizes.append(iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows[-1]["forward_rms"])
    assert sizes[1:] == pytest.approx([sizes[0], 0.0], rel=1e-6, abs=1e-3 * sizes[0])
