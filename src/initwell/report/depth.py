"""Signal and gradient by depth: the chart and the sentence of a measurement's rows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from initwell.charts import Chart, Panel, Series
from initwell.errors import ArgumentError
from initwell.records import Row

# Beyond these a float32 has lost the signal, or the first step will.
FAINT, LOUD = 1e-6, 1e6


def depth_chart(runs: Mapping[str, Sequence[Row]], name: str, title: str) -> Chart:
    """Build the chart of forward and backward sizes by position in the network.

    Args:
        runs: label to rows of a Measurement, in order of execution.
        name: the chart's file name.
        title: the line above it.

    Returns:
        A chart of two panels: rms of each op's output, rms of the gradient with respect to it.

    Raises:
        ArgumentError: when there are no rows.
    """
    panels = []
    for key, said in (("forward_rms", "Signal"), ("gradient_rms", "Gradient")):
        series = []
        for label, rows in runs.items():
            points = [(float(i), float(row[key])) for i, row in enumerate(rows, 1) if row.get(key) is not None]
            if points:
                x, y = zip(*points, strict=True)
                series.append(Series(label, x, y, style="both"))
        if series:
            panels.append(Panel(said, "op, in order of execution", "rms", tuple(series), y_log=True))
    if not panels:
        raise ArgumentError("measurement", "no rows", "The model ran no op that was measured.")
    caption = (
        "Root mean square of what each op puts out (left), and of the gradient that comes back to it (right). "
        "A healthy start is level: neither may shrink or grow by many powers of ten."
    )
    return Chart(name, title, caption, tuple(panels))


def depth_words(rows: Sequence[Row]) -> tuple[str, ...]:
    """Say in plain words how signal and gradient fare from the first op to the last."""
    said = []
    for key, what, order in (("forward_rms", "signal", 1), ("gradient_rms", "gradient", -1)):
        sizes = [(float(r[key]), r) for r in rows if r.get(key) is not None][::order]
        if len(sizes) > 1:
            said.append(_fate(what, sizes))
    return tuple(said)


def _fate(what: str, sizes: Sequence[tuple[float, Any]]) -> str:
    (first, _), (last, row) = sizes[0], sizes[-1]
    for size, at in sizes:
        if not math.isfinite(size):
            return f"The {what} is lost: it is {size} at {at['path'] or 'the model'} ({at['op']})."
        if size == 0:
            return f"The {what} is dead: exactly zero from {at['path'] or 'the model'} ({at['op']}) on."
    ratio = last / first if first else math.inf
    verdict = "level" if 0.1 <= ratio <= 10 else "shrinking" if ratio < 1 else "growing"
    if ratio < FAINT:
        verdict = "vanishing"
    elif ratio > LOUD:
        verdict = "exploding"
    return f"The {what} is {verdict}: its rms goes from {first:.3g} to {last:.3g} at {row['path'] or 'the model'}."
