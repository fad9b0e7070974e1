"""Segments of an axis: bookkeeping against brute force over all pairs of indices of sampled tensors."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.moments.alike import merged, refined, settled
from initwell.propagate.moments.atoms import cut, expanded, matched, together, viewed
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.centring import centred
from initwell.propagate.moments.remembered import Law
from initwell.propagate.moments.segments import patterns
from initwell.propagate.moments.signal import Signal, constant, independent, replace
from initwell.propagate.rules.contraction import contract
from initwell.propagate.rules.norm import normalized
from initwell.propagate.rules.parts import concatenated, padded, selected, sliced
from initwell.propagate.rules.pointwise import applied
from initwell.propagate.rules.shape import summed
from initwell.theory.activations import activation


def by_brute_force(draws: Any, parts: tuple[tuple[int, ...], ...]) -> Signal:
    """Average x_i x_j over draws (axis 0) and over all pairs of indices of each pattern."""
    axes = [patterns(p) for p in parts]
    segment = [np.repeat(np.arange(len(p)), p) for p in parts]
    sums = np.zeros([a.counts.size for a in axes])
    counts = np.zeros_like(sums)
    means = np.zeros([len(p) for p in parts])
    for i in np.ndindex(draws.shape[1:]):
        means[tuple(s[x] for s, x in zip(segment, i, strict=True))] += draws[(slice(None), *i)].mean()
        for j in np.ndindex(draws.shape[1:]):
            place = []
            for x, y, s, p in zip(i, j, segment, parts, strict=True):
                place.append(s[x] if x == y else len(p) + s[x] * len(p) + s[y])
            sums[tuple(place)] += (draws[(slice(None), *i)] * draws[(slice(None), *j)]).mean()
            counts[tuple(place)] += 1
    dims = tuple((Atom(sum(p), False, p if len(p) > 1 else ()),) for p in parts)
    for i in np.ndindex(means.shape):
        means[i] /= np.prod([p[k] for k, p in zip(i, parts, strict=True)])
    return Signal(dims, sums / np.maximum(counts, 1), means)


def assert_same(found: Signal, true: Signal, rtol: float = 1e-9) -> None:
    """Compare where there are pairs at all."""
    there = np.ones(())
    for atom in true.atoms:
        there = np.multiply.outer(there, atom.patterns.counts > 0)
    assert found.dims == true.dims
    np.testing.assert_allclose((found.moments * there), (true.moments * there), rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(found.means, true.means, rtol=rtol, atol=1e-12)


@pytest.fixture
def draws() -> Any:
    """200 draws of (3, 6) entries of unlike size and mean along the second axis."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3, 6)) + rng.normal(size=(200, 1, 6))
    return x * np.array([3.0, 1, 1, 1, 0.5, 0.5]) + np.array([1.0, 0, 0, 0, -2, -2])


PARTS = ((3,), (1, 3, 2))


def test_patterns_count_all_pairs() -> None:
    """Counts add up to n², and every average is one of weights that add up to 1."""
    found = patterns((1, 4, 2))
    assert found.counts.sum() == 49
    for weights in (found.agree, found.differ, found.every, *found.rows):
        assert weights.sum() == pytest.approx(1.0)
    assert (found.first[found.swap] == found.second).all()


def test_sums_slices_and_selections_are_exact(draws: Any) -> None:
    """Each against brute force on the same draws, where the draws' own averages obey the same algebra."""
    x = by_brute_force(draws, PARTS)
    # Within a segment, brute force averages pairs; exchangeable draws would need no averaging.
    assert_same(summed(x, [1], keep=False, mean=True), by_brute_force(draws.mean(2), PARTS[:1]))
    assert_same(selected(x, 1, 0), by_brute_force(draws[:, :, 0], PARTS[:1]))
    assert_same(sliced(x, 1, 0, 4), by_brute_force(draws[:, :, :4], ((3,), (1, 3))))
    assert_same(sliced(x, 1, 1, 4), by_brute_force(draws[:, :, 1:4], ((3,), (3,))))
    zeros = np.concatenate([np.zeros((200, 3, 2)), draws, np.zeros((200, 3, 1))], 2)
    assert_same(padded(x, 1, 2, 1), by_brute_force(zeros, ((3,), (2, 1, 3, 2, 1))))


