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

    What such a gate itself gets is the little that a norm leaves of it, and not looked at here, nor what it sends on.
    """
    forward, backward = compared(net(Dropping(0.8, 5.0, gate=True)), measured_rms)
    assert max(map(abs, forward.values())) < 0.05
    others = [
        error for name, error in backward.items() if not any(part in name for part in ("gate", "sigmoid", "1.norm"))
    ]
    assert max(map(abs, others)) < 0.1


class Hand(nn.Module):
    """x/√(mean(x²) + ε), written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Length(nn.Module):
    """Rows of the length √WIDTH."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.normalize(x, dim=-1) * WIDTH**0.5
        return y


class Post(nn.Module):
    """norm(x + 4·m·f(x)), or norm(m·f(x) + (1 − m)·h(x))."""

    def __init__(self, norm: nn.Module, *, either: bool = False) -> None:
        super().__init__()
        self.norm, self.one, self.two, self.either = norm, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), either

    def forward(self, x: Tensor) -> Tensor:
        mask = (torch.rand(len(x), 1, 1, device=x.device) < 0.5).float()
        whole = mask * self.one(x) + (1 - mask) * (self.two(x) / 4) if self.either else x + mask * self.two(x) * 4
        y: Tensor = self.norm(whole)
        return y


@pytest.mark.parametrize("norm", [Hand, Length, lambda: nn.RMSNorm(WIDTH), lambda: nn.LayerNorm(WIDTH)])
@pytest.mark.parametrize("either", [False, True])
def test_norms_in_every_way_of_writing_them(
    norm: Callable[[], nn.Module], either: bool, measured_rms: Callable[..., np.ndarray]
) -> None:
    """Norms written op by op go by squares, their averages and roots, which their rules take of rows of one size.

    Numbers of a row are left out: what a scale gets is the little that the norm leaves of it.
    """
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Post(norm(), either=either), nn.Linear(WIDTH, 10))
    batch = torch.randn(SAMPLES, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    rows = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    measured = measured_rms(model, batch, "kaiming", DRAWS)
    for row, (forward, backward) in zip(rows, measured, strict=True):
        if row["shape"][-1] > 1 and row["op"] != "aten.pow":
            assert row["forward_rms"] == pytest.approx(forward, rel=0.05), row["op"]
            assert row["gradient_rms"] == pytest.approx(backward, rel=0.12), row["op"]


def test_what_a_norm_of_nothing_but_what_was_dropped_sends_back_is_unknown() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.inner(x) * (torch.rand(len(x), 1, 1, device=x.device) < 0.5).float())
            return y

    found = iw.predict(nn.Sequential(Alone(), nn.Linear(WIDTH, 10)), torch.randn(SAMPLES, 4, WIDTH))
    assert found.rows[0]["gradient_rms"] is None
    (normed,) = (row for row in found.rows if row["op"] == "aten.native_layer_norm")
    assert normed["forward_rms"] == pytest.approx(0.5**0.5, rel=1e-2)  # 0 stays 0
    assert any("nothing is left" in note for note in found.notes)


@pytest.mark.parametrize(
    "drop",
    [
        lambda x, y: torch.where(torch.rand(len(x), 1, 1, device=x.device) < 0.8, x + 4 * y, x),
        lambda x, y: torch.addcmul(x, y, (torch.rand(len(x), 1, 1, device=x.device) < 0.8).float() * 4),
        lambda x, y: x + y * (torch.rand(1, x.shape[1], 1, device=x.device) < 0.8).float() * 4,
        lambda x, y: x + y * (torch.rand(*x.shape[:2], 1, device=x.device) < 0.8).float() * 4,
    ],
)
def test_masks_that_are_not_followed_are_named(drop: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(drop(x, self.inner(x)))
            return y

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Other(), nn.Linear(WIDTH, 10))
    rows = iw.predict(model, torch.randn(SAMPLES, 4, WIDTH)).rows
    assert rows[0]["fidelity"] == "approximate" or rows[0]["gradient_rms"] is None


def test_models_without_masks_are_not_followed() -> None:
    model, batch = net(), torch.randn(8, 4, WIDTH)
    assert iw.predict(model, batch).rows[0]["fidelity"] == "exact"
