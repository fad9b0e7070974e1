"""as-written: the verdict on made-up ratios, and each formula's first layers."""

from typing import Any

import numpy as np
import pytest

from initwell.experiments.reproduce.as_written import (
    MISTAKES,
    drawn_ratios,
    growth,
    judge,
    judge_row,
    one_curve,
    statement,
)
from initwell.experiments.reproduce.wording import first_sentence

WRONG, RIGHT, VAGUE = {"low": 0.4, "high": 0.6}, {"low": 0.97, "high": 1.03}, {"low": 0.5, "high": 1.5}


def row(written: dict[str, float], meant: dict[str, float] = RIGHT) -> dict[str, Any]:
    return {"mistake": "randn", "aim": "factor", "value": 0.5, "right": "√", "right_value": 1.0,
            "judgement": judge_row(written, meant)}  # fmt: skip


@pytest.mark.parametrize(
    ("written", "verdict", "found"),
    [
        ((RIGHT, RIGHT), "confirmed", "all 2 formulas do what the text beside them says."),
        ((WRONG, WRONG), "refuted", "none of the 2 formulas does what the text beside it says."),
        ((WRONG, RIGHT), "depends", "1 of the 2 formulas miss what the text beside them says and 1 give it."),
        ((WRONG, VAGUE), "depends", "1 of the 2 formulas miss what the text beside them says and 1 stays undecided."),
    ],
)
def test_verdict_from_numbers(written: tuple[dict[str, float], ...], verdict: str, found: str) -> None:
    rows = [row(w) for w in written]
    assert judge(rows) == verdict
    assert first_sentence(statement(rows)) == f"As printed, {found}"
    assert "0.5" in statement(rows)


def test_where_the_right_formula_misses_too_nothing_is_decided() -> None:
    assert judge_row(WRONG, WRONG) == "open"


def test_drawn_weights_have_the_variance_of_their_formula() -> None:
    by_name = {m.mistake: m for m in MISTAKES}
    small = by_name["0.01·randn has variance 0.01"]
    assert drawn_ratios(small, small.as_written, 1)[0] == pytest.approx(0.01, rel=0.03)
    caffe = by_name['Caffe\'s type: "xavier" averages the fans']
    assert drawn_ratios(caffe, caffe.as_written, 1)[0] == pytest.approx((784 + 100) / 2 / 784, rel=0.03)
    assert drawn_ratios(caffe, caffe.as_meant, 1)[0] == pytest.approx(1.0, rel=0.03)


def test_a_missing_root_shrinks_every_layer_by_its_fan() -> None:
    x = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
    # Var(w)·n = (2/600)²·300 = 1/300; nine layers of 300 scatter the factor by a few percent.
    assert growth(one_curve(x, (0, "written", 0))) == pytest.approx(1 / 300, rel=0.1)
