"""Transforms against SciPy's quantiles, in the middle and far out; every number depends on its own bits only."""

import math

import numpy as np
import pytest
from scipy import special, stats

from initwell.sampling import transforms


def test_unit_interval_excludes_its_ends_and_mirrors_exactly() -> None:
    bits = np.array([0, 2**12 - 1, 2**12, 2**63, 2**64 - 1], dtype=np.uint64)
    u = transforms.unit(bits)
    assert u[0] == u[1] == 2.0**-53
    assert u[-1] == 1 - 2.0**-53
    assert u[2] == 3 * 2.0**-53
    flipped = transforms.unit(~bits)
    assert (flipped == 1.0 - u).all()
    assert (transforms.normal_quantile(flipped) == -transforms.normal_quantile(u)).all()


def test_normal_quantile_against_scipy() -> None:
    near = transforms.unit(np.random.default_rng(0).integers(0, 2**64, 200_000, dtype=np.uint64))
    far = np.geomspace(1e-300, 0.5, 20_000)
    borders = 0.5 + np.array([-0.425, 0.425, -0.4250000001, 0.4250000001, 1e-9])
    for u in (near, far, borders, np.array([np.exp(-25.0), np.exp(-25.0001)])):
        assert np.allclose(transforms.normal_quantile(u), special.ndtri(u), rtol=2e-15, atol=1e-300)


def test_log_against_the_library() -> None:
    x = np.concatenate([np.geomspace(1e-300, 1e300, 20_001), 1 + np.linspace(-1e-3, 1e-3, 2001), [1.0, 0.5, 2.0]])
    assert np.allclose(transforms.log(x), np.log(x), rtol=5e-16, atol=0)


CUTS = [(-2.0, 2.0), (-1.0, 3.0), (-0.1, 0.1), (0.5, 2.0), (-4.0, -3.0), (6.0, 7.0), (-math.inf, 1.0), (2.0, math.inf)]


@pytest.mark.parametrize(("low", "high"), CUTS)
def test_truncated_quantile_against_scipy(low: float, high: float) -> None:
    u = transforms.unit(np.random.default_rng(1).integers(0, 2**64, 2000, dtype=np.uint64))
    ours, theirs = transforms.truncated_normal(u, low, high), stats.truncnorm.ppf(u, low, high)
    assert np.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    assert ours.min() >= low
    assert ours.max() <= high


def test_symmetric_cut_is_symmetric_to_the_bit() -> None:
    u = transforms.unit(np.random.default_rng(2).integers(0, 2**64, 2000, dtype=np.uint64))
    assert (transforms.truncated_normal(1.0 - u, -2.0, 2.0) == -transforms.truncated_normal(u, -2.0, 2.0)).all()
    assert (transforms.truncated_normal(1.0 - u, -3.0, -1.0) == -transforms.truncated_normal(u, 1.0, 3.0)).all()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 15, 16, 31, 64, 1000])
def test_a_number_does_not_depend_on_its_neighbours(size: int) -> None:
    # Vector units treat the ends of an array apart; a fused or reordered operation would show here.
    u = transforms.unit(np.random.default_rng(3).integers(0, 2**64, 1000, dtype=np.uint64))
    whole = transforms.normal_quantile(u)
    for start in range(0, 1000 - size + 1, max(size, 97)):
        assert (transforms.normal_quantile(u[start : start + size].copy()) == whole[start : start + size]).all()


def test_nothing_in_gives_nothing_out() -> None:
    assert transforms.normal_quantile(np.empty(0)).shape == (0,)
    assert transforms.truncated_normal(np.empty(0), -2.0, 2.0).shape == (0,)
