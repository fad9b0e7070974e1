"""Distributions refuse what they are not; the truncated normal's moments against SciPy."""

import math
from collections.abc import Callable

import pytest
from scipy import stats

from initwell.errors import ArgumentError, ShapeError
from initwell.initializers.distributions import Constant, Distribution, Normal, TruncatedNormal, Uniform
from initwell.initializers.layout import Layout
from initwell.initializers.matrices import DeltaOrthogonal, Dirac, Identity, Orthogonal
from initwell.initializers.sparse import FixedCountSparse, SparseNormal
from initwell.initializers.truncation import normal_cdf, normal_pdf, truncated_moments

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: Constant(NAN), "value"),
        (lambda: Uniform(1.0, 0.0), "low"),
        (lambda: Uniform(-INF, 0.0), "low"),
        (lambda: Uniform(0.0, NAN), "high"),
        (lambda: Uniform(-1.7e308, 1.7e308), "high - low"),
        (lambda: Normal(0.0, 0.0), "std"),
        (lambda: Normal(0.0, -1.0), "std"),
        (lambda: Normal(0.0, NAN), "std"),
        (lambda: Normal(INF, 1.0), "mean"),
        (lambda: TruncatedNormal(0.0, 0.0), "std"),
        (lambda: TruncatedNormal(0.0, 1.0, 2.0, -2.0), "low"),
        (lambda: TruncatedNormal(0.0, 1.0, 1.0, 1.0), "low"),
        (lambda: TruncatedNormal(0.0, 1.0, NAN, 1.0), "low"),
        (lambda: TruncatedNormal(0.0, 1.0, 13.0, 14.0), "low, high"),
        (lambda: SparseNormal(1.5), "probability"),
        (lambda: SparseNormal(NAN), "probability"),
        (lambda: SparseNormal(0.5, 0.0), "spread"),
        (lambda: FixedCountSparse(Layout((4, 4)), 0), "count"),
        (lambda: FixedCountSparse(Layout((4, 4)), 2, -1.0), "spread"),
        (lambda: Orthogonal(Layout((4, 4)), NAN), "gain"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(build: Callable[[], Distribution], argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        build()
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    "build",
    [
        lambda: FixedCountSparse(Layout((4, 4)), 5),
        lambda: Orthogonal(Layout((4,), "vector", 0, 0)),
        lambda: Orthogonal(Layout((0, 4))),
        lambda: DeltaOrthogonal(Layout((4, 4))),
        lambda: Identity(Layout((4, 4, 3), "conv")),
        lambda: Dirac(Layout((4, 4))),
        lambda: Orthogonal(Layout((4, 4))).check_shape((4, 5)),
        lambda: Normal().check_shape((-1,)),
    ],
)
def test_shapes_without_meaning_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ShapeError):
        build()


BOUNDS = [
    (-2.0, 2.0),
    (-1.0, 1.0),
    (-3.0, 3.0),
    (-1.0, 3.0),
    (0.5, 2.0),
    (-4.0, -3.0),
    (-INF, 1.0),
    (2.0, INF),
    (5.0, 6.0),
]


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_truncated_moments_against_scipy(low: float, high: float) -> None:
    law = stats.truncnorm(low, high)
    assert truncated_moments(low, high) == pytest.approx((float(law.mean()), float(law.std())), rel=1e-6, abs=1e-12)


def test_truncated_moments_against_published_figures() -> None:
    assert truncated_moments(-2.0, 2.0)[1] == 0.87962566103423978
    assert truncated_moments(-1.0, 1.0)[1] == pytest.approx(0.53956009, abs=5e-9)
    assert truncated_moments(-3.0, 3.0)[1] == pytest.approx(0.98657839, abs=5e-9)
    assert truncated_moments(-INF, INF) == (0.0, 1.0)
    assert truncated_moments(-40.0, 40.0) == (0.0, 1.0)


def test_far_tail_keeps_its_digits() -> None:
    # Asymptotically the mean of the tail beyond a is a + 1/a − 2/a³ + 10/a⁵ − …
    a = 12.0
    mean, _ = truncated_moments(a, INF)
    assert mean == pytest.approx(a + 1 / a - 2 / a**3 + 10 / a**5 - 74 / a**7, rel=1e-7)


@pytest.mark.parametrize("x", [-11.5, -5.0, -1.0, 0.0, 0.3, 2.0, 8.0])
def test_decimal_normal_against_scipy(x: float) -> None:
    assert float(normal_cdf(x)) == pytest.approx(float(stats.norm.cdf(x)), rel=1e-13)
    assert float(normal_pdf(x)) == pytest.approx(float(stats.norm.pdf(x)), rel=1e-13)


def test_bounds_are_symmetric_about_the_mean_for_a_symmetric_cut() -> None:
    low, high = TruncatedNormal(1.0, 0.5).bounds
    assert (low + high) / 2 == pytest.approx(1.0)
    assert high - 1.0 == pytest.approx(0.5 * 2 / 0.87962566103423978)
