"""Statistics of one tensor against NumPy, and the closed form of the overlap against all pairs."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from initwell.measurement import stats
from initwell.measurement.stats import Axis, dead_units, overlap, saturated, tensor_stats
from initwell.theory.activations import activation


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (), (5, 4, 3)])
def test_against_numpy(dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "_CHUNK", 4)
    x = torch.relu(torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.5).to(dtype)
    found, y = tensor_stats(x), x.double().numpy()
    expected = (y.mean(), y.std(), math.sqrt((y**2).mean()), np.abs(y).mean(), (y == 0).mean(), y.min(), y.max())
    measured = (found.mean, found.std, found.rms, found.abs_mean, found.zeros, found.min, found.max)
    assert measured == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert found.count == y.size


def test_a_large_mean_does_not_cancel_the_variance() -> None:
    x = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64) + 1e9
    assert tensor_stats(x).std == pytest.approx(math.sqrt(2 / 3), rel=1e-12)


def test_large_and_small_float32_values_do_not_overflow() -> None:
    assert tensor_stats(torch.full((3,), 1e30)).rms == pytest.approx(1e30, rel=1e-6)
    assert tensor_stats(torch.full((3,), 1e-30)).rms == pytest.approx(1e-30, rel=1e-6)


def test_transposed_expanded_and_sparse_tensors() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert tensor_stats(x.t()) == tensor_stats(x)
    assert tensor_stats(x[:, :1].expand(2, 5)).rms == pytest.approx(math.sqrt(4.5))
    assert tensor_stats(torch.eye(2).to_sparse()) == tensor_stats(torch.eye(2))


def test_values_that_are_not_finite_are_shown_as_such() -> None:
    assert math.isinf(tensor_stats(torch.tensor([1.0, math.inf])).rms)
    assert math.isnan(tensor_stats(torch.tensor([1.0, math.nan])).mean)
    assert math.isnan(tensor_stats(torch.zeros(0)).rms)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_overlap_against_all_pairs(axis: int) -> None:
    x = torch.randn((4, 3, 5), generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.3
    y = x.movedim(axis, 0).flatten(1).numpy()
    products = [(y[i] * y[j]).mean() for i in range(len(y)) for j in range(len(y)) if i != j]
    inner = math.prod(x.shape[axis + 1 :])
    assert overlap(x, Axis(x.shape[axis], inner)) == pytest.approx(np.mean(products) / (y**2).mean(), rel=1e-12)


def test_overlap_of_nothing_to_compare() -> None:
    assert overlap(torch.ones(1, 3), Axis(1, 3)) is None
    assert overlap(torch.zeros(2, 3), Axis(2, 3)) is None


def test_dead_units_per_channel() -> None:
    x = torch.zeros(2, 3, 2, 2)
    x[1, 0, 1, 1] = 1
    assert dead_units(x, Axis(3, 4)) == pytest.approx(2 / 3)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "hardtanh": {"min_val": -1.0, "max_val": 1.0},
    "elu": {"alpha": 1.0, "scale": 1.0},
    "celu": {"alpha": 1.0},
}


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "hardtanh", "hardsigmoid", "elu", "celu"])
def test_saturation_is_a_small_derivative(name: str) -> None:
    # Independent: φ′ from the theory's catalogue, at points that stand away from the threshold and from kinks.
    phi = activation(name)
    x = np.linspace(-7, 7, 1001) + 1e-4
    slope = np.abs(phi.derivative(x))
    expected = float((slope < 0.05 * slope.max()).mean())
    assert 0 < expected < 1
    assert saturated(torch.from_numpy(phi.fn(x)), name, ARGUMENTS.get(name, {})) == pytest.approx(expected, abs=0.002)


def test_what_does_not_saturate_has_no_share() -> None:
    assert saturated(torch.zeros(2), "relu", {}) is None
    # relu6 reaches ATen as hardtanh(0, 6): only its upper bound counts.
    assert saturated(torch.tensor([0.0, 3.0, 6.0, 6.0]), "relu6", {"min_val": 0.0, "max_val": 6.0}) == 0.5
