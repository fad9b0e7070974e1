"""Sparse weights, the unit ball and bilinear filters."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from initwell.errors import ArgumentError, ShapeError
from initwell.initializers.base import Initializer
from initwell.initializers.filters import UnitBall
from initwell.initializers.layout import Layout
from initwell.initializers.sparse import FixedCountSparse
from initwell.initializers.structured import bernoulli_sparse, bilinear, identity, positive_unitball, sparse
from initwell.sampling.fill import fill


@pytest.mark.parametrize(
    ("layout", "units_first"),
    [
        (Layout((50, 40)), lambda w: w),
        (Layout((40, 50), "linear", 0, 1), lambda w: w.T),
        (Layout((12, 3, 3, 3), "conv", groups=2), lambda w: w.reshape(12, -1)),
        (Layout((60, 20), parts=3), lambda w: w),
    ],
    ids=["linear", "inputs first", "grouped", "packed"],
)
def test_each_unit_has_exactly_so_many_inputs(layout: Layout, units_first: Callable[[np.ndarray], np.ndarray]) -> None:
    weight = fill(sparse(count=15).recipe(layout).distribution, layout.shape, seed=3, name="w")
    assert set((units_first(weight) != 0).sum(axis=1)) == {15}


def test_every_input_is_chosen_equally_often() -> None:
    # 4,000 units choose 5 of 20: each input 1,000 times, standard error 27; favouring one by 15 % would show.
    chosen = (fill(FixedCountSparse(Layout((4000, 20)), 5), (4000, 20), seed=0, name="w") != 0).sum(axis=0)
    assert np.abs(chosen - 1000).max() < 5 * math.sqrt(4000 * 0.25 * 0.75)


def test_sparse_says_when_a_unit_has_too_few_inputs() -> None:
    recipe = sparse(count=15).recipe(Layout((8, 9)))
    assert recipe.fan == 9.0
    assert "only 9 inputs" in recipe.note
    assert sparse(count=5).recipe(Layout((8, 9))).note == ""


def test_sparse_keeps_the_second_moment_unless_told_a_std() -> None:
    layout = Layout((10, 100))
    assert sparse(count=16, gain=2.0).recipe(layout).distribution.std == pytest.approx(2 / 10)
    assert sparse(count=16, std=1.0).recipe(layout).distribution.std == pytest.approx(0.4)
    assert bernoulli_sparse(0.25, gain=2.0).recipe(layout).distribution.std == pytest.approx(2 / 10)
    assert bernoulli_sparse(0.25, std=1.0).recipe(layout).distribution.std == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: sparse(count=0), "count"),
        (lambda: sparse(std=0.0), "std"),
        (lambda: sparse(gain=-1.0), "gain"),
        (lambda: bernoulli_sparse(0.0), "probability"),
        (lambda: bernoulli_sparse(1.5), "probability"),
        (lambda: bernoulli_sparse(std=-1.0), "std"),
        (lambda: identity(math.inf), "gain"),
    ],
)
def test_bad_numbers_are_refused_by_name(build: Callable[[], Initializer], argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        build()
    assert caught.value.argument == argument


def test_sparse_of_a_vector_is_refused() -> None:
    with pytest.raises(ShapeError):
        sparse().recipe(Layout.of((7,)))


def test_unit_ball_rows_are_positive_and_sum_to_one() -> None:
    layout = Layout((20, 5, 3), "conv")
    weight = fill(positive_unitball().recipe(layout).distribution, layout.shape, seed=0, name="w")
    assert (weight > 0).all()
    assert np.allclose(weight.reshape(20, -1).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 300])
def test_unit_ball_std_against_sampling(n: int) -> None:
    # 60,000 entries, seed 0: the standard error of the std is below 0.4 %, so 3 % is more than seven of them.
    rows = max(60_000 // n, 2)
    ball = UnitBall(Layout((rows, n)))
    drawn = fill(ball, (rows, n), seed=0, name="w").astype(np.float64)
    assert drawn.std() == pytest.approx(ball.std, rel=0.03, abs=1e-12)
    assert drawn.mean() == pytest.approx(ball.mean, rel=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bilinear_transposed_convolution_interpolates(factor: int) -> None:
    width = 2 * factor - factor % 2
    layout = Layout((3, 3, width, width), "conv_transpose", 0, 1, stride=(factor, factor))
    weight = torch.from_numpy(fill(bilinear().recipe(layout).distribution, layout.shape, seed=0, name="w"))
    x = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    up = functional.conv_transpose2d(x, weight, stride=factor, padding=math.ceil((factor - 1) / 2))
    expected = functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    inner = (..., slice(factor, -factor), slice(factor, -factor))
    assert torch.allclose(up[inner], expected[inner], atol=1e-5)


def test_bilinear_wants_a_kernel() -> None:
    with pytest.raises(ShapeError, match="no positions"):
        bilinear().recipe(Layout((4, 4)))
