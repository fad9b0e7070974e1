"""The Gain record: its arithmetic, how it prints, and what it says of bad input."""

import json
import math

import numpy as np
import pytest
from rich.console import Console
from scipy.special import ndtr

from initwell.errors import ArgumentError, UnknownNameError
from initwell.theory.activations import activation_names
from initwell.theory.gain import Gain, gain
from initwell.theory.moments import derivative_second_moment, second_moment

FIELDS = {"activation", "forward", "backward", "compromise", "chi", "stability", "method", "error"}


@pytest.mark.parametrize("name", activation_names())
@pytest.mark.parametrize("q", [0.5, 1.0, 3.0])
def test_what_the_gains_do(name: str, q: float) -> None:
    g = gain(name, q=q)
    moment, slope = second_moment(name, q).value, derivative_second_moment(name, q).value
    assert g.forward**2 * moment == pytest.approx(q)
    assert g.backward**2 * slope == pytest.approx(1)
    ways = 2 if name in ("glu", "bilinear", "reglu", "geglu", "geglu_tanh", "swiglu") else 1
    assert g.chi == pytest.approx(g.forward**2 * slope * ways)
    forward, backward = g.compromise**2 * moment / q, g.compromise**2 * slope * ways
    assert (forward + backward) / 2 == pytest.approx(1)
    assert forward == pytest.approx(2 / (1 + g.chi))
    assert 0 < g.error < 1e-10


def test_stability_is_what_iterating_the_map_does() -> None:
    # Under its forward gain a deviation of q goes on as Q′ times itself: SiLU's grows, tanh's shrinks.
    for name in ("silu", "tanh", "hardshrink"):
        g = gain(name)
        step = 1e-5
        after = g.forward**2 * second_moment(name, 1 + step).value
        assert (after - 1) / step == pytest.approx(g.stability, abs=1e-4)


def test_a_wide_layer_agrees() -> None:
    # 100 Gaussian samples of 1,000 units into 8,000, seed 11: relative standard error below 1 %, mostly of the inputs.
    rng = np.random.default_rng(11)
    x = rng.normal(size=(100, 1000))
    w = rng.normal(size=(1000, 8000)) / math.sqrt(1000)
    for name, y in (("gelu", x * ndtr(x)), ("tanh", np.tanh(x)), ("relu", np.maximum(x, 0))):
        assert gain(name).forward ** 2 * float(np.mean((y @ w) ** 2)) == pytest.approx(1, rel=0.03)


def test_fields_are_the_designed_ones() -> None:
    data = json.loads(gain("gelu").to_json())
    assert set(data) == FIELDS
    assert data["method"] == "closed-form"
    assert json.loads(gain(np.sign).to_json())["backward"] == "inf"


def test_it_prints_in_a_terminal_a_notebook_and_as_text() -> None:
    g = gain("tanh", q=2.0)
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        console.print(g)
    for shown in (capture.get(), str(g), g._repr_html_()):
        assert "Gain of tanh" in shown
        assert f"{g.forward:.9g}" in shown
        assert "q = 2" in shown
    assert g.q == 2.0


def test_html_escapes_names() -> None:
    def script(x: float) -> float:
        return math.tanh(x)

    script.__name__ = "<script>"
    assert "<script>" not in gain(script)._repr_html_()
    assert "&lt;script&gt;" in gain(script)._repr_html_()


@pytest.mark.parametrize(("slope", "word"), [(1.2, "unstable"), (0.4, " stable"), (1.0, "marginal"), (-0.4, " stable")])
def test_stability_in_words(slope: float, word: str) -> None:
    g = Gain("x", 1.0, 1.0, 1.0, 1.0, slope, "quadrature", 0.0)
    assert word in str(g)


def test_a_gate_says_how_it_counts() -> None:
    assert any("independent halves" in n for n in gain("swiglu").notes)


def test_bad_input() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'swiglu'"):
        gain("swigul")
    for q in (0.0, -1.0, math.nan):
        with pytest.raises(ArgumentError, match=r"^q: got"):
            gain("relu", q=q)
    with pytest.raises(ArgumentError, match="Use a larger q"):
        gain("hardshrink", q=1e-6)
