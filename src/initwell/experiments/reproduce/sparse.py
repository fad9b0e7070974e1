"""Sparse initialization, a fixed count of inputs for every unit, against dense weights of the same variance."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from initwell.charts import Chart, Panel
from initwell.experiments.reproduce.bands import band, points_over_seeds
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.trainings import (
    Trained,
    Training,
    at_best_rate,
    by_arm,
    run_trainings,
    smoothed,
)
from initwell.experiments.reproduce.wording import clause, grouped, listed
from initwell.experiments.statistics import Interval, Verdict, judge, paired_difference, together
from initwell.experiments.train import TrainConfig
from initwell.initializers.base import Initializer
from initwell.initializers.scaling import VarianceScaling
from initwell.initializers.structured import Sparse

COUNT = 15  # Martens' number
# One point of accuracy is ten images of the thousand that test here, about the standard error of an accuracy of 90 %:
# a smaller loss would go unnoticed by anyone who trains once.
MARGIN = 0.01
RATES = (0.01, 0.1)


@dataclass(frozen=True)
class Net:
    """A plain network: hidden layers, activation, and n·Var(w) of both starts."""

    depth: int
    activation: str
    scale: float

    @property
    def name(self) -> str:
        """Such as "relu of depth 3"."""
        return f"{self.activation} of depth {self.depth}"

    def starts(self) -> dict[str, Initializer]:
        """Return the two starts; over all entries, zeros included, their variance is the same."""
        return {
            "sparse": Sparse(COUNT, gain=math.sqrt(self.scale)),
            "dense": VarianceScaling(self.scale, "fan_in", "normal"),
        }


WIDTH = 100
NETS = (Net(3, "relu", 2.0), Net(8, "relu", 2.0), Net(3, "tanh", 1.0))


def judge_gap(low: float, high: float) -> Verdict:
    """Judge "not worse by more than ``MARGIN``" by the interval of sparse less dense: it may be better."""
    return judge(low, high, above=-MARGIN)


def kind_of(low: float, high: float) -> str:
    """Say what the interval of a difference in accuracy shows.

    >>> kind_of(-0.004, 0.003), kind_of(0.001, 0.02), kind_of(-0.03, 0.03), kind_of(-0.007, 0.018)
    ('a tie', 'sparse better', 'not settled', 'not worse, perhaps better')
    """
    if low > 0 or high < 0:
        slight = ", by less than the margin" if max(-low, high) < MARGIN else ""
        return ("sparse better" if low > 0 else "sparse worse") + slight
    if low <= -MARGIN:
        return "not settled"
    return "a tie" if high < MARGIN else "not worse, perhaps better"


def evidence(runs: Sequence[Trained]) -> list[dict[str, Any]]:
    """Turn the runs into rows: the paired differences of one net in final test accuracy and in mean training loss."""
    arms = by_arm(runs)
    rows: list[dict[str, Any]] = []
    for net in NETS:
        sparse, dense = (arms[f"{net.name}, {start}"] for start in ("sparse", "dense"))
        accuracy = paired_difference([r.test_accuracy for r in sparse], [r.test_accuracy for r in dense])
        loss = paired_difference([_mean_loss(r) for r in sparse], [_mean_loss(r) for r in dense])
        rates = [of[0].training.config.learning_rate for of in (sparse, dense)]
        rows += [
            _row(
                net, "test accuracy", rates, [_mean([r.test_accuracy for r in of]) for of in (sparse, dense)], accuracy
            ),
            _row(
                net, "mean training loss", rates, [_mean([_mean_loss(r) for r in of]) for of in (sparse, dense)], loss
            ),
        ]
    return rows


def _row(net: Net, what: str, rates: Sequence[float], means: Sequence[float], gap: Interval) -> dict[str, Any]:
    return {"network": net.name, "what": what, "sparse_rate": rates[0], "dense_rate": rates[1], "seeds": gap.count,
            "sparse": means[0], "dense": means[1], "value": gap.value, "low": gap.low, "high": gap.high}  # fmt: skip


def _mean_loss(run: Trained) -> float:
    return math.inf if run.result.status == "diverged" else _mean(run.result.loss_curve)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def decide(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict over the networks, by final test accuracy."""
    return together(judge_gap(row["low"], row["high"]) for row in rows if row["what"] == "test accuracy")


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence in which networks sparse is not worse by the margin, and where its loss falls more slowly."""
    of = grouped({r["network"]: judge_gap(r["low"], r["high"]) for r in rows if r["what"] == "test accuracy"})
    margin = f"by more than {100 * MARGIN:g} point of test accuracy"
    slower = [r["network"] for r in rows if r["what"] == "mean training loss" and r["low"] > 0]
    more = f", though its loss falls more slowly in {listed(slower)}" if slower else ""
    verdict = decide(rows)
    if verdict == "confirmed":
        return f"Sparse is not worse than dense {margin} in any net tried{more}."
    if verdict == "refuted":
        return f"Sparse is worse than dense {margin} in every net tried{more}."
    told = clause("it is in {}", of["refuted"])
    told += clause("it is not in {}", of["confirmed"])
    told += clause("the seeds do not settle {}", of["depends"])
    what = "depends on the net" if of["refuted"] and of["confirmed"] else "is not settled for every net"
    return f"Whether sparse is worse than dense {margin} {what}: {', '.join(told)}{more}."


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say what it adds up to, then network by network what the difference is and what it shows."""
    told = []
    for row in rows:
        if row["what"] != "test accuracy":
            continue
        loss = next(r for r in rows if r["what"] == "mean training loss" and r["network"] == row["network"])
        told.append(
            f"{row['network']}: {100 * row['value']:+.1f} points [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}], "
            f"{kind_of(row['low'], row['high'])} (mean training loss {loss['value']:+.3f} nats "
            f"[{loss['low']:+.3f}, {loss['high']:+.3f}])"
        )
    return f"{conclusion(rows)} Test accuracy of sparse less dense, seed by seed: {'; '.join(told)}."


