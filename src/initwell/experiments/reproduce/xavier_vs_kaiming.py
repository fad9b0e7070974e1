"""ReLU nets of depth 5 to 50: from which depth on Xavier stalls, and whether Kaiming trains there."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from initwell.charts import Chart, Panel, Series
from initwell.experiments.preparation import Prepared
from initwell.experiments.reproduce.bands import band, points_over_seeds
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.images import of_unit_rms
from initwell.experiments.reproduce.stacks import chain_of, draw_weights, run_stack
from initwell.experiments.reproduce.trainings import (
    STALLED,
    Trained,
    Training,
    at_best_rate,
    by_arm,
    run_trainings,
    trains,
)
from initwell.experiments.reproduce.wording import listed
from initwell.experiments.statistics import Verdict, mean_interval, together
from initwell.experiments.train import TrainConfig
from initwell.initializers.base import Initializer
from initwell.initializers.scaling import kaiming, xavier

SCHEMES: Mapping[str, Initializer] = {
    "xavier": xavier(distribution="normal"),
    "kaiming": kaiming(distribution="normal"),
}
WIDTH = 64
DEPTHS = (5, 10, 20, 30, 50)
QUICK_ADAM_FROM = 20  # where the short run with momentum leaves a question for Adam
# The paper trains with momentum. Adam divides by the gradient's own size, and so might undo what vanishes.
RATES: Mapping[str, tuple[float, ...]] = {"momentum": (0.003, 0.03), "adam": (0.001,)}


def evidence(runs: Sequence[Trained], classes: int) -> list[dict[str, Any]]:
    """Turn runs of all rates into one row for each optimizer, depth and scheme, at the scheme's best rate there.

    The best rate has the lowest mean training loss over the seeds that are reported: a kindness, the same to both.
    """
    rows = []
    for arm, of_arm in by_arm(at_best_rate(runs)).items():
        optimizer, depth, scheme = arm.split()
        learnt = mean_interval(run.learnt(classes) for run in of_arm)
        rows.append({"optimizer": optimizer, "depth": int(depth), "scheme": scheme,
                     "learning_rate": of_arm[0].training.config.learning_rate, "seeds": learnt.count,
                     "learnt": learnt.value, "low": learnt.low, "high": learnt.high,
                     "trains": trains(learnt.low, learnt.high)})  # fmt: skip
    return rows


def states(rows: Sequence[Mapping[str, Any]], optimizer: str) -> dict[int, dict[str, Verdict]]:
    """Return, for one optimizer, depth → scheme → whether it trains."""
    found: dict[int, dict[str, Verdict]] = {}
    for row in rows:
        if row["optimizer"] == optimizer:
            found.setdefault(row["depth"], {})[row["scheme"]] = row["trains"]
    return dict(sorted(found.items()))


def crossover(by_depth: Mapping[int, Mapping[str, Verdict]]) -> int | None:
    """Return the smallest depth where Xavier stalls and Kaiming trains, or None."""
    return next(iter(_apart(by_depth)), None)


def judge_optimizer(by_depth: Mapping[int, Mapping[str, Verdict]]) -> Verdict:
    """Judge the claim under one optimizer.

    Args:
        by_depth: depth → scheme → whether it trains.

    Returns:
        Confirmed: from some depth on Xavier stalls, and Kaiming trains at every depth. Refuted: at no depth does Xavier
        stall where Kaiming trains, and no case is open. Anything else depends on depth or is not settled.
    """
    first = crossover(by_depth)
    if first is None:
        unsettled = any("depends" in s.values() for s in by_depth.values())
        return "depends" if unsettled else "refuted"
    beyond = all(s["xavier"] == "refuted" for d, s in by_depth.items() if d >= first)
    return "confirmed" if beyond and all(s["kaiming"] == "confirmed" for s in by_depth.values()) else "depends"


def decide(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict over the optimizers."""
    return together(judge_optimizer(states(rows, o)) for o in dict.fromkeys(row["optimizer"] for row in rows))


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence at which depths Xavier stalls where Kaiming trains, by optimizer."""
    apart = {o: _apart(states(rows, o)) for o in dict.fromkeys(row["optimizer"] for row in rows)}
    told = ", ".join(
        f"with {_title(o)} {f'at depth {listed(depths)}' if depths else 'at none for sure'}"
        for o, depths in apart.items()
    )
    verdict = decide(rows)
    if verdict == "confirmed":
        return f"Xavier stalls in deep ReLU nets where Kaiming trains: {told}."
    if verdict == "refuted":
        return "Xavier and Kaiming do not differ in whether they train, at any depth tried."
    if not any(apart.values()):
        return "Xavier is not seen to stall where Kaiming trains, but the seeds leave some depths open."
    return f"Whether Xavier stalls where Kaiming trains depends on depth and optimizer: {told}."


def _apart(by_depth: Mapping[int, Mapping[str, Verdict]]) -> list[int]:
    return [d for d, s in by_depth.items() if s["xavier"] == "refuted" and s["kaiming"] == "confirmed"]


def _title(optimizer: str) -> str:
    return optimizer.replace("adam", "Adam")


def statement(rows: Sequence[Mapping[str, Any]], steps: int) -> str:
    """Say for each optimizer where Xavier stalls, what Kaiming does there, and what is left open."""
    told = []
    for optimizer in dict.fromkeys(row["optimizer"] for row in rows):
        by_depth = states(rows, optimizer)
        first = crossover(by_depth)
        where = "Xavier nowhere stalls where Kaiming trains"
        if first is not None:
            pair = {r["scheme"]: r for r in rows if r["optimizer"] == optimizer and r["depth"] == first}
            where = (
                f"Xavier first stalls where Kaiming trains at depth {first} ({_share(pair['xavier'])} of ln C removed "
                f"against {_share(pair['kaiming'])})"
            )
        lost = [str(d) for d, s in by_depth.items() if s["kaiming"] != "confirmed"]
        open_ = [str(d) for d, s in by_depth.items() if s["xavier"] == "depends"]
        more = f"; Kaiming itself does not surely train at depth {', '.join(lost)}" if lost else ""
        more += f"; Xavier is not settled at depth {', '.join(open_)}" if open_ else ""
        told.append(f"With {_title(optimizer)} {where}{more}")
    depths = [r["depth"] for r in rows]
    return f"{conclusion(rows)} Depths {min(depths)} to {max(depths)}, {steps} steps: {'. '.join(told)}."


def _share(row: Mapping[str, Any]) -> str:
    low, value, high = (round(100 * row[key]) + 0 for key in ("low", "learnt", "high"))
    return f"{value} % [{low}, {high}]"


def _learnt_panel(rows: Sequence[Mapping[str, Any]], optimizer: str) -> Panel:
    series = []
    for scheme in SCHEMES:
        of = [r for r in rows if r["optimizer"] == optimizer and r["scheme"] == scheme]
        columns = [tuple(float(r[key]) for r in of) for key in ("depth", "learnt", "low", "high")]
        # An interval of a share may reach below 0, where no share can be.
        low = tuple(max(v, 0.0) for v in columns[2])
        series.append(Series(scheme, columns[0], columns[1], low, columns[3], "both"))
    depths = (float(min(DEPTHS)), float(max(DEPTHS)))
    series.append(Series("stalled below", depths, (STALLED, STALLED), style="dashed"))
    return Panel(f"trained with {_title(optimizer)}", "hidden layers", "share of ln C removed", tuple(series))


def _signal_panel(data: Prepared, seeds: Sequence[int]) -> Panel:
    x = of_unit_rms(data.train_x[:64].flatten(1).double().numpy()).astype("float32")
    widths = (x.shape[1], *(WIDTH,) * max(DEPTHS))
    series = []
    for scheme, initializer in SCHEMES.items():
        theory = [math.sqrt(r["forward_second_moment"]) for r in chain_of(widths, initializer, "relu", 1.0).rows]
        runs = [run_stack(draw_weights(widths, initializer, seed), "relu", x, seed).forward for seed in seeds]
        points = points_over_seeds(([math.sqrt(run[depth - 1]) for depth in DEPTHS] for run in runs), ratios=True)
        series.append(Series(f"{scheme}, theory", tuple(range(1, len(theory) + 1)), tuple(theory)))
        series.append(band(f"{scheme}, measured", DEPTHS, points, "points"))
    return Panel("at initialization", "hidden layer", "rms of the output", tuple(series), y_log=True)


def _chart(rows: Sequence[Mapping[str, Any]], data: Prepared, seeds: Sequence[int]) -> Chart:
    return Chart(
        "xavier-vs-kaiming",
        "ReLU nets by depth from Xavier and Kaiming",
        f"{data.name}, {WIDTH} units a layer. Xavier halves the second moment at every layer, Kaiming holds it; "
        "0 is a blind guess. Whiskers: 95 % interval over seeds. The line is the mean second moment; typical draws "
        "of many narrow layers lie below it.",
        (_signal_panel(data, seeds), *(_learnt_panel(rows, optimizer) for optimizer in RATES)),
    )


def run(settings: Settings) -> Finding:
    """Train every depth from both starts with both optimizers."""
    data = settings.prepared("standardize")
    steps = 220 if settings.quick else 2000
    seeds = settings.seed_list()[: 3 if settings.quick else None]
    config = TrainConfig(epochs=1000, max_steps=steps, batch_size=64)
    trainings = [
        Training(
            f"{optimizer} {depth} {scheme}", "mlp", initializer,
            replace(config, optimizer=optimizer, learning_rate=rate, seed=seed),
            {"depth": depth, "width": WIDTH, "activation": "relu"},
        )
        for depth in sorted(DEPTHS, reverse=True)
        for scheme, initializer in SCHEMES.items()
        for optimizer, rates in RATES.items()
        if not settings.quick or optimizer != "adam" or depth >= QUICK_ADAM_FROM
        for rate in rates
        for seed in seeds
    ]  # fmt: skip
    rows = evidence(run_trainings(settings, data, trainings), data.classes)
    rows.sort(key=lambda row: (list(RATES).index(row["optimizer"]), row["depth"]))
    return Finding(
        verdict=decide(rows),
        statement=statement(rows, steps),
        rows=tuple(rows),
        charts=(_chart(rows, data, settings.seed_list()),),
        conditions={
            "seeds": len(seeds),
            "steps": f"{steps} of batch {config.batch_size}",
            "learning rates": "; ".join(f"{o} {', '.join(f'{r:g}' for r in rates)}" for o, rates in RATES.items()),
            "trains": f"removes more than {STALLED:.0%} of ln C",
        },
    )


CLAIM = Claim(
    name="xavier-vs-kaiming",
    title="Xavier and Kaiming in deep ReLU nets",
    claim="In deep ReLU nets training stalls from Xavier's start, which halves the second moment at every layer, "
    "and does not from Kaiming's.",
    source="He et al., ICCV 2015, section 2.2 and figure 3 (30 layers)",
    run=run,
)
