"""calibrated: the verdict on made-up factors, and the formula itself."""

from typing import Any

import pytest

from initwell.experiments.reproduce.calibrated import factor_of, formula_factor, judge, statement


def row(activation: str, value: float, judgement: str) -> dict[str, Any]:
    return {"scheme": "1/n", "activation": activation, "direction": "forward", "value": value, "formula": 1.0,
            "chain": value, "judgement": judgement}  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [("holds", "holds", "confirmed"), ("fails", "fails", "refuted"), ("holds", "fails", "depends")],
)
def test_verdict_from_numbers(first: str, second: str, verdict: str) -> None:
    rows = [row("identity", 1.0, first), row("tanh", 0.7, second)]
    assert judge(rows) == verdict
    assert "tanh 30.0 %" in statement(rows, judge(rows))


def test_the_formula_counts_the_right_fans() -> None:
    widths = (30, 20, 10)
    assert formula_factor(widths, "1/n", "identity", "forward") == pytest.approx(1.0)
    assert formula_factor(widths, "1/n", "tanh", "backward") == pytest.approx(20 / 30)
    assert formula_factor(widths, "2/n", "relu", "forward") == pytest.approx(1.0)
    assert formula_factor(widths, "2/(n_in+n_out)", "identity", "forward") == pytest.approx(2 * 20 / 30)


def test_factors_run_with_the_signal() -> None:
    assert factor_of([8.0, 4.0, 2.0], "forward") == pytest.approx(0.5)
    assert factor_of([8.0, 4.0, 2.0], "backward") == pytest.approx(2.0)
