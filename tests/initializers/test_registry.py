"""Distributions come back from JSON as they were, or not at all."""

import json
import math
from typing import Any

import pytest

from initwell.errors import ArgumentError, UnknownNameError
from initwell.initializers.distributions import Distribution, TruncatedNormal
from initwell.initializers.registry import DISTRIBUTIONS, distribution_from_dict, distribution_kinds


def leaves(cls: type[Any]) -> set[type[Any]]:
    below = cls.__subclasses__()
    return {cls} if not below else set().union(*(leaves(c) for c in below))


def test_every_distribution_there_is_can_be_read_back() -> None:
    defined = {c for c in leaves(Distribution) if c.__module__.startswith("initwell.")}
    assert defined == set(DISTRIBUTIONS)
    assert len(set(distribution_kinds())) == len(DISTRIBUTIONS)


def test_infinite_bounds_survive_json() -> None:
    half = TruncatedNormal(0.0, 1.0, 0.0, math.inf)
    assert distribution_from_dict(json.loads(half.to_json())) == half


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"kind": "nromal", "mean": 0.0, "std": 1.0}, UnknownNameError, "'normal'"),
        ({"kind": "normal", "mean": 0.0, "sdt": 1.0}, UnknownNameError, "'std'"),
        ({"kind": "normal", "mean": 0.0}, ArgumentError, "no std"),
        ({"mean": 0.0, "std": 1.0}, ArgumentError, "Name one of"),
        ({"kind": 3}, ArgumentError, "Name one of"),
        ({"kind": "normal", "mean": 0.0, "std": "1.0"}, ArgumentError, r"normal\.std"),
        ({"kind": "normal", "mean": True, "std": 1.0}, ArgumentError, r"normal\.mean"),
        ({"kind": "normal", "mean": 0.0, "std": -1.0}, ArgumentError, "std"),
        ({"kind": "unit_ball", "layout": [3, 4]}, ArgumentError, r"unit_ball\.layout"),
        ({"kind": "unit_ball", "layout": {"shape": [3, 4]}}, ArgumentError, "exactly the keys"),
    ],
)
def test_anything_else_is_refused(data: dict[str, Any], error: type[ArgumentError], message: str) -> None:
    with pytest.raises(error, match=message):
        distribution_from_dict(data)
