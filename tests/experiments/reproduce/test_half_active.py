"""half-active: verdicts from made-up shares, and one network that is only drawn."""

from collections.abc import Sequence

import pytest

from initwell.experiments.reproduce.half_active import Job, evidence, judge, statement, trajectory
from initwell.experiments.reproduce.wording import first_sentence


def runs(start: float, end: Sequence[float]) -> list[list[list[float]]]:
    wobble = (-0.004, 0.0, 0.004)
    return [[[start + w] * len(end), [e + w for e in end]] for w in wobble] + [[[start] * len(end)]]


@pytest.mark.parametrize(
    ("start", "end", "verdict", "words"),
    [
        (0.5, [0.5, 0.4, 0.3], "confirmed", "in every layer; after training deeper layers end sparser in mlp."),
        (0.8, [0.3, 0.4, 0.5], "refuted", "in 0 of 3 layers; after training deeper layers end less sparse in mlp."),
        (0.5, [0.3, 0.4, 0.5], "depends", "in every layer; after training deeper layers end less sparse in mlp."),
        (0.8, [0.5, 0.4, 0.3], "depends", "in 0 of 3 layers; after training deeper layers end sparser in mlp."),
    ],
)
def test_verdicts(start: float, end: Sequence[float], verdict: str, words: str) -> None:
    rows = evidence("mlp", runs(start, end))
    assert judge(rows) == verdict
    assert first_sentence(statement(rows)).endswith(words)
    assert f"{end[-1]:.2f} in the last" in statement(rows)


def test_starts_count_every_draw_and_ends_the_trained_alone() -> None:
    rows = evidence("mlp", runs(0.5, [0.4, 0.3]))
    assert {r["seeds"] for r in rows if r["what"] == "P(y>0) at start"} == {4}
    assert {r["seeds"] for r in rows if r["what"] != "P(y>0) at start"} == {3}


def test_a_fresh_network_is_half_active() -> None:
    # One draw of 128 units a layer: its share scatters by at most 0.5/√128 = 0.044; 0.2 is over four of those.
    (shares,) = trajectory(Job("mlp", 3, 0, None))
    assert len(shares) == 6 and all(abs(s - 0.5) < 0.2 for s in shares)
