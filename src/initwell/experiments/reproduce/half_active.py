"""P(y > 0) = 1/2 at initialization, and where it goes, by layer, as training goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from initwell.apply.write import init_
from initwell.charts import Chart, Panel, Series
from initwell.experiments.data import load
from initwell.experiments.preparation import prepared
from initwell.experiments.reproduce.activity import relu_activity
from initwell.experiments.reproduce.bands import band, points_over_seeds
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.evidence import Judgement, judged, over_seeds, verdict_of, within
from initwell.experiments.reproduce.wording import listed
from initwell.experiments.statistics import Verdict
from initwell.experiments.train import TrainConfig, train
from initwell.experiments.zoo import build

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "mlp": {"depth": 6, "width": 128, "activation": "relu"},
    "small_cnn": {"depth": 5, "activation": "relu"},
}
# A layer has at least 16 units (channels), each on or off for most images at once: the share of one draw scatters by up
# to 0.5/√16 = 0.125, that of the mean of forty by 0.02, and the ends of an interval lie two of those away.
HALF = 0.05
STARTS = 40
IMAGES = 500


@dataclass(frozen=True)
class Job:
    """One network, one seed; with 0 epochs it is only drawn."""

    network: str
    seed: int
    epochs: int
    data: str | None


def trajectory(job: Job) -> list[list[float]]:
    """Train one network and return P(y > 0) by epoch (0 is the initialization) and by ReLU layer."""
    data = prepared(load(job.data or "mnist-5k"), "standardize")
    model = build(job.network, data.shape, data.classes, **NETWORKS[job.network])
    init_(model, "kaiming", seed=job.seed, example=data.train_x[:2])
    images = data.test_x[:IMAGES]
    shares = [[a.active for a in relu_activity(model, images)]]
    if not job.epochs:
        return shares
    config = TrainConfig(epochs=job.epochs, batch_size=50, optimizer="momentum", learning_rate=0.01, seed=job.seed)
    train(model, data, config, on_epoch=lambda e: shares.append([a.active for a in relu_activity(e.model, images)]))
    return shares


def slope(shares: Sequence[float]) -> float:
    """Return the least-squares change of P(y > 0) from one layer to the next.

    >>> round(slope([0.5, 0.4, 0.3]), 6)
    -0.1
    """
    n = len(shares)
    centre = (n - 1) / 2
    return sum((k - centre) * s for k, s in enumerate(shares)) / sum((k - centre) ** 2 for k in range(n))


def evidence(network: str, runs: Sequence[Sequence[Sequence[float]]]) -> list[dict[str, Any]]:
    """Turn the trajectories of one network, one a seed, into rows: each layer before and after, and the slope."""
    rows: list[dict[str, Any]] = []
    trained = [run for run in runs if len(run) > 1]
    for when, epoch, its in (("start", 0, runs), ("end", -1, trained)):
        for layer in range(len(runs[0][0])):
            row = {"network": network, "what": f"P(y>0) at {when}", "layer": layer + 1, "seeds": len(its)}
            rows.append({**row, **over_seeds([run[epoch][layer] for run in its])})
    slopes = over_seeds([slope(run[-1]) for run in trained])
    rows.append({"network": network, "what": "slope at end", "layer": None, "seeds": len(trained), **slopes})
    return rows


def half_at_start(rows: Sequence[Mapping[str, Any]]) -> list[Judgement]:
    """Judge layer by layer whether the interval lies within 1/2 ± ``HALF``."""
    start = [r for r in rows if r["what"] == "P(y>0) at start"]
    return [within(r["low"], r["high"], 0.5 - HALF, 0.5 + HALF) for r in start]


def sparser_with_depth(rows: Sequence[Mapping[str, Any]]) -> list[Judgement]:
    """Judge network by network whether P(y > 0) falls with depth after training."""
    return [judged(r["low"], r["high"], below=0.0) for r in rows if r["what"] == "slope at end"]


def judge(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict: half at the start in every layer, and sparser with depth at the end in every network."""
    return verdict_of([*half_at_start(rows), *sparser_with_depth(rows)])


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence whether half are active at the start, and in which network depth makes for sparser ends."""
    start = half_at_start(rows)
    if set(start) == {"holds"}:
        half = "At initialization half of the outputs are positive in every layer"
    else:
        half = f"At initialization half of the outputs are positive in {start.count('holds')} of {len(start)} layers"
    names = [r["network"] for r in rows if r["what"] == "slope at end"]
    words: Mapping[Judgement, str] = {
        "holds": "deeper layers end sparser",
        "fails": "deeper layers end less sparse",
        "open": "no trend with depth is sure",
    }
    by: dict[str, list[str]] = {}
    for name, found in zip(names, sparser_with_depth(rows), strict=True):
        by.setdefault(words[found], []).append(name)
    ends = listed(f"{told} in {listed(by[told])}" for told in words.values() if told in by)
    return f"{half}; after training {ends}."


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the numbers say."""
    start = [r["value"] for r in rows if r["what"] == "P(y>0) at start"]
    parts = [
        conclusion(rows),
        f"At initialization {min(start):.2f} to {max(start):.2f} of the outputs are positive, by layer.",
    ]
    for row in rows:
        if row["what"] != "slope at end":
            continue
        end = [r["value"] for r in rows if r["what"] == "P(y>0) at end" and r["network"] == row["network"]]
        trend = "falls" if row["high"] < 0 else "rises" if row["low"] > 0 else "shows no clear trend"
        parts.append(
            f"After training, in {row['network']}, it goes from {end[0]:.2f} in the first layer to {end[-1]:.2f} in "
            f"the last: with depth it {trend} ({row['value']:+.3f} a layer, 95 % interval {row['low']:+.3f} to "
            f"{row['high']:+.3f})."
        )
    return " ".join(parts)


