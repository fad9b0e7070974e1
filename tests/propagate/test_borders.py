"""Tokens of padded maps: rows at the border differ from those inside by the same, which keys and values have in common.

16 draws of the weights, a standard error of 3 %. With products of rows as of independent Gaussians, what queries get is
69 % too small; as places are alike along each axis by itself, 30 % are left.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw


class Tokens(nn.Module):
    """Attention over the places of a padded convolution, of images that are nearly one colour each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(32, 128, 3, padding=1), nn.LayerNorm(128)
        self.query, self.key, self.value = nn.Linear(128, 128), nn.Linear(128, 128), nn.Linear(128, 128)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).flatten(2).transpose(1, 2))
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 128**0.5
        y: Tensor = scores.softmax(-1) @ self.value(x)
        return y


def test_queries_of_tokens_of_a_padded_map_by_measurement(measured_rms: Callable[..., np.ndarray]) -> None:
    seed = torch.Generator().manual_seed(1)
    batch = torch.randn(16, 32, 1, 1, generator=seed) + 0.05 * torch.randn(16, 32, 7, 7, generator=seed)
    model = Tokens()
    found = iw.predict(model, batch, plan=iw.plan(model, "xavier")).rows
    measured = measured_rms(model, batch, "xavier", 16)
    rows = {row["path"]: (row["gradient_rms"], gradient) for row, (_, gradient) in zip(found, measured, strict=True)}
    for name, within in {"query": 0.35, "key": 0.1, "value": 0.1}.items():
        assert rows[name][0] == pytest.approx(rows[name][1], rel=within), name
