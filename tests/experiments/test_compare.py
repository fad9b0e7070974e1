"""Comparisons: the grid, resuming, what diverges, fails or is killed, and what the figures rest on."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from scipy import stats
from torch import nn

from initwell.errors import ArgumentError, ModelError, UnknownNameError
from initwell.experiments.compare import compare
from initwell.experiments.comparison import Comparison, Run
from initwell.experiments.data import Dataset, load
from initwell.experiments.ended import Ended
from initwell.experiments.jobs import run_here
from initwell.experiments.preparation import prepared
from initwell.experiments.store import KeptRun, RunStore, StoreError
from initwell.experiments.train import TrainResult
from initwell.initializers.scaling import xavier


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load("mnist-5k").subset(train=120, test=60)


QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 40, "workers": 1}


def tiny(shape: tuple[int, ...], classes: int, activation: str = "relu") -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 6), nn.Tanh() if activation == "tanh" else nn.ReLU(), nn.Linear(6, classes)
    )


def test_every_point_of_the_grid_is_one_row(data: Dataset) -> None:
    result = compare(
        "mlp", data, ["xavier", "zeros"], [3, 8], depths=[1, 2], widths=4, activations=["relu", nn.Tanh],
        norms=[None, "layer"], optimizer=["sgd", "adam"], learning_rate=[0.1, 0.01], **QUICK,
    )  # fmt: skip
    assert len(result.rows) == 2 * 2 * 2 * 2 * 2 * 2 * 2
    axes = ("scheme", "seed", "depth", "activation", "norm", "optimizer", "learning_rate")
    assert len({tuple(row[a] for a in axes) for row in result.rows}) == len(result.rows)
    assert {row["activation"] for row in result.rows} == {"relu", "Tanh"}
    assert {row["norm"] for row in result.rows} == {"none", "layer"}
    assert all(row["width"] == 4 and row["status"] == "done" and row["steps"] == 3 for row in result.rows)
    assert len(result.summary().rows) == 2 * 2 * 2 * 2 * 2  # schemes × depths × activations × norms × optimizers
    assert json.loads(result.to_json())["rows"][0]["scheme"] == "xavier"


def test_the_same_seed_is_the_same_run_and_schemes_share_the_order(data: Dataset) -> None:
    before = torch.random.get_rng_state()
    one = compare("small_cnn", data, ["kaiming"], [1, 2], widths=4, **QUICK)
    assert torch.equal(torch.random.get_rng_state(), before)
    two = compare("small_cnn", data, ["zeros", "kaiming"], [2], widths=4, **QUICK)
    curves = {run.given["seed"]: run.result.loss_curve for run in one.runs if run.result}
    again = two.runs[1].result
    assert again is not None
    assert again.loss_curve == curves[2] != curves[1]


def test_zero_weights_learn_nothing_and_the_summary_shows_it(data: Dataset) -> None:
    result = compare("mlp", data, ["zeros", "xavier"], 4, depths=1, learning_rate=0.3, **{**QUICK, "epochs": 6})
    best, worst = result.summary().rows
    assert (best["scheme"], worst["scheme"]) == ("xavier", "zeros")
    assert worst["test_accuracy"] == pytest.approx(0.1)
    accuracies = [row["test_accuracy"] for row in result.rows if row["scheme"] == "xavier"]
    interval = stats.t.interval(0.95, 3, loc=best["test_accuracy"], scale=stats.sem(accuracies))
    assert (best["low"], best["high"]) == pytest.approx(interval)
    gap = stats.ttest_1samp([a - 0.1 for a in accuracies], 0).confidence_interval(0.95)
    assert (worst["behind_low"], worst["behind_high"]) == pytest.approx((gap.low, gap.high))
    assert "xavier" in str(result)
    assert "Student t" in str(result)


def test_a_run_that_diverges_is_a_row_and_the_others_go_on(data: Dataset) -> None:
    result = compare("mlp", data, ["xavier"], 2, learning_rate=[1e30, 0.1], **QUICK)
    assert [row["status"] for row in result.rows] == ["diverged", "done"] * 2
    broken = result.rows[0]
    assert broken["test_accuracy"] is None
    assert "step" in broken["reason"]
    assert result.summary().rows[0]["learning_rate"] == 0.1
    assert any("counts as chance (0.1)" in note for note in result.table_notes())
    only = compare("mlp", data, ["xavier"], 2, learning_rate=1e30, **QUICK).summary().rows[0]
    assert (only["diverged"], only["test_accuracy"]) == (2, 0.1)


def test_a_run_that_fails_is_a_row_and_is_tried_again(data: Dataset, tmp_path: Path) -> None:
    result = compare(moody, data, ["xavier"], [0, 1, 2], out=tmp_path, **QUICK)
    assert [row["status"] for row in result.rows] == ["done", "failed", "done"]
    assert "moody today" in result.rows[1]["reason"]
    assert result.summary().rows[0]["failed"] == 1
    assert any("xavier failed" in note for note in result.table_notes())
    with RunStore(tmp_path / "runs.db") as store:
        assert len(store.finished()) == 2


class Moody(nn.Module):
    """Fails in training, by the seed that its own layer was drawn with."""

    def __init__(self) -> None:
        super().__init__()
        self.mood = float(torch.rand(1))
        self.layer = nn.Linear(784, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        drawn = torch.rand(1, generator=torch.Generator().manual_seed(1))
        if self.training and len(x) > 2 and self.mood == float(drawn):
            raise ValueError("moody today")
        return cast(torch.Tensor, self.layer(x.flatten(1)))


def moody() -> nn.Module:
    return Moody()


def test_finished_runs_are_not_repeated(data: Dataset, tmp_path: Path) -> None:
    first = compare(tiny, data, ["xavier"], 2, out=tmp_path, **QUICK)
    told: list[tuple[int, int, str]] = []
    more = compare(tiny, data, ["xavier", "kaiming"], 3, out=tmp_path, progress=lambda *a: told.append(a), **QUICK)
    assert "2 of 6 runs were finished before" in more.notes[0]
    assert more.rows[0] == first.rows[0]  # the seconds too: it is the same run
    assert [done for done, _, _ in told] == [1, 2, 3, 4, 5, 6]
    assert told[-1][1:] == (6, "kaiming 0.1 2: done")


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 0.2},
        {"epochs": 2},
        {"activations": "tanh"},
        {"preparation": "scale"},
        {"build": "mlp"},
        {"less": 1},
    ],
)
def test_whatever_matters_makes_another_run(data: Dataset, tmp_path: Path, changed: dict[str, Any]) -> None:
    compare(tiny, data, ["xavier"], 1, out=tmp_path, **QUICK)
    given = {**QUICK, "build": tiny, "data": data, "schemes": ["xavier"], "seeds": 1, "out": tmp_path, **changed}
    if given.pop("less", None):
        given["data"] = data.subset(train=100)
    assert compare(**given).notes == ()


def test_schemes_are_names_or_objects(data: Dataset) -> None:
    result = compare(tiny, prepared(data), ["xavier", xavier(distribution="normal")], 1, **QUICK)
    assert [row["scheme"] for row in result.rows] == ["xavier", "xavier normal, fan average"]


def test_a_closure_runs_in_one_process_and_the_notes_say_so(data: Dataset) -> None:
    given = {**QUICK, "workers": 2}
    result = compare(lambda: tiny((784,), 10), data, ["xavier", "zeros"], 1, **given)
    assert [row["status"] for row in result.rows] == ["done", "done"]
    assert any("Run in one process" in note for note in result.notes)


def test_charts_have_a_band_and_leave_out_what_diverged(data: Dataset) -> None:
    result = compare("mlp", data, ["xavier", "zeros"], 3, learning_rate=[0.1, 0.2], **QUICK)
    curves, rates = result.charts()
    loss, accuracy = curves.panels
    assert {s.label.split()[0] for s in loss.series} == {"xavier", "zeros"}
    one = loss.series[0]
    assert len(one.x) == len(one.y) == len(one.low) == len(one.high) == 3
    assert all(low <= y <= high for low, y, high in zip(one.low, one.y, one.high, strict=True))
    assert all(s.x == (1.0,) for s in accuracy.series)
    assert [s.x for s in rates.panels[0].series] == [(0.1, 0.2), (0.1, 0.2)]


@dataclass
class Made:
    """Runs by hand: accuracies of three seeds, None for a diverged one."""

    scheme: str
    rate: float
    accuracies: tuple[float | None, ...]

    def runs(self) -> list[Run]:
        return [self.run(seed, accuracy) for seed, accuracy in enumerate(self.accuracies)]

    def run(self, seed: int, accuracy: float | None) -> Run:
        given = {"scheme": self.scheme, "optimizer": "sgd", "learning_rate": self.rate, "seed": seed}
        if accuracy is None:
            return Run(given, "diverged", "", TrainResult("diverged", "", 1, (), (), (), (), (float("nan"),), 0.0))
        curve = (accuracy,)
        return Run(given, "done", "", TrainResult("done", "", 1, (1.0,), curve, (1.0,), curve, (1.0,), 0.0))


def test_the_best_rate_is_that_of_the_mean_with_diverged_as_chance() -> None:
    made = [
        Made("a", 0.1, (0.5, 0.6, 0.7)),
        Made("a", 1.0, (0.9, 0.9, None)),  # mean 0.633 with chance 0.1
        Made("b", 0.1, (0.55, 0.55, 0.6)),
        Made("b", 1.0, (0.99, None, None)),
    ]
    result = Comparison.of("t", (), 0.1, [run for m in made for run in m.runs()], ())
    first, second = result.summary().rows
    assert (first["scheme"], first["learning_rate"], first["diverged"]) == ("a", 1.0, 1)
    assert first["test_accuracy"] == pytest.approx(1.9 / 3)
    assert (second["scheme"], second["learning_rate"]) == ("b", 0.1)
    notes = " ".join(result.table_notes())
    assert "best of 2 learning rates" in notes
    assert "1 of the schemes cannot be told from the best" in notes
    assert "1 of 3 diverged" in result.charts()[0].panels[0].series[0].label


def test_a_best_rate_at_the_end_and_a_single_seed_are_said() -> None:
    made = [Made("a", 0.1, (0.5,)), Made("a", 0.2, (0.7,)), Made("a", 0.3, (0.6,))]
    more = [Made("b", 0.1, (0.5,)), Made("b", 0.2, (0.6,)), Made("b", 0.3, (0.7,))]
    notes = Comparison.of("t", (), 0.1, [run for m in (*made, *more) for run in m.runs()], ()).table_notes()
    assert any(note.endswith("a better one may lie beyond: b 0.3.") for note in notes)
    assert any("One seed gives no interval" in note for note in notes)
    inside = Comparison.of("t", (), 0.1, [Made("a", r, (r, r)).runs()[k] for r in (0.1, 0.2) for k in (0, 1)], ())
    assert not any("beyond" in note or "One seed" in note for note in inside.table_notes())


def test_intervals_keep_to_the_range_and_the_legend_to_what_varies() -> None:
    made = [Made("a", 0.1, (0.5, 1.0, 1.0)), Made("a", 0.2, (0.0, 0.0, 0.3)), Made("b", 0.1, (0.5, 0.6, 0.7))]
    runs = [run for m in made for run in m.runs()]
    result = Comparison.of("t", (), 0.1, runs, ())
    assert all(0 <= row["low"] <= row["test_accuracy"] <= row["high"] <= 1 for row in result.summary().rows)
    assert result.summary().rows[0]["high"] == 1
    assert "cut at 0 and 1" in result.summary().notes[0]
    chart = result.charts()[-1]
    assert (chart.name, [s.label for s in chart.panels[0].series]) == ("accuracy-by-rate", ["a", "b"])
    assert "cut at 0 and 1" in chart.caption
    assert all(low >= 0 and high <= 1 for s in chart.panels[0].series for low, high in zip(s.low, s.high, strict=True))
    deep = [replace(run, given={**run.given, "depth": depth}) for depth in (2, 20) for run in runs]
    labels = [s.label for s in Comparison.of("t", ("depth",), 0.1, deep, ()).charts()[-1].panels[0].series]
    assert labels == ["a, depth 2", "b, depth 2", "a, depth 20", "b, depth 20"]


SCRIPT = """
    import os, signal, sys
    from initwell.experiments.compare import compare
    from initwell.experiments.data import load

    def listen(done, total, what):
        print(done, flush=True)
        if how == "itself" and done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    if __name__ == "__main__":
        out, how, workers, seeds, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
        data = load("mnist-5k").subset(400, 50)
        result = compare("mlp", data, ["xavier", "kaiming"], seeds, out=out, epochs=3, batch_size=4, workers=workers,
                         max_steps=steps, depths=1, widths=8, progress=listen)
        print(result.notes)