def _chart(network: str, runs: Sequence[Sequence[Sequence[float]]]) -> Panel:
    runs = [run for run in runs if len(run) > 1]
    epochs = len(runs[0])
    series = []
    for layer in range(len(runs[0][0])):
        points = points_over_seeds([shares[layer] for shares in run] for run in runs)
        series.append(band(f"layer {layer + 1}", range(epochs), points, "both"))
    half = Series("1/2", (0.0, float(epochs - 1)), (0.5, 0.5), style="dashed")
    return Panel(network, "epoch", "P(y > 0)", (*series, half))


def run(settings: Settings) -> Finding:
    """Train both networks from several seeds and follow P(y > 0) layer by layer."""
    seeds, epochs = range(max(settings.seeds, 4)), 4 if settings.quick else 30
    jobs = [
        Job(network, seed, epochs if seed in seeds else 0, settings.data)
        for network in NETWORKS
        for seed in range(max(STARTS, len(seeds)))
    ]
    found = settings.map(trajectory, jobs)
    runs = {n: [f for job, f in zip(jobs, found, strict=True) if job.network == n] for n in NETWORKS}
    rows = [row for network, its in runs.items() for row in evidence(network, its)]
    chart = Chart(
        "half-active",
        "Share of positive outputs, by layer, through training",
        "Every layer starts near 1/2 whatever the images are; training moves each layer to a level of its own. "
        "Bands are 95 % intervals over seeds.",
        tuple(_chart(network, its) for network, its in runs.items()),
    )
    return Finding(
        verdict=judge(rows),
        statement=statement(rows),
        rows=tuple(rows),
        charts=(chart,),
        conditions={"seeds": len(seeds), "starts": max(STARTS, len(seeds)), "epochs": epochs},
    )


CLAIM = Claim(
    name="half-active",
    title="Half of the rectifiers speak",
    claim="With symmetric weights P(y > 0) = 1/2 at initialization in every layer; training moves it, and deeper "
    "features end sparser.",
    source="Kaiming derivation in He et al. 2015, section 2.2; the tutorials' reading of it",
    run=run,
)
