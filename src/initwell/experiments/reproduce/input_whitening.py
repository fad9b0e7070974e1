"""Standardized and whitened input against raw pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from initwell.apply.write import init_
from initwell.charts import Chart, Panel
from initwell.experiments.data import load
from initwell.experiments.preparation import prepared
from initwell.experiments.reproduce.bands import band, points_over_seeds
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.evidence import Judgement, judged, over_seeds, verdict_of
from initwell.experiments.reproduce.wording import capital, clause, grouped
from initwell.experiments.statistics import Verdict
from initwell.experiments.train import TrainConfig, train
from initwell.experiments.zoo import build

PREPARATIONS = ("raw", "scale", "standardize", "whiten")
# Raw pixels reach 255: their best rate lies some 100² below that of unit inputs, so the sweep spans five decades.
RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 3e-1)
# A loss of its own that is finite stands in for a run that diverged: no worse than guessing among ten classes.
GUESSING = 2.302585
# What whitening is set against: it is standardizing and more.
VERSUS = ("loss less standardize's", "test accuracy less standardize's")


@dataclass(frozen=True)
class Job:
    """One training run."""

    preparation: str
    rate: float
    seed: int
    epochs: int
    data: str | None


@dataclass(frozen=True)
class Found:
    """Losses of one run: training loss by epoch, and the test loss and accuracy at the end."""

    status: str
    train_loss: tuple[float, ...]
    test_accuracy: float


def learn(job: Job) -> Found:
    """Train a Kaiming-initialized ReLU network on images prepared in one way."""
    data = prepared(load(job.data or "mnist-5k"), job.preparation)
    model = build("mlp", data.shape, data.classes, depth=3, width=128, activation="relu")
    init_(model, "kaiming", seed=job.seed, example=data.train_x[:2])
    result = train(model, data, TrainConfig(epochs=job.epochs, batch_size=50, learning_rate=job.rate, seed=job.seed))
    accuracy = result.test_accuracy[-1] if result.test_accuracy else 0.0
    return Found(result.status, result.train_loss, accuracy)


def final_loss(found: Found) -> float:
    """Return the last epoch's training loss; a run that diverged, or ends worse than guessing, counts as guessing."""
    return GUESSING if found.status == "diverged" else min(found.train_loss[-1], GUESSING)


def best_rate(found: Mapping[Job, Found], preparation: str) -> float:
    """Return the learning rate whose mean final loss over the seeds is lowest."""
    losses: dict[float, list[float]] = {}
    for job, its in found.items():
        if job.preparation == preparation:
            losses.setdefault(job.rate, []).append(final_loss(its))
    return min(losses, key=lambda rate: sum(losses[rate]) / len(losses[rate]))


def evidence(found: Mapping[Job, Found]) -> list[dict[str, Any]]:
    """Make one row a preparation at its best rate, and the paired differences that are judged or told."""
    rows: list[dict[str, Any]] = []
    best = {p: best_rate(found, p) for p in dict.fromkeys(j.preparation for j in found)}
    runs = {p: [f for j, f in found.items() if (j.preparation, j.rate) == (p, rate)] for p, rate in best.items()}
    losses = {p: [final_loss(f) for f in its] for p, its in runs.items()}
    right = {p: [f.test_accuracy for f in its] for p, its in runs.items()}
    for preparation, rate in best.items():
        accuracy = sum(right[preparation]) / len(right[preparation])
        row = {"preparation": preparation, "learning_rate": rate, "test_accuracy": accuracy}
        rows.append({"what": "train loss", **row, **over_seeds(losses[preparation]), "seeds": len(runs[preparation])})
    rows += [_less("loss less raw's", p, losses[p], losses["raw"]) for p in best if p != "raw"]
    for what, values in zip(VERSUS, (losses, right), strict=True):
        rows.append(_less(what, "whiten", values["whiten"], values["standardize"]))
    return rows


