"""Group, instance and weight norm and norms in eval mode against measurement, over seeds of the weights.

Bounds: an error of rms counts beyond two standard errors of the measured mean square over 8 seeds. What may remain is
stated in each test; a forgotten factor (a group's size, √n, a scale) is off by tens of percent.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.moments.signal import independent, replace
from initwell.propagate.rules.norm import normalized

SEEDS = 8


def images() -> torch.Tensor:
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def errors(model: nn.Module, batch: torch.Tensor, only: list[str] | None = None) -> dict[str, float]:
    """Return the worst error beyond two standard errors, of values, gradients and parameters' gradients."""
    found = iw.predict(model, batch, plan=iw.plan(model, "kaiming", only=only))
    assert not found.unsupported
    runs = []
    for seed in range(SEEDS):
        iw.init_(model, "kaiming", seed=seed, only=only)
        runs.append(iw.measure(model, batch, seed=seed))
    worst = dict.fromkeys(("forward", "gradient", "parameter"), 0.0)
    columns = [("forward", "forward_rms", "rows"), ("gradient", "gradient_rms", "rows")]
    for kind, key, table in (*columns, ("parameter", "gradient_rms", "parameters")):
        for i, row in enumerate(getattr(found, table)):
            squares = torch.tensor([getattr(r, table)[i][key] or 0.0 for r in runs], dtype=torch.float64) ** 2
            if squares.mean() > 1e-8 * runs[0].rows[-1]["gradient_rms"]:
                error = 2 * float(squares.std()) / math.sqrt(SEEDS) / 2 / float(squares.mean())
                worst[kind] = max(worst[kind], abs(row[key] / float(squares.mean()) ** 0.5 - 1) - error)
    return worst


def stack(norm: Callable[[int], nn.Module], width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    for before in (3, width, width):
        layers += [nn.Conv2d(before, width, 3, padding=1), norm(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, 4, 1))


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "groups of four channels": lambda width: nn.GroupNorm(8, width),
    "one group": lambda width: nn.GroupNorm(1, width),
    "as many groups as channels": lambda width: nn.GroupNorm(width, width),
    "instance norm with a scale": lambda width: nn.InstanceNorm2d(width, affine=True),
}


@pytest.mark.parametrize("name", NORMS)
def test_group_and_instance_norm_by_measurement(name: str) -> None:
    worst = errors(stack(NORMS[name]), images())
    assert worst["forward"] < 0.02
    assert worst["gradient"] < 0.04


def uneven(width: int) -> nn.Module:
    norm = nn.BatchNorm2d(width)
    generator = torch.Generator().manual_seed(5)
    norm.running_var = torch.rand(width, generator=generator) * 2 + 0.1
    norm.running_mean = torch.randn(width, generator=generator) / 2
    return norm.eval()


def test_running_variances_that_differ_divide_by_themselves_and_not_by_their_mean() -> None:
    # The average of 1/v is 1.5 over that of v here: three layers of it would be off by 1 − 1.38^(−3/2) = 38 %.
    model = stack(uneven)
    worst = errors(model, images())
    assert worst["forward"] < 0.03
    assert worst["gradient"] < 0.03
    row = iw.predict(model, images()).rows[1]
    assert row["fidelity"] == "approximate"


def test_the_scale_of_a_norm_that_starts_at_zero_has_a_gradient() -> None:
    norm = nn.GroupNorm(4, 16)
    nn.init.zeros_(norm.weight)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.Conv2d(16, 4, 1))
    worst = errors(model, images(), only=["0.weight", "0.bias", "2.weight", "2.bias"])
    assert worst["parameter"] < 0.03


def test_weight_norm_of_a_plan_and_of_real_weights() -> None:
    def layers() -> nn.Module:
        norm = nn.utils.parametrizations.weight_norm
        return nn.Sequential(norm(nn.Linear(96, 96)), norm(nn.Linear(96, 32)))

    model, batch = layers(), torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    worst = errors(model, batch)
    assert worst["forward"] < 0.01
    assert worst["gradient"] < 0.02
    assert worst["parameter"] < 0.03
    real, measured = iw.predict(model, batch).rows, iw.measure(model, batch).rows
    for row, wanted in zip(real, measured, strict=True):
        # Of one draw; the smallest value has 2048 entries, √(1/4096) = 1.6 % each way, and five of these.
        assert row["forward_rms"] == pytest.approx(wanted["forward_rms"], rel=0.08)
        assert row["gradient_rms"] == pytest.approx(wanted["gradient_rms"], rel=0.08)


