"""Learned PReLU slopes by depth, one per layer and one per channel: larger early, smaller late?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from initwell.apply.write import init_
from initwell.charts import Chart, Panel, Series
from initwell.experiments.data import load
from initwell.experiments.preparation import prepared
from initwell.experiments.reproduce.bands import band
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.evidence import Judgement, judged, over_seeds, verdict_of
from initwell.experiments.statistics import Verdict
from initwell.experiments.train import TrainConfig, train

START = 0.25  # He et al. 2015: where every slope begins
CHANNELS = (8, 8, 16, 16, 32, 32)
POOL_AFTER = (0, 2)


@dataclass(frozen=True)
class Job:
    """One network ("layer" or "channel": what shares a slope), one seed."""

    sharing: str
    seed: int
    epochs: int
    data: str | None


def network(sharing: str, shape: Sequence[int], classes: int) -> nn.Sequential:
    """Build a plain 3×3 convolutional stack with a PReLU after every convolution.

    Args:
        sharing: ``layer`` for one slope a layer, ``channel`` for one a channel.
        shape: (channels, height, width) of an image.
        classes: number of classes.
    """
    layers: list[nn.Module] = []
    before = shape[0]
    for index, channels in enumerate(CHANNELS):
        layers.append(nn.Conv2d(before, channels, 3, padding=1))
        layers.append(nn.PReLU(channels if sharing == "channel" else 1, init=START))
        if index in POOL_AFTER:
            layers.append(nn.MaxPool2d(2))
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def learned_slopes(job: Job) -> list[float]:
    """Train one network, without weight decay on the slopes, and return the mean slope of each layer."""
    data = prepared(load(job.data or "mnist-5k"), "standardize")
    with torch.random.fork_rng(devices=[]):
        model = network(job.sharing, data.shape, data.classes)
    init_(model, "kaiming", seed=job.seed, example=data.train_x[:2])
    config = TrainConfig(
        epochs=job.epochs, batch_size=50, optimizer="momentum", learning_rate=0.02, seed=job.seed, policy="cosine"
    )
    train(model, data, config)
    return [float(m.weight.detach().mean()) for m in model if isinstance(m, nn.PReLU)]


def evidence(sharing: str, runs: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Make one row a layer, and one for the early less the late third of the layers, paired by seed."""
    layers = len(runs[0])
    third = max(1, layers // 3)
    rows: list[dict[str, Any]] = [
        {"sharing": sharing, "what": "slope", "layer": k + 1, **over_seeds([run[k] for run in runs])}
        for k in range(layers)
    ]
    fall = [sum(run[:third]) / third - sum(run[-third:]) / third for run in runs]
    rows.append({"sharing": sharing, "what": "early less late", "layer": None, **over_seeds(fall)})
    return [{**row, "seeds": len(runs)} for row in rows]


def judgements(rows: Sequence[Mapping[str, Any]]) -> dict[str, Judgement]:
    """Judge, for one slope a layer and one a channel, whether early slopes lie above late ones."""
    return {r["sharing"]: judged(r["low"], r["high"], above=0.0) for r in rows if r["what"] == "early less late"}


def judge(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict: early slopes above late ones, with one slope a layer and with one a channel."""
    return verdict_of(list(judgements(rows).values()))


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence whether slopes fall with depth, and under which sharing."""
    words: Mapping[Judgement, str] = {
        "holds": "larger",
        "fails": "smaller",
        "open": "neither surely larger nor smaller",
    }
    found = judgements(rows)
    sharing = " and ".join(f"with one a {s}" for s in found)
    if len(set(found.values())) == 1:
        word = words[next(iter(found.values()))]
        return f"PReLU slopes are {word} in the first third of the layers than in the last, {sharing} alike."
    told = ", ".join(f"with one a {s} they are {words[judgement]}" for s, judgement in found.items())
    return f"Whether PReLU slopes are larger in early layers than in late ones depends on what shares a slope: {told}."


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the numbers say."""
    parts = [conclusion(rows)]
    for fall in (r for r in rows if r["what"] == "early less late"):
        slopes = [r["value"] for r in rows if r["what"] == "slope" and r["sharing"] == fall["sharing"]]
        rises = sum(later > earlier for earlier, later in pairwise(slopes))
        steady = f", with {rises} of {len(slopes) - 1} steps going up" if rises else ", falling at every step"
        parts.append(
            f"One slope a {fall['sharing']}: {', '.join(f'{s:.2f}' for s in slopes)} from the first layer to the last "
            f"(start {START}){steady}; the first third less the last {fall['value']:+.3f} "
            f"(95 % interval {fall['low']:+.3f} to {fall['high']:+.3f})."
        )
    return " ".join(parts)


def _chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    series = []
    for sharing in ("layer", "channel"):
        its = [r for r in rows if r["what"] == "slope" and r["sharing"] == sharing]
        series.append(band(f"one a {sharing}", (r["layer"] for r in its), its, "both"))
    start = Series("start", (1.0, float(len(CHANNELS))), (START, START), style="dashed")
    panel = Panel("learned slope", "layer", "slope a of max(0, y) + a·min(0, y)", (*series, start))
    return Chart(
        "prelu-slopes", "PReLU slopes by depth", "Mean slope of each layer; bands are 95 % intervals.", (panel,)
    )


def run(settings: Settings) -> Finding:
    """Train both kinds of network from several seeds and read their slopes."""
    epochs = 4 if settings.quick else 30
    seeds = range(max(settings.seeds, 4))
    jobs = [Job(sharing, seed, epochs, settings.data) for sharing in ("layer", "channel") for seed in seeds]
    found = settings.map(learned_slopes, jobs)
    rows = []
    for sharing in ("layer", "channel"):
        rows += evidence(sharing, [f for job, f in zip(jobs, found, strict=True) if job.sharing == sharing])
    return Finding(
        verdict=judge(rows),
        statement=statement(rows),
        rows=tuple(rows),
        charts=(_chart(rows),),
        conditions={"seeds": len(seeds), "epochs": epochs},
    )


CLAIM = Claim(
    name="prelu-slopes",
    title="PReLU keeps more early, discriminates more late",
    claim="Learned PReLU slopes are larger in early layers and smaller in late ones.",
    source="He et al. 2015, 'Delving deep into rectifiers', section 2.1 and table 1",
    run=run,
)
