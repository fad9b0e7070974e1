"""Every moment against SciPy's adaptive quadrature, which knows none of the closed forms."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
from scipy import integrate

from initwell.errors import ArgumentError
from initwell.theory import moments
from initwell.theory.activation import Activation
from initwell.theory.activations import activation, activation_names
from initwell.theory.piecewise import PiecewisePolynomial, partial_moments

POINTWISE = [n for n in activation_names() if activation(n).gate is None]
GATES = [n for n in activation_names() if activation(n).gate is not None]


def adaptive(f: Callable[[float], float], kinks: tuple[float, ...], q: float, mu: float = 0.0) -> float:
    """E[f(u)], u ~ N(mu, q), one SciPy call for each piece between kinks."""
    root = math.sqrt(q)
    ends = sorted({-14.0, 14.0, -3.0, 3.0, 0.0, -mu / root, *((k - mu) / root for k in kinks)})
    total = 0.0
    for low, high in itertools.pairwise(e for e in ends if abs(e) <= 14):
        total += integrate.quad(
            lambda z: f(mu + root * z) * math.exp(-z * z / 2), low, high, epsabs=1e-13, epsrel=1e-13, limit=200
        )[0]
    return total / math.sqrt(2 * math.pi)


def at(fn: Callable[..., np.ndarray], u: float) -> float:
    return float(fn(np.array([u]))[0])


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("q", [0.3, 1.0, 4.0])
def test_moments_agree_with_adaptive_quadrature(name: str, q: float) -> None:
    phi = activation(name)
    for moment, f in (
        (moments.mean(phi, q), lambda u: at(phi.fn, u)),
        (moments.second_moment(phi, q), lambda u: at(phi.fn, u) ** 2),
        (moments.derivative_second_moment(phi, q), lambda u: at(phi.derivative, u) ** 2),
    ):
        witness = adaptive(f, phi.kinks, q)
        assert moment.value == pytest.approx(witness, rel=1e-10, abs=1e-10)
        # SciPy is itself asked for 1e-13, so that much is no fault of the estimate.
        assert abs(moment.value - witness) <= moment.error + 2e-12 * max(1, abs(witness))


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("q", [1e-4, 0.05, 2.0, 30.0, 1e4])
def test_closed_forms_agree_with_our_own_quadrature(name: str, q: float) -> None:
    phi = activation(name)
    bare = replace(phi, closed_forms={})
    for moment in (moments.mean, moments.second_moment, moments.derivative_second_moment):
        a, b = moment(phi, q), moment(bare, q)
        assert a.value == pytest.approx(b.value, rel=1e-10, abs=1e-15)
        assert abs(a.value - b.value) <= a.error + b.error
    a, b = moments.growth(phi, q), moments.growth(bare, q)
    assert a.value == pytest.approx(b.value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["relu", "relu6", "hardshrink", "hard_mish", "star_relu"])
@pytest.mark.parametrize(("q", "mu"), [(1.0, 0.0), (4.0, -1.7), (0.09, 0.5)])
def test_the_series_of_polynomials_between_knots(name: str, q: float, mu: float) -> None:
    """Of φ and φ′, after a line, times a number: E[f h_k] and E[f²] against SciPy's adaptive quadrature."""
    phi = activation(name)
    for f in (phi.fn, phi.derivative):
        assert isinstance(f, PiecewisePolynomial)
        made = f.of_line(0.5, 0.1).times(3.0)
        known = made.series(q, mu, 30)
        kinks = tuple((t - 0.1) / 0.5 for t in phi.kinks)
        assert known is not None
        for k in (0, 1, 2, 5, 12, 29):
            h = np.polynomial.HermiteE.basis(k) / math.sqrt(math.factorial(k))
            exact = adaptive(lambda u: 3 * at(f, 0.5 * u + 0.1) * h((u - mu) / math.sqrt(q)), kinks, q, mu)  # noqa: B023
            assert known[0][k] == pytest.approx(exact, rel=1e-9, abs=1e-10)
        square = adaptive(lambda u: (3 * at(f, 0.5 * u + 0.1)) ** 2, kinks, q, mu)  # noqa: B023
        assert known[1] == pytest.approx(square, rel=1e-10)


def test_which_have_closed_forms() -> None:
    closed = {n for n in POINTWISE if moments.second_moment(n).method == "closed-form"}
    assert {"relu", "hardswish", "hardshrink", "elu", "selu", "celu", "gelu", "erf", "sin"} <= closed
    assert not {"tanh", "silu", "mish", "softplus"} & closed


