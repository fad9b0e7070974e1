"""Fourier transforms as mixing: against PyTorch's own, entry by entry of the moments, and in a model."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.moments.signal import Signal, independent
from initwell.propagate.rules.fourier import transformed
from initwell.propagate.rules.parts import concatenated

DRAWS = 40000


@pytest.mark.parametrize("first", [False, True], ids=["alike", "a first of its own"])
def test_moments_of_a_transform_by_sampling(first: bool) -> None:
    """8 entries that share something, the first of them three times as large or not: standard errors of 1 %."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(DRAWS, 8, dtype=torch.float64, generator=generator)
    x = x + torch.randn(DRAWS, 1, dtype=torch.float64, generator=generator)
    signal: Signal = independent((8,), 2.0, 1.0)
    signal = signal.changed(signal.moments, 0.0)
    if first:
        x[:, 0] = 3 * torch.randn(DRAWS, dtype=torch.float64, generator=generator)
        rest = independent((7,), 2.0, 1.0)
        signal = concatenated([independent((1,), 9.0), rest.changed(rest.moments, 0.0)], 0)
    found = transformed(signal, 0)
    z = torch.fft.fft(x)
    products = (z[:, :, None] * z[:, None, :].conj()).real.mean(0).numpy()
    apart = products[1:, 1:][~np.eye(7, dtype=bool)].mean()
    sampled = [products[0, 0], products.diagonal()[1:].mean(), products[0, 1:].mean(), products[1:, 0].mean(), apart]
    scale = 0.03 * max(sampled)
    assert found.atoms[0].parts == (1, 7)
    assert found.moments.take([0, 1, 3, 4, 5]) == pytest.approx(np.array(sampled), abs=scale)


class Mixing(nn.Module):
    """Re FFT over tokens and features, as FNet mixes, once or more; the second token alone is read."""

    def __init__(self, times: int, width: int = 48) -> None:
        super().__init__()
        self.times = times
        self.first, self.norm, self.last = nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(self.times):
            x = self.norm(x + torch.fft.fftn(x, dim=(1, 2)).real)
        y: Tensor = self.last(x)[:, 1]
        return y


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize("times", [1, 2])
def test_mixing_by_transforms_against_measurement(times: int) -> None:
    """12 draws of 16 samples: standard errors are 1 to 3 %. The second gets what is even, √2 more of which is real."""
    model, batch = Mixing(times), torch.randn(16, 12, 48, generator=torch.Generator().manual_seed(0))
    predicted = iw.predict(model, batch, plan=iw.plan(model, "xavier"))
    assert not predicted.unsupported
    squares = np.zeros((len(predicted.rows), 2))
    for seed in range(12):
        iw.init_(model, "xavier", seed=seed)
        for i, row in enumerate(iw.measure(model, batch, seed=seed).rows):
            squares[i] += np.array([row["forward_rms"], row["gradient_rms"] or 0.0]) ** 2
    for row, (forward, backward) in zip(predicted.rows, np.sqrt(squares / 12), strict=True):
        if row["op"] in ("aten.addmm", "aten.add", "aten.native_layer_norm"):
            assert row["forward_rms"] == pytest.approx(forward, rel=0.08), row["path"]
            assert row["gradient_rms"] == pytest.approx(backward, rel=0.1), row["path"]
