"""Moments of correlated pairs: closed forms, split quadrature, and SciPy in one dimension less."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from initwell.errors import ArgumentError
from initwell.theory.activations import activation, activation_names
from initwell.theory.closed_forms import arc_cosine
from initwell.theory.moments import derivative_overlap, derivative_second_moment, overlap, second_moment

CLOSED = [n for n in activation_names() if "overlap" in activation(n).closed_forms]
KINKED = ["hardtanh", "hardswish", "softshrink", "hardshrink", "elu", "selu", "relu6"]
CORRELATIONS = [-1.0, -0.8, 0.0, 0.4, 0.97, 1 - 1e-7, 1.0]


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("q", [0.4, 3.0, 20.0])
def test_closed_forms_agree_with_quadrature(name: str, q: float) -> None:
    phi = activation(name)
    bare = replace(phi, closed_forms={})
    for c in CORRELATIONS:
        for pair in (overlap, derivative_overlap):
            closed, integrated = pair(phi, q, c), pair(bare, q, c)
            assert closed.method == "closed-form"
            assert closed.value == pytest.approx(integrated.value, rel=1e-10, abs=1e-10)


def mixed(name: str, q: float, c: float, slope: bool) -> float:
    """E[f(u)f(v)] = E[m(x)²] for u = √c·x + √(1−c)·y: Gauss–Hermite in y on a fine trapezoid in x, no split at all."""
    phi = activation(name)
    f = phi.derivative if slope else phi.fn
    x = np.linspace(-9, 9, 3001)
    y = np.linspace(-9, 9, 6001)
    wy = stats.norm.pdf(y) * (y[1] - y[0])
    inner = np.array([np.dot(f(math.sqrt(q) * (math.sqrt(c) * a + math.sqrt(1 - c) * y)), wy) for a in x])
    return float(np.sum(inner**2 * stats.norm.pdf(x)) * (x[1] - x[0]))


@pytest.mark.parametrize("name", KINKED)
def test_kinks_against_brute_force(name: str) -> None:
    # The trapezoid is off by about its step, 3e-3, at a jump, and its square at a kink.
    assert overlap(name, 1.3, 0.6).value == pytest.approx(mixed(name, 1.3, 0.6, slope=False), rel=3e-3)
    assert derivative_overlap(name, 1.3, 0.6).value == pytest.approx(mixed(name, 1.3, 0.6, slope=True), rel=3e-3)


@pytest.mark.parametrize("name", KINKED)
def test_the_slope_in_c_is_the_derivative_overlap(name: str) -> None:
    # d/dc E[φ(u)φ(v)] = q·E[φ′(u)φ′(v)] for a continuous φ (Price's theorem): two quadratures that check each other.
    if activation(name).jumps:
        return
    q, c, h = 1.7, 0.35, 1e-4
    slope = (overlap(name, q, c + h).value - overlap(name, q, c - h).value) / (2 * h)
    assert slope == pytest.approx(q * derivative_overlap(name, q, c).value, rel=1e-7)


@pytest.mark.parametrize("name", ["tanh", "hardtanh", "gelu_tanh", "relu", "softplus"])
def test_continuous_towards_one(name: str) -> None:
    for q in (0.5, 5.0):
        near = overlap(name, q, 1 - 1e-12).value
        assert near == pytest.approx(second_moment(name, q).value, rel=1e-10)
        assert overlap(name, q, 1.0) == second_moment(name, q)
        assert derivative_overlap(name, q, 1.0) == derivative_second_moment(name, q)


def test_relu_slope_leaves_one_as_a_square_root() -> None:
    # 1/2 − E[φ′φ′] = arccos(c)/2π, whose digits near c = 1 survive only if arccos is not taken of 1 − ε.
    gap = 1e-10
    expected = 2 * math.asin(math.sqrt(gap / 2)) / (2 * math.pi)
    assert 0.5 - arc_cosine(0, 1.0, 1 - gap) == pytest.approx(expected, rel=1e-6)


def test_independent_inputs_leave_the_product_of_means() -> None:
    assert overlap("sigmoid", 2.0, 0.0).value == pytest.approx(0.25, abs=1e-13)
    assert overlap("tanh", 2.0, 0.0).value == pytest.approx(0.0, abs=1e-14)


def test_with_a_mean_against_sampling() -> None:
    # 10⁶ pairs, seed 3: relative standard error about 0.1 %.
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 1_000_000))
    u, v = 0.8 + a, 0.8 + 0.5 * a + math.sqrt(0.75) * b
    sampled = float(np.mean(np.maximum(u, 0) * np.maximum(v, 0)))
    assert overlap("relu", 1.0, 0.5, mu=0.8).value == pytest.approx(sampled, rel=0.006)


def test_gates_are_products() -> None:
    assert overlap("bilinear", 2.0, 0.5).value == pytest.approx(1.0)
    assert overlap("reglu", 1.0, 1.0).value == pytest.approx(second_moment("reglu").value)
    assert derivative_overlap("reglu", 1.0, 1.0).value == pytest.approx(derivative_second_moment("reglu").value)


@pytest.mark.parametrize("c", [1.1, -2, math.nan])
def test_c_must_be_a_correlation(c: float) -> None:
    with pytest.raises(ArgumentError, match=r"^c: got"):
        overlap("tanh", 1.0, c)


def test_an_arc_cosine_that_is_not_written_down() -> None:
    with pytest.raises(ValueError, match="order 3"):
        arc_cosine(3, 1.0, 0.5)
