"""The same bits for any slice; the right law; independence of names, seeds and neighbours.

The statistical tests are deterministic: seed 0, 200,000 draws. A Kolmogorov distance of 0.0044 fails at the level 1e-3,
so a law that is off by 0.006 anywhere is found with a power above 0.9; a correlation of 0.018 with one above 0.99.
"""

import hashlib
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from initwell.errors import ArgumentError, ShapeError
from initwell.initializers.distributions import Constant, Distribution, Normal, TruncatedNormal, Uniform
from initwell.initializers.layout import Layout
from initwell.initializers.matrices import Orthogonal
from initwell.initializers.sparse import SparseNormal
from initwell.sampling.fill import CHUNK, fill
from initwell.sampling.philox import philox4x32
from initwell.sampling.stream import PhiloxStream, checked_seed

DRAWS = 200_000


def test_a_number_is_what_the_documentation_says() -> None:
    digest = hashlib.blake2b((7).to_bytes(8, "little"), digest_size=16, person=b"initwell stream1")
    digest.update((5).to_bytes(8, "little") + b"a.\xcf\x86b")
    key0, key1, high0, high1 = np.frombuffer(digest.digest(), "<u4").tolist()
    index = 2**34 + 5
    block = index // 2
    counter = np.array([[block & 0xFFFFFFFF, block >> 32, high0, high1]], dtype=np.uint32)
    found = philox4x32((key0, key1), counter)[0].tolist()
    expected = found[2] | found[3] << 32
    assert PhiloxStream(7, ("a.φb",)).bits(index, index + 1).tolist() == [expected]


@pytest.mark.parametrize("start", [0, 1, 2, CHUNK - 1, CHUNK, 2**33 - 3])
@pytest.mark.parametrize("length", [0, 1, 2, 7, CHUNK + 3])
def test_bits_of_a_slice_are_those_of_the_whole(start: int, length: int) -> None:
    stream = PhiloxStream(1, ("w",))
    reference = stream.bits(max(start - 5, 0), start + CHUNK + 10)
    offset = start - max(start - 5, 0)
    assert (stream.bits(start, start + length) == reference[offset : offset + length]).all()


