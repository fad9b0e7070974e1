"""At high learning rates units die and stay dead; initialization, learning rate and its policy change how many."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from initwell.apply.write import init_
from initwell.charts import Chart, Panel
from initwell.experiments.data import load
from initwell.experiments.preparation import prepared
from initwell.experiments.reproduce.activity import Activity, relu_activity
from initwell.experiments.reproduce.bands import band
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.evidence import Judgement, judged, over_seeds, verdict_of
from initwell.experiments.reproduce.wording import capital, clause, grouped, listed
from initwell.experiments.statistics import Verdict
from initwell.experiments.train import TrainConfig, train
from initwell.experiments.zoo import build

WIDTH, BATCH = 200, 100
SHALLOW, DEEP = 1, 4
# One hidden layer survives any of these. Four diverge from about 0.5 on, and lose units from about 0.4.
RATES = (0.01, 0.1, 0.3, 1.0, 3.0)
LOW, HIGH, DEEP_HIGH = 0.01, 1.0, 0.4
SCHEMES = ("kaiming", "xavier", "small_random")
POLICIES = ("fixed", "warm-up", "step")
# "Stay dead": of the units silent on every image at half time, at least nine in ten still are at the end.
STAY = 0.9
# A share of fewer dead units than this says nothing.
ENOUGH = 5


STAYED = "of the dead, stayed dead"

Case = tuple[int, str, str, float]  # depth, scheme, policy, learning rate
_BASE: Case = (SHALLOW, "kaiming", "fixed", HIGH)
# What is compared with what, seed by seed: (name, first, second).
CONTRASTS: tuple[tuple[str, Case, Case], ...] = (
    (f"learning rate: {HIGH:g} less {LOW:g}", _BASE, (SHALLOW, "kaiming", "fixed", LOW)),
    *((f"initialization: {s} less kaiming", (SHALLOW, s, "fixed", HIGH), _BASE) for s in SCHEMES[1:]),
    *((f"policy: {p} less fixed", (SHALLOW, "kaiming", p, HIGH), _BASE) for p in POLICIES[1:]),
)


@dataclass(frozen=True)
class Job:
    """One training run."""

    depth: int
    scheme: str
    policy: str
    rate: float
    seed: int
    epochs: int
    data: str | None


@dataclass(frozen=True)
class Deaths:
    """Shares of dead units in one run: at the start, at half time, at the end; of the dead, those that stayed so."""

    start: float
    middle: float
    end: float  # NaN where the run diverged: a unit that is not a number is neither dead nor alive
    stayed: float | None  # None where fewer than ``ENOUGH`` were dead at half time
    status: str


def _silent(found: Sequence[Activity]) -> list[bool]:
    return [flag for layer in found for flag in layer.silent]


def deaths(job: Job) -> Deaths:
    """Train once and count the units that are silent on every training image."""
    data = prepared(load(job.data or "mnist-5k"), "standardize")
    model = build("mlp", data.shape, data.classes, depth=job.depth, width=WIDTH, activation="relu")
    init_(model, job.scheme, seed=job.seed, example=data.train_x[:2])
    per_epoch = len(data.train_x) // BATCH
    config = TrainConfig(
        epochs=job.epochs,
        batch_size=BATCH,
        learning_rate=job.rate,
        seed=job.seed,
        policy="step" if job.policy == "step" else "fixed",
        step_size=per_epoch // 2,
        gamma=0.5,
        warmup_steps=2 * per_epoch if job.policy == "warm-up" else 0,
    )
    counts = [_silent(relu_activity(model, data.train_x))]
    result = train(model, data, config, on_epoch=lambda e: counts.append(_silent(relu_activity(e.model, data.train_x))))
    return summarize(counts, job.epochs // 2, result.status)


def summarize(counts: Sequence[Sequence[bool]], half: int, status: str) -> Deaths:
    """Turn the flags of every unit by epoch into shares.

    >>> summarize([[False] * 8, [True] * 6 + [False] * 2, [True] * 8], half=1, status="done")
    Deaths(start=0.0, middle=0.75, end=1.0, stayed=1.0, status='done')
    """
    if status == "diverged":
        return Deaths(_share(counts[0]), math.nan, math.nan, None, status)
    middle, end = counts[min(half, len(counts) - 1)], counts[-1]
    dead = [later for earlier, later in zip(middle, end, strict=True) if earlier]
    stayed = sum(dead) / len(dead) if len(dead) >= ENOUGH else None
    return Deaths(_share(counts[0]), _share(middle), _share(end), stayed, status)


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def jobs(seeds: Sequence[int], epochs: int, data: str | None) -> list[Job]:
    """List the runs: the learning rates, then at the high one the other initializations and policies."""
    cases: list[Case] = [(SHALLOW, "kaiming", "fixed", rate) for rate in RATES]
    cases += [(SHALLOW, scheme, "fixed", HIGH) for scheme in SCHEMES[1:]]
    cases += [(SHALLOW, "kaiming", policy, HIGH) for policy in POLICIES[1:]]
    cases += [(DEEP, scheme, "fixed", DEEP_HIGH) for scheme in SCHEMES]
    return [Job(*case, seed, epochs, data) for case in cases for seed in seeds]


def evidence(found: Mapping[Job, Deaths]) -> list[dict[str, Any]]:
    """Make one row a case, and one for the share of the dead that stay dead."""
    rows: list[dict[str, Any]] = []
    for case in dict.fromkeys(_case(j) for j in found):
        its = [d for j, d in found.items() if _case(j) == case]
        row = {"what": "dead at end", **dict(zip(("depth", "scheme", "policy", "learning_rate"), case, strict=True))}
        ends = [d.end for d in its if d.status != "diverged"]
        rows.append({**row, **_interval(ends), "seeds": len(ends), "diverged": len(its) - len(ends)})
    for depth in (SHALLOW, DEEP):
        stayed = [d.stayed for j, d in found.items() if j.depth == depth and d.stayed is not None]
        rows.append({"what": STAYED, "depth": depth, **_interval(stayed), "seeds": len(stayed)})
    for what, first, second in CONTRASTS:
        pairs = _paired(found, first, second)
        rows.append({"what": what, **_interval([a - b for a, b in pairs]), "seeds": len(pairs)})
    return rows


def _interval(values: Sequence[float]) -> dict[str, float]:
    # Too few to say anything: an interval that holds everything, so that what rests on it stays open.
    return over_seeds(values) if len(values) > 1 else {"value": math.nan, "low": -math.inf, "high": math.inf}


def _case(job: Job) -> Case:
    return (job.depth, job.scheme, job.policy, job.rate)


def _paired(found: Mapping[Job, Deaths], first: Case, second: Case) -> list[tuple[float, float]]:
    ends = {(*_case(j), j.seed): d.end for j, d in found.items()}
    seeds = sorted({j.seed for j in found})
    pairs = [(ends[(*first, s)], ends[(*second, s)]) for s in seeds]
    return [pair for pair in pairs if all(math.isfinite(end) for end in pair)]


def judgements(rows: Sequence[Mapping[str, Any]]) -> dict[str, Judgement]:
    """Judge the four parts: the rate kills, the dead stay dead, the initialization matters, the policy matters."""
    by = {r["what"]: r for r in rows if ": " in r["what"]}
    rate = by[CONTRASTS[0][0]]
    return {
        "the rate": judged(rate["low"], rate["high"], above=0.0),
        **{
            f"staying dead, depth {r['depth']}": judged(r["low"], r["high"], above=STAY)
            for r in rows
            if r["what"] == STAYED
        },
        "initialization": _any_effect([by[w] for w in by if w.startswith("initialization")]),
        "policy": _any_effect([by[w] for w in by if w.startswith("policy")]),
    }


def _any_effect(rows: Sequence[Mapping[str, Any]]) -> Judgement:
    # An effect in either direction changes "how many". Its absence cannot be shown by an interval, only bounded:
    # below one unit in a hundred nobody would notice.
    if any(r["low"] > 0 or r["high"] < 0 for r in rows):
        return "holds"
    return "fails" if all(r["low"] > -0.01 and r["high"] < 0.01 for r in rows) else "open"


def judge(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict over the four parts."""
    return verdict_of(list(judgements(rows).values()))


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence what kills units, what changes how many, and whether the dead stay dead."""
    parts = judgements(rows)
    rate = {
        "holds": "high rates kill units",
        "fails": "high rates kill no more units than low ones",
        "open": "the seeds do not settle whether high rates kill units",
    }[parts["the rate"]]
    of = grouped({part: parts[part] for part in ("initialization", "policy")})
    told = clause("{} change how many" if of["holds"][1:] else "{} changes how many", of["holds"])
    told += clause("{} make no difference" if of["fails"][1:] else "{} makes no difference", of["fails"])
    told += clause("the seeds do not settle whether {} matters", of["open"])
    return f"{capital(rate)}, and {listed(told)}; {_staying(parts)}."


def _staying(parts: Mapping[str, Judgement]) -> str:
    words: Mapping[Judgement, str] = {
        "holds": "stay dead",
        "fails": "come back in more than one case in ten",
        "open": "may or may not come back",
    }
    one, four = (parts[f"staying dead, depth {depth}"] for depth in (SHALLOW, DEEP))
    if one == four:
        return f"the dead {words[one]}, with one hidden layer and with four"
    return f"the dead {words[one]} with one hidden layer, but {words[four]} with four"


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the numbers say."""
    by_rate = ", ".join(f"{r['value']:.1%} at {r['learning_rate']:g}" for r in _by_rate(rows))
    parts = [conclusion(rows), f"Dead units at the end, one hidden layer, Kaiming start: {by_rate}."]
    parts += [
        f"{capital(r['what'])}: {100 * r['value']:+.1f} points "
        f"(95 % interval {100 * r['low']:+.1f} to {100 * r['high']:+.1f})."
        for r in rows
        if ": " in r["what"]
    ]
    parts += [
        f"Of the units dead at half time {r['value']:.0%} are dead at the end, hidden layers: {r['depth']} "
        f"(mean of {r['seeds']} runs, {r['low']:.0%} to {r['high']:.0%})."
        for r in rows
        if r["what"] == STAYED
    ]
    judged_parts = "; ".join(f"{part}: {judgement}" for part, judgement in judgements(rows).items())
    return " ".join([*parts, f"{capital(judged_parts)}."])


