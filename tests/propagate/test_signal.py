"""Signals and atoms: exact bookkeeping, against averages over all pairs of real tensors."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from initwell.errors import ArgumentError, ShapeError
from initwell.propagate.given.measured import measured, measured_weight, pair_averages
from initwell.propagate.moments.atoms import cut, expanded, joined, matched, permuted, viewed
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.signal import Signal, independent, replace


def by_pairs(x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Average x_i x_j over pairs of indices by brute force."""
    total, count = np.zeros((2,) * x.ndim), np.zeros((2,) * x.ndim)
    places = list(itertools.product(*map(range, x.shape)))
    for i, j in itertools.product(places, places):
        pattern = tuple(int(a != b) for a, b in zip(i, j, strict=True))
        total[pattern] += float(x[i]) * float(x[j])
        count[pattern] += 1
    return np.asarray(total / count)


def test_measured_moments_are_the_averages_over_all_pairs() -> None:
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1)) + 0.5
    np.testing.assert_allclose(pair_averages(x), by_pairs(x), rtol=1e-6)


def test_cutting_an_atom_and_joining_it_again_changes_nothing() -> None:
    signal = measured(torch.randn(6, 5, generator=torch.Generator().manual_seed(2)))
    again = joined(cut(signal, 0, 2), 0)
    assert again.dims == signal.dims and again.fidelity == "exact"
    np.testing.assert_allclose(again.moments, signal.moments)


def test_a_view_and_its_way_back_lose_nothing() -> None:
    signal = measured(torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(3)))
    there = viewed(signal, (24, 5))
    assert there.shape == (24, 5) and [len(d) for d in there.dims] == [2, 1]
    np.testing.assert_allclose(viewed(there, (4, 6, 5)).moments, signal.moments)
    heads = viewed(signal, (4, 6, 5, 1))
    assert heads.dims[3] == () and heads.q == signal.q


def test_lengths_that_do_not_divide_are_averaged_and_said() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(4))
    seen = viewed(measured(x), (6, 2))
    assert seen.fidelity == "approximate" and "averaged" in seen.reasons[0]
    assert seen.q == pytest.approx(float(x.double().square().mean()))


def test_expanding_repeats_along_an_axis_whose_differ_is_its_agree() -> None:
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(5))
    np.testing.assert_allclose(expanded(measured(x), (3, 4)).moments, by_pairs(x.expand(3, 4)))


def test_permuting_moves_the_axes() -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(6))
    np.testing.assert_allclose(permuted(measured(x), [2, 0, 1]).moments, by_pairs(x.permute(2, 0, 1)), rtol=1e-6)


def test_matching_cuts_both_until_their_atoms_are_the_same() -> None:
    a, b = viewed(independent((2, 6), 1.0), (12,)), viewed(independent((4, 3), 1.0), (12,))
    a, b = matched(a, b, [(0, 0)])
    assert [x.size for x in a.dims[0]] == [x.size for x in b.dims[0]] == [2, 2, 3]


def test_the_overlap_is_between_samples() -> None:
    x = torch.ones(5, 3)
    assert measured(x, sample=0).overlap == pytest.approx(1.0)
    assert measured(x).overlap is None


def test_fresh_weights_count_as_independent_and_structured_ones_do_not() -> None:
    weight = torch.randn(60, 50, generator=torch.Generator().manual_seed(7))
    fresh = measured_weight(weight)
    assert fresh.moments[0, 1] == fresh.moments[1, 0] == fresh.moments[1, 1] == 0 and fresh.mean == 0
    centred = measured_weight(weight - weight.mean(1, keepdim=True))
    assert centred.moments[0, 1] == pytest.approx(-centred.q / 49, rel=1e-3)
    assert measured_weight(weight + 1).mean == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (lambda: Signal(((Atom(3),),), np.zeros((2, 2))), ArgumentError),
        (lambda: viewed(independent((4, 3), 1.0), (5,)), ShapeError),
        (lambda: matched(independent((4,), 1.0), independent((3,), 1.0), [(0, 0)]), ShapeError),
    ],
)
def test_what_does_not_fit_is_refused(fault, error) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error):
        fault()


def test_a_copy_forgets_what_was_worked_out_of_other_numbers_only() -> None:
    signal = independent((4, 3), 2.0, 1.0)
    assert (signal.q, signal.mean, signal.shape) == (2.0, 1.0, (4, 3))
    assert replace(signal, spread=0.5).q == 2.0
    other = replace(signal, moments=3 * signal.moments, means=np.full((1, 1), 0.5), dims=((Atom(6),), (Atom(2),)))
    assert (other.q, other.mean, other.shape) == (6.0, 0.5, (6, 2))
    with pytest.raises(TypeError, match="has no field size"):
        replace(signal, size=3)


def test_what_is_repeated_takes_the_atoms_it_is_repeated_along() -> None:
    """A bias added to (rows of two kinds) × features: the same moments as cutting them afterwards."""
    bias = measured(torch.randn(6, generator=torch.Generator().manual_seed(4)))
    like = Signal(((Atom(4, True, (1, 3)),), (Atom(3), Atom(2))), np.ones((6, 2, 2)), np.ones(()))
    found = expanded(bias, (4, 6), like)
    one, two = matched(expanded(bias, (4, 6)), like, [(0, 0), (1, 1)])
    again, _ = matched(found, like, [(0, 0), (1, 1)])
    assert again.dims == one.dims == two.dims
    np.testing.assert_allclose(again.moments, one.moments, rtol=1e-12)
    np.testing.assert_allclose(again.means, one.means, rtol=1e-12)
