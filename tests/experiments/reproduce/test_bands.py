"""Bands over seeds: as far as all curves reach, on the scale that is asked for."""

import pytest

from initwell.experiments.reproduce.bands import band, points_over_seeds


def test_curves_of_unequal_length_are_averaged_as_far_as_all_reach() -> None:
    (point,) = points_over_seeds([[1.0, 5.0], [3.0], [2.0, 5.0]])
    assert point["value"] == 2.0
    assert point["low"] < 2.0 < point["high"]


def test_ratios_are_averaged_on_the_logarithms() -> None:
    (point,) = points_over_seeds([[1.0], [100.0]], ratios=True)
    assert point["value"] == pytest.approx(10.0)
    assert point["low"] * point["high"] == pytest.approx(100.0)


def test_a_band_is_scaled_as_a_whole() -> None:
    series = band("gain", (0.1, 0.2), [{"value": 0.5, "low": 0.25, "high": 0.75, "seeds": 3}] * 2, "points", scale=100)
    assert (series.x, series.y, series.low, series.high) == ((0.1, 0.2), (50.0,) * 2, (25.0,) * 2, (75.0,) * 2)