def _chart(runs: Sequence[Trained], name: str) -> Chart:
    arms = by_arm(runs)
    panels = []
    for net in NETS:
        series = []
        for start in net.starts():
            curves = [r.result.loss_curve for r in arms[f"{net.name}, {start}"]]
            over = max(1, min(map(len, curves)) // 25)
            points = points_over_seeds((smoothed(curve, over) for curve in curves), ratios=True)
            series.append(band(start, (over * (k + 0.5) for k in range(len(points))), points))
        panels.append(Panel(net.name, "step", "training loss (nats)", tuple(series), y_log=True))
    return Chart(
        "sparse",
        f"{COUNT} inputs a unit against all of them, the variance the same",
        f"{name}, {WIDTH} units a layer, each at its best learning rate; geometric mean and 95 % interval over seeds.",
        tuple(panels),
    )


def run(settings: Settings) -> Finding:
    """Train every network from both starts; a seed orders the images alike for both."""
    data = settings.prepared("standardize")
    steps = 250 if settings.quick else 2000
    seeds = tuple(range(2 * settings.seeds))
    config = TrainConfig(epochs=1000, max_steps=steps, batch_size=64, optimizer="momentum")
    trainings = [
        Training(
            f"{net.name}, {start}", "mlp", initializer, replace(config, learning_rate=rate, seed=seed),
            {"depth": net.depth, "width": WIDTH, "activation": net.activation},
        )
        for net in NETS
        for start, initializer in net.starts().items()
        for rate in RATES
        for seed in seeds
    ]  # fmt: skip
    runs = at_best_rate(run_trainings(settings, data, trainings))
    rows = evidence(runs)
    return Finding(
        verdict=decide(rows),
        statement=statement(rows),
        rows=tuple(rows),
        charts=(_chart(runs, data.name),),
        conditions={
            "seeds": len(seeds),
            "inputs a unit": COUNT,
            "optimizer": f"momentum 0.9, {steps} steps of batch {config.batch_size}",
            "learning rates": ", ".join(f"{rate:g}" for rate in RATES),
            "margin": f"{100 * MARGIN:g} point of accuracy",
        },
    )


CLAIM = Claim(
    name="sparse",
    title="Sparse starts against dense ones",
    claim="Weights that are zero but for a fixed count of inputs a unit are another way to calibrate the variance: the "
    "network ends not worse, by more than 1 point of test accuracy, than from dense weights of the same variance.",
    source="CS231n notes, 'Sparse initialization', after Martens, ICML 2010, section 5 (15 inputs a unit)",
    run=run,
)
