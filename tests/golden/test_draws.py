"""Frozen draws: weights that were written down once must stay what they are, release after release.

``draws.json`` was made by ``draw_all`` when the stream was defined. A difference means that every seed gives other
weights than before; that is a new stream version (another BLAKE2b personalisation), never an edit of the file.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from initwell.initializers.distributions import Distribution, Normal, TruncatedNormal, Uniform
from initwell.initializers.filters import UnitBall
from initwell.initializers.layout import Layout
from initwell.initializers.matrices import Orthogonal
from initwell.initializers.sparse import FixedCountSparse, SparseNormal
from initwell.sampling.fill import fill

FROZEN = Path(__file__).with_name("draws.json")
HUGE = (2**21, 2**21)
SMALL = Layout((4, 6))
# case: distribution, shape, seed, name, start, stop
CASES: dict[str, tuple[Distribution, tuple[int, ...], int, str, int, int]] = {
    "uniform": (Uniform(-0.5, 0.5), HUGE, 0, "weight", 0, 6),
    "normal": (Normal(), HUGE, 0, "weight", 0, 6),
    "normal, other seed and name": (Normal(), HUGE, 2**64 - 1, "块.0.φ", 0, 6),
    "normal, past 2**32": (Normal(0.0, 0.02), HUGE, 0, "weight", 2**40 + 1, 2**40 + 7),
    "truncated normal": (TruncatedNormal(), HUGE, 0, "weight", 0, 6),
    "truncated normal, one side": (TruncatedNormal(0.0, 1.0, 1.0, 4.0), HUGE, 0, "weight", 0, 6),
    "sparse normal": (SparseNormal(0.5), HUGE, 0, "weight", 0, 6),
    "fixed count sparse": (FixedCountSparse(SMALL, 2), SMALL.shape, 0, "weight", 0, 12),
    "unit ball": (UnitBall(SMALL), SMALL.shape, 0, "weight", 0, 6),
    "orthogonal": (Orthogonal(SMALL), SMALL.shape, 0, "weight", 0, 6),
}


def draw(case: str) -> list[str]:
    distribution, shape, seed, name, start, stop = CASES[case]
    drawn = fill(distribution, shape, seed=seed, name=name, start=start, stop=stop)
    return [float(value).hex() for value in drawn]


def draw_all() -> dict[str, list[str]]:
    return {case: draw(case) for case in CASES}


def test_every_case_is_frozen() -> None:
    assert set(json.loads(FROZEN.read_text(encoding="utf-8"))["draws"]) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_draws_are_what_they_were(case: str) -> None:
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))["draws"][case]
    if case == "orthogonal":
        # LAPACK's last bit is its own.
        assert np.allclose([float.fromhex(v) for v in draw(case)], [float.fromhex(v) for v in frozen], atol=1e-6)
    else:
        assert draw(case) == frozen
