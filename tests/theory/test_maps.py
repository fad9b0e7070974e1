"""Variance and correlation maps against wide random layers, and fixed points against iteration."""

import math

import numpy as np
import pytest

from initwell.errors import ArgumentError
from initwell.theory.gain import gain
from initwell.theory.maps import chi, depth_scales, fixed_points, overlap_fixed_point, overlap_map, variance_map


def test_the_maps_against_a_wide_layer() -> None:
    # 1,000 inputs and 20,000 outputs, seed 5: relative standard error of q about 5 %/√1000 ≈ 1 %, of c 0.02.
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 1000))
    u, v = math.sqrt(1.5) * a, math.sqrt(1.5) * (0.6 * a + 0.8 * b)
    w = rng.normal(size=(20_000, 1000)) * math.sqrt(1.8 / 1000)
    bias = rng.normal(size=20_000) * math.sqrt(0.1)
    y, z = w @ np.tanh(u) + bias, w @ np.tanh(v) + bias
    assert np.mean(y * y) == pytest.approx(variance_map("tanh", 1.5, 1.8, 0.1), rel=0.05)
    correlation = np.mean(y * z) / math.sqrt(np.mean(y * y) * np.mean(z * z))
    assert correlation == pytest.approx(overlap_map("tanh", 0.6, 1.5, 1.8, 0.1), abs=0.05)


@pytest.mark.parametrize(("name", "w", "b"), [("tanh", 1.5, 0.05), ("relu", 1.9, 0.1), ("softplus", 1.0, 0.0)])
def test_iterating_ends_at_the_stable_fixed_point(name: str, w: float, b: float) -> None:
    (point,) = fixed_points(name, w, b)
    q = 3.0
    for _ in range(2000):
        q = variance_map(name, q, w, b)
    assert point.stable
    assert q == pytest.approx(point.q, rel=1e-9)


def test_the_forward_gain_makes_q_a_fixed_point_with_its_stability() -> None:
    for name in ("tanh", "gelu", "selu", "sin"):
        g = gain(name)
        (point,) = (p for p in fixed_points(name, g.forward**2) if p.q > 0.1)
        assert point.q == pytest.approx(1, rel=1e-12)
        assert point.slope == pytest.approx(g.stability, rel=1e-9)
        assert point.stable == (g.stability < 1)
        assert point.chi == pytest.approx(g.chi, rel=1e-9)


def test_gains_of_pytorch_put_the_fixed_point_elsewhere() -> None:
    (tanh,) = (p for p in fixed_points("tanh", (5 / 3) ** 2) if p.stable)
    assert tanh.q == pytest.approx(1.178, abs=6e-4)
    assert tanh.chi == pytest.approx(1.21, abs=6e-3)
    (selu,) = (p for p in fixed_points("selu", (3 / 4) ** 2) if p.stable)
    assert selu.q == pytest.approx(0.023, abs=6e-4)


def test_relu_on_and_off_its_critical_line() -> None:
    (line,) = fixed_points("relu", 2.0)
    assert line.continuum
    assert not line.stable
    (growing,) = fixed_points("relu", 2.1)
    assert (growing.q, growing.stable) == (0.0, False)
    (dying,) = fixed_points("relu", 1.9)
    assert (dying.q, dying.stable) == (0.0, True)


def test_marginal_zero_is_judged_by_the_drift() -> None:
    for name, w in (("tanh", 1.0), ("hardtanh", 1.0), ("relu6", 2.0)):
        (zero,) = fixed_points(name, w)
        assert (zero.q, zero.stable) == (0.0, True)
        assert zero.slope == 1.0


def test_several_fixed_points_and_none() -> None:
    zero, threshold = fixed_points("relu2", 1.0)
    assert (zero.stable, threshold.stable) == (True, False)
    assert threshold.q == pytest.approx(2 / 3)
    assert fixed_points("abs", 1.5, 0.1) == ()
    # exp(u)² has the mean exp(2q): 0.1·exp(2q) = q has two solutions, and beyond them q runs away.
    low, high = fixed_points(np.exp, 0.1)
    for point in (low, high):
        assert 0.1 * math.exp(2 * point.q) == pytest.approx(point.q)
    assert (low.stable, high.stable) == (True, False)


def test_chi_is_the_slope_of_the_overlap_map_at_a_fixed_point() -> None:
    (point,) = fixed_points("tanh", 1.5, 0.05)
    h = 1e-5
    slope = (1 - overlap_map("tanh", 1 - h, point.q, 1.5, 0.05)) / h
    assert slope == pytest.approx(point.chi, rel=1e-4)
    (gate,) = (p for p in fixed_points("swiglu", 2.81) if p.q > 0)
    slope = (1 - overlap_map("swiglu", 1 - h, gate.q, 2.81)) / h
    assert slope == pytest.approx(gate.chi, rel=1e-4)


def test_correlations_settle_where_iteration_ends() -> None:
    scales = depth_scales("tanh", 4.0, 0.05)
    c = 0.9
    for _ in range(150):
        c = overlap_map("erf", c, 1.0, 4.0, 0.3)
    assert scales.phase == "chaotic"
    assert overlap_map("tanh", scales.c, scales.q, 4.0, 0.05) == pytest.approx(scales.c, abs=1e-9)
    # erf has closed forms and q = 1 need not be its fixed point: the bisection is judged on its own map.
    (point,) = fixed_points("erf", 4.0, 0.3)
    c = 0.9
    for _ in range(300):
        c = overlap_map("erf", c, point.q, 4.0, 0.3)
    assert overlap_fixed_point("erf", point.q, 4.0, 0.3) == pytest.approx(c, abs=1e-9)


def test_depth_scales_are_the_rates_of_decay() -> None:
    scales = depth_scales("erf", 1.2, 0.2)
    assert (scales.phase, scales.c) == ("ordered", 1.0)
    q, gaps = scales.q * 1.01, []
    for _ in range(12):
        gaps.append(q - scales.q)
        q = variance_map("erf", q, 1.2, 0.2)
    assert -1 / math.log(gaps[-1] / gaps[-2]) == pytest.approx(scales.xi_q, rel=1e-3)
    c, parts = 0.99, []
    for _ in range(60):
        parts.append(1 - c)
        c = overlap_map("erf", c, scales.q, 1.2, 0.2)
    assert -1 / math.log(parts[-1] / parts[-2]) == pytest.approx(scales.xi_c, rel=1e-3)


def test_the_critical_line_has_no_scale() -> None:
    scales = depth_scales("relu", 2.0)
    assert scales.phase == "critical"
    assert math.isinf(scales.xi_c)
    assert math.isinf(scales.xi_q)


def test_bad_input() -> None:
    for w in (0.0, -1.0, math.nan):
        with pytest.raises(ArgumentError, match=r"^sigma_w2"):
            fixed_points("tanh", w)
    with pytest.raises(ArgumentError, match=r"^sigma_b2"):
        variance_map("tanh", 1.0, 1.0, -0.1)
    with pytest.raises(ArgumentError, match=r"^q"):
        chi("tanh", 0.0, 1.0)
    with pytest.raises(ArgumentError, match="settles nowhere"):
        depth_scales("relu", 2.5)
