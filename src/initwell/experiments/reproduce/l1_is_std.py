"""The mean absolute value that Caffe's debug_info prints, read as a standard deviation: when that holds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from initwell.apply.write import init_
from initwell.charts import Chart, Panel, Series
from initwell.experiments.preparation import Prepared
from initwell.experiments.reproduce.bands import band, points_over_seeds
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.evidence import Judgement, ratio_over_seeds, verdict_of, within
from initwell.experiments.reproduce.wording import clause
from initwell.experiments.statistics import Verdict
from initwell.experiments.train import TrainConfig, train
from initwell.experiments.zoo import build
from initwell.initializers.distributions import Normal, Uniform
from initwell.measurement.probe import measure
from initwell.sampling.fill import fill

# Readers of debug_info look for a layer tens of times smaller than its neighbours: a number within a factor 2 of the
# std serves them as if it were the std, and one further off may send them to the wrong layer.
FACTOR = 2.0
SIZE = 2**17
BATCH = 200
DEPTH, WIDTH = 5, 128
ACTIVATIONS = ("relu", "tanh", "sigmoid")
# mean|x| / std of each in closed form.
DISTRIBUTIONS: Mapping[str, float] = {
    "normal": math.sqrt(2 / math.pi),
    "uniform": math.sqrt(3) / 2,
    "Laplace": math.sqrt(0.5),
    "two values ±1": 1.0,
    "normal, mean 3 std": 3 * math.erf(3 / math.sqrt(2)) + math.sqrt(2 / math.pi) * math.exp(-4.5),
    "normal after ReLU": math.sqrt(1 / (2 * math.pi)) / math.sqrt(0.5 - 1 / (2 * math.pi)),
}

Found = Mapping[tuple[str, str, int], float]  # (stage, tensor, layer) -> mean|x| / std


def ratio(x: NDArray[Any]) -> float:
    """Return mean|x| / std(x); infinite where the values do not vary.

    >>> ratio(np.array([-1.0, 1.0])), ratio(np.array([3.0, 3.0]))
    (1.0, inf)
    """
    std = float(np.std(x, dtype=np.float64))
    return float(np.mean(np.abs(x), dtype=np.float64)) / std if std > 0 else math.inf


def sampled(name: str, seed: int) -> float:
    """Return the ratio in a sample of one of ``DISTRIBUTIONS``."""
    z = fill(Normal(0.0, 1.0), (SIZE,), seed=seed, name="z").astype(np.float64)
    u = fill(Uniform(-1.0, 1.0), (SIZE,), seed=seed, name="u").astype(np.float64)
    made = {
        "normal": z,
        "uniform": u,
        # The smallest float32 above 0 keeps the logarithm finite; it is not drawn once in 10³⁷.
        "Laplace": -np.sign(u) * np.log(np.clip(np.abs(u), np.finfo(np.float32).tiny, None)),
        "two values ±1": np.sign(u),
        "normal, mean 3 std": z + 3.0,
        "normal after ReLU": np.maximum(z, 0.0),
    }
    return ratio(made[name])


def in_network(data: Prepared, job: tuple[str, int, int]) -> dict[tuple[str, str, int], float]:
    """Measure the ratio of every tensor of one MLP by (activation, seed, epochs), at its start and trained."""
    activation, seed, epochs = job
    model = build("mlp", data.shape, data.classes, depth=DEPTH, width=WIDTH, activation=activation)
    init_(model, "kaiming" if activation == "relu" else "xavier", seed=seed)
    x, y = data.train_x[:BATCH], data.train_y[:BATCH]

    def loss(output: Tensor) -> Tensor:
        return F.cross_entropy(output, y)

    def look(stage: str) -> dict[tuple[str, str, int], float]:
        found = measure(model, x, loss=loss)
        values = {(stage, *place): r for row in found.rows for place, r in _of_value(row)}
        return values | {(stage, *place): r for row in found.parameters for place, r in _of_parameter(row)}

    start = look("start")
    train(model, data, TrainConfig(epochs=epochs, optimizer="adam", learning_rate=1e-3, batch_size=50, seed=seed))
    return start | look("trained")


def _of_value(row: Mapping[str, Any]) -> Iterator[tuple[tuple[str, int], float]]:
    path = row["path"]
    kind = {"hidden": "before φ", "act": "after φ"}.get(path.rstrip("0123456789"))
    if kind is None:
        return
    layer = int(path.lstrip("hidenact"))
    yield (kind, layer), row["abs_mean"] / row["std"] if row["std"] > 0 else math.inf
    if kind == "before φ" and row["gradient_rms"]:
        # A gradient's mean is small beside its rms, which stands for the std.
        yield ("gradient", layer), row["gradient_abs_mean"] / row["gradient_rms"]


def _of_parameter(row: Mapping[str, Any]) -> Iterator[tuple[tuple[str, int], float]]:
    path, _, kind = row["parameter"].rpartition(".")
    if kind != "weight" or not path.startswith("hidden"):
        return
    layer = int(path.removeprefix("hidden"))
    yield ("weight", layer), row["weight_abs_mean"] / row["weight_std"]
    yield ("weight gradient", layer), row["gradient_abs_mean"] / row["gradient_rms"]


def judge_row(layers: Sequence[Mapping[str, float]]) -> Judgement:
    """Judge one kind of tensor over its layers' intervals: within a factor ``FACTOR`` of the std in all, or in none."""
    each = {within(found["low"], found["high"], 1 / FACTOR, FACTOR) for found in layers}
    return each.pop() if len(each) == 1 else "open"


