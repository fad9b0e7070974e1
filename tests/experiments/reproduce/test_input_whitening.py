"""input-whitening: verdicts from made-up losses, the best rate by the seeds' mean, divergence as guessing."""

import pytest

from initwell.experiments.reproduce.input_whitening import (
    GUESSING,
    PREPARATIONS,
    Found,
    Job,
    best_rate,
    evidence,
    final_loss,
    judge,
)


def made_up(losses: dict[str, float]) -> dict[Job, Found]:
    found = {}
    for preparation in PREPARATIONS:
        for seed in range(3):
            wobble = 0.002 * seed * (1 + PREPARATIONS.index(preparation))
            found[Job(preparation, 0.1, seed, 1, None)] = Found("done", (2.0, losses[preparation] + wobble), 0.9)
            found[Job(preparation, 1.0, seed, 1, None)] = Found("diverged", (), 0.0)
    return found


@pytest.mark.parametrize(
    ("standardize", "whiten", "verdict"),
    [(0.2, 0.1, "confirmed"), (0.8, 0.9, "refuted"), (0.2, 0.9, "depends"), (0.5, 0.1, "depends")],
)
def test_verdicts(standardize: float, whiten: float, verdict: str) -> None:
    found = made_up({"raw": 0.5, "scale": 0.5, "standardize": standardize, "whiten": whiten})
    if standardize == 0.5:  # no difference but noise of both signs
        for job in [j for j in found if j.preparation == "standardize" and j.rate == 0.1]:
            found[job] = Found("done", (2.0, 0.5 + 0.05 * (-1) ** job.seed), 0.9)
    assert judge(evidence(found)) == verdict


def test_the_best_rate_is_the_one_that_does_not_diverge() -> None:
    assert best_rate(made_up(dict.fromkeys(PREPARATIONS, 0.5)), "raw") == 0.1


def test_divergence_and_worse_than_guessing_count_as_guessing() -> None:
    assert final_loss(Found("diverged", (), 0.0)) == GUESSING
    assert final_loss(Found("done", (99.0,), 0.1)) == GUESSING
