"""The first positions of a causal convolution, against the model itself over many draws."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initwell as iw
from initwell.propagate.moments.places import of_sizes
from initwell.propagate.moments.signal import independent, replace
from initwell.propagate.rules.ends import first_apart

CHANNELS, LENGTH, TAPS, SEEDS = 256, 12, 4, 16


class Scan(nn.Module):
    """A selective scan of three steps, as Mamba's: functions of a causal convolution multiply each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.taps = nn.Conv1d(CHANNELS, CHANNELS, TAPS, padding=TAPS - 1, groups=CHANNELS, bias=False)
        self.step, self.into = nn.Linear(CHANNELS, CHANNELS, bias=False), nn.Linear(CHANNELS, CHANNELS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.taps(self.first(x).transpose(1, 2))[..., :LENGTH]).transpose(1, 2)
        taken = self.step(x) * self.into(x)
        state: Tensor = taken[:, 0]
        for t in (1, 2):
            state = 0.5 * state + taken[:, t]
        return state


def test_the_first_steps_of_a_scan_are_smaller_than_the_others(measured_rms: Callable[..., np.ndarray]) -> None:
    """Position 0 has one tap of four: what is quadratic in it is a tenth of the average.

    16 draws, a standard error of up to 4 %. Rows of one tap vary in length, which makes their squares 15 % larger.
    """
    batch = torch.randn(8, LENGTH, CHANNELS, generator=torch.Generator().manual_seed(0))
    model = Scan()
    predicted = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    measured = measured_rms(model, batch, "kaiming", SEEDS)
    for row, (forward, backward) in zip(predicted, measured.tolist(), strict=True):
        assert row["forward_rms"] == pytest.approx(forward, rel=0.2), (row["path"], row["op"])
        assert row["gradient_rms"] == pytest.approx(backward, rel=0.12), (row["path"], row["op"])


def test_positions_get_segments_where_few_at_the_start_are_small() -> None:
    size = np.array([0.25, 0.5, 1.0, 1.0, 1.0, 1.0])
    x = replace(independent((3, 4, 6), 2.0, 0.5), profile=(of_sizes(size),))
    found = first_apart(x, 2)
    assert [atom.parts for atom in found.atoms] == [(), (), (1, 1, 4)]
    assert found.q == pytest.approx(x.q)
    assert found.diagonal.ravel() / found.q == pytest.approx(size[[0, 1, 2]] / size.mean())
    for differ in ([0], [1], [2], [0, 2]):
        assert found.averaged(differ) == pytest.approx(x.averaged(differ))


@pytest.mark.parametrize(
    "size",
    [[1.0] * 6, [1.0, 1.0, 1.0, 1.0, 0.5, 0.25], [0.1, 0.2, 0.4, 0.6, 0.8, 1.0], [0.9, 1.0, 1.0, 1.0, 1.0, 1.0]],
    ids=["even", "at the end", "ever larger", "hardly smaller"],
)
def test_positions_get_no_segments_elsewhere(size: list[float]) -> None:
    x = replace(independent((3, 4, 6), 2.0, 0.5), profile=(of_sizes(np.array(size)),))
    assert first_apart(x, 2) is x
