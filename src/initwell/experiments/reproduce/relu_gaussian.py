"""A Caffe-style conv net: xavier trains, plain gaussian fails under ReLU, sigmoid or std √(1/n_out) repair it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from initwell.charts import Chart, Panel, Series
from initwell.experiments.reproduce.bands import band, points_over_seeds
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.trainings import (
    STALLED,
    Trained,
    Training,
    at_swept_rate,
    by_arm,
    smoothed,
)
from initwell.experiments.reproduce.wording import capital, clause
from initwell.experiments.statistics import Verdict, judge, mean_interval, together
from initwell.experiments.train import TrainConfig
from initwell.initializers.base import Initializer, Recipe
from initwell.initializers.citations import JIA_2014
from initwell.initializers.distributions import Normal
from initwell.initializers.layout import Layout
from initwell.initializers.prototxt import parse_filler
from initwell.initializers.scaling import lecun

# From a tenth of cifar10_quick's rate in Caffe's examples to that of its lenet; at ten times that xavier fails as well.
RATES = (1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class PerOutput(Initializer):
    """Gaussian with std √(1/num_output): the other reading of n_out, the count of a layer's units."""

    name: str = field(default="gaussian per num_output", init=False, repr=False)
    citation: str = field(default=JIA_2014, init=False, repr=False)

    def recipe(self, layout: Layout) -> Recipe:
        """Return N(0, 1/outputs), whatever the kernel's area."""
        outputs = float(layout.shape[layout.out_axis])
        return Recipe(Normal(0.0, math.sqrt(1 / outputs)), fan=outputs, gain=1.0)

    def describe(self) -> str:
        """Return the name."""
        return self.name


@dataclass(frozen=True)
class Part:
    """One part of the claim, in one reading: under this start and activation the net trains, or does not."""

    says: str
    initializer: Initializer
    activation: str
    trains: bool


# The tutorial changed xavier to `type: "gaussian"` and wrote no std, which leaves Caffe's default, 1. Caffe's own
# examples write 0.01; both are run. Its n_out is Caffe's fan_out, outputs times kernel area, or the outputs alone.
PARTS: Mapping[str, Part] = {
    "xavier, ReLU": Part("xavier trains under ReLU", parse_filler('type: "xavier"'), "relu", True),
    "std 1, ReLU": Part("plain gaussian fails under ReLU", parse_filler('type: "gaussian"'), "relu", False),
    "std 0.01, ReLU": Part(
        "plain gaussian fails under ReLU", parse_filler('type: "gaussian" std: 0.01'), "relu", False
    ),
    "std 1, sigmoid": Part("it recovers with sigmoid", parse_filler('type: "gaussian"'), "sigmoid", True),
    "std 0.01, sigmoid": Part("it recovers with sigmoid", parse_filler('type: "gaussian" std: 0.01'), "sigmoid", True),
    "std √(1/fan_out), ReLU": Part("it recovers with √(1/n_out)", lecun("fan_out", "normal"), "relu", True),
    "std √(1/num_output), ReLU": Part("it recovers with √(1/n_out)", PerOutput(), "relu", True),
}


def judge_part(low: float, high: float, trains: bool) -> Verdict:
    """Judge one part, that it trains or that it does not, by the interval of the share of ln C that was removed."""
    return judge(low, high, above=STALLED) if trains else judge(low, high, below=STALLED)


def evidence(runs: Sequence[Trained], classes: int) -> list[dict[str, Any]]:
    """Turn the runs into one row a part: what was learnt, its interval, and what that says of the part."""
    rows = []
    for arm, of_arm in by_arm(runs).items():
        part = PARTS[arm]
        learnt = mean_interval(run.learnt(classes) for run in of_arm)
        right = [run.test_accuracy for run in of_arm if math.isfinite(run.test_accuracy)]
        rows.append(
            {
                "claim": part.says,
                "scheme": arm,
                "learning_rate": of_arm[0].training.config.learning_rate,
                "seeds": learnt.count,
                "diverged": sum(run.result.status == "diverged" for run in of_arm),
                "learnt": learnt.value,
                "low": learnt.low,
                "high": learnt.high,
                "test_accuracy": math.fsum(right) / len(right) if right else None,
                "judgement": judge_part(learnt.low, learnt.high, part.trains),
            }
        )
    return rows


