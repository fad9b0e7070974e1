"""prelu-slopes: verdicts from made-up slopes, and the networks that share slopes in two ways."""

import pytest
from torch import nn

from initwell.experiments.reproduce.prelu_slopes import CHANNELS, START, evidence, judge, network, statement
from initwell.experiments.reproduce.wording import first_sentence


def rows(layer: list[float], channel: list[float]) -> list[dict[str, object]]:
    return [
        row
        for sharing, slopes in (("layer", layer), ("channel", channel))
        for row in evidence(sharing, [[s + 0.001 * seed * k for k, s in enumerate(slopes)] for seed in range(3)])
    ]


@pytest.mark.parametrize(
    ("layer", "channel", "verdict", "words"),
    [
        ([0.6, 0.3, 0.1], [0.4, 0.3, 0.2], "confirmed", "PReLU slopes are larger in the first third"),
        ([0.1, 0.3, 0.6], [0.2, 0.3, 0.4], "refuted", "PReLU slopes are smaller in the first third"),
        (
            [0.6, 0.3, 0.1],
            [0.2, 0.3, 0.4],
            "depends",
            "with one a layer they are larger, with one a channel they are s",
        ),
        ([0.3, 0.3, 0.3], [0.3, 0.3, 0.3 - 1e-9], "depends", "neither surely larger nor smaller in the first third"),
    ],
)
def test_verdicts(layer: list[float], channel: list[float], verdict: str, words: str) -> None:
    found = rows(layer, channel)
    assert judge(found) == verdict
    assert words in first_sentence(statement(found))


def test_slopes_that_rise_on_the_way_down_are_told() -> None:
    said = statement(rows([0.6, 0.1, 0.3], [0.4, 0.3, 0.2]))
    assert "1 of 2 steps going up" in said and "falling at every step" in said


def test_slopes_are_shared_as_named() -> None:
    for sharing, sizes in (("layer", [1] * len(CHANNELS)), ("channel", list(CHANNELS))):
        slopes = [m.weight for m in network(sharing, (1, 28, 28), 10) if isinstance(m, nn.PReLU)]
        assert [s.numel() for s in slopes] == sizes
        assert all(bool((s == START).all()) for s in slopes)
