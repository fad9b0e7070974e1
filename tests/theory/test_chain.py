"""The chain formula against random networks run forward and backward in NumPy."""

import math
from typing import Any

import numpy as np
import pytest

from initwell.errors import ArgumentError, UnknownNameError
from initwell.theory.chain import ChainLayer, chain, compromise_residual
from initwell.theory.gain import gain


def run(widths: list[int], variances: list[float], rng: np.random.Generator) -> tuple[list[float], list[float]]:
    """Second moments of tanh layers' outputs and of the gradients at their inputs, 64 samples, one draw."""
    x = rng.normal(size=(64, widths[0]))
    weights, slopes, forward = [], [], []
    for n_in, n_out, variance in zip(widths, widths[1:], variances, strict=False):
        w = rng.normal(size=(n_in, n_out)) * math.sqrt(variance)
        x = np.tanh(x @ w)
        weights.append(w)
        slopes.append(1 - x**2)
        forward.append(float(np.mean(x**2)))
    g = rng.normal(size=x.shape)
    backward = []
    for w, slope in zip(reversed(weights), reversed(slopes), strict=True):
        g = (g * slope) @ w.T
        backward.append(float(np.mean(g**2)))
    return forward, backward[::-1]


def test_against_random_networks() -> None:
    # Mean of 8 draws, seed 2: the forward moments scatter by about 1 %, the gradients by about 3 %.
    widths, variances = [600, 400, 500, 300], [1.5 / 600, 2.5 / 400, 1 / 500]
    rng = np.random.default_rng(2)
    draws = [run(widths, variances, rng) for _ in range(8)]
    layers = [ChainLayer(a, b, v, activation="tanh") for a, b, v in zip(widths, widths[1:], variances, strict=False)]
    rows = chain(layers).rows
    for k, row in enumerate(rows):
        assert row["activation_second_moment"] == pytest.approx(np.mean([d[0][k] for d in draws]), rel=0.04)
        assert row["gradient_second_moment"] == pytest.approx(np.mean([d[1][k] for d in draws]), rel=0.10)


def test_the_product_formula() -> None:
    layers = [ChainLayer(300, 200, 0.01), ChainLayer(200, 50, 0.004)]
    result = chain(layers, q0=2.0, g0=3.0)
    assert result.forward_factor == pytest.approx(300 * 0.01 * 200 * 0.004)
    assert result.backward_factor == pytest.approx(200 * 0.01 * 50 * 0.004)
    assert result.rows[-1]["activation_second_moment"] == pytest.approx(2.0 * result.forward_factor)
    assert result.rows[0]["gradient_second_moment"] == pytest.approx(3.0 * result.backward_factor)
    assert result.rows[0]["product"] == "forward 300·0.01·1, backward 200·0.01·1"


def test_relu_with_xavier_halves_and_with_kaiming_holds() -> None:
    halved = chain([ChainLayer(100, 100, 1 / 100, activation="relu")] * 10)
    held = chain([ChainLayer(100, 100, 2 / 100, activation="relu")] * 10)
    assert halved.forward_factor == pytest.approx(2**-10)
    assert held.forward_factor == pytest.approx(1)
    assert held.backward_factor == pytest.approx(1)


def test_the_default_of_pytorch_on_fifty_relu_layers() -> None:
    # Var(w) = 1/(3n): the variance falls sixfold per layer, about 1e-39 in all.
    result = chain([ChainLayer(256, 256, 1 / (3 * 256), activation="relu")] * 50)
    assert result.forward_factor == pytest.approx(6.0**-50)


def test_the_forward_gain_holds_tanh_and_lets_its_gradient_grow() -> None:
    g = gain("tanh")
    result = chain([ChainLayer(512, 512, g.forward**2 / 512, activation="tanh")] * 50, q0=1 / g.forward**2)
    assert result.rows[-1]["forward_second_moment"] == pytest.approx(1, rel=1e-10)
    # 3,200-fold is on record for about fifty layers.
    assert result.backward_factor == pytest.approx(g.chi**50, rel=1e-8)
    assert 3000 < result.backward_factor < 4000


def test_bias_adds_to_the_signal_and_not_to_the_gradient() -> None:
    plain, biased = (chain([ChainLayer(10, 10, 0.1, b)]) for b in (0.0, 0.5))
    assert biased.rows[0]["forward_second_moment"] == pytest.approx(plain.rows[0]["forward_second_moment"] + 0.5)
    assert biased.backward_factor == plain.backward_factor
    assert "(+ 0.5)" in biased.rows[0]["product"]


def test_zero_weights_stop_everything() -> None:
    result = chain([ChainLayer(10, 10, 0.0, activation=a) for a in ("relu", "sigmoid", "glu")])
    assert [r["activation_second_moment"] for r in result.rows] == [0.0, 0.25, 0.0]
    assert result.backward_factor == 0.0


def test_a_gate_in_the_chain_keeps_both_ways_back() -> None:
    # Layer before the gate: 128 → 2·128; with the forward gain a square block multiplies the gradient by χ.
    g = gain("glu")
    variance = g.forward**2 / 128
    result = chain([ChainLayer(128, 256, variance, activation="glu")], q0=1 / g.forward**2)
    assert result.rows[0]["forward_second_moment"] == pytest.approx(1)
    assert result.backward_factor == pytest.approx(g.chi)


def test_what_the_compromise_leaves() -> None:
    left = compromise_residual(784, 100)
    assert (left.forward + left.backward) / 2 == pytest.approx(1)
    layer = chain([ChainLayer(784, 100, 2 / 884)])
    assert layer.forward_factor == pytest.approx(left.forward)
    assert layer.backward_factor == pytest.approx(left.backward)


def test_it_prints_and_exports() -> None:
    result = chain([ChainLayer(4, 4, 0.5, activation="relu")])
    assert "Forward, E[x²] is multiplied by 1 in all." in str(result)
    assert "<table>" in result._repr_html_()
    assert result.to_dict()["rows"][0]["layer"] == 1


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "^layers"),
        ([ChainLayer(0, 4, 0.1)], r"layers\[1\].fan_in"),
        ([ChainLayer(4, 4, 0.1), ChainLayer(4, math.inf, 0.1)], r"layers\[2\].fan_out"),
        ([ChainLayer(4, 4, math.nan)], "weight_variance"),
        ([ChainLayer(4, 4, 0.1, -1.0)], "bias_variance"),
    ],
)
def test_bad_layers(layers: list[ChainLayer], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        chain(layers)


def test_other_bad_input() -> None:
    layer: list[Any] = [ChainLayer(4, 4, 0.1)]
    with pytest.raises(ArgumentError, match=r"^q0"):
        chain(layer, q0=0.0)
    with pytest.raises(ArgumentError, match=r"^g0"):
        chain(layer, g0=-1.0)
    with pytest.raises(UnknownNameError, match="relu"):
        chain([ChainLayer(4, 4, 0.1, activation="rellu")])
    with pytest.raises(ArgumentError, match=r"^fan_in"):
        compromise_residual(0, 3)
