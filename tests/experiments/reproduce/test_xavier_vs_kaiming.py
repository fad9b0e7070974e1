import math
from typing import Any

import pytest

from initwell.experiments.reproduce.claim import Settings
from initwell.experiments.reproduce.trainings import Trained, Training
from initwell.experiments.reproduce.wording import first_sentence
from initwell.experiments.reproduce.xavier_vs_kaiming import (
    SCHEMES,
    _chart,
    crossover,
    decide,
    evidence,
    judge_optimizer,
    statement,
    states,
)
from initwell.experiments.statistics import Verdict
from initwell.experiments.train import TrainConfig, TrainResult

TRAINS, STALLS, OPEN = (0.8, 0.81, 0.82), (0.0, 0.001, 0.002), (0.0, 0.1, 0.3)
Case = dict[int, tuple[tuple[float, ...], tuple[float, ...]]]  # depth → learnt from xavier, from kaiming

AS_CLAIMED: Case = {5: (TRAINS, TRAINS), 20: (OPEN, TRAINS), 30: (STALLS, TRAINS), 50: (STALLS, TRAINS)}
NEVER: Case = {5: (TRAINS, TRAINS), 30: (TRAINS, TRAINS), 50: (STALLS, STALLS)}
BOTH_LOST: Case = {5: (TRAINS, TRAINS), 30: (STALLS, TRAINS), 50: (STALLS, STALLS)}
COMES_BACK: Case = {5: (STALLS, TRAINS), 30: (TRAINS, TRAINS)}
UNSETTLED: Case = {5: (TRAINS, TRAINS), 50: (OPEN, TRAINS)}


def made(optimizer: str, depth: int, scheme: str, seed: int, learnt: float, rate: float = 0.1) -> Trained:
    config = TrainConfig(seed=seed, learning_rate=rate)
    training = Training(f"{optimizer} {depth} {scheme}", "mlp", SCHEMES[scheme], config)
    loss = math.log(10) * (1 - learnt)
    return Trained(training, TrainResult("done", "", 1, (loss,), (0.5,), (loss,), (0.5,), (loss,), 0.0))


def rows_of(**cases: Case) -> list[dict[str, Any]]:
    runs = [
        made(optimizer, depth, scheme, seed, v)
        for optimizer, case in cases.items()
        for depth, pair in case.items()
        for scheme, of_seeds in zip(SCHEMES, pair, strict=True)
        for seed, v in enumerate(of_seeds)
    ]
    return evidence(runs, 10)


@pytest.mark.parametrize(
    ("case", "verdict", "first"),
    [
        (AS_CLAIMED, "confirmed", 30),
        (NEVER, "refuted", None),
        (BOTH_LOST, "depends", 30),
        (COMES_BACK, "depends", 5),
        (UNSETTLED, "depends", None),
    ],
)
def test_one_optimizer(case: Case, verdict: Verdict, first: int | None) -> None:
    by_depth = states(rows_of(momentum=case), "momentum")
    assert judge_optimizer(by_depth) == verdict
    assert crossover(by_depth) == first


@pytest.mark.parametrize(
    ("momentum", "adam", "verdict", "words"),
    [
        (AS_CLAIMED, AS_CLAIMED, "confirmed", "with momentum at depth 30 and 50, with Adam at depth 30 and 50."),
        (NEVER, NEVER, "refuted", "do not differ in whether they train"),
        (
            AS_CLAIMED,
            NEVER,
            "depends",
            "depth and optimizer: with momentum at depth 30 and 50, with Adam at none for sure",
        ),
        (BOTH_LOST, AS_CLAIMED, "depends", "with momentum at depth 30, with Adam at depth 30 and 50."),
        (UNSETTLED, UNSETTLED, "depends", "the seeds leave some depths open"),
    ],
)
def test_the_verdict_over_optimizers(momentum: Case, adam: Case, verdict: Verdict, words: str) -> None:
    rows = rows_of(momentum=momentum, adam=adam)
    assert decide(rows) == verdict
    assert words in first_sentence(statement(rows, 10))
    assert ("Kaiming itself does not surely train at depth 50" in statement(rows, 10)) == (
        momentum in (BOTH_LOST, NEVER) or adam == NEVER
    )


def test_each_scheme_is_shown_at_its_best_rate() -> None:
    runs = [made("adam", 5, s, seed, 0.1 * k, rate=k) for s in SCHEMES for k in (1, 2, 3) for seed in range(3)]
    rows = evidence(runs, 10)
    assert [(row["learning_rate"], round(row["learnt"], 6)) for row in rows] == [(3, 0.3), (3, 0.3)]


def test_the_chart_sets_measured_points_on_the_theory() -> None:
    rows = rows_of(momentum=AS_CLAIMED, adam=AS_CLAIMED)
    chart = _chart(rows, Settings().prepared("standardize", train=100, test=50), (0, 1, 2))
    lines = {series.label: dict(zip(series.x, series.y, strict=True)) for series in chart.panels[0].series}
    for scheme in SCHEMES:
        for depth, value in lines[f"{scheme}, measured"].items():
            # Single draws of 50 layers of 64 units scatter by exp(½·√(5·50/64)) = 2.7; the mean of three by 1.8.
            assert value == pytest.approx(lines[f"{scheme}, theory"][depth], rel=3.0)
    assert lines["xavier, theory"][50] / lines["xavier, theory"][30] == pytest.approx(2**-10)
