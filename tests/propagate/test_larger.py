"""The larger of two values, norms by number and packed sequences, against measurement over seeds."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import rnn

import initwell as iw

SEEDS = 12


class Two(nn.Module):
    """A function of two linear layers' outputs, and a linear layer after it."""

    def __init__(self, fn: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.out, self.fn = nn.Linear(64, 96), nn.Linear(64, 96), nn.LazyLinear(64), fn

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.fn(self.one(x), self.two(x) + 0.3))
        return y


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "maximum": torch.maximum,
    "minimum, of unlike sizes": lambda a, b: torch.minimum(a, 2 * b),
    "where it is larger": lambda a, b: torch.where(a > b, a.new_ones(()), a.new_zeros(())),
    "norm": lambda a, b: torch.norm(a - b, 2, dim=1, keepdim=True).expand(-1, 64),
    "sum of sizes": lambda a, b: torch.linalg.vector_norm(a + b, 1, dim=1, keepdim=True).expand(-1, 64),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_values_by_measurement(name: str, measured_rms: Callable[..., np.ndarray]) -> None:
    """12 draws of 96 x 64 weights: a standard error below 1.5 %, and 2 % of what a norm sends back to 32 rows."""
    model, batch = Two(FUNCTIONS[name]), torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    model(batch)
    predicted = iw.predict(model, batch, plan=iw.plan(model, "lecun"))
    assert not predicted.unsupported
    measured = measured_rms(model, batch, "lecun", SEEDS)
    for row, (forward, gradient) in zip(predicted.rows, measured, strict=True):
        assert row["forward_rms"] == pytest.approx(forward, rel=0.05), row["op"]
        if row["gradient_rms"] is not None:
            assert row["gradient_rms"] == pytest.approx(gradient, rel=0.08), row["op"]


class Packed(nn.Module):
    """A GRU over sequences of unlike length, packed, and their rows in a linear layer."""

    def __init__(self, *, padded: bool) -> None:
        super().__init__()
        self.body, self.rnn, self.out, self.padded = nn.Linear(64, 64), nn.GRU(64, 64), nn.Linear(64, 32), padded

    def forward(self, x: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(self.body(x), torch.tensor([6, 6, 5, 5, 3, 3, 3, 1]).repeat_interleave(4))
        made, _ = self.rnn(packed)
        y: Tensor = self.out(rnn.pad_packed_sequence(made)[0] if self.padded else made.data)
        return y


@pytest.mark.parametrize("padded", [False, True])
def test_packed_sequences_by_measurement(padded: bool, measured_rms: Callable[..., np.ndarray]) -> None:
    """Twelve draws, eight rows or more at each time: a standard error of 2 % forward and of 3 % backward."""
    model = Packed(padded=padded)
    batch = 8 * F.normalize(torch.randn(6, 32, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    predicted = iw.predict(model, batch, plan=iw.plan(model, "lecun"))
    assert not predicted.unsupported
    measured = measured_rms(model, batch, "lecun", SEEDS)
    for row, (forward, gradient) in zip(predicted.rows, measured, strict=True):
        assert row["forward_rms"] == pytest.approx(forward, rel=0.08), (row["path"], row["op"])
        if row["gradient_rms"] is not None and row["op"] != "aten.copy_":
            assert row["gradient_rms"] == pytest.approx(gradient, rel=0.12), (row["path"], row["op"])
