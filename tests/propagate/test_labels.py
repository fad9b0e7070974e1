"""Contractions of moments: the three ways in which they are worked out are one."""

import numpy as np
import pytest

from initwell.propagate.moments import labels
from initwell.propagate.moments.labels import Weights, bilinear
from initwell.propagate.moments.segments import averaging, dropped, patterns

# What is contracted, shapes of both operands, and of what they are weighed by.
CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], list[tuple[int, ...]]]] = {
    "rows times columns": ("abc,cd,c->abd", (2, 2, 6), (6, 2), [(6,)]),
    "a batch": ("abcd,abed,d->abce", (2, 2, 6, 2), (2, 2, 2, 2), [(2,)]),
    "a batch of segments": ("abcd,abed,d->abce", (2, 2, 6, 6), (2, 2, 6, 6), [(6,)]),
    "two axes at once": ("abcd,dcef,c,d->abef", (2, 2, 2, 6), (6, 2, 2, 2), [(2,), (6,)]),
    "two axes the other way round": ("abcd,dcef,d,c->abef", (2, 2, 2, 6), (6, 2, 2, 2), [(6,), (2,)]),
    "taps": ("abx,cbz,b,xzp->acp", (2, 2, 2), (2, 2, 2), [(2,), (2, 2, 2)]),
    "taps along two axes": ("abxy,cbzw,b,xzp,ywq->acpq", (2,) * 4, (2,) * 4, [(2,), (2, 2, 2), (2, 2, 2)]),
    "nothing is summed over": ("ab,cd->abcd", (2, 2), (2, 2), []),
}


@pytest.mark.parametrize("name", CASES)
def test_contractions_are_what_einsum_makes_of_them(name: str) -> None:
    names, one, two, shapes = CASES[name]
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(one), rng.standard_normal(two)
    weights = Weights(tuple(rng.standard_normal(shape) for shape in shapes))
    expected = np.einsum(names, a, b, *weights.tables)
    np.testing.assert_allclose(bilinear(names, a, b, weights), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(labels._multiplied(names, a, b, weights), expected, rtol=1e-12, atol=1e-12)


def test_both_ways_beside_einsum_are_taken() -> None:
    small = Weights((np.ones(2), np.ones((2, 2, 2))))
    assert labels._table("abx,cbz,b,xzp->acp", (2, 2, 2), (2, 2, 2), small) is not None
    large = Weights((np.ones(6),))
    assert labels._table("abcd,abed,d->abce", (2, 2, 6, 6), (2, 2, 6, 6), large) is None
    assert labels._plan("abcd,abed,d->abce") is not None
    assert labels._plan("abx,cbz,b,xzp->acp") is None


@pytest.mark.parametrize("differ", [(), (0,), (1,), (0, 2), (0, 1, 2)])
def test_averages_by_weights_are_those_axis_by_axis(differ: tuple[int, ...]) -> None:
    layout = ((4,), (1, 3), (2, 2, 5))
    each = [patterns(parts) for parts in layout]
    moments = np.random.default_rng(1).standard_normal([p.counts.size for p in each])
    found = moments
    for axis in reversed(range(3)):
        found = dropped(found, each[axis].differ if axis in differ else each[axis].agree, axis)
    assert averaging(layout, differ) @ moments.ravel() == pytest.approx(float(found), rel=1e-12)
