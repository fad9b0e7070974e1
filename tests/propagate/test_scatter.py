"""Channels that few weights made: batch norm after a depthwise convolution, and its gradient, against 24 draws."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.moments.incidence import spatial_axis
from initwell.propagate.moments.places import even
from initwell.propagate.moments.signal import independent, replace
from initwell.propagate.rules.reading import taken
from initwell.propagate.rules.scatter import inverse_sizes, scattered

SEEDS = 24
KEYS = ("forward_rms", "gradient_rms")


class Depthwise(nn.Module):
    """A depthwise 3×3 convolution between 1×1 ones, and its norm."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.enter, self.deep = nn.Conv2d(8, width, 1, bias=False), nn.Conv2d(width, width, 3, groups=width, bias=False)
        self.norm, self.out = nn.BatchNorm2d(width), nn.Conv2d(width, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.norm(self.deep(self.enter(x))))
        return y


@pytest.mark.parametrize("scheme", ["kaiming", "pytorch"])
def test_a_depthwise_convolution_before_batch_norm(scheme: str) -> None:
    """E[1/s²] of 9 normal weights is 9/7 of 1/E[s²], of 8 before them 8/6: 31 % in rms together; the first is undone.

    A standard error of a gradient's rms over 24 draws is about 1 %; uniform weights scatter 2.5 times less.
    """
    model, batch = Depthwise(), torch.randn(16, 8, 10, 10, generator=torch.Generator().manual_seed(0))
    predicted = {row["path"]: row for row in iw.predict(model, batch, plan=iw.plan(model, scheme)).rows}
    squares: dict[str, float] = {}
    for seed in range(SEEDS):
        iw.init_(model, scheme, seed=seed)
        for row in iw.measure(model, batch, seed=seed).rows:
            squares[row["path"]] = squares.get(row["path"], 0.0) + row["gradient_rms"] ** 2
    for path in ("deep", "enter"):
        assert predicted[path]["gradient_rms"] == pytest.approx(np.sqrt(squares[path] / SEEDS), rel=0.04), path


class Tiny(nn.Module):
    """A depthwise 3×3 convolution of images so small that most of its taps read padding, and norms around it."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.enter, self.first = nn.Conv2d(8, width, 1, bias=False), nn.BatchNorm2d(width)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm, self.out = nn.BatchNorm2d(width, eps=1e-3), nn.Conv2d(width, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.norm(self.deep(self.first(self.enter(x)))))
        return y


@pytest.mark.parametrize("side", [1, 2])
def test_a_depthwise_convolution_of_tiny_images(side: int) -> None:
    """One weight a channel is left of 9 at one position: E[1/(s² + ε)] is 1.25/√ε, some 10 times 1/(E[s²] + ε).

    At 2×2 the nine count as 64/9. Before the weights were counted over positions, and ε, the gradient at the
    convolution was 50 and 18 % off. A standard error of an rms over 24 draws is 2 %, and 6 % of what is heavy-tailed.
    """
    batch = torch.randn(64, 8, side, side, generator=torch.Generator().manual_seed(0))
    model, squares = Tiny(), dict[str, float]()
    plan = iw.plan(model, "kaiming")
    rows = {f"{row['path']} {key}": row[key] for row in iw.predict(model, batch, plan=plan).rows for key in KEYS}
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed)
        for row in iw.measure(model, batch, seed=seed).rows:
            for key in KEYS:
                place = f"{row['path']} {key}"
                squares[place] = squares.get(place, 0.0) + row[key] ** 2
    for place, tolerance in (("deep gradient_rms", 0.08), ("first gradient_rms", 0.03), ("norm forward_rms", 0.01)):
        assert rows[place] == pytest.approx(np.sqrt(squares[place] / SEEDS), rel=tolerance), place


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("values", [(1.0,), (0.5, 0.5), (1 / 9,) * 9, (0.6, 0.3, 0.1)], ids=["1", "2", "9", "unlike"])
def test_sizes_of_channels_that_few_weights_made(values: tuple[float, ...], uniform: bool) -> None:
    """Σ λ w² against 400000 draws of the weights; a standard error is 0.4 % at one weight, 0.1 % at others."""
    rng, floor, count = np.random.default_rng(0), 0.01, len(values)
    w = rng.standard_normal((400_000, count)) if not uniform else rng.uniform(-(3**0.5), 3**0.5, (400_000, count))
    s, shares = w**2 @ np.array(values), np.arange(1.0, count + 1) / sum(range(1, count + 1))
    law = (0.8 if uniform else 2.0, 0.0, *values, *[1.0] * count, *shares)
    inverse, undone, share = inverse_sizes(replace(independent((4, 3), 1.0), scatter=law), floor)
    assert inverse == pytest.approx((1 / (s + floor)).mean(), rel=0.012)
    assert undone == pytest.approx((w**2 @ shares / (s + floor)).mean(), rel=0.012)
    assert share == pytest.approx((s / (s + floor)).mean(), rel=0.002)


@pytest.mark.parametrize("std", [1e-6, 1e-9])
def test_batch_norm_of_channels_far_smaller_than_its_eps(std: float) -> None:
    """x̂ is (x − x̄)/√ε then: 1 − ε·E[1/(s² + ε)] has no digit left. 2400 weights: a standard error is 1.5 %."""
    conv = nn.Conv2d(3, 96, 5, bias=False)
    nn.init.normal_(conv.weight, std=std)
    model = nn.Sequential(conv, nn.BatchNorm2d(96))
    batch = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    row = iw.predict(model, batch).rows[-1]
    assert row["forward_rms"] == pytest.approx(iw.measure(model, batch).rows[-1]["forward_rms"], rel=0.03)


def test_sizes_that_scatter_besides() -> None:
    """A gamma variable of relative variance 0.3 beside two weights: E[1/(s² + ε)] against 400000 draws, within 2 %."""
    rng = np.random.default_rng(0)
    w, r = rng.standard_normal((400_000, 2)), rng.gamma(1 / 0.3, 0.3, 400_000)
    s = (w**2).mean(1) * r
    inverse, undone, _ = inverse_sizes(replace(independent((4, 3), 1.0), scatter=(2.0, 0.3, 0.5, 2.0, 1.0)), 0.01)
    assert inverse == pytest.approx((1 / (s + 0.01)).mean(), rel=0.02)
    assert undone == pytest.approx(((w**2).mean(1) / (s + 0.01)).mean(), rel=0.02)


@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_what_padding_does_to_the_variance_of_channels(mean: float) -> None:
    """E[1/(s² + ε)] of 4000 channels, each of 9 weights over padded 2×2 images of a mean, of 256 samples; within 4 %.

    With a mean, padding makes the four positions unlike, and three numbers a channel are most of its variance.
    """
    torch.manual_seed(0)
    x = torch.randn(256, 4000, 2, 2) + mean
    conv = nn.Conv2d(4000, 4000, 3, padding=1, groups=4000, bias=False)
    nn.init.normal_(conv.weight)
    s = conv(x).detach().double().var((0, 2, 3), unbiased=False).numpy()
    value = independent((256, 4000, 2, 2), 1.0 + mean**2, mean, sample=0)
    fresh = replace(independent((4000, 1, 3, 3), 1.0), scatter=(2.0,))
    y = scattered(value, value, fresh, taken([even(2)] * 2, [spatial_axis(2, 2, 3, 1, 1, 1)] * 2), 1)
    assert inverse_sizes(y, 0.001)[0] == pytest.approx((1 / (s / s.mean() + 0.001)).mean(), rel=0.04)
