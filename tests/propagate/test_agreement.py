"""Agreement of indices, counted, against a plain comparison of all pairs."""

from itertools import product

import numpy as np
import pytest
import torch

from initwell.propagate.given.agreement import Array, Integers, agreement, patterns, places


def every_pair(*coordinates: Integers) -> Array:
    """Return the shares of pairs by which coordinates agree, and by which axes of places the pair agrees."""
    shape = [n for n in coordinates[0].shape if n > 1]
    parts = [c.reshape(shape) for c in coordinates]
    found = np.zeros((2,) * (len(parts) + len(shape)))
    for one, two in product(np.ndindex(*shape), repeat=2):
        same = tuple(int(c[one] != c[two]) for c in parts)
        found[same + tuple(int(i != j) for i, j in zip(one, two, strict=True))] += 1
    return np.asarray(found / found.sum(axis=tuple(range(len(parts)))))


def test_by_hand() -> None:
    # Along a sentence: 1 of 3 pairs in each; across, the same place: 1 of 3; both differ: (1,2),(2,1)… 3 of 6.
    np.testing.assert_allclose(agreement(torch.tensor([[1, 2, 2], [2, 2, 3]])), [[1, 1 / 3], [1 / 3, 0.5]])


@pytest.mark.parametrize("shape", [(5,), (1, 6), (3, 4), (2, 3, 4), (2, 1, 5)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_pairs_compared_say_the_same(shape: tuple[int, ...], count: int) -> None:
    generator = np.random.default_rng(0)
    coordinates = [generator.integers(0, 3, shape) for _ in range(count)]
    expected = every_pair(*coordinates)
    np.testing.assert_allclose(patterns(coordinates), expected, atol=1e-12)
    np.testing.assert_allclose(agreement(coordinates[0]), every_pair(coordinates[0])[0], atol=1e-12)


def test_a_scalar_and_one_place_agree_with_themselves() -> None:
    assert agreement(torch.tensor(3)).item() == 1.0 and agreement(torch.tensor([[3]])).item() == 1.0
    assert patterns([np.array([2])]).tolist() == [1.0, 0.0]


def test_booleans_are_numbers_too() -> None:
    np.testing.assert_allclose(agreement(torch.tensor([True, False, True])), [1.0, 1 / 3])


def test_places_have_an_atom_for_each_axis_that_is_one() -> None:
    (samples,), single, (last,) = places((4, 1, 3), sample=0)
    assert (samples.size, samples.sample, single, last.size, last.sample) == (4, True, (), 3, False)