def _less(what: str, preparation: str, first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    less = [a - b for a, b in zip(first, second, strict=True)]
    return {"what": what, "preparation": preparation, **over_seeds(less), "seeds": len(less)}


def judgements(rows: Sequence[Mapping[str, Any]]) -> dict[str, Judgement]:
    """Judge, for standardized and whitened input, whether the loss is lower than on raw pixels."""
    return {
        r["preparation"]: judged(r["low"], r["high"], below=0.0)
        for r in rows
        if r["what"] == "loss less raw's" and r["preparation"] in ("standardize", "whiten")
    }


def judge(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict: both standardized and whitened input train to a lower loss in the same epochs."""
    return verdict_of(list(judgements(rows).values()))


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence which preparations train to a lower loss, and what whitening costs in test accuracy."""
    names = {"standardize": "standardized", "whiten": "whitened"}
    of = grouped({names[preparation]: found for preparation, found in judgements(rows).items()})
    told = clause("{} input trains to a lower loss than raw pixels", of["holds"])
    told += clause("{} input trains to a higher loss than raw pixels", of["fails"])
    told += clause("the seeds do not tell {} input from raw pixels", of["open"])
    return f"{capital(', '.join(told))}{_price(rows)}."


def _price(rows: Sequence[Mapping[str, Any]]) -> str:
    pair = {r["what"]: r for r in rows if r["preparation"] == "whiten"}
    loss, accuracy = (pair[what] for what in VERSUS)
    if accuracy["high"] >= 0:
        return ""
    lower = "the lower loss from whitening comes with" if loss["high"] < 0 else "whitening gives"
    return f", but {lower} a lower test accuracy than standardizing gives"


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the numbers say."""
    losses = [r for r in rows if r["what"] == "train loss"]
    each = ", ".join(
        f"{r['preparation']} {r['value']:.3f} (rate {r['learning_rate']:g}, test accuracy {r['test_accuracy']:.1%})"
        for r in losses
    )
    less = "; ".join(
        f"{r['preparation']} {r['value']:+.3f} ({r['low']:+.3f} to {r['high']:+.3f})"
        for r in rows
        if r["what"] == "loss less raw's"
    )
    loss, accuracy = (next(r for r in rows if r["what"] == what) for what in VERSUS)
    return (
        f"{conclusion(rows)} Training loss after the last epoch, each at its best of {len(RATES)} rates: {each}. "
        f"Difference from raw pixels, paired by seed, 95 % interval: {less}. Whitened less standardized: training loss "
        f"{loss['value']:+.3f} ({loss['low']:+.3f} to {loss['high']:+.3f}), test accuracy "
        f"{100 * accuracy['value']:+.1f} points ({100 * accuracy['low']:+.1f} to {100 * accuracy['high']:+.1f})."
    )


def _chart(found: Mapping[Job, Found], rows: Sequence[Mapping[str, Any]]) -> Chart:
    series = []
    for row in (r for r in rows if r["what"] == "train loss"):
        key = row["preparation"], row["learning_rate"]
        runs = [f.train_loss for j, f in found.items() if (j.preparation, j.rate) == key and f.status == "done"]
        points = points_over_seeds(runs)
        label = f"{row['preparation']}, rate {row['learning_rate']:g}"
        series.append(band(label, range(1, len(points) + 1), points))
    panel = Panel("training loss", "epoch", "cross-entropy (nats)", tuple(series), y_log=True)
    caption = "Each preparation at its best learning rate; bands are 95 % intervals over seeds."
    return Chart("input-whitening", "Raw, scaled, standardized and whitened input", caption, (panel,))


def run(settings: Settings) -> Finding:
    """Sweep the learning rate under each preparation."""
    seeds, epochs = range(max(settings.seeds, 3)), 3 if settings.quick else 15
    jobs = [Job(p, rate, seed, epochs, settings.data) for p in PREPARATIONS for rate in RATES for seed in seeds]
    found = dict(zip(jobs, settings.map(learn, jobs), strict=True))
    rows = evidence(found)
    return Finding(
        verdict=judge(rows),
        statement=statement(rows),
        rows=tuple(rows),
        charts=(_chart(found, rows),),
        conditions={"seeds": len(seeds), "epochs": epochs, "rates": ", ".join(f"{r:g}" for r in RATES)},
    )


CLAIM = Claim(
    name="input-whitening",
    title="Prepared input trains faster than raw pixels",
    claim="Standardized and whitened inputs train to a lower loss than raw pixels in the same number of epochs.",
    source="LeCun et al. 1998, 'Efficient BackProp', section 4.3; Glorot & Bengio 2010 assume such inputs",
    run=run,
)
