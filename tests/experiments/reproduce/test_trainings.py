import math
from dataclasses import replace

import pytest

from initwell.experiments.data import load
from initwell.experiments.preparation import Prepared, prepared
from initwell.experiments.reproduce.claim import Settings
from initwell.experiments.reproduce.trainings import (
    Trained,
    Training,
    at_best_rate,
    at_swept_rate,
    by_arm,
    grid,
    run_training,
    smoothed,
    trains,
)
from initwell.experiments.train import TrainConfig, TrainResult
from initwell.initializers.scaling import kaiming

CONFIG = TrainConfig(epochs=1, max_steps=4, batch_size=10, learning_rate=0.1)
ARM = Training("arm", "mlp", kaiming(), CONFIG, {"depth": 1, "width": 8})


@pytest.fixture(scope="module")
def data() -> Prepared:
    return prepared(load("mnist-5k").subset(train=50, test=20))


def made(curve: tuple[float, ...], *, arm: str = "arm", rate: float = 0.1, seed: int = 0, ok: bool = True) -> Trained:
    training = replace(ARM, arm=arm).at(learning_rate=rate, seed=seed)
    result = TrainResult("done" if ok else "diverged", "", len(curve), (), (), (), (), curve, 0.0)
    return Trained(training, result)


def test_a_seed_gives_the_same_run_twice_and_another_seed_another(data: Prepared) -> None:
    first, again, other = (run_training(data, ARM.at(seed=seed)) for seed in (3, 3, 4))
    assert first.result.loss_curve == again.result.loss_curve
    assert first.result.loss_curve != other.result.loss_curve


def test_the_final_loss_is_the_mean_of_the_last_tenth() -> None:
    assert made((9.0,) * 18 + (1.0, 3.0)).final_loss == 2.0
    assert made((5.0,)).final_loss == 5.0


def test_a_diverged_run_has_learnt_nothing() -> None:
    run = made((2.0, 1e9), ok=False)
    assert run.final_loss == math.inf
    assert run.learnt(10) == 0.0
    assert math.isnan(run.test_accuracy)


def test_learnt_is_0_for_a_blind_guess_and_1_for_no_loss() -> None:
    assert made((math.log(10),)).learnt(10) == pytest.approx(0.0, abs=1e-12)
    assert made((0.0,)).learnt(10) == 1.0
    assert made((math.log(10) / 4,)).learnt(10) == pytest.approx(0.75)


def test_the_best_rate_is_chosen_for_each_arm_over_its_seeds() -> None:
    runs = [
        made((1.0,), arm="a", rate=0.1, seed=0), made((5.0,), arm="a", rate=0.1, seed=1),
        made((2.0,), arm="a", rate=0.2, seed=0), made((2.0,), arm="a", rate=0.2, seed=1),
        made((1.0,), arm="b", rate=0.1, seed=1), made((1.0,), arm="b", rate=0.1, seed=0),
        made((1.0,), arm="b", rate=0.2, seed=0, ok=False), made((0.0,), arm="b", rate=0.2, seed=1),
    ]  # fmt: skip
    kept = by_arm(at_best_rate(runs))
    assert {arm: {r.training.config.learning_rate for r in of} for arm, of in kept.items()} == {"a": {0.2}, "b": {0.1}}
    assert [r.training.seed for r in kept["b"]] == [0, 1]


def test_an_arm_that_diverges_everywhere_is_kept() -> None:
    runs = [made((1.0,), rate=rate, ok=False) for rate in (0.2, 0.1)]
    assert [r.training.config.learning_rate for r in at_best_rate(runs)] == [0.1]


def test_the_seed_that_chooses_the_rate_is_not_among_those_that_count(data: Prepared) -> None:
    runs = at_swept_rate(Settings(workers=1), data, [ARM], [1e-6, 0.1], [0, 1])
    assert [run.training.seed for run in runs] == [0, 1]
    assert {run.training.config.learning_rate for run in runs} == {0.1}


def test_the_grid_is_every_arm_rate_and_seed() -> None:
    found = grid([ARM, replace(ARM, arm="b")], [0.1, 0.2], [0, 1, 2])
    assert len({(t.arm, t.config.learning_rate, t.seed) for t in found}) == 12


def test_trains_needs_the_whole_interval_on_one_side() -> None:
    assert [trains(0.11, 0.9), trains(-0.1, 0.09), trains(0.09, 0.11)] == ["confirmed", "refuted", "depends"]


def test_smoothing_leaves_out_the_rest() -> None:
    assert smoothed([1.0, 2.0, 3.0, 4.0, 5.0], 2) == (1.5, 3.5)