def test_a_batch_norm_leaves_at_the_border_what_its_mean_took_off_too_much() -> None:
    # A positive batch: all positions of a channel share a mean, less of it at the padded border. With the border of
    # what was normalized taken as small as before, the second convolution comes out 3.4 % too large, its gradient 4.9 %
    # too small.
    def unit(width: int) -> list[nn.Module]:
        return [nn.Conv2d(width, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU()]

    model = nn.Sequential(*unit(24), *unit(48), nn.Conv2d(48, 8, 1))
    batch = torch.rand(32, 24, 6, 6, generator=torch.Generator().manual_seed(0))
    found = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows[3]
    squares = torch.zeros(2, dtype=torch.float64)
    for seed in range(24):
        iw.init_(model, "kaiming", seed=seed)
        row = iw.measure(model, batch, seed=seed).rows[3]
        squares += torch.tensor([row["forward_rms"], row["gradient_rms"]], dtype=torch.float64) ** 2 / 24
    assert found["op"] == "aten.convolution"
    assert found["forward_rms"] == pytest.approx(float(squares[0]) ** 0.5, rel=0.02)
    assert found["gradient_rms"] == pytest.approx(float(squares[1]) ** 0.5, rel=0.025)


class Shared(nn.Module):
    """Two softmaxes, each its share, divided by their sum as in ConViT: the gradient's average over a row comes off."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.places = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 12)
        self.values, self.out = nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.queries(x) @ self.keys(x).transpose(-2, -1) / math.sqrt(32)
        p = 0.3 * scores.softmax(-1) + 0.7 * self.places(x).softmax(-1)
        p = p / p.sum(-1, keepdim=True)
        y: torch.Tensor = self.out(p @ torch.relu(self.values(x)))
        return y


def test_what_is_divided_by_its_sum_loses_the_average_of_its_gradient() -> None:
    """Rectified values have much in common, and so have gradients of their weights."""
    batch = torch.randn(16, 12, 32, generator=torch.Generator().manual_seed(0))
    found = errors(Shared(), batch)
    assert found["gradient"] < 0.12, found


class Preactivated(nn.Module):
    """Blocks y = relu(bn(x)), x' = y + conv(y): what each norm reads is rectified, beside a fresh branch."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm1d(128) for _ in range(depth)])
        self.branches = nn.ModuleList([nn.Linear(128, 128, bias=False) for _ in range(depth)])
        self.first, self.last = nn.Linear(32, 128, bias=False), nn.Linear(128, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for norm, branch in zip(self.norms, self.branches, strict=True):
            y = norm(x).relu()
            x = y + branch(y)
        found: Tensor = self.last(x)
        return found


def test_what_a_norm_makes_of_a_rectified_stream_is_skewed_as_that_is() -> None:
    # Taken as Gaussian, with masks that know nothing of each other, the last mask's output is 6 % too small and the
    # gradients at the first two are 8 and 14 % too large.
    model, batch = Preactivated(4), torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    rows = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    squares = np.zeros((2, len(rows)))
    for seed in range(24):
        iw.init_(model, "kaiming", seed=seed)
        found = iw.measure(model, batch, seed=seed).rows
        squares += [[row[name] ** 2 / 24 for row in found] for name in ("forward_rms", "gradient_rms")]
    measured = np.sqrt(squares)
    masks = [i for i, row in enumerate(rows) if row["op"] == "aten.relu"]
    # 24 draws of 128 channels: a size of the last has a standard error of 0.1 %, a gradient one of 1.1 %.
    assert rows[masks[-1]]["forward_rms"] == pytest.approx(measured[0, masks[-1]], rel=0.02)
    for mask in masks[:2]:
        assert rows[mask]["gradient_rms"] == pytest.approx(measured[1, mask], rel=0.04)


@pytest.mark.parametrize("common", [0.35, 0.6])
def test_what_samples_share_at_few_places_is_divided_by_a_size_that_goes_with_it(common: float) -> None:
    # With channels all of one size, what all samples share at each of 2×2 positions would be 0.28 and 0.53 of x̂², in
    # place of 0.24 and 0.44.
    shape = (16, 400, 2, 2)
    x = independent(shape, 1.0, sample=0)
    x = replace(x, moments=(1 - common) * x.moments, gaussian=True)
    x.moments[:, 0, 0, 0] += common
    found = normalized(x, [0, 2, 3], 0.0)
    rng, sums = np.random.default_rng(0), np.zeros(3)
    for _ in range(40):
        entries = math.sqrt(common) * rng.normal(size=shape[1:]) + math.sqrt(1 - common) * rng.normal(size=shape)
        hat = (entries - entries.mean((0, 2, 3), keepdims=True)) / entries.std((0, 2, 3), keepdims=True)
        at, whole = (hat.sum(0) ** 2).sum(), (hat.sum((2, 3)) ** 2).sum()
        squares = (hat**2).sum()
        sums += [squares / hat.size, (at - squares) / (15 * hat.size), (whole - squares) / (3 * hat.size)]
    # 16 000 channels: a standard error below 0.002.
    true = sums / 40
    assert found.q == pytest.approx(true[0], abs=1e-6)
    assert found.moments[1, 0, 0, 0] == pytest.approx(true[1], abs=0.006)
    space = found.moments[0, 0, 0, 1], found.moments[0, 0, 1, 0], found.moments[0, 0, 1, 1]
    assert float(np.mean(space)) == pytest.approx(true[2], abs=0.006)