"""


def killed(tmp_path: Path, how: str, workers: int, seeds: int, steps: int) -> list[str]:
    """Run the script until it is killed with two runs or more finished; return its command."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / "out"), how, *map(str, (workers, seeds, steps))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        if how == "outside":
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    return command


def kept(tmp_path: Path) -> dict[str, KeptRun]:
    with RunStore(tmp_path / "out" / "runs.db") as store:
        return {run.key: run for run in store.finished()}


def test_killed_after_two_runs_the_comparison_goes_on(tmp_path: Path) -> None:
    killed(tmp_path, "itself", workers=1, seeds=3, steps=5)
    before = kept(tmp_path)
    assert len(before) == 2
    result = compare(
        "mlp", load("mnist-5k").subset(400, 50), ["xavier", "kaiming"], 3, out=tmp_path / "out", epochs=3, batch_size=4,
        workers=1, max_steps=5, depths=1, widths=8,
    )  # fmt: skip
    assert result.notes == (f"2 of 6 runs were finished before and stand in {tmp_path / 'out' / 'runs.db'}.",)
    after = kept(tmp_path)
    assert len(after) == 6
    assert before.items() <= after.items()


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_goes_on(tmp_path: Path) -> None:
    command = killed(tmp_path, "outside", workers=2, seeds=6, steps=300)
    before = kept(tmp_path)
    assert 2 <= len(before) < 12
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert f"{len(before)} of 12 runs were finished before" in done.stdout
    after = kept(tmp_path)
    assert len(after) == 12
    assert before.items() <= after.items()