def test_whole_averages(draws: Any) -> None:
    """q, mean, and the moments of x − x̄ along the axis with segments."""
    x = by_brute_force(draws, PARTS)
    assert x.q == pytest.approx((draws**2).mean())
    assert x.mean == pytest.approx(draws.mean())
    apart = by_brute_force(draws - draws.mean(2, keepdims=True), PARTS)
    found = centred(x, [1])
    assert found[0, :3] == pytest.approx(apart.moments[0, :3])
    assert (found * patterns(PARTS[1]).every).sum() == pytest.approx(0.0, abs=1e-12)


def test_joining_is_slicing_undone(draws: Any) -> None:
    """Independent parts joined have those parts, and products of means between them."""
    x = by_brute_force(draws, PARTS)
    parts = [sliced(x, 1, 0, 1), sliced(x, 1, 1, 4), sliced(x, 1, 4, 6)]
    found = concatenated(parts, 1)
    assert found.dims == x.dims
    assert found.diagonal == pytest.approx(x.diagonal)
    s = len(PARTS[1])
    assert found.moments[0, s + 2] == pytest.approx(x.means[0, 0] * x.means[0, 2])
    again = concatenated([parts[1], parts[1]], 1, of=[(4, 1.0), (4, 1.0)])
    twice = by_brute_force(np.concatenate([draws[:, :, 1:4]] * 2, 2), ((3,), (6,)))
    assert again.q == pytest.approx(twice.q)
    assert summed(again, [1], keep=False, mean=True).q == pytest.approx(twice.averaged([1]) * 5 / 6 + twice.q / 6)


def test_splitting_and_merging_segments(draws: Any) -> None:
    """Splitting loses nothing and settles back; merging unlike ones keeps q and says that it lost something."""
    x = by_brute_force(draws, PARTS)
    finer = refined(x, 1, (1, 1, 2, 1, 1))
    assert finer.q == pytest.approx(x.q)
    assert settled(finer, 1).dims == x.dims
    one = merged(x, 1, (0, 0, 0))
    assert one.q == pytest.approx(x.q)
    assert one.mean == pytest.approx(x.mean)
    assert one.fidelity == "approximate"
    assert settled(merged(finer, 1, (0, 1, 1, 2, 2)), 1).fidelity == "exact"


def test_views_cut_segments_at_their_borders() -> None:
    """Three stacked parts seen as an axis of three."""
    parts = [independent((2, 4), q) for q in (1.0, 2.0, 3.0)]
    whole = concatenated(parts, 1)
    split = viewed(whole, (2, 3, 4))
    assert split.dims[1][0].parts == (1, 1, 1)
    assert [selected(split, 1, i).q for i in range(3)] == [1.0, 2.0, 3.0]
    assert split.fidelity == "exact"
    assert viewed(whole, (2, 2, 6)).fidelity == "approximate"
    assert cut(independent((6,), 1.0), 0, 2).q == 1.0


def test_views_keep_what_is_all_the_same_from_what_is_not() -> None:
    """Two rows of their own beside six that are one row, in blocks of six: what an average of the two has.

    Of one size, they were taken as alike, and the square of their average as 1.5 times as large.
    """
    own, same = independent((2, 5), 1.0), expanded(independent((1, 5), 1.0), (6, 5))
    whole = concatenated([padded(own, 0, 2, 0), same, constant((2, 5), 0.0)], 0)
    first = selected(viewed(whole, (2, 6, 5)), 0, 0)
    assert summed(sliced(first, 0, 2, 4), [0], keep=False, mean=True).q == pytest.approx(0.5)
    assert first.fidelity == "exact"


def test_contraction_over_segments() -> None:
    """y = Σ a_k b_k where both have segments, at other places: against 20,000 draws (standard error of q 1 %)."""
    rng = np.random.default_rng(1)
    a = concatenated([independent((1, 1), 4.0, 1.0), independent((1, 5), 1.0)], 1)
    b = concatenated([independent((3, 1), 1.0), independent((3, 1), 2.0, 0.5)], 0)
    found = contract(*matched(a, b, [(1, 0)]), [(1, 0)])
    n = 20_000
    x = rng.normal(size=(n, 6)) * np.sqrt([3.0, 1, 1, 1, 1, 1]) + np.array([1.0, 0, 0, 0, 0, 0])
    y = rng.normal(size=(n, 6)) * np.sqrt([1, 1, 1, 1.75, 1.75, 1.75]) + np.array([0, 0, 0, 0.5, 0.5, 0.5])
    z = (x * y).sum(1)
    assert found.q == pytest.approx((z**2).mean(), rel=0.04)
    assert found.q == pytest.approx(4 + 2 + 6)


