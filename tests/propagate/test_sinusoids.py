"""Waves of a number that a model found, at many frequencies, against 24 draws of the weights."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import initwell as iw

Measured = Callable[[nn.Module, Tensor, str, int], NDArray[np.float64]]


class Placed(nn.Module):
    """Turns a position into sines and cosines, as the decoders of DETR do, and reads them."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.place, self.read, self.width = nn.Linear(256, 1), nn.Linear(width, 16), width

    def forward(self, x: Tensor) -> Tensor:
        places = torch.sigmoid(self.place(x)) * 6.3
        rates = 10000 ** (2 * (torch.arange(self.width) // 2) / self.width)
        angles = places / rates
        waves = torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)
        found: Tensor = self.read(waves)
        return found


def test_waves_of_unlike_frequencies_have_each_their_own_size(measured_rms: Measured) -> None:
    torch.manual_seed(0)
    model, batch = Placed(), torch.randn(16, 4, 256)
    measured = measured_rms(model, batch, "kaiming", 24)
    found = iw.predict(model, batch, plan=iw.plan(model, "kaiming"))
    for row, (forward, _) in zip(found.rows, measured, strict=True):
        # As sines of one Gaussian of the average size they were twice as large; a standard error is below 1 %.
        if row["op"] in ("aten.sin", "aten.cos"):
            assert row["forward_rms"] == pytest.approx(forward, rel=0.03), row["op"]
    gradients = {row["path"]: (row["gradient_rms"], real) for row, (_, real) in zip(found.rows, measured, strict=True)}
    assert gradients["place"][0] == pytest.approx(gradients["place"][1], rel=0.12)  # a standard error is 4 %


def test_the_sine_of_what_is_unknown_is_unknown() -> None:
    torch.manual_seed(0)
    model, batch = Placed(), torch.randn(16, 4, 256)
    nothing = {"aten.sigmoid": lambda call: [None]}
    found = iw.predict(model, batch, rules=nothing)
    assert all(row["forward_rms"] is None for row in found.rows if row["op"] == "aten.sin")