def test_an_error_that_is_looked_at_keeps_no_worker(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    def jobs(*given: Any, **more: Any) -> Iterator[Ended]:
        try:
            yield from run_here(*given, shared=more["shared"], note="")
        finally:
            ended.append(True)  # here the workers are ended

    def broken(*told: object) -> None:
        raise LookupError("nobody listens")

    monkeypatch.setattr("initwell.experiments.compare.run_jobs", jobs)
    try:
        compare(tiny, data, ["xavier", "zeros"], 1, progress=broken, **QUICK)
    except LookupError as error:
        assert error.__traceback__ is not None  # it holds every frame on the way
        assert ended == [True]
    else:
        pytest.fail("the listener's error was lost")


def test_a_full_disk_ends_it_with_the_finished_runs_standing(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(tiny, data, ["xavier"], 1, out=tmp_path, **QUICK)
    real = sqlite3.connect

    def small(*given: Any, **more: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = real(*given, **more)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(StoreError, match=r"disk is full.*finished runs stand"):
        compare(tiny, data, ["xavier"], 40, out=tmp_path, **QUICK)
    monkeypatch.undo()
    assert "were finished before" in compare(tiny, data, ["xavier"], 1, out=tmp_path, **QUICK).notes[0]


def no_parameters() -> nn.Module:
    return nn.Flatten()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"schemes": ["xaviar"]}, UnknownNameError, "Did you mean 'xavier'"),
        ({"schemes": []}, ArgumentError, "schemes: got none"),
        ({"schemes": ["xavier", "xavier"]}, ArgumentError, "twice"),
        ({"build": "mpl"}, UnknownNameError, "Did you mean 'mlp'"),
        ({"build": nn.Linear(2, 2)}, ArgumentError, "returns a new model"),
        ({"build": dict}, ArgumentError, "Let it return an nn.Module"),
        ({"build": no_parameters}, ModelError, "no parameters to train"),
        ({"build": tiny, "depths": [1]}, ArgumentError, "depths: got a grid over it"),
        ({"learning_rate": [0.1, float("nan")]}, ArgumentError, "learning_rate: got nan"),
        ({"learning_rate": -1.0}, ArgumentError, "learning_rate: got -1"),
        ({"learning_rate": []}, ArgumentError, "learning_rate: got nothing"),
        ({"depths": [2, 2]}, ArgumentError, "Give each value once"),
        ({"seeds": 0}, ArgumentError, "seeds: got 0"),
        ({"seeds": 2.0}, ArgumentError, "seeds: got 2.0"),
        ({"seeds": [0.5]}, ArgumentError, "list of whole numbers"),
        ({"seeds": [2**70]}, ArgumentError, "seed: got 1180591620717411303424"),
        ({"schemes": None}, ArgumentError, "scheme: got None"),
        ({"epochs": 1.5}, ArgumentError, "epochs: got 1.5. Give a whole number"),
        ({"depths": 2.5}, ArgumentError, "depth: got 2.5"),
        ({"learning_rate": "fast"}, ArgumentError, "learning_rate: got fast"),
        ({"momentum": "x"}, ArgumentError, "momentum: got x"),
        ({"optimizer": 3}, UnknownNameError, "optimizer: got '3'"),
        ({"activations": [["relu"]]}, ArgumentError, "a list of single ones"),
        ({"workers": 0}, ArgumentError, "workers: got 0"),
        ({"epoch": 3}, UnknownNameError, "Did you mean 'epochs'"),
        ({"activations": "rellu"}, UnknownNameError, "Did you mean 'relu'"),
        ({"preparation": "whit"}, UnknownNameError, "Did you mean 'whiten"),
        ({"backend": "rya"}, UnknownNameError, "Did you mean 'ray'"),
        ({"data": 3}, ArgumentError, "from_arrays and from_loaders"),
        ({"out": __file__}, ArgumentError, "name a folder"),
    ],
)
def test_what_cannot_be_compared_is_named(
    data: Dataset, given: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        compare(**{"build": "mlp", "data": data, "schemes": ["xavier"], "seeds": 1, **QUICK, **given})
