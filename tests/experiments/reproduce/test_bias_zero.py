"""bias-zero: the biases are really set, and each verdict is reached from numbers that call for it."""

from typing import Any

import pytest
import torch

from initwell.experiments.data import load
from initwell.experiments.preparation import prepared
from initwell.experiments.reproduce.bias_zero import CONSTANTS, Job, best_rates, evidence, judge, network, statement
from initwell.experiments.reproduce.wording import first_sentence


@pytest.mark.parametrize("name", ["mlp", "small_cnn"])
def test_hidden_biases_are_at_the_constant_and_weights_do_not_depend_on_it(name: str) -> None:
    data = prepared(load("mnist-5k"))
    zero, tenth = (dict(network(Job(name, b, 0.1, 0, 1, None), data).named_parameters()) for b in (0.0, 0.1))
    for path, parameter in tenth.items():
        if path.endswith("weight"):
            assert torch.equal(parameter, zero[path])
        else:
            expected = 0.0 if path.startswith("output") else 0.1
            assert torch.all(parameter == torch.tensor(expected)), path
            assert not zero[path].any()


def rows_with_gains(first: list[float], second: list[float]) -> list[dict[str, Any]]:
    found = {}
    for bias, gains in zip(CONSTANTS, ([0.0] * len(first), first, second), strict=True):
        for seed, gain in enumerate(gains):
            found[Job("mlp", bias, 0.1, seed, 1, None)] = 0.9 + gain
    return evidence(found)


@pytest.mark.parametrize(
    ("first", "second", "verdict", "found"),
    [
        ([0.001, 0.0, -0.001], [-0.01, -0.011, -0.012], "confirmed", "gains nothing of 0.5 points over zero"),
        ([0.02, 0.021, 0.022], [0.03, 0.031, 0.032], "refuted", "gains more than 0.5 points over zero, wherever tried"),
        ([0.02, 0.021, 0.022], [-0.03, -0.031, -0.032], "depends", "gains for mlp with 0.01, it does not for mlp with"),
        ([0.02, 0.021, 0.022], [0.2, -0.2, 0.1], "depends", "do not settle it for mlp with 0.1."),
        ([0.2, -0.2, 0.1], [0.0, 0.0, 0.0], "depends", "exclude one of 0.5 points only for mlp with 0.1."),
        ([0.2, -0.2, 0.1], [0.2, -0.2, 0.1], "depends", "so few seeds can exclude one of 0.5 points for none."),
    ],
)
def test_verdicts(first: list[float], second: list[float], verdict: str, found: str) -> None:
    rows = rows_with_gains(first, second)
    assert judge(rows) == verdict
    assert found in first_sentence(statement(rows))
    assert {r["learning_rate"] for r in rows} == {0.1}


def test_one_rate_serves_every_constant_of_a_network() -> None:
    tried = {Job("mlp", bias, rate, 9, 1, None): 0.9 - abs(rate - 0.1) for bias in CONSTANTS for rate in (0.05, 0.1)}
    tried[Job("mlp", CONSTANTS[1], 0.05, 9, 1, None)] = 0.91  # best of all, but not for the others
    tried |= {Job("small_cnn", bias, rate, 9, 1, None): rate for bias in CONSTANTS for rate in (0.05, 0.1)}
    assert best_rates(tried) == {"mlp": 0.1, "small_cnn": 0.1}
    assert best_rates({job: -value for job, value in tried.items()}) == {"mlp": 0.05, "small_cnn": 0.05}
