"""Batch normalization inside the network: how far the starts lie apart with it and without."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from initwell.charts import Chart, Panel
from initwell.experiments.reproduce.bands import band
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.trainings import Trained, Training, at_best_rate, by_arm, run_trainings
from initwell.experiments.statistics import Verdict, judge, mean_interval, paired_difference, together
from initwell.experiments.train import TrainConfig
from initwell.initializers.base import Initializer
from initwell.initializers.basic import normal, small_random
from initwell.initializers.scaling import inverse_sqrt, kaiming, xavier

SCHEMES: Mapping[str, Initializer] = {
    "0.01·randn": small_random(0.01),
    "1/√n": inverse_sqrt(),
    "xavier": xavier(distribution="normal"),
    "kaiming": kaiming(distribution="normal"),
    "1·randn": normal(std=1.0),
}
# Those that hold or halve the second moment, which anyone would choose from.
CALIBRATED = ("1/√n", "xavier", "kaiming")
DEPTH, WIDTH = 6, 100
# Behind a norm the step that counts is rate/|w|²: weights seven times Kaiming's need some fifty times its rate.
RATES = (0.01, 0.1, 1.0)
NORMS: Mapping[str, str | None] = {"without": None, "with": "batch"}

PerSeed = Mapping[str, Mapping[str, Sequence[float]]]  # norm → scheme → one value a seed


def spread(values: Mapping[str, Sequence[float]], schemes: Sequence[str]) -> list[float]:
    """Return, seed by seed, the best scheme's value less the worst's."""
    of_seeds = zip(*(values[scheme] for scheme in schemes), strict=True)
    return [max(of_seed) - min(of_seed) for of_seed in of_seeds]


def seed_noise(values: Mapping[str, Sequence[float]], schemes: Sequence[str]) -> float:
    """Return the range that the seeds alone make of one scheme, averaged over schemes: where a spread reads as a tie.

    As many seeds as there are schemes are taken, or all: a range grows with the number of values.
    """
    ranges = [max(v) - min(v) for v in (values[scheme][: len(schemes)] for scheme in schemes)]
    return math.fsum(ranges) / len(ranges)


def evidence(measures: Mapping[str, PerSeed]) -> list[dict[str, Any]]:
    """Turn values by measure, norm, scheme and seed into rows: each scheme's mean, and the spreads.

    Args:
        measures: measure → norm (``without``, ``with``) → scheme → one value a seed.

    Returns:
        Rows with ``what``: ``mean``, ``spread`` (all schemes, or the calibrated ones), ``less spread`` (the spread
        without less that with, paired by seed) and ``seed noise``.
    """
    rows: list[dict[str, Any]] = []
    for measure, by_norm in measures.items():
        for norm, values in by_norm.items():
            for scheme, of_seeds in values.items():
                rows.append(_row(measure, "mean", norm, scheme, mean_interval(of_seeds)))
        for name, schemes in (("all", tuple(SCHEMES)), ("calibrated", CALIBRATED)):
            spreads = {norm: spread(values, schemes) for norm, values in by_norm.items()}
            for norm, values in by_norm.items():
                rows.append(_row(measure, "spread", norm, name, mean_interval(spreads[norm])))
                noise = {"value": seed_noise(values, schemes), "low": None, "high": None}
                rows.append({"measure": measure, "what": "seed noise", "batch_norm": norm, "scheme": name, **noise})
            less = paired_difference(spreads["without"], spreads["with"])
            rows.append(_row(measure, "less spread", "without − with", name, less))
    return rows


def _row(measure: str, what: str, norm: str, scheme: str, found: Any) -> dict[str, Any]:
    return {"measure": measure, "what": what, "batch_norm": norm, "scheme": scheme, "seeds": found.count,
            "value": found.value, "low": found.low, "high": found.high}  # fmt: skip


def decide(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict: over all schemes, the spread must be smaller with batch normalization, by every measure."""
    return together(judge(row["low"], row["high"], above=0.0) for row in _less(rows))