def decide(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict over all parts and readings."""
    return together(row["judgement"] for row in rows)


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence which parts hold in every reading, in none, or in some."""
    parts = {r["claim"]: {o["judgement"] for o in rows if o["claim"] == r["claim"]} for r in rows}
    true = [says for says, found in parts.items() if found == {"confirmed"}]
    false = [says for says, found in parts.items() if found == {"refuted"}]
    unsure = [says for says, found in parts.items() if found == {"depends"}]
    mixed = [says for says, found in parts.items() if len(found) > 1]
    told = clause("{}, in every reading", true)
    told += clause("in no reading is it so that {}", false)
    told += clause("{} depends on which gaussian is meant", (f"whether {says}" for says in mixed))
    told += clause("the seeds do not settle whether {}", unsure)
    return f"{capital('; '.join(told))}."


def statement(rows: Sequence[Mapping[str, Any]], steps: int) -> str:
    """Say part by part what the numbers say."""
    parts: dict[str, list[str]] = {}
    for row in rows:
        word = {"confirmed": "yes", "refuted": "no", "depends": "undecided"}[row["judgement"]]
        accuracy = "diverged" if row["test_accuracy"] is None else f"test accuracy {row['test_accuracy']:.0%}"
        interval = f"[{_percent(row['low'])}, {_percent(row['high'])}]"
        told = f"{row['scheme']}: {word}, {_percent(row['learnt'])} of ln C {interval}, {accuracy}"
        parts.setdefault(row["claim"], []).append(told)
    each = ". ".join(f"{capital(claim)}? {'; '.join(lines)}" for claim, lines in parts.items())
    return (
        f"{conclusion(rows)}{_on_what(rows)} Removed from the training loss within {steps} steps at the best of "
        f"{len(RATES)} learning rates: {each}."
    )


def _percent(share: float) -> str:
    return f"{round(100 * share) + 0} %"


def _on_what(rows: Sequence[Mapping[str, Any]]) -> str:
    failed = [row["scheme"] for row in rows if row["judgement"] == "refuted"]
    unsure = [row["scheme"] for row in rows if row["judgement"] == "depends"]
    told = clause("it does not hold for {}", failed) + clause("the seeds do not settle {}", unsure)
    return f" {capital('; '.join(told))}." if told else ""


def _chart(runs: Sequence[Trained], classes: int, name: str) -> Chart:
    arms = by_arm(runs)
    panels = []
    for activation in ("relu", "sigmoid"):
        series = []
        longest = 0
        for arm, of_arm in arms.items():
            if PARTS[arm].activation != activation or any(r.result.status == "diverged" for r in of_arm):
                continue
            over = max(1, len(of_arm[0].result.loss_curve) // 30)
            points = points_over_seeds(smoothed(run.result.loss_curve, over) for run in of_arm)
            x = tuple(over * (k + 0.5) for k in range(len(points)))
            longest = max(longest, round(x[-1]))
            # Losses of thousands are off the chart, as are intervals below 0: what matters is where they come to rest.
            top = 2 * math.log(classes)
            series.append(band(arm, x, [{k: min(max(v, 0.0), top) for k, v in point.items()} for point in points]))
        blind = (math.log(classes),) * 2
        series.append(Series("a blind guess, ln C", (0, longest), blind, style="dashed"))
        panels.append(
            Panel("ReLU" if activation == "relu" else "sigmoid", "step", "training loss (nats)", tuple(series))
        )
    return Chart(
        "relu-gaussian",
        "A Caffe-style conv net from xavier and from gaussian weights",
        f"{name}, momentum 0.9, each start at its best learning rate; mean and 95 % interval over seeds. Losses above "
        "2 ln C are drawn at 2 ln C; starts of which a run diverged are in the table alone.",
        tuple(panels),
    )


def run(settings: Settings) -> Finding:
    """Choose each start's learning rate with one seed, then train it with others."""
    data = settings.prepared("standardize")
    steps, channels = (250, (8, 8, 16)) if settings.quick else (1500, (16, 16, 32))
    seeds = settings.seed_list()[: 3 if settings.quick else None]
    config = TrainConfig(epochs=1000, max_steps=steps, batch_size=16, optimizer="momentum", momentum=0.9)
    arms = [
        Training(
            arm, "caffe_cnn", part.initializer, config,
            {"channels": channels, "activation": part.activation},
        )
        for arm, part in PARTS.items()
    ]  # fmt: skip
    runs = at_swept_rate(settings, data, arms, RATES, seeds)
    rows = evidence(runs, data.classes)
    return Finding(
        verdict=decide(rows),
        statement=statement(rows, steps),
        rows=tuple(rows),
        charts=(_chart(runs, data.classes, data.name),),
        conditions={
            "network": f"caffe_cnn, channels {'-'.join(map(str, channels))}, then the logits",
            "optimizer": f"momentum 0.9, batch {config.batch_size}, {steps} steps",
            "learning rates": ", ".join(f"{rate:g}" for rate in RATES),
            "seeds": len(seeds),
            "trains": f"removes more than {STALLED:.0%} of ln C",
        },
    )


CLAIM = Claim(
    name="relu-gaussian",
    title="Plain gaussian weights under ReLU",
    claim="A Caffe conv net trains with weight_filler xavier. With plain gaussian it fails to converge under ReLU, "
    "converges with sigmoid instead, and under ReLU again once the std is √(1/n_out).",
    source="A tutorial on Caffe's fillers; it blames ReLU's unbounded output. Defaults as in caffe.proto",
    run=run,
)
