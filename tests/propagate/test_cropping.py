"""Positions that are not all alike, cut out or surrounded by zeros: explicit padding, as of TensorFlow's models."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initwell as iw
from initwell.propagate.moments.places import of_sizes, sizes
from initwell.propagate.moments.signal import independent, replace
from initwell.propagate.rules.cropping import cropped, surrounded
from initwell.propagate.rules.reading import sized

SEEDS = 32


class Padded(nn.Module):
    """Three convolutions of images that are padded before, outside the layer."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(i, width, 3, bias=False) for i in (4, width, width))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(F.pad(x, (1, 1, 1, 1)))
        return x


def test_gradients_that_are_cropped_are_larger_than_those_at_the_padding() -> None:
    """Inputs of 3×3 images are read 4 to 9 times, their padding 1 to 3 times: 4.44 times as much on average.

    Explicit padding is what padding in the layer is, forward and backward. A standard error over 32 draws is 1 %.
    """
    batch = torch.randn(16, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    model, squares = Padded(), np.zeros((6, 2))
    predicted = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed)
        rows = iw.measure(model, batch, seed=seed).rows
        squares += [[row["forward_rms"] ** 2, row["gradient_rms"] ** 2] for row in rows]
    for row, measured in zip(predicted, np.sqrt(squares / SEEDS), strict=True):
        found = [row["forward_rms"], row["gradient_rms"]]
        assert found == pytest.approx(list(measured), rel=0.03), (row["path"], row["op"])


def test_zeros_around_places_that_differ() -> None:
    uneven = replace(independent((4, 3), 1.0), profile=(of_sizes(np.array([0.5, 2.0, 0.5])),))
    wide = surrounded(uneven, {1: (1, 2)}, 0.0)
    assert wide.q == pytest.approx(0.5)
    assert sizes(sized(wide, 1).profile[0]) == pytest.approx([0.0, 1.0, 4.0, 1.0, 0.0, 0.0])


def test_a_part_of_places_that_differ() -> None:
    uneven = replace(independent((4, 5), 1.0), profile=(of_sizes(np.array([0.0, 1.0, 2.0, 2.0, 0.0])),))
    part = cropped(uneven, 1, 1, 4)
    assert part.q == pytest.approx(5 / 3)
    assert sizes(part.profile[0]) == pytest.approx([0.6, 1.2, 1.2])
    assert surrounded(uneven, {1: (-1, -1)}, 0.0).q == pytest.approx(5 / 3)


class Halved(nn.Module):
    """A padded convolution, and another of the first half of its channels."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.first, self.last, self.parts = nn.Conv2d(8, 64, 3, padding=1), nn.Conv2d(32, 8, 3), parts

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        half = h.split(32, 1)[0] if self.parts == 1 else h.narrow(1, 0, 32)
        found: Tensor = self.last(half)
        return found


@pytest.mark.parametrize("parts", [1, 2])
def test_some_of_the_channels_are_at_the_same_places_forward_and_backward(parts: int) -> None:
    # Taken as alike, what reads the inner four of 4×4 positions is 8 % too small.
    batch = torch.randn(16, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    model = Halved(parts)
    rows = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    squares = np.zeros(len(rows))
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed)
        squares += [row["forward_rms"] ** 2 for row in iw.measure(model, batch, seed=seed).rows]
    # A ratio of the same draws: its standard error over 32 of them is below 1 %.
    found = rows[-1]["forward_rms"] / rows[0]["forward_rms"]
    assert found == pytest.approx(np.sqrt(squares[-1] / squares[0]), rel=0.04)


class RowByRow(nn.Module):
    """Rows of an image, each by itself, channels last; then patches of 2×2, which leave the last row out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.patches = nn.Linear(8, 32, bias=False), nn.Conv2d(32, 16, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = [row.tanh() for row in self.first(x).unbind(1)]
        found: Tensor = self.patches(torch.stack(rows, 1).permute(0, 3, 1, 2))
        return found


def test_rows_that_nothing_reads_have_no_gradient_in_whatever_order_the_axes_are() -> None:
    # Spread over all nine rows, those that are read would have 6 % too little, and the last has none.
    batch = torch.randn(16, 9, 9, 8, generator=torch.Generator().manual_seed(0))
    model = RowByRow()
    rows = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    squares = np.zeros(len(rows))
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed)
        squares += [row["gradient_rms"] ** 2 / SEEDS for row in iw.measure(model, batch, seed=seed).rows]
    found = [
        (row["gradient_rms"], true) for row, true in zip(rows, np.sqrt(squares), strict=True) if "tanh" in row["op"]
    ]
    assert len(found) == 9
    assert found[-1] == (0.0, 0.0)
    # 32 draws of 2048 weights: a standard error of 0.4 %.
    assert [predicted for predicted, _ in found[:-1]] == pytest.approx([true for _, true in found[:-1]], rel=0.015)