def test_relu_of_segments() -> None:
    """Each segment by its own variance, pairs across them by both: arc-cosine kernel of unlike lengths."""
    x = independent((8,), 1.0)
    moments = np.array([4.0, 1.0, 0.0, 1.0, 1.0, 0.5])
    x = Signal(((Atom(8, False, (1, 7)),),), moments)
    found = applied(activation("relu"), x)
    c = 1.0 / 2.0
    kernel = 2.0 * (np.sqrt(1 - c * c) + c * (np.pi - np.arccos(c))) / (2 * np.pi)
    assert found.moments[[0, 1]] == pytest.approx([2.0, 0.5])
    assert found.moments[3] == pytest.approx(kernel, rel=1e-4)
    assert found.means == pytest.approx([2 / np.sqrt(2 * np.pi), 1 / np.sqrt(2 * np.pi)])


def test_normalizing_beside_segments() -> None:
    """Layer norm makes a small token as large as the others; along the tokens, x − x̄ keeps what is not in the mean."""
    x = concatenated([independent((1, 64), 0.01), independent((4, 64), 1.0)], 0)
    assert normalized(x, [1], 0.0).diagonal.ravel() == pytest.approx([1.0, 1.0])
    along = normalized(x, [0], 0.0)
    assert along.q == pytest.approx(1.0)
    assert along.diagonal[0] / along.diagonal[1] == pytest.approx((0.01 * 0.6 + 4.01 / 25) / (0.6 + 4.01 / 25))


class ClassToken(nn.Module):
    """A small token in front, blocks of attention with one head, and a head that reads that token alone."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.full((1, 1, width), 0.05) * torch.randn(1, 1, width))
        self.enter, self.norm, self.head = nn.Linear(32, width), nn.LayerNorm(width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(nn.ModuleList(nn.Linear(width, width) for _ in range(3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.enter(x)], 1)
        for block in self.blocks:
            h = self.norm(x)
            query, key, value = (layer(h) for layer in block.children())
            x = x + torch.softmax(query @ key.mT / 64, -1) @ value
        y: Tensor = self.head(x[:, 0])
        return y


def test_a_class_token_is_told_from_the_patches() -> None:
    """Sizes at the token, its head and the gradients that reach it, against 8 weight seeds (standard errors 2 to 4 %).

    Were all tokens taken as alike, the head would be 2 times too large and the token's gradient 4 times too small.
    """
    torch.manual_seed(0)
    model, batch = ClassToken(), torch.randn(16, 24, 32, generator=torch.Generator().manual_seed(1))
    predicted = iw.predict(model, batch, plan=iw.plan(model, "xavier"))
    runs = []
    for seed in range(8):
        iw.init_(model, "xavier", seed=seed)
        runs.append(iw.measure(model, batch, seed=seed))
    for i, row in enumerate(predicted.rows):
        if row["path"] == "head" or row["op"] == "aten.cat":
            for key in ("forward_rms", "gradient_rms"):
                true = np.sqrt(np.mean([run.rows[i][key] ** 2 for run in runs]))
                assert row[key] == pytest.approx(true, rel=0.12), (row["op"], key)


def test_what_is_repeated_along_segments_has_its_law_in_each() -> None:
    law = Law(np.array([[1.0, 2.0]]), np.array([[0.5, 0.5]]), np.zeros(1), None, np.ones(1), np.zeros(1))
    largest, scores = replace(independent((4, 1), 2.5, 1.5), law=law), refined(independent((4, 6), 1.0), 1, (2, 4))
    wide = expanded(largest, (4, 6), scores)
    assert wide.law is not None
    assert wide.means.shape == (1, 2)
    assert wide.law.values.tolist() == [[1.0, 2.0], [1.0, 2.0]]
    assert together(wide, refined(scores, 1, (2, 1, 3)), (4, 6))[0].law is not None
