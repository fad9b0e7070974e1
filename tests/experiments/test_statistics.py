"""Intervals against SciPy, and verdicts by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from initwell.errors import ArgumentError
from initwell.experiments.statistics import (
    judge,
    mean_interval,
    paired_difference,
    ratio_interval,
    together,
    welch_difference,
    wilson_interval,
)

RNG = np.random.default_rng(5)
A, B = RNG.normal(3.0, 1.0, 7).tolist(), RNG.normal(2.0, 4.0, 7).tolist()


def test_mean_interval_is_students() -> None:
    expected = stats.t.interval(0.9, 6, loc=np.mean(A), scale=stats.sem(A))
    found = mean_interval(A, 0.9)
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.value == pytest.approx(np.mean(A))
    assert found.count == 7


def test_differences_are_scipys() -> None:
    paired = stats.ttest_rel(A, B).confidence_interval(0.95)
    found = paired_difference(A, B)
    assert (found.low, found.high) == pytest.approx((paired.low, paired.high))
    welch = stats.ttest_ind(A, B[:5], equal_var=False).confidence_interval(0.95)
    other = welch_difference(A, B[:5])
    assert (other.low, other.high) == pytest.approx((welch.low, welch.high))


def test_ratio_is_students_on_logarithms() -> None:
    first, second = [2.0, 6.0, 5.0], [1.0, 2.0, 2.0]
    logs = np.log(first) - np.log(second)
    expected = np.exp(stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs)))
    found = ratio_interval(first, second)
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    with pytest.raises(ArgumentError, match="positive"):
        ratio_interval([1.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (9, 10), (10, 10), (37, 80)])
def test_wilson_is_scipys(successes: int, count: int) -> None:
    expected = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    found = wilson_interval(successes, count)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_student_covers_as_often_as_it_says() -> None:
    # 4,000 samples of 5, seed 0: the share covered has standard deviation 0.0034; the band is ±4 of them.
    rng = np.random.default_rng(0)
    covered = sum(i.low <= 0 <= i.high for i in map(mean_interval, rng.standard_normal((4000, 5)).tolist()))
    assert abs(covered / 4000 - 0.95) < 0.0138


def test_an_interval_is_cut_to_the_range_of_its_quantity_and_covers_as_often() -> None:
    cut = mean_interval([0.9, 1.0, 1.0]).within(0, 1)
    assert cut.high == 1 and cut.low == mean_interval([0.9, 1.0, 1.0]).low
    single = mean_interval([0.5])
    assert single.within(0, 1) == single, "no interval is not made one"
    rng = np.random.default_rng(5)
    found = [mean_interval(v).within(0, 1) for v in rng.uniform(0, 1, (4000, 3)).tolist()]
    whole = [mean_interval(v) for v in np.random.default_rng(5).uniform(0, 1, (4000, 3)).tolist()]
    assert [i.low <= 0.5 <= i.high for i in found] == [i.low <= 0.5 <= i.high for i in whole]
    assert any(i.high > 1 for i in whole) and all(i.low >= 0 and i.high <= 1 for i in found)


def test_one_value_has_no_interval_and_judges_nothing() -> None:
    single = mean_interval([0.5])
    assert (single.low, single.high) == (-math.inf, math.inf)
    assert judge(single.low, single.high, above=0.0) == "depends"
    assert welch_difference([1.0], [2.0, 3.0]).high == math.inf


def test_what_is_not_finite_gives_nan_and_judges_nothing() -> None:
    broken = mean_interval([1.0, math.inf, -math.inf])
    assert math.isnan(broken.value)
    assert judge(broken.low, broken.high, above=0.0) == "depends"
    assert judge(broken.low, broken.high, below=0.0) == "depends"


def test_bad_input_is_named() -> None:
    with pytest.raises(ArgumentError, match="at least one"):
        mean_interval([])
    with pytest.raises(ArgumentError, match="Pair the values"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ArgumentError, match="3 of 2"):
        wilson_interval(3, 2)
    with pytest.raises(ArgumentError, match="State what is claimed"):
        judge(0.0, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "claim", "verdict"),
    [
        (1.1, 1.2, {"above": 1.0}, "confirmed"),
        (1.0, 1.2, {"above": 1.0}, "depends"),
        (0.8, 0.9, {"above": 1.0}, "refuted"),
        (0.8, 0.9, {"below": 1.0}, "confirmed"),
        (1.1, 1.2, {"below": 1.0}, "refuted"),
        (0.95, 1.05, {"above": 0.9, "below": 1.1}, "confirmed"),
        (0.85, 1.05, {"above": 0.9, "below": 1.1}, "depends"),
        (1.2, 1.3, {"above": 0.9, "below": 1.1}, "refuted"),
    ],
)
def test_verdicts(low: float, high: float, claim: dict[str, float], verdict: str) -> None:
    assert judge(low, high, **claim) == verdict


def test_parts_that_disagree_depend() -> None:
    assert together(["refuted", "refuted"]) == "refuted"
    assert together(["confirmed", "depends"]) == "depends"
    assert together([]) == "depends"
