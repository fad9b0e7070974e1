"""Softmax's moments against sampled softmaxes: of Gaussian scores, of rows of unlike variance, of points on a sphere.

Sampling: each moment is an average over n rows of T weights; its own relative error is estimated from the rows, and
bounds are five of these, at most 3 %. Taking all rows as of one variance, or the sphere as Gaussian, is off by more.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.laws.concentration import Weights, between
from initwell.propagate.laws.mixtures import TwoKinds
from initwell.propagate.moments.signal import independent
from initwell.propagate.rules.softmax import gradient_size, softmax_backward, softmaxed

ROWS = 80000


def agrees(found: float, draws: Tensor, bound: float = 0.03) -> None:
    """Within five standard errors, which are at most 3 % in all."""
    mean, error = float(draws.mean()), float(draws.std()) / math.sqrt(len(draws))
    assert 5 * error < bound * abs(mean)
    assert abs(found - mean) < 5 * error


def gaussian(variance: float, count: int, rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, count, dtype=torch.float64, generator=generator) * math.sqrt(variance)


@pytest.mark.parametrize("variance", [0.05, 1.0, 6.0, 40.0])
@pytest.mark.parametrize("count", [2, 12, 90])
def test_moments_of_weights_by_sampling(variance: float, count: int) -> None:
    p = gaussian(variance, count).softmax(1)
    square, pair = Weights(count).moments(variance, [(2,), (1, 1)])
    agrees(square, p.square().mean(1))
    # They add up to 1.
    assert count * square + count * (count - 1) * pair == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("variance", [0.05, 0.7, 0.8, 6.0, 100.0, 290.0])
def test_two_weights_are_sigmoids(variance: float) -> None:
    """Of two scores p = σ(s − s'), a function of one Gaussian of twice their variance: a sum over a fine grid."""
    z = np.arange(-9.0, 9.0, 0.01)
    density = np.exp(-z * z / 2) * 0.01 / math.sqrt(2 * math.pi)
    p = 1 / (1 + np.exp(-math.sqrt(2 * variance) * z))
    powers = [(2,), (1, 1), (2, 2), (3, 1), (5,)]
    both = p * (1 - p)
    expected = [density @ x for x in (p**2, both, both**2, p**2 * both, p**5)]
    assert Weights(2).moments(variance, powers) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("correlation", [-0.7, 0.3, 0.8])
@pytest.mark.parametrize("variance", [0.05, 2.0, 30.0, 250.0])
def test_two_rows_of_two_weights(variance: float, correlation: float) -> None:
    """The same of two rows: E[σ(d) σ(d')] over d and d' = ρd + √(1 − ρ²)e on a fine grid."""
    z = np.arange(-8.5, 8.5, 0.012)
    density = np.exp(-z * z / 2) * 0.012 / math.sqrt(2 * math.pi)
    scale = math.sqrt(2 * variance)
    other = correlation * z[:, None] + math.sqrt(1 - correlation**2) * z[None, :]
    p, rest = 1 / (1 + np.exp(-scale * z)), 1 / (1 + np.exp(-scale * other)) @ density
    (found,) = between(variance, 2, correlation, [((1,), (1,))])
    assert found == pytest.approx(float(density @ (p * rest)), rel=1e-7)


def test_rows_of_fewer_weights_than_a_moment_has() -> None:
    # On average rows of a mask may have 1.6 open entries; on a sphere the largest scores have a limit.
    found = Weights(1.6, spread=0.1, width=40.0).moments(183.0, [(2,), (1, 1), (2, 2)])
    assert np.isfinite(found).all() and (found > 0).all()


@pytest.mark.parametrize("correlation", [-0.9, -0.6])
def test_rows_that_are_opposed_have_moments_at_any_count(correlation: float) -> None:
    """A mask leaves 12.25 of 16 entries open on average: a number between those of 12 and 13, not a NaN."""
    twelve, found, thirteen = (
        float(between(11.5, count, correlation, [((1,), (1,))])[0]) for count in (12.0, 12.25, 13.0)
    )
    assert thirteen < found < twelve


def test_rows_of_unlike_variance_by_sampling() -> None:
    # Scores q·k of 8 channels: given q their variance is |q|²/8, a χ² of 8 degrees with relative variance 2/8.
    generator = torch.Generator().manual_seed(4)
    q = torch.randn(ROWS, 1, 8, dtype=torch.float64, generator=generator)
    k = torch.randn(ROWS, 30, 8, dtype=torch.float64, generator=generator)
    p = (q * k).sum(-1).softmax(1)
    (found,) = Weights(30, spread=2 / 8).moments(8.0, [(2,)])
    (plain,) = Weights(30).moments(8.0, [(2,)])
    agrees(found, p.square().mean(1))
    assert abs(plain / found - 1) > 0.03


def test_rows_on_a_sphere_by_sampling() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(ROWS, 40, 16, dtype=torch.float64, generator=generator)
    s = 2 * x[..., 0] / x.norm(dim=-1) * math.sqrt(16)
    (found,) = Weights(40, width=16.0).moments(4.0, [(2,)])
    (plain,) = Weights(40).moments(4.0, [(2,)])
    agrees(found, s.softmax(1).square().mean(1))
    assert plain > 1.1 * found


@pytest.mark.parametrize("powers", [(1, 1), (3, 1)], ids=["pair", "cube"])
def test_how_moments_go_with_correlation(powers: tuple[int, int]) -> None:
    # The same draws with the first two scores correlated by c and by −c; the difference over 2c is the derivative.
    c, z = 0.1, gaussian(1.0, 6, 400000)
    found = []
    for sign in (1, -1):
        s = z.clone()
        s[:, 1] = sign * c * z[:, 0] + math.sqrt(1 - c * c) * z[:, 1]
        p = (math.sqrt(2.0) * s).softmax(1)
        found.append(p[:, 0] ** powers[0] * p[:, 1] ** powers[1])
    slope = (found[0] - found[1]) / (2 * c)
    error = float(slope.std()) / math.sqrt(len(slope))
    assert Weights(6).coupled(2.0, powers) == pytest.approx(float(slope.mean()), abs=5 * error)
    assert 5 * error < 0.1 * abs(float(slope.mean()))


@pytest.mark.parametrize(("spread", "width"), [(0.0, 16), (0.25, 16), (0.25, 4000)], ids=["sphere", "both", "sizes"])
def test_what_keys_are_images_of_goes_with_their_weights(spread: float, width: int) -> None:
    """Of 20 scores √v·t of a row, t = a·x: large t are rare on a sphere, and v varies by row."""
    rng = np.random.default_rng(8)
    t = np.sqrt(width * rng.beta(0.5, (width - 1) / 2, (ROWS, 20))) * rng.choice([-1.0, 1.0], (ROWS, 20))
    v = 4.0 * (rng.gamma(1 / spread, spread, (ROWS, 1)) if spread else np.ones((ROWS, 1)))
    p, scores = torch.as_tensor(np.sqrt(v) * t).softmax(1), torch.as_tensor(t)
    sums = (p * scores).sum(1) ** 2 - (p * scores).square().sum(1)
    one, two = Weights(20, spread, float(width)), TwoKinds((20, 0), (4.0, 0.0), 0.0, spread, float(width))
    agrees(one.coupled(4.0, (1, 1)), sums / (20 * 19))
    agrees(one.coupled_itself(4.0, (2,)), (p * p * (scores * scores - 1)).mean(1))
    assert two.coupled((1, 1)) == pytest.approx(one.coupled(4.0, (1, 1)), rel=1e-4)
    assert two.coupled_itself((2,)) == pytest.approx(one.coupled_itself(4.0, (2,)), rel=1e-4)


@pytest.mark.parametrize("correlation", [-0.4, 0.0, 0.6, 1.0])
@pytest.mark.parametrize(("variance", "count"), [(0.5, 5), (6.0, 30)])
def test_two_rows_that_correlate_by_sampling(variance: float, count: int, correlation: float) -> None:
    s = gaussian(1.0, count)
    other = torch.randn(*s.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    p = (math.sqrt(variance) * s).softmax(1)
    q = (math.sqrt(variance) * (correlation * s + math.sqrt(1 - correlation**2) * other)).softmax(1)
    both, unlike = between(variance, count, correlation, [((1,), (1,)), ((2, 1), (1, 2))])
    agrees(both, (p * q).mean(1), 0.06)
    each = (p * p * q).sum(1) * (p * q * q).sum(1) - (p**3 * q**3).sum(1)
    agrees(unlike, each / (count * (count - 1)), 0.12)
    assert not correlation or abs(both * count**2 - 1) > 0.06


def test_rows_of_softmax_overlap_as_their_scores_do() -> None:
    # Scores of 40 rows whose correlation is 0.5: E[s_i·s_j] = 1 + δ_ij, and a part that all have in common.
    generator = torch.Generator().manual_seed(10)
    own, common, offset = (
        torch.randn(4000, *n, dtype=torch.float64, generator=generator) for n in ((40, 12), (1, 12), (40, 1))
    )
    p = (own + common + offset).softmax(-1)
    # By pattern (rows, weights): what all weights of a row share goes with rows that agree.
    s = independent((40, 12), 1.0)
    moments = np.array([[3.0, 1.0], [1.0, 0.0]])
    found = softmaxed(s.changed(moments, 0.0), 1).moments
    pairs = torch.einsum("nik,njk->nij", p, p)
    off = ~torch.eye(40, dtype=torch.bool)
    agrees(found[0, 0], p.square().mean((1, 2)))
    agrees(found[1, 0], pairs[:, off].mean(1) / 12)


@pytest.mark.parametrize("variance", [0.05, 1.0, 4.0])
def test_softmax_and_its_gradient_by_sampling(variance: float) -> None:
    s = gaussian(variance, 12)
    p = s.softmax(1)
    found = softmaxed(independent((50, 12), variance), 1)
    assert found.moments[0, 0] + 11 * found.moments[0, 1] == pytest.approx(1 / 12)
    agrees(found.q, p.square().mean(1))
    g = torch.randn(ROWS, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    d = p * (g - (p * g).sum(1, keepdim=True))
    agrees(softmax_backward(independent((50, 12), 1.0), independent((50, 12), variance), 1).q, d.square().mean(1))


def sampled_gradient(x: Tensor, variance: float) -> Tensor:
    """Scores w·x_j and gradients u·x_j: p and x_j go together."""
    width = x.shape[-1]
    u = torch.randn(len(x), width, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    p = (math.sqrt(variance) * x[..., 0]).softmax(1)
    g = (x @ u).squeeze(-1) / math.sqrt(width)
    return (p * (g - (p * g).sum(1, keepdim=True))).square().mean(1)


def test_a_gradient_that_comes_from_the_same_rows_as_the_scores() -> None:
    x = torch.randn(3 * ROWS, 24, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    found, apart = gradient_size(Weights(24), 6.0, 1 / 8), gradient_size(Weights(24), 6.0, 0.0)
    agrees(found, sampled_gradient(x, 6.0))
    assert abs(apart / found - 1) > 0.03


def test_such_a_gradient_of_rows_of_one_length() -> None:
    # Stein's lemma is for Gaussians: on a sphere of 16 dimensions it holds to the first order in 1/16.
    x = torch.randn(ROWS, 24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    draws = sampled_gradient(x / x.norm(dim=-1, keepdim=True) * 4, 1.0)
    found = gradient_size(Weights(24, width=16.0), 1.0, 1 / 16, 1.0)
    apart = gradient_size(Weights(24, width=16.0), 1.0, 0.0)
    assert found == pytest.approx(float(draws.mean()), rel=0.02)
    assert apart > 1.06 * found


def test_a_softmax_over_one_entry_is_one_and_has_no_gradient() -> None:
    s = independent((4, 1), 2.0)
    assert softmaxed(s, 1).moments.tolist() == [1.0, 1.0]
    assert softmaxed(s, 1).mean == 1.0
    assert not np.any(softmax_backward(independent((4, 1), 1.0), s, 1).moments)


class Exploding(nn.Module):
    """Attention scores of rows that have grown to thousands."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.query(1e3 * x) @ self.key(x).transpose(-2, -1), -1)


def test_a_softmax_of_scores_beyond_any_size_is_unknown_and_says_so() -> None:
    found = iw.predict(Exploding(), torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0)))
    assert found.rows[-1]["forward_rms"] is None
    assert any("scores whose variance is above 10⁶" in note for note in found.notes)