def _less(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["what"] == "less spread" and row["scheme"] == "all"]


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence whether the starts come closer, and whether what is left is more than chance."""
    parts = {r["measure"]: judge(r["low"], r["high"], above=0.0) for r in _less(rows)}
    verdict = decide(rows)
    if verdict == "confirmed":
        return f"Batch normalization makes the start matter less, {_left(rows)}."
    if verdict == "refuted":
        return f"Batch normalization makes the start matter more, {_left(rows)}."
    if set(parts.values()) == {"depends"}:
        return "The seeds do not settle whether batch normalization makes the start matter less."
    words = {"confirmed": "it does", "refuted": "it makes it matter more", "depends": "the seeds do not settle it"}
    told = ", ".join(f"by {measure} {words[found]}" for measure, found in parts.items())
    return f"Whether batch normalization makes the start matter less depends on the measure: {told}."


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words how far the starts lie apart, with and without, and whether what is left is more than chance."""
    found = {(r["measure"], r["what"], r["batch_norm"], r["scheme"]): r for r in rows}
    told = []
    for measure in dict.fromkeys(row["measure"] for row in rows):
        for name, words in (("all", "all five starts"), ("calibrated", "the calibrated three")):
            without, with_ = (found[measure, "spread", norm, name] for norm in NORMS)
            noise = found[measure, "seed noise", "with", name]["value"]
            told.append(
                f"{measure}, {words}: {_points(without)} without, {_points(with_)} with "
                f"(seeds alone: {100 * noise:.1f})"
            )
    less = found["test accuracy", "less spread", "without − with", "calibrated"]
    unsure = less["low"] <= 0 <= less["high"]
    among = " Among the calibrated starts alone it makes no sure difference to accuracy." if unsure else ""
    return (
        f"{conclusion(rows)}{among} Best start less worst, in points, at each start's best learning rate: "
        f"{'; '.join(told)}."
    )


def _points(row: Mapping[str, Any]) -> str:
    return f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _left(rows: Sequence[Mapping[str, Any]]) -> str:
    with_ = [r for r in rows if (r["measure"], r["batch_norm"], r["scheme"]) == ("test accuracy", "with", "all")]
    found = {r["what"]: r for r in with_}
    tie = judge(found["spread"]["low"], found["spread"]["high"], above=found["seed noise"]["value"])
    return {
        "confirmed": "but not a matter of indifference: what is left in accuracy is more than the seeds make",
        "refuted": "and what is left in accuracy is no more than the seeds make",
        "depends": "and what is left in accuracy cannot be told from what the seeds make",
    }[tie]


def _values(runs: Sequence[Trained], measure: Callable[[Trained], float]) -> dict[str, dict[str, list[float]]]:
    arms = by_arm(runs)
    return {norm: {s: [measure(run) for run in arms[f"{norm} {s}"]] for s in SCHEMES} for norm in NORMS}


def _chart(rows: Sequence[Mapping[str, Any]], name: str) -> Chart:
    panels = []
    for measure in dict.fromkeys(row["measure"] for row in rows):
        series = []
        for norm in NORMS:
            of = [r for r in rows if r["measure"] == measure and r["what"] == "mean" and r["batch_norm"] == norm]
            # Side by side, so that equal values do not hide one another.
            x = (k + (0.0 if norm == "without" else 0.15) for k in range(1, len(of) + 1))
            series.append(band(f"{norm} batch norm", x, of, "points"))
        label = ", ".join(f"{k}: {scheme}" for k, scheme in enumerate(SCHEMES, start=1))
        panels.append(Panel(measure, label, measure, tuple(series)))
    return Chart(
        "batch-norm",
        "Five starts with and without batch normalization",
        f"{name}, {DEPTH} ReLU layers of {WIDTH}, at each start's best learning rate; 95 % interval over seeds.",
        tuple(panels),
    )


def run(settings: Settings) -> Finding:
    """Train the same net from every start, with and without batch normalization."""
    data = settings.prepared("standardize")
    steps = 150 if settings.quick else 1500
    seeds = settings.seed_list()[: 4 if settings.quick else None]
    config = TrainConfig(epochs=1000, max_steps=steps, batch_size=64, optimizer="momentum")
    trainings = [
        Training(
            f"{norm} {scheme}", "mlp", initializer, replace(config, learning_rate=rate, seed=seed),
            {"depth": DEPTH, "width": WIDTH, "activation": "relu", "norm": kind},
        )
        for norm, kind in NORMS.items()
        for scheme, initializer in SCHEMES.items()
        for rate in RATES
        for seed in seeds
    ]  # fmt: skip
    runs = at_best_rate(run_trainings(settings, data, trainings))
    rows = evidence(
        {
            # A run that diverged guesses blindly.
            "test accuracy": _values(
                runs, lambda r: r.test_accuracy if r.result.status == "done" else 1 / data.classes
            ),
            "share of ln C removed": _values(runs, lambda r: r.learnt(data.classes)),
        }
    )
    return Finding(
        verdict=decide(rows),
        statement=statement(rows),
        rows=tuple(rows),
        charts=(_chart(rows, data.name),),
        conditions={
            "seeds": len(seeds),
            "network": f"mlp, {DEPTH} hidden layers of {WIDTH}, ReLU, norm before the activation",
            "optimizer": f"momentum 0.9, {steps} steps of batch {config.batch_size}",
            "learning rates": ", ".join(f"{rate:g}" for rate in RATES),
        },
    )


CLAIM = Claim(
    name="batch-norm",
    title="Batch normalization and the start",
    claim="Normalizing inside the network makes the initialization matter less.",
    source="Ioffe & Szegedy, ICML 2015, section 3.3; CS231n notes, 'Batch Normalization'",
    run=run,
)
