"""linear-tanh: the verdict on made-up errors, and how far the theory reaches."""

from typing import Any

import pytest

from initwell.experiments.reproduce.linear_tanh import judge, judge_row, reach, statement
from initwell.experiments.reproduce.wording import first_sentence


def row(scale: float, error: float, half: float = 0.001, depth: int = 5) -> dict[str, Any]:
    low, high = error - half, error + half
    return {"depth": depth, "scale": scale, "value": error, "exact_error": 0.01, "judgement": judge_row(low, high)}


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [((-0.001, -0.01), "confirmed"), ((-0.2, -0.4), "refuted"), ((-0.01, -0.4), "depends")],
)
def test_verdict_from_numbers(errors: tuple[float, float], verdict: str) -> None:
    rows = [row(0.1, errors[0]), row(1.0, errors[1])]
    assert judge(rows) == verdict
    assert f"{100 * errors[1]:+.0f} % after 5 tanh" in statement(rows)
    words = {"confirmed": "at every scale and depth", "refuted": "at no scale and depth", "depends": "up to rms 0.1"}
    assert words[verdict] in first_sentence(statement(rows))


def test_a_reach_that_shrinks_with_depth_is_told() -> None:
    shallow, deep = ([row(0.1, -0.01, depth=1), row(1.0, e, depth=1)] for e in (-0.01, -0.4)), row(0.1, -0.2, depth=20)
    for rows in shallow:
        found = first_sentence(statement([*rows, deep, row(1.0, -0.5, depth=20)]))
        assert "the smaller the deeper the net" in found
        assert found.endswith("and at no scale through 20 tanh.")
    assert "the deeper the net" not in statement([row(0.1, -0.01, depth=1), row(1.0, -0.4, depth=1)])


def test_a_wide_interval_is_open() -> None:
    assert judge_row(-0.2, 0.01) == "open"


def test_reach_stops_at_the_first_failure() -> None:
    assert reach([row(0.1, -0.01), row(0.3, -0.2), row(0.5, -0.01)], 5) == 0.1
    assert reach([row(0.1, -0.2)], 5) is None
