"""Random numbers that a model draws: against their own moments, and against 16 draws of a layer beside them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import initwell as iw

Measured = Callable[[nn.Module, Tensor, str, int], NDArray[np.float64]]


class Noisy(nn.Module):
    """A layer whose output is multiplied by what is drawn, or has it added."""

    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.noise = nn.Linear(64, 32), nn.Linear(32, 64), noise

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.noise(self.first(x)))
        return found


def exponential(x: Tensor) -> Tensor:
    return x * torch.empty_like(x).exponential_(2.0)


def gumbel(x: Tensor) -> Tensor:
    return x - torch.empty_like(x).exponential_().log()


def gumbel_of_uniform(x: Tensor) -> Tensor:
    return x - torch.log(-torch.log(torch.rand_like(x)))


@pytest.mark.parametrize("noise", [exponential, gumbel, gumbel_of_uniform])
def test_what_is_drawn_has_its_own_moments(noise: Callable[[Tensor], Tensor], measured_rms: Measured) -> None:
    torch.manual_seed(0)
    model, batch = Noisy(noise), torch.randn(64, 64)
    measured = measured_rms(model, batch, "kaiming", 16)
    found = iw.predict(model, batch, plan=iw.plan(model, "kaiming"))
    for row, (forward, gradient) in zip(found.rows, measured, strict=True):
        assert row["forward_rms"] == pytest.approx(forward, rel=0.03), row["op"]
        if row["gradient_rms"] is not None:
            assert row["gradient_rms"] == pytest.approx(gradient, rel=0.04), row["op"]


def test_gumbel_numbers_have_euler_s_mean_and_their_variance() -> None:
    model, batch = Noisy(lambda x: torch.empty_like(x).exponential_().log().add(0 * x)), torch.randn(8, 64)
    row = next(row for row in iw.predict(model, batch).rows if row["op"] == "aten.add")
    gamma = 0.5772156649015329
    assert row["mean"] == pytest.approx(-gamma, rel=1e-4)
    assert row["forward_rms"] == pytest.approx(math.sqrt(gamma**2 + math.pi**2 / 6), rel=1e-4)


def test_a_softmax_of_gumbel_noise_is_unknown_and_says_why() -> None:
    torch.manual_seed(0)
    model, batch = Noisy(lambda x: nn.functional.gumbel_softmax(x, hard=False)), torch.randn(64, 64)
    found = iw.predict(model, batch)
    row = next(row for row in found.rows if row["op"] == "aten._softmax")
    assert row["forward_rms"] is None
    assert any("Gumbel noise" in note for note in found.notes)


def by_row(shape: torch.Size) -> tuple[int, ...]:
    return (shape[0],) + (1,) * (len(shape) - 1)


def full_mask(x: Tensor) -> Tensor:
    return x * torch.bernoulli(torch.full(by_row(x.shape), 0.8, device=x.device)) / 0.8


def mask_in_place(x: Tensor) -> Tensor:
    return x * x.new_empty(by_row(x.shape)).bernoulli_(0.8).div_(0.8)


def mask_by_a_tensor(x: Tensor) -> Tensor:
    kept = torch.linspace(0.6, 1.0, 32, device=x.device)
    return x * torch.empty_like(x).bernoulli_(kept) / 0.8


@pytest.mark.parametrize("noise", [full_mask, mask_in_place, mask_by_a_tensor])
def test_masks_drawn_with_known_probabilities(noise: Callable[[Tensor], Tensor], measured_rms: Measured) -> None:
    """Over 24 draws of 256 rows the number of kept rows scatters by 0.6 %."""
    torch.manual_seed(0)
    model, batch = Noisy(noise), torch.randn(256, 64)
    found = iw.predict(model, batch, plan=iw.plan(model, "kaiming"))
    measured = measured_rms(model, batch, "kaiming", 24)
    for row, (forward, gradient) in zip(found.rows, measured, strict=True):
        assert row["forward_rms"] == pytest.approx(forward, rel=0.02), row["op"]
        assert row["gradient_rms"] is None or row["gradient_rms"] == pytest.approx(gradient, rel=0.03), row["op"]
        assert row["gradient_rms"] is not None or row["op"] == "aten.bernoulli"


def test_bernoulli_masks_go_with_the_probabilities_that_they_are_of() -> None:
    model, batch = Noisy(lambda x: torch.bernoulli(torch.tensor([0.25, 1.0]).repeat(16)).add(0 * x)), torch.randn(8, 64)
    row = next(row for row in iw.predict(model, batch).rows if row["op"] == "aten.add")
    assert row["mean"] == pytest.approx(0.625)
    assert row["forward_rms"] == pytest.approx(math.sqrt(0.625))


def test_masks_with_probabilities_of_the_model_s_own_are_unknown_and_say_why() -> None:
    model, batch = Noisy(lambda x: x * torch.bernoulli(x.sigmoid())), torch.randn(8, 64)
    found = iw.predict(model, batch)
    assert found.rows[-1]["forward_rms"] is None
    assert any("a mask that is drawn with probabilities that the model makes" in note for note in found.notes)
