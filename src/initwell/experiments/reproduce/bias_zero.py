"""Zero bias against small constants, with ReLU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from initwell.apply.write import init_
from initwell.charts import Chart, Panel, Series
from initwell.experiments.data import load
from initwell.experiments.preparation import Prepared, prepared
from initwell.experiments.reproduce.bands import band
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.evidence import Judgement, judged, over_seeds, verdict_of
from initwell.experiments.reproduce.wording import clause, grouped, listed
from initwell.experiments.statistics import Verdict
from initwell.experiments.train import TrainConfig, train
from initwell.experiments.zoo import build
from initwell.initializers.basic import constant

CONSTANTS = (0.0, 0.01, 0.1)
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "mlp": {"depth": 4, "width": 128, "activation": "relu"},
    "small_cnn": {"activation": "relu"},
}
RATES = (0.1, 0.2, 0.4)
# Less than half a point of accuracy is no improvement that anybody would change a default for.
MATTERS = 0.005


@dataclass(frozen=True)
class Job:
    """One training run."""

    network: str
    bias: float
    rate: float
    seed: int
    epochs: int
    data: str | None


def network(job: Job, data: Prepared) -> nn.Module:
    """Build one network with Kaiming weights and every hidden bias at the job's constant."""
    model = build(job.network, data.shape, data.classes, **NETWORKS[job.network])
    hidden = [n for n, _ in model.named_parameters() if n.endswith(".bias") and not n.startswith("output")]
    rules: dict[str | type[nn.Module], object] = {name: constant(job.bias) for name in hidden}
    init_(model, "kaiming", seed=job.seed, example=data.train_x[:2], rules=rules)
    return model


def accuracy(job: Job) -> float:
    """Train once and return the test accuracy; a run that diverged counts as guessing."""
    data = prepared(load(job.data or "mnist-5k"), "standardize")
    config = TrainConfig(epochs=job.epochs, batch_size=50, learning_rate=job.rate, seed=job.seed, policy="cosine")
    result = train(network(job, data), data, config)
    return result.test_accuracy[-1] if result.status == "done" else 1.0 / data.classes


def best_rates(found: Mapping[Job, float]) -> dict[str, float]:
    """Return each network's learning rate of the highest mean accuracy over the constants: one rate serves them all.

    Rates chosen apart would set their own scatter beside the small gains that are looked for.
    """
    best = {}
    for network in dict.fromkeys(j.network for j in found):
        by_rate = {
            rate: [value for j, value in found.items() if (j.network, j.rate) == (network, rate)]
            for rate in sorted({j.rate for j in found})
        }
        best[network] = max(by_rate, key=lambda rate: sum(by_rate[rate]) / len(by_rate[rate]))
    return best


def evidence(found: Mapping[Job, float]) -> list[dict[str, Any]]:
    """Make one row a network and constant, and the paired gains over zero; each network was run at one rate."""
    rows: list[dict[str, Any]] = []
    for network in dict.fromkeys(j.network for j in found):
        its = {job: value for job, value in found.items() if job.network == network}
        by_bias = {b: [v for job, v in its.items() if job.bias == b] for b in dict.fromkeys(j.bias for j in its)}
        common = {"network": network, "learning_rate": next(iter(its)).rate}
        for bias, values in by_bias.items():
            row = {"what": "test accuracy", **common, "bias": bias}
            rows.append({**row, **over_seeds(values), "seeds": len(values)})
        for bias, values in by_bias.items():
            if bias:
                gain = [a - b for a, b in zip(values, by_bias[0.0], strict=True)]
                row = {"what": "gain over zero", **common, "bias": bias}
                rows.append({**row, **over_seeds(gain), "seeds": len(gain)})
    return rows


def judgement(row: Mapping[str, Any]) -> Judgement:
    """Judge one gain: below ``MATTERS`` the claim holds, above it fails, across it these seeds cannot tell."""
    return judged(row["low"], row["high"], below=MATTERS)


