"""calibrated: the verdict on made-up factors, and the formula itself."""

from typing import Any

import pytest

from initwell.experiments.reproduce.calibrated import factor_of, formula_factor, judge, statement
from initwell.experiments.reproduce.wording import first_sentence


def row(activation: str, value: float, judgement: str) -> dict[str, Any]:
    return {"scheme": "1/n", "activation": activation, "direction": "forward", "value": value, "formula": 1.0,
            "chain": value, "judgement": judgement}  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "verdict", "found"),
    [
        ("holds", "holds", "confirmed", "every layer's size, forward and backward, for identity and tanh."),
        ("fails", "fails", "refuted", "the sizes in no stack tried."),
        ("holds", "fails", "depends", "for identity, but not always for tanh."),
        ("open", "fails", "depends", "in some stacks alone: for identity and tanh it is off in others."),
    ],
)
def test_verdict_from_numbers(first: str, second: str, verdict: str, found: str) -> None:
    rows = [row("identity", 1.0, first), row("tanh", 0.7, second)]
    assert judge(rows) == verdict
    assert first_sentence(statement(rows)).endswith(found)
    assert "tanh 30.0 %" in statement(rows)


def test_the_formula_counts_the_right_fans() -> None:
    widths = (30, 20, 10)
    assert formula_factor(widths, "1/n", "identity", "forward") == pytest.approx(1.0)
    assert formula_factor(widths, "1/n", "tanh", "backward") == pytest.approx(20 / 30)
    assert formula_factor(widths, "2/n", "relu", "forward") == pytest.approx(1.0)
    assert formula_factor(widths, "2/(n_in+n_out)", "identity", "forward") == pytest.approx(2 * 20 / 30)


def test_factors_run_with_the_signal() -> None:
    assert factor_of([8.0, 4.0, 2.0], "forward") == pytest.approx(0.5)
    assert factor_of([8.0, 4.0, 2.0], "backward") == pytest.approx(2.0)
