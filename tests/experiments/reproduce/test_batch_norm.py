import pytest

from initwell.experiments.reproduce.batch_norm import SCHEMES, decide, evidence, seed_noise, spread, statement
from initwell.experiments.reproduce.wording import first_sentence

NEAR = (0.90, 0.901, 0.902, 0.903, 0.904)
FAR = (0.10, 0.40, 0.70, 0.80, 0.90)
NOISE = (0.0, 0.002, -0.002, 0.001)
WILD = (0.0, 0.5, -0.5, 0.2)


def values(means: tuple[float, ...], noise: tuple[float, ...] = NOISE) -> dict[str, list[float]]:
    # The noise differs from scheme to scheme, so that spreads scatter over seeds.
    return {
        scheme: [mean + noise[(seed + k) % len(noise)] for seed in range(4)]
        for k, (scheme, mean) in enumerate(zip(SCHEMES, means, strict=True))
    }


def rows_of(without: dict[str, list[float]], with_: dict[str, list[float]]) -> list[dict[str, object]]:
    return evidence({"test accuracy": {"without": without, "with": with_}})


@pytest.mark.parametrize(
    ("without", "with_", "verdict", "words"),
    [
        (values(FAR), values(NEAR), "confirmed", "Batch normalization makes the start matter less, "),
        (values(NEAR), values(FAR), "refuted", "Batch normalization makes the start matter more, "),
        (values(NEAR), values(NEAR), "depends", "The seeds do not settle whether"),
        (values(FAR, WILD), values(NEAR, WILD), "depends", "The seeds do not settle whether"),
    ],
)
def test_the_verdict_follows_from_the_paired_spreads(
    without: dict[str, list[float]], with_: dict[str, list[float]], verdict: str, words: str
) -> None:
    rows = rows_of(without, with_)
    assert decide(rows) == verdict
    assert first_sentence(statement(rows)).startswith(words)


def test_two_measures_that_disagree_make_it_depend() -> None:
    rows = evidence(
        {
            "test accuracy": {"without": values(FAR), "with": values(NEAR)},
            "share of ln C removed": {"without": values(NEAR), "with": values(FAR)},
        }
    )
    assert decide(rows) == "depends"
    assert first_sentence(statement(rows)).endswith(
        "depends on the measure: by test accuracy it does, by share of ln C removed it makes it matter more."
    )


def test_what_is_left_is_set_against_the_seeds() -> None:
    left = rows_of(values(FAR), values(FAR[1:] + FAR[-1:]))
    assert "what is left in accuracy is more than the seeds make" in first_sentence(statement(left))
    same = {scheme: [0.9, 0.8, 0.85, 0.95] for scheme in SCHEMES}
    assert "no more than the seeds make" in first_sentence(statement(rows_of(values(FAR), same)))


def test_the_spread_is_taken_seed_by_seed() -> None:
    found = spread({"a": [1.0, 2.0], "b": [0.5, 4.0], "c": [0.0, 0.0]}, ("a", "b"))
    assert found == [0.5, 2.0]


def test_the_seed_noise_is_a_range_over_as_many_seeds_as_schemes() -> None:
    assert seed_noise({"a": [0.0, 1.0, 9.0], "b": [0.0, 3.0, 9.0]}, ("a", "b")) == 2.0