def _by_rate(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [
        r
        for r in rows
        if r["what"] == "dead at end" and (r["depth"], r["scheme"], r["policy"]) == (SHALLOW, "kaiming", "fixed")
    ]


def _charts(rows: Sequence[Mapping[str, Any]]) -> tuple[Chart, ...]:
    rates = _by_rate(rows)
    ends = [r for r in rows if r["what"] == "dead at end" and r["depth"] == SHALLOW]
    line = band("kaiming, fixed rate", (r["learning_rate"] for r in rates), rates, "both")
    others = tuple(
        band(f"{r['scheme']}, {r['policy']}", (r["learning_rate"],), [r], "points") for r in ends if r not in rates
    )
    panel = Panel(
        "dead at the end of training, one hidden layer",
        "learning rate",
        "share of hidden units",
        (line, *others),
        x_log=True,
    )
    caption = "Units that are silent on every training image; bands and bars are 95 % intervals over seeds."
    return (Chart("dead-relu", "Dead units by learning rate", caption, (panel,)),)


def run(settings: Settings) -> Finding:
    """Train the grid and count the dead."""
    seeds, epochs = range(max(settings.seeds, 4)), 4 if settings.quick else 16
    todo = jobs(seeds, epochs, settings.data)
    found = dict(zip(todo, settings.map(deaths, todo), strict=True))
    rows = evidence(found)
    return Finding(
        verdict=judge(rows),
        statement=statement(rows),
        rows=tuple(rows),
        charts=_charts(rows),
        conditions={"seeds": len(seeds), "epochs": epochs},
    )


CLAIM = Claim(
    name="dead-relu",
    title="High learning rates kill rectifiers",
    claim="At high learning rates ReLU units die and stay dead; initialization, learning rate and its policy each "
    "change how many.",
    source="Stanford CS231n notes, 'Commonly used activation functions'; Caffe tutorials on the learning-rate policy",
    run=run,
)
