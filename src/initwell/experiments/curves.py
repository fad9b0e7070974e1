"""The pictures of a comparison, as data."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from initwell.charts import Chart, Panel, Series
from initwell.experiments.train import TrainResult

if TYPE_CHECKING:
    from initwell.experiments.comparison import Comparison, Entry

POINTS = 100


def seed_band(label: str, x: Sequence[float], curves: Sequence[Sequence[float]]) -> Series:
    """Return the mean of several curves with the band from the least to the greatest.

    Args:
        label: the legend's text.
        x: horizontal positions.
        curves: one a seed, each as long as ``x``.

    >>> seed_band("kaiming", [1, 2], [[1.0, 2.0], [3.0, 4.0]]).y
    (2.0, 3.0)
    """
    columns = list(zip(*curves, strict=True))
    mean = tuple(math.fsum(column) / len(column) for column in columns)
    low, high = tuple(min(column) for column in columns), tuple(max(column) for column in columns)
    return Series(label, tuple(float(v) for v in x), mean, low, high)


def thinned(curve: Sequence[float], points: int = POINTS) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Average a curve over equal blocks, so that at most so many points are left.

    Returns:
        The middle step of each block, and the mean over it.

    >>> thinned([1.0, 3.0, 5.0, 7.0], points=2)
    ((0.5, 2.5), (2.0, 6.0))
    """
    size = max(1, math.ceil(len(curve) / points))
    blocks = [curve[start : start + size] for start in range(0, len(curve), size)]
    steps = tuple(k * size + (len(block) - 1) / 2 for k, block in enumerate(blocks))
    return steps, tuple(math.fsum(block) / len(block) for block in blocks)


def comparison_charts(comparison: "Comparison") -> tuple[Chart, ...]:
    """Return one chart of curves for each group, and one of accuracy by learning rate where there are several."""
    charts = [_curves(comparison, k, group) for k, group in enumerate(comparison.best(), start=1)]
    rates = {entry.learning_rate for entry in comparison.entries()}
    return (*charts, _by_rate(comparison)) if len(rates) > 1 else tuple(charts)


def _curves(comparison: "Comparison", number: int, group: Sequence["Entry"]) -> Chart:
    described = ", ".join(f"{name} {value}" for name, value in group[0].group.items())
    loss = [_band(entry, lambda result: thinned(result.loss_curve)) for entry in group]
    accuracy = [_band(entry, _accuracy_points) for entry in group]
    return Chart(
        name=f"curves-{number}",
        title=f"{comparison.title}, {described}",
        caption="Mean over seeds, band from the least to the greatest; each scheme at its best learning rate. "
        "Runs that diverged are not drawn, the legend counts them.",
        panels=(
            Panel("Training loss", "step", "cross-entropy (nats)", tuple(s for s in loss if s), y_log=True),
            Panel("Test accuracy", "epoch", "share right", tuple(s for s in accuracy if s)),
        ),
    )


def _accuracy_points(result: TrainResult) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(float(k) for k in range(1, len(result.test_accuracy) + 1)), result.test_accuracy


def _band(
    entry: "Entry", points: Callable[[TrainResult], tuple[tuple[float, ...], tuple[float, ...]]]
) -> Series | None:
    found = [points(result) for result in entry.finished]
    if not found:
        return None
    lost = f", {entry.diverged} of {len(entry.runs)} diverged" if entry.diverged else ""
    return seed_band(f"{entry.scheme} (rate {entry.learning_rate:g}{lost})", found[0][0], [y for _, y in found])


def _by_rate(comparison: "Comparison") -> Chart:
    lines: dict[str, list[Entry]] = {}
    found = comparison.entries()
    # A setting that all share tells no line from another.
    varied = [name for name in found[0].group if len({str(entry.group[name]) for entry in found}) > 1]
    for entry in found:
        label = ", ".join((entry.scheme, *(f"{name} {entry.group[name]}" for name in varied)))
        lines.setdefault(label, []).append(entry)
    series = []
    for label, entries in lines.items():
        ordered = [e for e in sorted(entries, key=lambda e: e.learning_rate) if e.runs]
        finite = all(math.isfinite(e.accuracy.low) for e in ordered)
        series.append(
            Series(
                label,
                tuple(e.learning_rate for e in ordered),
                tuple(e.accuracy.value for e in ordered),
                tuple(e.accuracy.low for e in ordered) if finite else (),
                tuple(e.accuracy.high for e in ordered) if finite else (),
                "both",
            )
        )
    return Chart(
        name="accuracy-by-rate",
        title=f"{comparison.title}: test accuracy by learning rate",
        caption="Mean over seeds with its 95 % interval, cut at 0 and 1; a diverged run counts as chance.",
        panels=(Panel("Test accuracy", "learning rate", "share right", tuple(series), x_log=True),),
    )
