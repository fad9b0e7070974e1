"""All-zero weights: every unit of a layer stays the same as every other, for ever, in real training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initwell.apply.write import init_
from initwell.charts import Chart, Panel, Series
from initwell.experiments.preparation import Prepared
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.evidence import Judgement, over_seeds, verdict_of
from initwell.experiments.reproduce.wording import clause, grouped, listed
from initwell.experiments.statistics import Verdict
from initwell.experiments.train import TrainConfig, train
from initwell.experiments.zoo import build
from initwell.initializers.basic import normal

ACTIVATIONS = ("relu", "tanh", "sigmoid")
ZEROS, DOUBLE, NEARLY = "zeros", "zeros, float64", "0.001·randn"
STARTS = (ZEROS, DOUBLE, NEARLY)
WIDTH, DEPTH = 100, 2
# float32 carries 24 bits: identical sums taken in another order may differ by some 1e-7 of their size. A difference
# above this, in weights of order 0.1 to 1, is a symmetry broken; at or below it, it is arithmetic, and left open.
ROUNDING = 1e-5
# An Adam step is about as long for small gradients as for large ones: if a tiny asymmetry can grow, it does within
# these runs, and no learning rate needs to be searched.
RATE = 3e-3


@dataclass(frozen=True)
class Job:
    """One activation, one start, one seed (of the order of the images, and of the tiny noise)."""

    activation: str
    start: str
    seed: int
    epochs: int


@dataclass(frozen=True)
class Found:
    """What one run left behind.

    Attributes:
        job: the run.
        apart: by epoch, 0 the start, the largest difference between two units of one hidden layer: in their incoming
            weights, bias, or outgoing weights.
        moved: how far the largest weight (biases apart) has come from 0.
        gradient: largest |gradient| of any weight on the first batch, biases apart.
        accuracy: share of test images right at the end.
        majority: share of test images of the most frequent training class: what output biases alone can reach.
    """

    job: Job
    apart: tuple[float, ...]
    moved: float
    gradient: float
    accuracy: float
    majority: float


def units_apart(model: nn.Module) -> float:
    """Return the largest difference between two units of the same hidden layer of an MLP; 0 is exact equality.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> for p in net.parameters():
    ...     _ = nn.init.constant_(p, 0.5)
    >>> units_apart(net)
    0.0
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    largest = 0.0
    for layer, following in pairwise(layers):
        incoming = layer.weight if layer.bias is None else torch.cat([layer.weight, layer.bias[:, None]], dim=1)
        for units in (incoming.detach(), following.weight.detach().T):
            largest = max(largest, float((units - units[0]).abs().max()))
    return largest


def _weights(model: nn.Module) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, nn.Linear)]


def _first_gradient(model: nn.Module, data: Prepared) -> float:
    loss = F.cross_entropy(model(data.train_x[:100]), data.train_y[:100])
    return max(float(g.abs().max()) for g in torch.autograd.grad(loss, _weights(model)))


def train_one(data: Prepared, job: Job) -> Found:
    """Train one MLP from zeros, or from next to zeros, and watch its units."""
    if job.start == DOUBLE:
        data = replace(data, train_x=data.train_x.double(), test_x=data.test_x.double())
    model = build("mlp", data.shape, data.classes, depth=DEPTH, width=WIDTH, activation=job.activation)
    init_(model, normal(0.0, 1e-3) if job.start == NEARLY else "zeros", seed=job.seed)
    model.to(data.train_x.dtype)
    gradient = _first_gradient(model, data)
    apart = [units_apart(model)]
    config = TrainConfig(epochs=job.epochs, batch_size=100, optimizer="adam", learning_rate=RATE, seed=job.seed)
    result = train(model, data, config, on_epoch=lambda _: apart.append(units_apart(model)))
    moved = max(float(w.detach().abs().max()) for w in _weights(model))
    majority = float((data.test_y == torch.bincount(data.train_y).argmax()).float().mean())
    return Found(job, tuple(apart), moved, gradient, result.test_accuracy[-1], majority)


def judge_activation(apart: Sequence[float], control: Sequence[float]) -> Judgement:
    """Judge one activation over seeds: are the units of a zero start still equal, in a run where others part?

    Args:
        apart: largest difference between units after training from zeros, one a seed.
        control: the same from the tiny asymmetry.

    Returns:
        ``fails`` if units parted by more than rounding in any run; ``holds`` if the difference is exactly 0 in every
        run and every control parted; ``open`` for rounding, or a control that shows that nothing would have parted.
    """
    if max(apart) > ROUNDING:
        return "fails"
    return "holds" if max(apart) == 0.0 and min(control) > ROUNDING else "open"


