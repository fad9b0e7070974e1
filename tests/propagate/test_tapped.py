"""What of a gradient lies along the rows that convolutions read, as a norm's scale before them gets it; by sampling."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw

SEEDS = 8
WIDTH = 64


class Root(nn.Module):
    """x/√(mean(x²) + ε), by hand, over one dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(self.dim, keepdim=True) + 1e-6)


class Causal(nn.Module):
    """A short convolution of which what is past the end is cut off, as it is or added to what it read."""

    def __init__(self, taps: int, groups: int, *, added: bool = False) -> None:
        super().__init__()
        self.layer, self.added = nn.Linear(WIDTH, WIDTH, bias=False), added
        self.conv = nn.Conv1d(WIDTH, WIDTH, taps, padding=taps - 1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x).transpose(1, 2)
        y: Tensor = self.conv(z)[..., : x.shape[1]]
        return ((y + z) if self.added else y).transpose(1, 2)


def between(block: nn.Module) -> nn.Module:
    """Rows that are normalized, a block, and a norm of what a layer makes of it."""
    return nn.Sequential(Root(2), block, nn.Linear(WIDTH, WIDTH, bias=False), Root(2))


def of_images(taps: int, groups: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(WIDTH, WIDTH, taps, stride=stride, padding=taps // 2, groups=groups)
    return nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), Root(1), conv, Root(1))


SERIES, IMAGES = (16, 16, WIDTH), (8, WIDTH, 8, 8)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    # name → model and shape of its input; the comment says by how much R would be off, taken at random
    "three taps": (lambda: between(Causal(3, 1)), (16, 8, WIDTH)),  # 1.3
    "three taps of each channel": (lambda: between(Causal(3, WIDTH)), SERIES),  # 1.3
    "one tap of each channel": (lambda: between(Causal(1, WIDTH)), SERIES),  # 10²
    "a convolution beside what it reads": (lambda: between(Causal(4, WIDTH, added=True)), SERIES),  # 1.9
    "images": (lambda: of_images(3, 1, 1), IMAGES),  # 1.1
    "images of half the size": (lambda: of_images(2, 1, 2), IMAGES),  # 1.2
    "patches": (lambda: nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), Root(1), nn.Conv2d(WIDTH, 16, 1, 2)), IMAGES),  # 1
}


@pytest.mark.parametrize("name", MODELS)
def test_what_a_convolution_sends_along_the_rows_that_it_reads(
    name: str, measured_rms: Callable[..., np.ndarray]
) -> None:
    """The gradient at the first norm's scale: 8 seeds of 128 rows or more give a standard error of 3 %."""
    build, shape = MODELS[name]
    assert ratio(build(), shape, measured_rms) == pytest.approx(1.0, abs=0.1)


def test_rows_along_the_places_of_a_channel_are_no_rows_of_a_convolution(
    measured_rms: Callable[..., np.ndarray],
) -> None:
    """A norm divides channels by their own length over time: of these a norm of places behind leaves all of R."""
    model = nn.Sequential(
        nn.Conv1d(WIDTH, WIDTH, 1), Root(2), nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), Root(1)
    )
    assert ratio(model, (16, WIDTH, 32), measured_rms) == pytest.approx(1.0, abs=0.1)


def ratio(model: nn.Module, shape: tuple[int, ...], measured_rms: Callable[..., np.ndarray]) -> float:
    """Return the gradient's size at the first norm's scale, predicted over measured."""
    torch.manual_seed(0)
    batch = torch.randn(shape)
    rows = iw.predict(model, batch, plan=iw.plan(model, "pytorch")).rows
    first = next(i for i, row in enumerate(rows) if row["op"] == "aten.rsqrt")
    return float(rows[first]["gradient_rms"]) / float(measured_rms(model, batch, "pytorch", SEEDS)[first, 1])
