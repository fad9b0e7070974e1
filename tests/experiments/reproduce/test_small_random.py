"""small-random: the verdict on made-up signals, and exact sampling against real weights."""

from typing import Any

import numpy as np
import pytest

from initwell.experiments.reproduce.small_random import (
    STD,
    Job,
    died_at,
    judge,
    judge_row,
    signal_by_layer,
    statement,
    theory_by_layer,
)
from initwell.experiments.reproduce.wording import first_sentence


def row(judgement: str, width: int = 100) -> dict[str, Any]:
    return {"activation": "tanh", "width": width, "value": 7.0, "judgement": judgement}


@pytest.mark.parametrize(
    ("judgements", "verdict"),
    [(("holds", "holds"), "confirmed"), (("fails", "fails"), "refuted"), (("holds", "fails"), "depends")],
)
def test_verdict_from_numbers(judgements: tuple[str, str], verdict: str) -> None:
    rows = [row(j, width) for j, width in zip(judgements, (100, 10_000), strict=True)]
    assert judge(rows) == verdict
    assert ("at layer 7" in statement(rows)) == ("holds" in judgements)
    words = {
        "confirmed": "dies out within 50",
        "refuted": "survives 50",
        "depends": "in every case but tanh at width 10,000.",
    }
    assert words[verdict] in first_sentence(statement(rows))


def test_a_signal_dies_at_its_first_dead_layer() -> None:
    assert died_at([1.0, 1e-7, 1e-8]) == 2
    assert died_at([1.0, 0.1]) is None


@pytest.mark.parametrize(("layers", "judgement"), [((3, 4), "holds"), ((None, None), "fails"), ((3, None), "open")])
def test_one_width_is_judged_over_seeds(layers: tuple[int | None, ...], judgement: str) -> None:
    assert judge_row(layers) == judgement


def test_sampling_by_covariance_has_the_law_of_real_weights() -> None:
    # Two layers of 2,000 units: each side's rms scatters by about 1 %.
    x = np.random.default_rng(0).normal(size=(6, 300))
    ours = signal_by_layer(x, Job("tanh", 2000, 0))[:2]
    rng = np.random.default_rng(1)
    first = x @ rng.normal(0, STD, (300, 2000))
    second = np.tanh(first) @ rng.normal(0, STD, (2000, 2000))
    real = [float(np.sqrt(np.var(y, axis=0, ddof=1).mean())) for y in (first, second)]
    assert ours == pytest.approx(real, rel=0.06)


def test_theory_multiplies_by_the_slope_at_zero() -> None:
    found = theory_by_layer("sigmoid", 400, 1.0, 0.2, 100)
    assert found[2] / found[1] == pytest.approx(0.01 * 20 * 0.25, rel=0.01)
    assert found[-1] < 1e-6
