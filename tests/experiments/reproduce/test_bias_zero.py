"""bias-zero: the biases are really set, and each verdict is reached from numbers that call for it."""

from typing import Any

import pytest
import torch

from initwell.experiments.data import load
from initwell.experiments.preparation import prepared
from initwell.experiments.reproduce.bias_zero import CONSTANTS, Job, evidence, judge, network


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
            found[Job("mlp", bias, 0.02, seed, 1, None)] = 0.5
    return evidence(found)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([0.001, 0.0, -0.001], [-0.01, -0.011, -0.012], "confirmed"),
        ([0.02, 0.021, 0.022], [0.03, 0.031, 0.032], "refuted"),
        ([0.02, 0.021, 0.022], [-0.03, -0.031, -0.032], "depends"),
        ([0.2, -0.2, 0.1], [0.0, 0.0, 0.0], "depends"),
    ],
)
def test_verdicts(first: list[float], second: list[float], verdict: str) -> None:
    rows = rows_with_gains(first, second)
    assert judge(rows) == verdict
    assert {r["learning_rate"] for r in rows if r["what"] == "test accuracy"} == {0.1}
