"""variance-rules: the verdict on made-up numbers, and the sampled rules."""

from typing import Any

import numpy as np
import pytest

from initwell.experiments.reproduce.variance_rules import judge, means, on_images, products, statement, sums
from initwell.experiments.reproduce.wording import first_sentence


def row(low: float, high: float, case: str = "sum of 4", judged: bool = True) -> dict[str, Any]:
    value = (low + high) / 2
    return {"case": case, "judged": judged, "low": low, "high": high, "value": value, "predicted": value}


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.99, 1.01, "confirmed"), (1.2, 1.3, "refuted"), (0.9, 1.1, "depends")]
)
def test_verdict_from_numbers(low: float, high: float, verdict: str) -> None:
    rows = [row(low, high), row(low, high), row(1.17, 1.19, "images, raw pixels", judged=False)]
    assert judge(rows) == verdict
    assert "1.18" in statement(rows)
    words = {"confirmed": "as the rule says", "refuted": "do not multiply", "depends": "in some cases and not"}
    found = first_sentence(statement(rows))
    assert words[verdict] in found and found.endswith("; a mean or a dependence adds to the variance.")


def test_what_adds_nothing_is_not_said_to() -> None:
    rows = [row(0.99, 1.01), row(0.99, 1.01, "images, raw pixels", judged=False)]
    assert first_sentence(statement(rows)).endswith("as the rule says.")


def test_a_mean_outside_the_conditions_does_not_count_against_the_rule() -> None:
    assert judge([row(0.99, 1.01), row(4.9, 5.1, "mean of w 0, of x 2", judged=False)]) == "confirmed"


def test_sampled_rules_come_out_near_their_prediction() -> None:
    # 4096 products a seed: the most skewed case scatters by √(80/4096) = 14 %; 60 % is four of it.
    for case in [*products(2, 4096), *sums(2, 4096), *means(2, 4096)]:
        assert sum(case.ratios) / 2 == pytest.approx(case.predicted, rel=0.6), case.case


def test_images_with_a_mean_are_not_judged() -> None:
    x = np.random.default_rng(0).normal(size=(200, 20))
    x = (x - x.mean()) / x.std()
    level, shifted = on_images(x, {"level": 0.0, "shifted": 1.0}, 2, 2000)
    assert level.judged and not shifted.judged
    assert level.ratios[0] == pytest.approx(1.0, abs=0.1)
    assert shifted.predicted == pytest.approx(2.0)
    assert shifted.ratios[0] == pytest.approx(2.0, abs=0.25)
