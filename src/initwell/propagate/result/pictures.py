"""What a Prediction draws: sizes and overlap by depth, growth by block."""

from collections.abc import Iterator, Sequence
from typing import Literal

from initwell.charts import Chart, Panel, Series
from initwell.propagate.result.growth import Growth
from initwell.records import Row

Points = Sequence[tuple[float, float]]


def depth_chart(rows: Sequence[Row], overlap_depth: int | None) -> Chart | None:
    """Build the chart of sizes by depth, both directions, and of the overlap between samples.

    Args:
        rows: of a Prediction.
        overlap_depth: the row from which on samples are indistinguishable, to be marked.

    Returns:
        The chart without the panels that no value is known for; None when no panel is left.
    """
    named = (
        ("forward_rms", "Signal", "rms of each op's output", True),
        ("gradient_rms", "Gradient", "rms of the gradient with respect to it", True),
        ("overlap", "Overlap of samples", "moment between samples over q", False),
    )
    panels = []
    for key, title, label, log in named:
        series = [_series("predicted", points) for points in _known_runs(rows, key)]
        if key == "overlap" and overlap_depth is not None:
            mark = [(float(overlap_depth), 0.0), (float(overlap_depth), 1.0)]
            series.append(_series("indistinguishable from here on", mark, "dashed"))
        if series:
            panels.append(Panel(title, "op, in order of execution", label, tuple(series), y_log=log))
    caption = (
        "Predicted from moments; no data was run through the weights. A healthy start is level in both directions; "
        "an overlap that goes to 1 means that inputs become indistinguishable."
    )
    return Chart("predicted-by-depth", "Predicted size by depth", caption, tuple(panels)) if panels else None


def growth_chart(growth: Growth, number: int) -> Chart | None:
    """Build the chart of growth by block; None where no growth is known.

    Args:
        growth: of one chain of blocks.
        number: of the chain, from 1, for the chart's name.
    """
    found = []
    for label in ("forward", "backward"):
        key = f"{label}_growth"
        points = [(float(i), row[key]) for i, row in enumerate(growth.rows, 1) if row[key] is not None]
        if points:
            found.append(_series(label, points, "both"))
    if not found:
        return None
    axis = "rms that leaves ÷ rms that enters"
    panel = Panel("Growth", "block, in order of execution", axis, tuple(found), y_log=True)
    name = "growth-by-block" if number == 1 else f"growth-by-block-{number}"
    caption = f"{growth.said()} A healthy block multiplies both by about 1.".strip()
    return Chart(name, growth.table_title(), caption, (panel,))


def _series(label: str, points: Points, style: Literal["line", "both", "dashed"] = "line") -> Series:
    x, y = zip(*points, strict=True)
    return Series(label, x, y, style=style)


def _known_runs(rows: Sequence[Row], key: str) -> Iterator[Points]:
    """Yield the stretches between values that are unknown: no line may lead over them."""
    run: list[tuple[float, float]] = []
    for number, row in enumerate(rows, 1):
        if row[key] is not None:
            run.append((float(number), row[key]))
        elif row["fidelity"] == "unknown" and run:
            yield run
            run = []
    if run:
        yield run