def judge(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict over all activations, from the rows of the zero start."""
    return verdict_of([r["judgement"] for r in rows if r["start"] == ZEROS])


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence with which activations units of a zero start stay equal, and what parts the others."""
    zero = {r["activation"]: r for r in rows if r["start"] == ZEROS}
    of = grouped({activation: r["judgement"] for activation, r in zero.items()})
    kept, parted, unsettled = of["holds"], of["fails"], of["open"]
    told = clause("stay exactly equal with {}", kept)
    if parted:
        rounding = all(zero[activation]["apart_after_one_epoch"] <= ROUNDING for activation in parted)
        told.append(f"part with {listed(parted)}{', by rounding that training makes grow' if rounding else ''}")
    told += clause("are not settled to be equal with {}", unsettled)
    return f"From all zeros the units of a layer {', but '.join(told)}."


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the numbers say."""
    zero = [r for r in rows if r["start"] == ZEROS]
    other = {(r["activation"], r["start"]): r for r in rows}
    parts = [conclusion(rows)]
    for r in zero:
        name = r["activation"]
        if r["weights_moved"] == 0.0:
            continue
        if r["judgement"] == "holds":
            parts.append(f"With {name} weights move by up to {r['weights_moved']:.2f}, all units of a layer together.")
            continue
        double = other.get((name, DOUBLE), r)
        parts.append(
            f"With {name} weights move, all units of a layer together, but for rounding: after one epoch two units are "
            f"{r['apart_after_one_epoch']:.0e} apart ({double['apart_after_one_epoch']:.0e} in float64), and training "
            f"makes that grow to {r['units_apart']:.1g} ({double['units_apart']:.1g}) at most."
        )
    still = [r["activation"] for r in zero if r["weights_moved"] == 0.0]
    if still:
        parts.append(f"With {listed(still)} every weight's gradient is 0 and only output biases learn.")
    scores = ", ".join(
        f"{r['activation']} {100 * r['value']:.1f} % against {100 * other[r['activation'], NEARLY]['value']:.1f} %"
        for r in zero
    )
    parts.append(
        f"Test accuracy from zeros against a start of 0.001·randn: {scores}; one class alone gives "
        f"{100 * zero[0]['majority']:.1f} %."
    )
    return " ".join(parts)


def _starts(activation: str) -> tuple[str, ...]:
    # Where nothing moves there is nothing to round; only a sigmoid's units have sums to differ in.
    return STARTS if activation == "sigmoid" else (ZEROS, NEARLY)


def _rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for activation in ACTIVATIONS:
        by_start = {
            s: [f for f in found if (f.job.activation, f.job.start) == (activation, s)] for s in _starts(activation)
        }
        ends = {start: [f.apart[-1] for f in runs] for start, runs in by_start.items()}
        for start, runs in by_start.items():
            rows.append(
                {
                    "activation": activation,
                    "start": start,
                    "n": len(runs),
                    "apart_after_one_epoch": max(f.apart[1] for f in runs),
                    "units_apart": max(ends[start]),
                    "weights_moved": max(f.moved for f in runs),
                    "first_gradient": max(f.gradient for f in runs),
                    **over_seeds([f.accuracy for f in runs]),
                    "majority": runs[0].majority,
                    "judgement": judge_activation(ends[ZEROS], ends[NEARLY]) if start == ZEROS else None,
                }
            )
    return rows


def _chart(found: Sequence[Found]) -> Chart:
    panels = []
    for activation in ACTIVATIONS:
        series = []
        for start in _starts(activation):
            runs = [f.apart for f in found if (f.job.activation, f.job.start) == (activation, start)]
            epochs = tuple(range(len(runs[0])))
            ordered = [sorted(values) for values in zip(*runs, strict=True)]
            low, middle, high = (tuple(v[k] for v in ordered) for k in (0, len(runs) // 2, -1))
            series.append(Series(start, epochs, middle, low, high, "both"))
        panels.append(Panel(activation, "epoch", "largest difference of two units", tuple(series), y_log=True))
    return Chart(
        "zero-init",
        "From all zeros units stay equal, but for rounding; from nearly zeros they part",
        "Largest difference between the weights of two units of the same hidden layer, over all layers; median and "
        "range over seeds. Where rounding differs from unit to unit, training makes it grow.",
        tuple(panels),
    )


def run(settings: Settings) -> Finding:
    """Train MLPs from zeros and from next to zeros on real images, and watch their units."""
    epochs = 12 if settings.quick else 40
    data = settings.prepared("standardize")
    jobs = [
        Job(activation, start, seed, epochs)
        for activation in ACTIVATIONS
        for start in _starts(activation)
        for seed in settings.seed_list()
    ]
    found = settings.map(train_one, jobs, shared=data)
    rows = _rows(found)
    return Finding(
        judge(rows),
        statement(rows),
        tuple(rows),
        (_chart(found),),
        conditions={
            "seeds": settings.seeds,
            "epochs": epochs,
            "network": f"MLP of {DEPTH} hidden layers of {WIDTH}",
            "optimizer": f"Adam {RATE:g}",
        },
    )


CLAIM = Claim(
    name="zero-init",
    title="All-zero weights",
    claim="With all weights zero every unit of a layer gives the same output and gets the same gradient: the symmetry "
    "is never broken, and the layer acts as one unit for ever.",
    source="CS231n, notes on weight initialization ('Pitfall: all zero initialization')",
    run=run,
)
