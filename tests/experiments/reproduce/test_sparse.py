import numpy as np
import pytest

from initwell.experiments.reproduce import sparse
from initwell.experiments.reproduce.sparse import MARGIN, NETS, decide, judge_gap, kind_of, statement
from initwell.experiments.reproduce.trainings import Trained, Training
from initwell.experiments.reproduce.wording import first_sentence
from initwell.experiments.train import TrainConfig, TrainResult
from initwell.initializers.layout import Layout
from initwell.sampling.fill import fill


def made(arm: str, seed: int, accuracy: float, loss: float = 1.0) -> Trained:
    training = Training(arm, "mlp", NETS[0].starts()["dense"], TrainConfig(seed=seed))
    return Trained(training, TrainResult("done", "", 2, (loss,), (0.9,), (loss,), (accuracy,), (loss, loss), 0.0))


def rows_of(gaps: list[float], scatter: float = 0.001, slower: float = 0.0) -> list[dict[str, object]]:
    runs = []
    for net, gap in zip(NETS, gaps, strict=True):
        for seed in range(4):
            dense = 0.9 + 0.02 * seed
            runs.append(made(f"{net.name}, dense", seed, dense))
            noise = scatter * (-1) ** seed
            runs.append(made(f"{net.name}, sparse", seed, dense + gap + noise, 1.0 + slower + noise))
    return sparse.evidence(runs)


@pytest.mark.parametrize(
    ("gaps", "scatter", "verdict"),
    [
        ([0.0, 0.0, 0.0], 0.001, "confirmed"),
        ([0.05, 0.0, 0.0], 0.001, "confirmed"),
        ([-0.05, -0.05, -0.05], 0.001, "refuted"),
        ([-0.05, 0.0, 0.0], 0.001, "depends"),
        ([0.0, 0.0, 0.0], 0.1, "depends"),
    ],
)
def test_the_verdict_follows_from_paired_differences(gaps: list[float], scatter: float, verdict: str) -> None:
    rows = rows_of(gaps, scatter)
    assert decide(rows) == verdict
    found = first_sentence(statement(rows))
    words = {"confirmed": "Sparse is not worse", "refuted": "Sparse is worse", "depends": "Whether sparse is worse"}
    assert found.startswith(words[verdict])
    assert ("it is in relu of depth 3" in found) == (verdict == "depends" and scatter < 0.01)
    assert ("is not settled for every net" in found) == (scatter > 0.01)


def test_a_tie_in_accuracy_with_a_slower_descent_is_told_as_both() -> None:
    said = statement(rows_of([0.0, 0.0, 0.0], slower=0.1))
    assert "a tie" in said
    assert "falls more slowly in relu of depth 3" in first_sentence(said)


def test_an_interval_that_reaches_above_the_margin_is_not_worse_and_no_tie() -> None:
    rows = rows_of([0.008, 0.008, 0.008], scatter=0.008)
    assert decide(rows) == "confirmed"
    said = statement(rows)
    assert "not worse, perhaps better" in said and "within" not in said


def test_the_margin_decides() -> None:
    assert judge_gap(-MARGIN / 2, 0.0) == "confirmed"
    assert judge_gap(-3 * MARGIN, -2 * MARGIN) == "refuted"
    assert judge_gap(-2 * MARGIN, 0.0) == "depends"
    assert kind_of(-0.02, -0.001) == "sparse worse"


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_both_starts_have_the_same_variance_and_sparse_has_its_count(net: sparse.Net) -> None:
    layout = Layout.of((500, 300))
    drawn = {
        name: fill(start.recipe(layout).distribution, layout.shape, seed=0, name="weight")
        for name, start in net.starts().items()
    }
    assert set(np.count_nonzero(drawn["sparse"], axis=1)) == {sparse.COUNT}
    # 7,500 nonzero weights: the variance of sparse is known to √(2/7500) = 1.6 %, that of dense to 0.4 %.
    for weights in drawn.values():
        assert np.var(weights) == pytest.approx(net.scale / 300, rel=0.06)
