"""input-whitening: verdicts from made-up losses, the best rate by the seeds' mean, divergence as guessing."""

from dataclasses import replace

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
    statement,
)
from initwell.experiments.reproduce.wording import first_sentence


def made_up(losses: dict[str, float]) -> dict[Job, Found]:
    found = {}
    for preparation in PREPARATIONS:
        for seed in range(3):
            wobble = 0.002 * seed * (1 + PREPARATIONS.index(preparation))
            found[Job(preparation, 0.1, seed, 1, None)] = Found("done", (2.0, losses[preparation] + wobble), 0.9)
            found[Job(preparation, 1.0, seed, 1, None)] = Found("diverged", (), 0.0)
    return found


@pytest.mark.parametrize(
    ("standardize", "whiten", "verdict", "words"),
    [
        (0.2, 0.1, "confirmed", "Standardized and whitened input trains to a lower loss than raw pixels."),
        (0.8, 0.9, "refuted", "Standardized and whitened input trains to a higher loss than raw pixels."),
        (0.2, 0.9, "depends", "Standardized input trains to a lower loss than raw pixels, whitened input trains to a "),
        (0.5, 0.1, "depends", "Whitened input trains to a lower loss than raw pixels, the seeds do not tell stand"),
    ],
)
def test_verdicts(standardize: float, whiten: float, verdict: str, words: str) -> None:
    found = made_up({"raw": 0.5, "scale": 0.5, "standardize": standardize, "whiten": whiten})
    if standardize == 0.5:  # no difference but noise of both signs
        for job in [j for j in found if j.preparation == "standardize" and j.rate == 0.1]:
            found[job] = Found("done", (2.0, 0.5 + 0.05 * (-1) ** job.seed), 0.9)
    rows = evidence(found)
    assert judge(rows) == verdict
    assert first_sentence(statement(rows)).startswith(words)


@pytest.mark.parametrize(
    ("whiten", "words"),
    [
        (0.1, "but the lower loss from whitening comes with a lower test accuracy than standardizing gives."),
        (0.3, "but whitening gives a lower test accuracy than standardizing gives."),
    ],
)
def test_what_whitening_costs_on_test_images_is_told(whiten: float, words: str) -> None:
    found = made_up({"raw": 0.5, "scale": 0.5, "standardize": 0.2, "whiten": whiten})
    for job in found:
        if job.preparation == "whiten":
            found[job] = replace(found[job], test_accuracy=0.8 + 0.001 * job.seed)
    assert first_sentence(statement(evidence(found))).endswith(words)


def test_the_best_rate_is_the_one_that_does_not_diverge() -> None:
    assert best_rate(made_up(dict.fromkeys(PREPARATIONS, 0.5)), "raw") == 0.1


def test_divergence_and_worse_than_guessing_count_as_guessing() -> None:
    assert final_loss(Found("diverged", (), 0.0)) == GUESSING
    assert final_loss(Found("done", (99.0,), 0.1)) == GUESSING
