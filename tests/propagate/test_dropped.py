"""Stochastic depth: samples whose branches are dropped, against measurement over draws of weights and masks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import initwell as iw

WIDTH, SAMPLES, DRAWS = 96, 32, 32


class Dropping(nn.Module):
    """x + m·f(norm(x))·size/k, m = 1 with probability k for a sample, and 0 else: rows without f are far smaller."""

    def __init__(self, keep: float, size: float, *, gate: bool = False) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gate = nn.Linear(WIDTH, 1) if gate else None
        self.keep, self.size = keep, size

    def forward(self, x: Tensor) -> Tensor:
        shown = self.norm(x)
        branch = self.two(F.gelu(self.one(shown))) * self.size
        branch = branch if self.gate is None else branch * self.gate(shown).sigmoid()
        mask = (self.keep + torch.rand(len(x), 1, 1, device=x.device)).floor()
        y: Tensor = x + branch.div(self.keep) * mask
        return y


def net(*blocks: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *blocks, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10))


def compared(model: nn.Module, measured_rms: Callable[..., np.ndarray]) -> tuple[dict[str, float], dict[str, float]]:
    """Return forward and backward errors of each value, by op and path."""
    batch = torch.randn(SAMPLES, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    rows = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    measured = measured_rms(model, batch, "kaiming", DRAWS)
    names = [f"{i} {row['op']} {row['path']}" for i, row in enumerate(rows)]
    forward, backward = zip(
        *[
            (row["forward_rms"] / f - 1, row["gradient_rms"] / b - 1)
            for row, (f, b) in zip(rows, measured, strict=True)
        ],
        strict=True,
    )
    return dict(zip(names, forward, strict=True)), dict(zip(names, backward, strict=True))


@pytest.mark.parametrize(("keep", "size"), [(0.8, 5.0), (0.5, 2.0), (0.9, 0.3)])
def test_what_norms_send_back_to_samples_whose_branches_were_dropped(
    keep: float, size: float, measured_rms: Callable[..., np.ndarray]
) -> None:
    """32 draws of 32 masks: a standard error of 4 % at most. As independent gradients were up to 60 % too small."""
    blocks = [Dropping(keep, size) for _ in range(2)]
    forward, backward = compared(net(*blocks), measured_rms)
    assert max(map(abs, forward.values())) < 0.05
    assert max(map(abs, backward.values())) < 0.1


def test_a_way_of_masks_has_a_swing_of_its_own(measured_rms: Callable[..., np.ndarray]) -> None:
    """Gates of one number a row leave only those rows of unlike size that were not dropped.

    What such a gate itself gets is the little that a norm leaves of it, and not looked at here.
    """
    forward, backward = compared(net(Dropping(0.8, 5.0, gate=True)), measured_rms)
    assert max(map(abs, forward.values())) < 0.05
    others = [error for name, error in backward.items() if "gate" not in name and "sigmoid" not in name]
    assert max(map(abs, others)) < 0.1


def test_models_without_masks_are_not_followed() -> None:
    model, batch = net(), torch.randn(8, 4, WIDTH)
    assert iw.predict(model, batch).rows[0]["fidelity"] == "exact"
