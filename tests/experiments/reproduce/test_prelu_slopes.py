"""prelu-slopes: verdicts from made-up slopes, and the networks that share slopes in two ways."""

import pytest
from torch import nn

from initwell.experiments.reproduce.prelu_slopes import CHANNELS, START, evidence, judge, network


def rows(layer: list[float], channel: list[float]) -> list[dict[str, object]]:
    return [
        row
        for sharing, slopes in (("layer", layer), ("channel", channel))
        for row in evidence(sharing, [[s + 0.001 * seed * k for k, s in enumerate(slopes)] for seed in range(3)])
    ]


@pytest.mark.parametrize(
    ("layer", "channel", "verdict"),
    [
        ([0.6, 0.3, 0.1], [0.4, 0.3, 0.2], "confirmed"),
        ([0.1, 0.3, 0.6], [0.2, 0.3, 0.4], "refuted"),
        ([0.6, 0.3, 0.1], [0.2, 0.3, 0.4], "depends"),
        ([0.3, 0.3, 0.3], [0.3, 0.3, 0.3 - 1e-9], "depends"),
    ],
)
def test_verdicts(layer: list[float], channel: list[float], verdict: str) -> None:
    assert judge(rows(layer, channel)) == verdict


def test_slopes_are_shared_as_named() -> None:
    for sharing, sizes in (("layer", [1] * len(CHANNELS)), ("channel", list(CHANNELS))):
        slopes = [m.weight for m in network(sharing, (1, 28, 28), 10) if isinstance(m, nn.PReLU)]
        assert [s.numel() for s in slopes] == sizes
        assert all(bool((s == START).all()) for s in slopes)