@pytest.mark.parametrize("name", ["relu", "hardtanh", "hardshrink", "gelu", "tanh", "elu"])
@pytest.mark.parametrize("mu", [-1.3, 0.4, 5.0])
def test_a_mean_other_than_zero(name: str, mu: float) -> None:
    phi = activation(name)
    assert moments.mean(phi, 0.7, mu).value == pytest.approx(
        adaptive(lambda u: at(phi.fn, u), phi.kinks, 0.7, mu), rel=1e-10, abs=1e-11
    )
    assert moments.second_moment(phi, 0.7, mu).value == pytest.approx(
        adaptive(lambda u: at(phi.fn, u) ** 2, phi.kinks, 0.7, mu), rel=1e-10, abs=1e-11
    )


def test_thirty_digits_of_tanh() -> None:
    with mpmath.workdps(30):
        exact = mpmath.quad(lambda z: mpmath.tanh(z) ** 2 * mpmath.npdf(z), [-mpmath.inf, -4, -1, 0, 1, 4, mpmath.inf])
    assert abs(moments.second_moment("tanh").value - float(exact)) < 1e-15


def test_growth_is_the_slope_of_the_second_moment() -> None:
    # The derivative by differences knows nothing of E[φ²(z² − 1)]/2, and hardshrink has jumps.
    for name in ("hardshrink", "gelu", "tanh", "elu", "snake", "swiglu"):
        up, down = (moments.second_moment(name, 1.5 * math.exp(h)).value for h in (1e-4, -1e-4))
        assert moments.growth(name, 1.5).value == pytest.approx((up - down) / 2e-4, rel=1e-7)


@pytest.mark.parametrize(("a", "b"), [(-math.inf, math.inf), (0.2, 1.7), (6.0, math.inf), (-math.inf, -2.0), (-1, 3)])
def test_partial_moments(a: float, b: float) -> None:
    values, sizes = partial_moments(a, b, 6)
    for k, (value, size) in enumerate(zip(values, sizes, strict=True)):
        with mpmath.workdps(30):
            exact = float(mpmath.quad(lambda z: z**k * mpmath.npdf(z), [a, min(max(a, 0), b), b]))  # noqa: B023
        assert abs(value - exact) <= 1e-15 * max(size, 1e-300) * 8
        assert size >= abs(value) * (1 - 1e-12)


@pytest.mark.parametrize("name", GATES)
def test_a_gate_against_sampling(name: str) -> None:
    # 400,000 pairs, seed 7: the relative standard error of each estimate is below 0.6 %, the bound is five of them.
    phi = activation(name)
    rng = np.random.default_rng(7)
    x = rng.normal(0, math.sqrt(1.4), size=(400_000, 2))
    y, slopes = phi.fn(x), phi.derivative(x)
    assert y.shape == (400_000, 1)
    assert slopes.shape == x.shape
    for predicted, samples in (
        (moments.second_moment(phi, 1.4), y**2),
        (moments.derivative_second_moment(phi, 1.4), slopes**2),
    ):
        assert predicted.value == pytest.approx(float(samples.mean()), rel=0.03)


def test_a_gate_with_a_mean() -> None:
    assert moments.mean("bilinear", 1.0, 0.5).value == pytest.approx(0.25)
    assert moments.second_moment("bilinear", 1.0, 0.5).value == pytest.approx(1.25**2)


@pytest.mark.parametrize("q", [0, -1.0, math.nan, math.inf, "one"])
def test_q_must_be_a_variance(q: float) -> None:
    with pytest.raises(ArgumentError, match=r"^q: got .*above 0"):
        moments.second_moment("relu", q)


def test_mu_must_be_finite() -> None:
    with pytest.raises(ArgumentError, match=r"^mu"):
        moments.mean("relu", 1.0, math.nan)


def test_a_moment_that_does_not_exist() -> None:
    with pytest.raises(ArgumentError, match="grows faster than a Gaussian"):
        moments.second_moment(lambda x: np.exp(x * x))
    with pytest.raises(ArgumentError, match="singularity"):
        moments.derivative_second_moment(lambda x: np.sqrt(np.abs(x)))
    steep = Activation("exp", np.exp, np.exp)
    with pytest.raises(ArgumentError, match="not finite"):
        moments.second_moment(steep, 1e6)
