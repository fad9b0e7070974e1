"""compromise: the verdict on made-up drifts, and what drift is."""

from typing import Any

import pytest

from initwell.experiments.reproduce.compromise import drift, judge, judge_shape, statement, worse_side
from initwell.experiments.reproduce.stacks import Moments
from initwell.experiments.reproduce.wording import first_sentence


def rows(first: str, second: str) -> list[dict[str, Any]]:
    common = {"activation": "identity", "forward": -1.21, "backward": -1.2}
    found: list[dict[str, Any]] = []
    for shape, judgement in (("square", first), ("alternating", second)):
        found += [
            {**common, "shape": shape, "rule": "forward only", "judgement": None},
            {**common, "shape": shape, "rule": "average", "judgement": judgement},
        ]
    return found


@pytest.mark.parametrize(
    ("first", "second", "verdict", "words"),
    [
        ("holds", "holds", "confirmed", "or better, on square and alternating stacks."),
        ("fails", "fails", "refuted", "On every shape the average's worse side drifts further"),
        (
            "holds",
            "fails",
            "depends",
            "on square stacks and worse than the better one-sided rule on alternating stacks.",
        ),
        (
            "open",
            "fails",
            "depends",
            "rule on alternating stacks and one or the other, or not settled, on square stacks.",
        ),
    ],
)
def test_verdict_from_numbers(first: str, second: str, verdict: str, words: str) -> None:
    found = rows(first, second)
    assert judge(found) == verdict
    assert words in first_sentence(statement(found))
    assert "-1.21/-1.20" in statement(found)


@pytest.mark.parametrize(
    ("low", "high", "judgement"), [(-0.2, -0.1, "holds"), (-0.01, 0.01, "holds"), (0.5, 0.7, "fails"), (0, 0.3, "open")]
)
def test_a_tie_is_no_defeat(low: float, high: float, judgement: str) -> None:
    assert judge_shape(low, high) == judgement


def test_the_worse_side_counts() -> None:
    assert drift([1.0, 1e4, 1.0]) == pytest.approx(2.0)
    assert worse_side(Moments((1.0, 1.0), (1.0, 1.0), (1e-6, 1.0))) == pytest.approx(3.0)
