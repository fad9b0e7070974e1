import math
from typing import Any

import pytest

from initwell.experiments.reproduce import cifar_mlp
from initwell.experiments.reproduce.claim import Settings
from initwell.experiments.reproduce.trainings import Trained, Training
from initwell.experiments.reproduce.wording import first_sentence
from initwell.experiments.train import TrainConfig, TrainResult

ARMS = tuple(cifar_mlp.VERSIONS)


def made(arm: str, seed: int, curve: tuple[float, ...], ok: bool = True, accuracy: float = 0.9) -> Trained:
    training = Training(arm, "mlp_widths", cifar_mlp.VERSIONS[arm], TrainConfig(seed=seed))
    status = "done" if ok else "diverged"
    ends = (accuracy,) * len(curve)
    return Trained(training, TrainResult(status, "", len(curve), curve, ends, curve, ends, curve, 0.0))  # type: ignore[arg-type]


def rows_of(*areas: tuple[float, ...]) -> list[dict[str, Any]]:
    # A line from the height v down to 0: the higher it starts, the later it passes a tenth of ln C.
    runs = [made(arm, seed, (v, v / 2, 0.0)) for arm, of in zip(ARMS, areas, strict=True) for seed, v in enumerate(of)]
    return cifar_mlp.evidence(runs, 10)


@pytest.mark.parametrize(
    ("areas", "verdict"),
    [
        (((3.0, 3.1, 3.2), (2.0, 2.1, 2.2), (1.0, 1.1, 1.2)), "confirmed"),
        (((1.0, 1.1, 1.2), (2.0, 2.1, 2.2), (3.0, 3.1, 3.2)), "refuted"),
        (((3.0, 3.1, 3.2), (1.0, 1.2, 1.1), (1.1, 1.1, 1.1)), "depends"),
        (((1.0, 1.2, 1.1), (1.1, 1.1, 1.1), (1.0, 1.1, 1.2)), "depends"),
        (((3.0, 3.1, 3.2), (1.0, 1.1, 1.2), (2.0, 2.1, 2.2)), "depends"),
    ],
)
def test_the_ranking_is_judged_pair_by_pair(areas: tuple[tuple[float, ...], ...], verdict: str) -> None:
    rows = rows_of(*areas)
    assert cifar_mlp.decide(rows) == verdict
    found = first_sentence(cifar_mlp.statement(rows))
    assert {"confirmed": "holds in training speed", "refuted": "turned round", "depends": "in part at most"}[
        verdict
    ] in found


def test_seeds_are_paired() -> None:
    # The seeds differ more than the versions do; only differences seed by seed show the ranking.
    rows = rows_of((6.0, 7.2, 8.4), (5.5, 6.6, 7.7), (5.0, 6.0, 7.0))
    assert cifar_mlp.decide(rows) == "confirmed"


def test_a_version_that_diverged_cannot_be_ranked() -> None:
    runs = [made(arm, seed, (2.0, 1.0), ok=arm != ARMS[0]) for arm in ARMS for seed in range(3)]
    rows = cifar_mlp.evidence(runs, 10)
    assert cifar_mlp.decide(rows) == "depends"
    assert "nan" in cifar_mlp.statement(rows)


def test_measures_that_disagree_make_it_depend() -> None:
    # v3 is down first, but a late burst gives it the larger area.
    curves = {ARMS[0]: (3.0, 3.0, 0.1, 0.1), ARMS[1]: (3.0, 0.5, 0.1, 0.1), ARMS[2]: (3.0, 0.2, 0.1, 5.0)}
    runs = [
        made(arm, seed, tuple(v + seed / 1000 for v in curve)) for arm, curve in curves.items() for seed in range(3)
    ]
    rows = cifar_mlp.evidence(runs, 10)
    assert cifar_mlp.decide(rows) == "depends"
    said = cifar_mlp.statement(rows)
    assert "in part at most in training speed: v3 against v2 is slower by mean training loss" in first_sentence(said)
    assert "By mean training loss, v2 against v1: faster" in said
    assert "v3 against v2: slower" in said
    assert said.count("v3 against v2: faster") == 1


def test_the_area_and_the_descent() -> None:
    run = made(ARMS[0], 0, (4.0, 2.0, 1.0))
    assert cifar_mlp.area(run) == pytest.approx(7 / 3)
    assert cifar_mlp.epochs_to(run, 3.0) == pytest.approx(1.5)
    assert cifar_mlp.epochs_to(run, 5.0) == 1.0
    assert cifar_mlp.epochs_to(run, 0.5) == math.inf


def test_the_three_versions_are_the_tutorials_on_a_matrix_of_400_inputs() -> None:
    from initwell.initializers.layout import Layout

    layout = Layout.of((200, 400))
    stds = [initializer.recipe(layout).distribution.std for initializer in cifar_mlp.VERSIONS.values()]
    assert stds == pytest.approx([0.01, 400**-0.5, (2 / 400) ** 0.5])


def test_a_short_real_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar_mlp, "QUICK_EPOCHS", 2)
    monkeypatch.setattr(cifar_mlp, "QUICK_IMAGES", 400)
    outcome = cifar_mlp.CLAIM.run(Settings(seeds=2, workers=1))
    gaps = [row for row in outcome.rows if row["what"] == "mean training loss, difference"]
    # 0.01·randn starts so far below randn/√n that two epochs of two seeds tell them apart.
    assert gaps[0]["low"] > 0
    assert [len(panel.series) for panel in outcome.charts[0].panels] == [3, 3]