def judge(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict on "no constant is better than zero": refuted where every one is, by more than ``MATTERS``."""
    return verdict_of([judgement(r) for r in rows if r["what"] == "gain over zero"])


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence for which networks and constants there is a gain over zero."""
    gains = [r for r in rows if r["what"] == "gain over zero"]
    of = grouped({f"{r['network']} with {r['bias']:g}": judgement(r) for r in gains})
    none, some, unknown = of["holds"], of["fails"], of["open"]
    counts = f"of {100 * MATTERS:g} points"
    if not some and not unknown:
        return f"A small constant bias at the start gains nothing {counts} over zero, in any network tried."
    if not none and not unknown:
        return f"A small constant bias at the start gains more than {100 * MATTERS:g} points over zero, wherever tried."
    if not some:
        excluded = f"only for {listed(none)}" if none else "for none"
        return f"No constant bias shows a gain over zero, but so few seeds can exclude one {counts} {excluded}."
    told = [f"it gains for {listed(some)}"]
    told += clause("it does not for {}", none)
    told += clause("the seeds do not settle it for {}", unknown)
    return f"What a constant bias gains over zero depends on network and constant: {', '.join(told)}."


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the numbers say."""
    parts = [conclusion(rows)]
    for network in dict.fromkeys(r["network"] for r in rows):
        zero = next(r for r in rows if r["network"] == network and r["what"] == "test accuracy" and r["bias"] == 0)
        gains = "; ".join(
            f"{r['bias']:g}: {100 * r['value']:+.2f} points (95 % interval {100 * r['low']:+.2f} to "
            f"{100 * r['high']:+.2f})"
            for r in rows
            if r["network"] == network and r["what"] == "gain over zero"
        )
        parts.append(f"In {network} zero biases give {zero['value']:.1%} right; a constant of {gains}.")
    found = [judgement(r) for r in rows if r["what"] == "gain over zero"]
    parts.append(
        f"A gain counts from {100 * MATTERS:g} points: of {len(found)} comparisons {found.count('holds')} show none, "
        f"{found.count('fails')} show one, and {found.count('open')} cannot tell."
    )
    return " ".join(parts)


def _chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    panels = []
    for network in dict.fromkeys(r["network"] for r in rows):
        its = [r for r in rows if r["network"] == network and r["what"] == "gain over zero"]
        gain = band("gain over zero bias", (r["bias"] for r in its), its, "points", scale=100)
        nothing = Series("no difference", (min(gain.x), max(gain.x)), (0.0, 0.0), style="dashed")
        panels.append(Panel(network, "initial bias", "points of test accuracy", (gain, nothing), x_log=True))
    caption = "Paired by seed, at each network's best learning rate; bars are 95 % intervals."
    return Chart("bias-zero", "What a small constant bias gains", caption, tuple(panels))


def run(settings: Settings) -> Finding:
    """Choose each network's learning rate with one seed, then train it under each constant with others."""
    seeds, epochs = range(max(settings.seeds, 5)), 3 if settings.quick else 20
    # The seed that chooses is not among those that count, so that the choice cannot flatter what is reported.
    scout = max(seeds) + 1000
    tried = [
        Job(network, bias, rate, scout, epochs, settings.data)
        for network in NETWORKS
        for bias in CONSTANTS
        for rate in RATES
    ]
    rates = best_rates(dict(zip(tried, settings.map(accuracy, tried), strict=True)))
    jobs = [
        Job(network, bias, rates[network], seed, epochs, settings.data)
        for network in NETWORKS
        for bias in CONSTANTS
        for seed in seeds
    ]
    rows = evidence(dict(zip(jobs, settings.map(accuracy, jobs), strict=True)))
    return Finding(
        verdict=judge(rows),
        statement=statement(rows),
        rows=tuple(rows),
        charts=(_chart(rows),),
        conditions={"seeds": len(seeds), "epochs": epochs, "rates": ", ".join(f"{r:g}" for r in RATES)},
    )


CLAIM = Claim(
    name="bias-zero",
    title="Zero biases do as well as small constants",
    claim="With ReLU, a small constant bias at the start gives no consistent improvement over zero.",
    source="Stanford CS231n notes, 'Initializing the biases'",
    run=run,
)
