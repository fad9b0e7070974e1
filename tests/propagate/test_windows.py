"""Overlapping windows that are bent entry by entry and added up where they lie, against measurements."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initwell as iw

DRAWS, SIZE = 8, 12


class Overlaid(nn.Module):
    """A convolution, its windows, what is made of them, their sum, a convolution."""

    def __init__(self, bend: Callable[[Tensor], Tensor], stride: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.bend, self.stride = bend, stride

    def forward(self, x: Tensor) -> Tensor:
        cut = F.unfold(self.first(x), 3, padding=1, stride=self.stride)
        y: Tensor = self.last(F.fold(self.bend(cut), (SIZE, SIZE), 3, padding=1, stride=self.stride))
        return y


@pytest.mark.parametrize("bend", [F.relu, torch.tanh, lambda cut: cut], ids=["relu", "tanh", "as they are"])
@pytest.mark.parametrize("stride", [1, 2])
def test_windows_of_one_image_bent_and_added_up_by_sampling(
    bend: Callable[[Tensor], Tensor], stride: int, measured_rms: Callable[..., np.ndarray]
) -> None:
    """Eight draws scatter by 1 to 5 %; with copies of one entry taken as others of the image it is 40 to 66 % less."""
    model = Overlaid(bend, stride)
    batch = torch.randn(16, 8, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    found = iw.predict(model, batch, plan=iw.plan(model, "kaiming"))
    measured = measured_rms(model, batch, "kaiming", DRAWS)
    for row, sizes in zip(found.rows, measured.tolist(), strict=True):
        for name, size in zip(("forward_rms", "gradient_rms"), sizes, strict=True):
            assert row[name] == pytest.approx(size, rel=0.08), (row["op"], name)
