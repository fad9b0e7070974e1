"""Hermite coefficients of functions that bend anywhere, against closed forms."""

import math

import numpy as np
import pytest

from initwell.propagate.laws.gaussian import hermite, pair_moments, series_moments


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (0.3, 1.7), (-2.2, 0.4), (5.0, 900.0), (0.1, 1e-4)])
def test_coefficients_of_a_rectified_gaussian(mean: float, variance: float) -> None:
    """By parts, E[(z − t)⁺ He_k(z)] = He_{k−2}(t)·φ(t): the kink at t = −mean/σ lies inside a panel, wherever it is."""
    found = hermite(lambda u: np.maximum(u, 0.0), (0.0,), mean, variance).coefficients
    s = math.sqrt(variance)
    t = -mean / s
    density, above = math.exp(-t * t / 2) / math.sqrt(2 * math.pi), math.erfc(t / math.sqrt(2)) / 2
    before, here, expected = 0.0, density, [mean * above + s * density, s * above]
    for k in range(2, len(found)):
        # h_(k−2)(t)·φ(t), normalized, to He_(k−2)(t)·φ(t)/√k!
        expected.append(s * here / math.sqrt(k * (k - 1)))
        before, here = here, (t * here - math.sqrt(k - 2) * before) / math.sqrt(k - 1)
    # Sums end at 9.5 standard deviations, where the largest of the polynomials still have 1e-10.
    assert found == pytest.approx(expected, rel=1e-11, abs=2e-10 * max(abs(mean), s))


def test_pairs_of_a_step_add_the_rest_where_the_series_is_short() -> None:
    """P(u > 0, v > 0) = 1/4 + asin(c)/2π; what 80 terms leave out is most at c = 1."""
    c = np.array([-0.9, 0.0, 0.5, 0.9, 0.99, 1.0])
    _, found = pair_moments(lambda u: np.where(u > 0, 1.0, 0.0), (0.0,), 0.0, 1.0, c)
    expected = 0.25 + np.arcsin(c) / (2 * math.pi)
    assert found[:4] == pytest.approx(expected[:4], rel=1e-4)
    assert found[4:] == pytest.approx(expected[4:], rel=1e-2)
    assert found[-1] == pytest.approx(0.5, rel=1e-12)


def test_any_shape_of_correlations() -> None:
    series = hermite(np.tanh, (), 0.2, 1.0)
    flat = series_moments(series, series, np.linspace(-1, 1, 12))
    assert (series_moments(series, series, np.linspace(-1, 1, 12).reshape(3, 4)) == flat.reshape(3, 4)).all()
