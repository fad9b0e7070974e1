"""Intervals over seeds and what they say."""

import math

import numpy as np
import pytest

from initwell.errors import ArgumentError
from initwell.experiments.reproduce.evidence import over_seeds, ratio_over_seeds, verdict_of, within


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    # 400 experiments of 5 seeds: 95 % ± 3 standard errors of a binomial share, 0.95 ± 0.033.
    draws = np.random.default_rng(0).normal(2.0, 1.0, (400, 5))
    found = [over_seeds(row.tolist()) for row in draws]
    share = np.mean([f["low"] <= 2.0 <= f["high"] for f in found])
    assert 0.917 <= share <= 0.983


def test_a_ratio_has_a_symmetric_interval_on_the_log_scale() -> None:
    found = ratio_over_seeds([0.5, 1.0, 2.0])
    assert found["value"] == pytest.approx(1.0)
    assert found["low"] * found["high"] == pytest.approx(1.0)


@pytest.mark.parametrize("values", [[0.0, 1.0, 2.0], [1.0, 2.0, math.inf]])
def test_a_seed_without_a_logarithm_gives_the_range(values: list[float]) -> None:
    found = ratio_over_seeds(values)
    assert (found["low"], found["high"]) == (values[0], values[2])


def test_one_seed_decides_nothing() -> None:
    found = over_seeds([1.0])
    assert within(found["low"], found["high"], 0.9, 1.1) == "open"


def test_a_verdict_needs_evidence() -> None:
    with pytest.raises(ArgumentError, match="judgements"):
        verdict_of([])


def test_undecided_evidence_does_not_confirm() -> None:
    assert verdict_of(["open", "open"]) == "depends"
    assert verdict_of(["holds", "fails"]) == "depends"