@pytest.mark.parametrize(
    "distribution",
    [Uniform(-1.0, 1.0), Normal(0.1, 2.0), TruncatedNormal(), SparseNormal(0.3), Orthogonal(Layout((211, 301)))],
    ids=lambda d: d.kind,
)
def test_slices_of_a_tensor_fit_together(distribution: Distribution) -> None:
    shape = (211, 301)
    whole = fill(distribution, shape, seed=5, name="w")
    assert whole.shape == shape
    assert whole.dtype == np.float32
    cuts = [0, 1, 300, 301, CHUNK, CHUNK + 1, 50_001, 211 * 301]
    parts = [fill(distribution, shape, seed=5, name="w", start=a, stop=b) for a, b in pairwise(cuts)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_a_shard_of_a_huge_tensor_needs_no_memory_for_the_rest() -> None:
    shape = (2**22, 2**22)
    end = fill(Normal(), shape, seed=0, name="w", start=2**44 - 3, stop=2**44)
    assert end.shape == (3,)
    assert not (end == fill(Normal(), shape, seed=0, name="w", start=0, stop=3)).any()


@pytest.mark.parametrize(
    ("distribution", "law"),
    [
        (Uniform(-2.0, 3.0), stats.uniform(-2, 5)),
        (Normal(1.0, 0.5), stats.norm(1, 0.5)),
        (TruncatedNormal(0.0, 0.87962566103423978), stats.truncnorm(-2, 2)),
    ],
    ids=["uniform", "normal", "truncated"],
)
def test_the_law_against_scipy(distribution: Distribution, law: Any) -> None:
    drawn = fill(distribution, (DRAWS,), seed=0, name="w").astype(np.float64)
    assert stats.kstest(drawn, law.cdf).pvalue > 1e-3
    assert drawn.mean() == pytest.approx(distribution.mean, abs=5 * distribution.std / math.sqrt(DRAWS))
    assert drawn.std() == pytest.approx(distribution.std, rel=0.01)


def test_an_asymmetric_cut_has_the_mean_and_std_asked_for() -> None:
    cut = TruncatedNormal(0.3, 0.7, -0.5, 3.0)
    drawn = fill(cut, (DRAWS,), seed=0, name="w").astype(np.float64)
    assert drawn.mean() == pytest.approx(0.3, abs=5 * 0.7 / math.sqrt(DRAWS))
    assert drawn.std() == pytest.approx(0.7, rel=0.01)
    assert drawn.min() >= cut.bounds[0] - 1e-6
    assert drawn.max() <= cut.bounds[1] + 1e-6
    inner = stats.truncnorm(-0.5, 3.0)
    assert stats.kstest((drawn - 0.3) / 0.7 * inner.std() + inner.mean(), inner.cdf).pvalue > 1e-3


def test_tails_are_right_at_float32_and_small_std() -> None:
    # 2**21 draws, seed 0: beyond 4 sigma 132.8 are expected, standard error 11.5; beyond 4.5 sigma 14.2.
    size = 2**21
    drawn = fill(Normal(0.0, 1e-30), (size,), seed=0, name="tails").astype(np.float64) / 1e-30
    for edge in (3.0, 4.0, 4.5):
        expected = size * 2 * float(stats.norm.sf(edge))
        assert abs((np.abs(drawn) > edge).sum() - expected) < 5 * math.sqrt(expected)
    reference = fill(Normal(), (size,), seed=0, name="tails").astype(np.float64)
    assert np.allclose(drawn, reference, rtol=3e-7, atol=0)
    cut = fill(TruncatedNormal(0.0, 1e-6), (size // 8,), seed=0, name="tails").astype(np.float64)
    edge = 1e-6 * 2 / 0.87962566103423978
    assert np.abs(cut).max() == pytest.approx(edge, rel=1e-4)
    assert np.abs(cut).max() <= edge * (1 + 1e-6)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (PhiloxStream(0, ("a",)), PhiloxStream(0, ("b",))),
        (PhiloxStream(0, ("a",)), PhiloxStream(1, ("a",))),
        (PhiloxStream(0, ("layers.1.weight",)), PhiloxStream(0, ("layers.2.weight",))),
        (PhiloxStream(0, ("a",)), PhiloxStream(0, ("a",)).child("mask")),
        (PhiloxStream(0, ("ab", "c")), PhiloxStream(0, ("a", "bc"))),
        (PhiloxStream(2**64 - 1, ("a",)), PhiloxStream(2**63 - 1, ("a",))),
    ],
)
def test_names_and_seeds_are_independent(left: PhiloxStream, right: PhiloxStream) -> None:
    x, y = left.normal(0, DRAWS), right.normal(0, DRAWS)
    assert abs(np.corrcoef(x, y)[0, 1]) < 5 / math.sqrt(DRAWS)
    assert abs(np.corrcoef(x**2, y**2)[0, 1]) < 5 / math.sqrt(DRAWS)


def test_neighbours_are_independent() -> None:
    x = PhiloxStream(0, ("a",)).normal(0, DRAWS)
    for lag in (1, 2, 3, 4, 1000):
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 5 / math.sqrt(DRAWS)


def test_every_bit_is_a_fair_coin() -> None:
    # 200,000 words: the share of ones of a bit has a standard error of 0.0011; 64 bits, each within five.
    bits = PhiloxStream(0, ("a",)).bits(0, DRAWS)
    for place in range(64):
        assert abs(((bits >> np.uint64(place)) & np.uint64(1)).mean() - 0.5) < 5 * 0.5 / math.sqrt(DRAWS)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "0", None, True, np.float64(1), np.bool_(True)])
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    with pytest.raises(ArgumentError, match="seed"):
        fill(Normal(), (3,), seed=seed, name="w")


def test_numpy_integers_are_seeds() -> None:
    assert checked_seed(np.uint64(2**64 - 1)) == 2**64 - 1
    same = fill(Normal(), (3,), seed=np.int32(4), name="w")  # type: ignore[arg-type]  # an int by __index__
    assert (same == fill(Normal(), (3,), seed=4, name="w")).all()


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 7), (4, 3), (7, None)])
def test_slices_beyond_the_tensor_are_refused(start: int, stop: int | None) -> None:
    with pytest.raises(ArgumentError, match="start, stop"):
        fill(Normal(), (2, 3), seed=0, name="w", start=start, stop=stop)


def test_a_distribution_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 5\)"):
        fill(Orthogonal(Layout((4, 4))), (4, 5), seed=0, name="w")


def test_empty_and_scalar_tensors() -> None:
    assert fill(Normal(), (0, 4), seed=0, name="w").shape == (0, 4)
    assert fill(Constant(2.0), (), seed=0, name="w").shape == ()
    assert fill(Normal(), (2, 3), seed=0, name="w", start=6, stop=6).shape == (0,)


def test_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()  # noqa: NPY002  # that it stays is the point
    fill(Normal(), (100,), seed=0, name="w")
    after = np.random.get_state()  # noqa: NPY002
    assert str(before) == str(after)