def judge(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict over the tensors of real networks and the images; the distributions are only yardsticks."""
    return verdict_of([r["judgement"] for r in _real(rows)])


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence for which kinds of tensor mean|x| may stand for the std."""
    kinds: dict[str, set[Judgement]] = {}
    for r in _real(rows):
        kinds.setdefault(r["tensor"], set()).add(r["judgement"])
    always = [_KINDS.get(kind, kind) for kind, found in kinds.items() if found == {"holds"}]
    never = [_KINDS.get(kind, kind) for kind, found in kinds.items() if found == {"fails"}]
    some = [_KINDS.get(kind, kind) for kind, found in kinds.items() if len(found) > 1 or found == {"open"}]
    told = clause("always for {}", always)
    told += clause("not always, or not surely, for {}", some)
    told += clause("never for {}", never)
    return f"Within a factor {FACTOR:g} mean|x| can be read as the std {'; '.join(told)}."


_KINDS = {"before φ": "what enters φ", "after φ": "what leaves φ", "gradient": "gradients of blobs",
          "weight": "weights", "weight gradient": "gradients of weights"}  # fmt: skip


def _real(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [r for r in rows if r["where"] != "distribution"]


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the numbers say."""
    real = _real(rows)
    normal = next(r for r in rows if r["tensor"] == "normal")
    good = [r for r in real if r["judgement"] == "holds"]
    bad = sorted((r for r in real if r["judgement"] != "holds"), key=lambda r: -abs(math.log(r["value"])))
    spans: dict[str, list[float]] = {}
    for r in real:
        spans.setdefault(r["tensor"], []).extend((r["lowest"], r["highest"]))
    each = ", ".join(f"{kind} {min(v):.2f} to {max(v):.2f}" for kind, v in spans.items())
    off = "; ".join(
        f"{r['where']}, {r['stage']}, {r['tensor']}: {r['lowest']:.2g} to {r['highest']:.2g}" for r in bad[:4]
    )
    return (
        f"{conclusion(rows)} It is so in {len(good)} of {len(real)} cases, and even there it is not the std itself: "
        f"a normal tensor of mean 0 gives {normal['value']:.4f} (√(2/π)), and with a mean of 0 mean|x| cannot exceed "
        "the std. "
        f"The ratio mean|x|/std by tensor, over layers: {each}."
        + (f" Not, or not surely, within the factor: {off}." if bad else "")
        + " The reading wants a mean of 0 and few zeros; a constant part, such as a sigmoid's ½, hides a vanishing std."
    )


def _row(
    where: str, stage: str, tensor: str, layers: Sequence[Sequence[float]], theory: float | None
) -> dict[str, Any]:
    each = [ratio_over_seeds(values) for values in layers]
    together = ratio_over_seeds([math.exp(sum(map(math.log, seed)) / len(seed)) for seed in zip(*layers, strict=True)])
    return {
        "where": where,
        "stage": stage,
        "tensor": tensor,
        "n": len(layers[0]),
        **together,
        "lowest": min(e["value"] for e in each),
        "highest": max(e["value"] for e in each),
        "theory": theory,
        "judgement": judge_row(each),
    }


def _network_rows(activation: str, runs: Sequence[Found]) -> list[dict[str, Any]]:
    kinds = dict.fromkeys((stage, tensor) for stage, tensor, _ in runs[0])
    return [
        _row(
            f"{activation} MLP",
            stage,
            tensor,
            [[run[stage, tensor, k] for run in runs] for k in range(1, DEPTH + 1)],
            None,
        )
        for stage, tensor in sorted(kinds)
    ]


def _panel(activation: str, stage: str, runs: Sequence[Found]) -> Panel:
    layers = tuple(range(1, DEPTH + 1))
    series = []
    for tensor in ("before φ", "after φ", "gradient", "weight", "weight gradient"):
        points = points_over_seeds(([run[stage, tensor, k] for k in layers] for run in runs), ratios=True)
        series.append(band(tensor, layers, points, "both"))
    series.append(Series("normal, √(2/π)", (1, DEPTH), (DISTRIBUTIONS["normal"],) * 2, style="dashed"))
    return Panel(f"{activation}, {stage}", "layer", "mean|x| / std", tuple(series), y_log=True)


def run(settings: Settings) -> Finding:
    """Measure mean|x| / std of distributions, images, and all tensors of real networks at the start and trained."""
    seeds, epochs = (settings.seeds, 2) if settings.quick else (4 * settings.seeds, 20)
    data = settings.prepared("standardize")
    jobs = [(activation, seed, epochs) for activation in ACTIVATIONS for seed in range(seeds)]
    found = settings.map(in_network, jobs, shared=data)
    rows = [
        _row("distribution", "", name, [[sampled(name, seed) for seed in range(seeds)]], exact)
        for name, exact in DISTRIBUTIONS.items()
    ]
    for how in ("scale", "standardize"):
        x = settings.prepared(how).train_x.numpy()
        parts = np.array_split(x, seeds)
        rows.append(_row("images", how, "pixels", [[ratio(part) for part in parts]], None))
    by_activation = []
    for activation in ACTIVATIONS:
        runs = [f for job, f in zip(jobs, found, strict=True) if job[0] == activation]
        rows += _network_rows(activation, runs)
        by_activation.append(runs)
    chart = Chart(
        "l1-is-std",
        "What debug_info prints, over the standard deviation",
        "1 would be equality. Tensors of mean 0 lie near 0.8; after a sigmoid the constant part is all that mean|x| "
        "shows, and gradients, heavy in the tails once most images are right, lie lower.",
        tuple(
            _panel(activation, stage, runs)
            for stage in ("start", "trained")
            for activation, runs in zip(ACTIVATIONS, by_activation, strict=True)
        ),
    )
    return Finding(
        judge(rows),
        statement(rows),
        tuple(rows),
        (chart,),
        conditions={
            "seeds": seeds,
            "network": f"MLP of {DEPTH} layers of {WIDTH}, Kaiming for ReLU, else Xavier",
            "epochs": epochs,
            "factor": FACTOR,
        },
    )


CLAIM = Claim(
    name="l1-is-std",
    title="The mean absolute value read as a std",
    claim="The number that Caffe's debug_info prints for a blob, mean|x|, can be read as its standard deviation.",
    source="Tutorials that follow a Caffe net through its debug_info log",
    run=run,
)
