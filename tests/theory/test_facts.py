"""The published figures: gains, χ and Q′(1) of common activations at q = 1."""

import math

import pytest

from initwell.theory.gain import gain
from initwell.theory.moments import mean, second_moment

# name: (E[φ²], g, E[φ′²], g_b, χ, Q′(1)); None where only some are on record. Adaptive quadrature, nine digits.
FACTS = {
    "relu": (0.5, 1.414213562, 0.5, 1.414213562, 1, 1),
    "tanh": (0.394294490, 1.592537420, 0.464402902, 1.467413592, 1.17781, 0.461),
    "sigmoid": (0.293379036, 1.846228545, 0.044836241, 4.722646086, 0.15283, 0.106),
    "elu": (0.644945417, 1.245198301, 0.668102001, 1.223428558, 1.03590, 0.891),
    "selu": (1, 1, 1.071574992, 0.966025777, 1.07157, 0.783),
    "gelu": (0.425221483, 1.533530441, 0.455850866, 1.481114413, 1.07203, 1.144),
    "gelu_tanh": (None, 1.53358052, None, None, None, None),
    "silu": (0.355775520, 1.676532470, 0.379482352, 1.623320258, 1.06663, 1.173),
    "mish": (0.452342192, 1.486847581, 0.479083758, 1.444755233, 1.05912, 1.076),
    "softplus": (0.921245909, 1.041866836, 0.293379036, 1.846228545, 0.31846, 0.492),
    "hardswish": (0.33156738, 1.73665721, None, 1.67007637, 1.08132, 1.224),
    "hardtanh": (0.51605855, 1.39203614, None, 1.21028706, 1.32289, 0.385),
    "softsign": (0.18301402, 2.33753336, None, 2.09578061, 1.24401, 0.477),
    "relu2": (1.5, 0.81649658, None, 0.70710678, 1.33333, 2),
}


@pytest.mark.parametrize("name", FACTS)
def test_figures_at_unit_variance(name: str) -> None:
    moment, forward, slope, backward, chi, stability = FACTS[name]
    g = gain(name)
    nine = 0.6e-8
    assert g.forward == pytest.approx(forward, abs=nine)
    if moment is not None:
        assert second_moment(name).value == pytest.approx(moment, abs=nine)
    if slope is not None:
        assert g.backward**-2 == pytest.approx(slope, abs=nine)
    if backward is not None:
        assert g.backward == pytest.approx(backward, abs=nine)
    if chi is not None and stability is not None:
        assert g.chi == pytest.approx(chi, abs=0.6e-5)
        assert g.stability == pytest.approx(stability, abs=0.6e-3)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.25, 1.0, -0.5])
def test_leaky_relu_is_the_textbook_formula(slope: float) -> None:
    g = gain("leaky_relu", slope=slope)
    assert g.forward == pytest.approx(math.sqrt(2 / (1 + slope**2)), rel=1e-14)
    assert g.backward == pytest.approx(g.forward, rel=1e-14)
    assert g.method == "closed-form"


def test_the_variance_of_relu_would_be_the_wrong_moment() -> None:
    variance = second_moment("relu").value - mean("relu").value ** 2
    assert variance == pytest.approx(0.34084506, abs=1e-8)
    assert gain("relu").forward != pytest.approx(1 / math.sqrt(variance), rel=0.1)


def test_selu_keeps_mean_zero_and_variance_one() -> None:
    assert mean("selu").value == pytest.approx(0, abs=1e-14)
    assert second_moment("selu").value == pytest.approx(1, abs=1e-14)


def test_star_relu_keeps_mean_zero_and_variance_one() -> None:
    assert mean("star_relu").value == pytest.approx(0, abs=1e-14)
    assert second_moment("star_relu").value == pytest.approx(1, abs=1e-14)
