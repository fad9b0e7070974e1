"""The demonstration: how signal and gradient travel under each initialization, and what training makes of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from initwell.charts import Chart
from initwell.experiments import zoo
from initwell.experiments.compare import compare
from initwell.experiments.comparison import Comparison, Entry
from initwell.experiments.data import EMBEDDED, load
from initwell.experiments.jobs import run_all
from initwell.experiments.preparation import Prepared, prepared
from initwell.experiments.travel import (
    DIRECTIONS,
    Travel,
    histogram_chart,
    measured,
    predicted,
    travel_chart,
)
from initwell.records import Record, Row

Progress = Callable[[int, int, str], None]
SCHEMES = ("zeros", "small_random", "inverse_sqrt", "xavier", "kaiming", "pytorch")
# The optimizer and its rates: the best one of each scheme lies among them on both networks.
OPTIMIZER, RATES = "momentum", (0.01, 0.03)
IMAGES = 256
# A size kept within a factor of ten is level; below a millionth the first step moves nothing that can be seen.
LEVEL, LOST = 10.0, 1e-6
# Above this the outputs for two images differ by less than the difference between any two of their weights.
FORGOTTEN = 0.99


@dataclass(frozen=True)
class Net(Record):
    """One network of the demonstration.

    Attributes:
        name: of the network in the zoo.
        title: what it is, in a few words.
        options: what it is built with.
        looked_at: layers whose histograms are drawn.
    """

    name: str
    title: str
    options: Mapping[str, Any]
    looked_at: tuple[str, ...]

    def build(self, shape: Sequence[int], classes: int) -> nn.Sequential:
        """Build it."""
        return zoo.build(self.name, shape, classes, **self.options)


NETS = (
    Net(
        "mlp",
        "20 ReLU layers of 100 units",
        {"depth": 20, "width": 100},
        ("hidden1", "hidden5", "hidden10", "hidden15", "hidden20"),
    ),
    Net(
        "small_cnn", "a small conv net, 6 layers of 16 channels", {"depth": 6, "width": 16}, ("conv1", "conv3", "conv6")
    ),
)


@dataclass(frozen=True)
class NetResult(Record):
    """What came of one network.

    Attributes:
        net: the network.
        rows: one a scheme: what is left of signal and gradient by formula and by measurement, and the test accuracy.
        verdicts: one plain sentence a scheme.
        comparison: the training runs.
        charts: travel, histograms, curves.
    """

    net: Net
    rows: tuple[Row, ...]
    verdicts: tuple[str, ...]
    comparison: Comparison
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Demo(Record):
    """The whole demonstration.

    Attributes:
        results: one a network.
        conditions: data, seeds and settings, by name.
    """

    results: tuple[NetResult, ...]
    conditions: Mapping[str, Any]


@dataclass(frozen=True)
class _Look:
    """What the worker processes that measure are given once."""

    net: Net
    classes: int
    batch: Tensor

    def build(self) -> nn.Sequential:
        return self.net.build(tuple(self.batch.shape[1:]), self.classes)


def demo(
    *,
    out: Path | None = None,
    quick: bool = False,
    seeds: int = 4,
    workers: int = 2,
    data: str = EMBEDDED,
    progress: Progress | None = None,
) -> Demo:
    """Measure and train both networks under every scheme.

    Args:
        out: where the training runs are kept, so that a second call goes on from them; None keeps nothing.
        quick: fewer images and one epoch: to see that it works, not what comes out.
        seeds: of each setting.
        workers: processes.
        data: name or folder of the images.
        progress: told how much of the work is done, of how much, and what the last piece was.

    Returns:
        Tables, sentences and charts, as data.
    """
    images = load(data)
    ready = prepared(images.subset(500, 200) if quick else images, "standardize")
    epochs = 1 if quick else 4
    each = len(SCHEMES) * seeds * (1 + len(RATES))
    results = []
    for index, net in enumerate(NETS):
        tell = _shifted(progress, index * each, len(NETS) * each)
        results.append(_one(net, ready, seeds, epochs, out, workers, tell))
    conditions = {
        "data": f"{ready.name}, {len(ready.train_x)} + {len(ready.test_x)} images, {ready.preparation}",
        "seeds": f"0 to {seeds - 1}",
        "training": f"{epochs} epochs, batches of 64, SGD with momentum 0.9",
        "learning rates": " and ".join(map(str, RATES)),
        "measured": f"on {min(IMAGES, len(ready.train_x))} training images, a gradient of unit variance on the outputs",
        "workers": f"{workers} processes of one thread each",
    }
    return Demo(tuple(results), conditions)


def _shifted(progress: Progress | None, before: int, total: int) -> Progress:
    def tell(done: int, _total: int, message: str) -> None:
        if progress:
            progress(before + done, total, message)

    return tell


def _one(
    net: Net, data: Prepared, seeds: int, epochs: int, out: Path | None, workers: int, tell: Progress
) -> NetResult:
    look = _Look(net, data.classes, data.train_x[:IMAGES])
    jobs = [(scheme, seed) for scheme in SCHEMES for seed in range(seeds)]
    tell(0, 0, f"{net.title}: measuring")
    found = run_all(
        _measure, jobs, shared=look, workers=workers, progress=lambda done, _: tell(done, 0, f"{net.title}: measuring")
    )
    runs: dict[str, tuple[Travel, list[Travel]]] = {
        scheme: (predicted(look.build(), scheme, look.batch), found[k * seeds : (k + 1) * seeds])
        for k, scheme in enumerate(SCHEMES)
    }
    comparison = compare(
        net.name,
        data,
        SCHEMES,
        seeds,
        out=out,
        workers=workers,
        progress=lambda done, _, text: tell(len(jobs) + done, 0, f"{net.title}: {text}"),
        learning_rate=RATES,
        optimizer=OPTIMIZER,
        epochs=epochs,
        batch_size=64,
        depths=net.options["depth"],
        widths=net.options["width"],
    )
    best = {entry.scheme: entry for entry in comparison.best()[0]}
    rows = tuple(_row(scheme, *runs[scheme], best[scheme]) for scheme in SCHEMES)
    verdicts = tuple(_sentence(row) for row in rows)
    charts = (*_charts(look, runs), _curves(comparison, net))
    return NetResult(net, rows, verdicts, comparison, tuple(chart for chart in charts if chart))


def _measure(look: _Look, job: tuple[str, int]) -> Travel:
    scheme, seed = job
    return measured(look.build, scheme, look.batch, seed)


def _charts(look: _Look, runs: Mapping[str, tuple[Travel, Sequence[Travel]]]) -> list[Chart]:
    net = look.net
    padded = any(name.startswith("conv") for name in net.looked_at)
    remark = "The formula knows no borders: zeros beyond them make the measured sizes smaller." if padded else ""
    charts = [travel_chart(f"travel-{net.name}", f"Signal and gradient through {net.title}", runs, remark)]
    for direction, what in zip(DIRECTIONS, ("Signal", "Gradient"), strict=True):
        name, title = f"histogram-{direction}-{net.name}", f"{what} by layer in {net.title}"
        charts.append(histogram_chart(name, title, look.build, SCHEMES, look.batch, net.looked_at, direction))
    return charts


def _curves(comparison: Comparison, net: Net) -> Chart | None:
    # The same order of schemes as in the other charts gives each the same colour; the name tells the two nets' files.
    chart = comparison.charts()[0]
    panels = tuple(
        replace(panel, series=tuple(s for scheme in SCHEMES for s in panel.series if s.label.startswith(f"{scheme} (")))
        for panel in chart.panels
    )
    drawn = tuple(panel for panel in panels if panel.series)
    title = f"Training {net.title}"
    return replace(chart, name=f"curves-{net.name}", title=title, panels=drawn) if drawn else None


def _row(scheme: str, theory: Travel, seeds: Sequence[Travel], best: Entry) -> Row:
    overlaps = [one.overlap for one in seeds if one.overlap is not None]
    return {
        "scheme": scheme,
        "signal_theory": theory.forward_factor,
        "signal": _middle([one.forward_factor for one in seeds]),
        "gradient_theory": theory.backward_factor,
        "gradient": _middle([one.backward_factor for one in seeds]),
        "overlap": math.fsum(overlaps) / len(overlaps) if overlaps else None,
        "test_accuracy": best.accuracy.value,
        "low": best.accuracy.low,
        "high": best.accuracy.high,
        "learning_rate": best.learning_rate,
        "diverged": best.diverged,
        "seeds": len(best.runs),
    }


def _middle(factors: Sequence[float]) -> float:
    # Sizes multiply up, so their middle is the geometric one.
    if any(not factor > 0 for factor in factors):
        return min(factors)
    return math.exp(math.fsum(map(math.log, factors)) / len(factors))


def _sentence(row: Row) -> str:
    """Say in one sentence what the numbers of a scheme come to."""
    trained = f"{100 * row['test_accuracy']:.0f} % of test images right after training"
    if row["low"] < row["high"] and math.isfinite(row["high"] - row["low"]):
        trained += f" (95 % interval {100 * row['low']:.0f} to {100 * row['high']:.0f} %)"
    if row["diverged"]:
        trained += f", {row['diverged']} of {row['seeds']} runs diverged"
    return f"{row['scheme']}: {_fate(row)}; {trained}."


def _fate(row: Row) -> str:
    signal, gradient = row["signal"], row["gradient"]
    if not signal > 0 or not gradient > 0:
        return "dead at start, no signal reaches the last layer and no gradient the first"
    overlap = row["overlap"]
    if overlap is not None and overlap > FORGOTTEN and not _level(gradient):
        alike = f"{100 * overlap:.2f} %" if overlap < 0.9999 else "more than 99.99 %"
        return (
            f"the input is forgotten, any two images come out {alike} alike (only the biases keep the signal up), "
            f"and the gradient {_change(gradient)}"
        )
    if min(signal, gradient) < LOST:
        return f"dead at start, the signal {_change(signal)} and the gradient {_change(gradient)}"
    if _level(signal) and _level(gradient):
        return f"healthy, signal and gradient keep their size (×{signal:.2g} and ×{gradient:.2g})"
    return f"fading, the signal {_change(signal)} and the gradient {_change(gradient)}"


def _level(factor: float) -> bool:
    return 1 / LEVEL <= factor <= LEVEL


def _change(factor: float) -> str:
    if _level(factor):
        return f"keeps its size (×{factor:.2g})"
    times = 1 / factor if factor < 1 else factor
    return f"{'shrinks' if factor < 1 else 'grows'} {times:,.0f}-fold" if times < 1e5 else _powers(factor)


def _powers(factor: float) -> str:
    digits = str(round(abs(math.log10(factor)))).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{'shrinks' if factor < 1 else 'grows'} 10{digits}-fold"
