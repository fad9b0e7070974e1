"""zero-init: the verdict on made-up differences, and one tiny real run."""

from typing import Any

import pytest

from initwell.experiments.reproduce.claim import Settings
from initwell.experiments.reproduce.wording import first_sentence
from initwell.experiments.reproduce.zero_init import (
    NEARLY,
    ZEROS,
    Job,
    judge,
    judge_activation,
    statement,
    train_one,
)


@pytest.mark.parametrize(
    ("apart", "control", "judgement"),
    [
        ((0.0, 0.0), (0.3, 0.4), "holds"),
        ((0.0, 0.2), (0.3, 0.4), "fails"),
        ((0.0, 1e-7), (0.3, 0.4), "open"),
        ((0.0, 0.0), (0.3, 0.0), "open"),
    ],
)
def test_equal_units_count_only_where_others_part(
    apart: tuple[float, ...], control: tuple[float, ...], judgement: str
) -> None:
    assert judge_activation(apart, control) == judgement


def rows(relu: str, sigmoid: str) -> list[dict[str, Any]]:
    common = {"value": 0.1, "majority": 0.1, "units_apart": 1.3, "apart_after_one_epoch": 3e-8}
    zero = [("relu", relu, 0.0), ("sigmoid", sigmoid, 0.5)]
    found: list[dict[str, Any]] = []
    for activation, judgement, moved in zero:
        found.append(
            {**common, "activation": activation, "start": ZEROS, "judgement": judgement, "weights_moved": moved}
        )
        found.append({**common, "activation": activation, "start": NEARLY, "judgement": None, "weights_moved": 1.0})
    return found


@pytest.mark.parametrize(
    ("relu", "sigmoid", "verdict", "words"),
    [
        ("holds", "holds", "confirmed", "stay exactly equal with relu and sigmoid."),
        ("fails", "fails", "refuted", "part with relu and sigmoid, by rounding that training makes grow."),
        ("holds", "fails", "depends", "stay exactly equal with relu, but part with sigmoid, by rounding that"),
        ("open", "holds", "depends", "are not settled to be equal with relu."),
    ],
)
def test_verdict_from_numbers(relu: str, sigmoid: str, verdict: str, words: str) -> None:
    found = rows(relu, sigmoid)
    assert judge(found) == verdict
    assert ("3e-08" in statement(found)) == (sigmoid == "fails")
    assert words in first_sentence(statement(found))


def test_units_that_part_at_once_are_not_laid_to_rounding() -> None:
    found = [{**row, "apart_after_one_epoch": 0.1} for row in rows("fails", "fails")]
    assert first_sentence(statement(found)).endswith("part with relu and sigmoid.")


def test_from_zeros_a_relu_network_moves_its_output_biases_alone() -> None:
    data = Settings().prepared("standardize", train=200, test=100)
    zero, nearly = (train_one(data, Job("relu", start, 0, 2)) for start in (ZEROS, NEARLY))
    assert (zero.moved, zero.gradient, max(zero.apart)) == (0.0, 0.0, 0.0)
    assert zero.accuracy == pytest.approx(zero.majority, abs=1e-6)
    assert nearly.moved > 0 and nearly.apart[-1] > 0
