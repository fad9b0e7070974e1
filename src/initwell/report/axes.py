"""The axes of a panel: their limits, ticks, and the marks for what cannot be drawn on them."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from initwell.charts import Panel
from initwell.report.palette import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Where on the panel's height a value goes that the axis cannot show, its mark, and what the legend says of it.
UNDRAWABLE = {
    "above": (0.97, "^", "▲ infinite"),
    "nan": (0.97, "x", "× not a number"),
    "below": (0.03, "v", "▼ zero or less, off the log axis"),
}


def power_label(value: float) -> str:
    """Write a tick of a log axis: powers of ten far from one, plain numbers near it.

    >>> power_label(1e-40), power_label(100.0), power_label(0.5), power_label(2e5)
    ('10⁻⁴⁰', '100', '0.5', '2·10⁵')
    """
    if value <= 0 or not math.isfinite(value):
        return ""
    exponent = math.floor(math.log10(value) + 1e-9)
    if -4 < exponent < 4:
        return f"{value:g}"
    mantissa = f"{value / 10.0**exponent:g}"
    power = "10" + str(exponent).translate(_SUPERSCRIPT)
    return power if mantissa == "1" else f"{mantissa}·{power}"


def fate(value: float, log: bool) -> str | None:
    """Say why a value cannot be drawn (a key of ``UNDRAWABLE``), or None when it can."""
    if math.isnan(value):
        return "nan"
    if value == math.inf:
        return "above"
    if value == -math.inf or (log and value <= 0):
        return "below"
    return None


def drawable(value: float, log: bool) -> float:
    """Return the value, or NaN (a gap) where the axis cannot show it."""
    return value if fate(value, log) is None else math.nan


def _log_limits(values: Iterable[float]) -> tuple[float, float]:
    shown = [math.log10(v) for v in values if fate(v, True) is None]
    low, high = (min(shown), max(shown)) if shown else (-1.0, 1.0)
    # A flat line deserves a decade of room: less would make rounding look like a slope.
    room = max(0.06 * (high - low), 0.5 - (high - low) / 2, 0.03)
    return 10.0 ** max(low - room, -323.0), 10.0 ** min(high + room, 308.0)


def _log_ticks(axes: "Axes", which: str, limits: tuple[float, float], most: int) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = (math.log10(v) for v in limits)
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    step = max(1, math.ceil((last - first) / most))
    powers = [10.0**e for e in range(first, last + 1) if e % step == 0 and -323 <= e <= 308]
    if last - first < 2:
        powers = [
            m * 10.0**e for e in range(first - 1, last + 1) for m in (1, 2, 5) if limits[0] <= m * 10.0**e <= limits[1]
        ]
    axis.set_major_locator(FixedLocator(powers))
    axis.set_major_formatter(FuncFormatter(lambda value, _: power_label(value)))
    axis.set_minor_locator(NullLocator())


def _whole(values: Sequence[float]) -> bool:
    return all(math.isfinite(v) and float(v).is_integer() for v in values)


def set_scales(axes: "Axes", panel: Panel, across: int) -> None:
    """Set scales, limits and at most ``across`` ticks on x from the panel's own values, before anything is drawn."""
    from matplotlib.ticker import MaxNLocator

    xs = [x for s in panel.series for x in s.x]
    ys = [v for s in panel.series for v in (*s.y, *s.low, *s.high)]
    if panel.x_log:
        axes.set_xscale("log")
        axes.set_xlim(_log_limits(xs))
        _log_ticks(axes, "x", axes.get_xlim(), across)
    elif _whole(xs):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=across + 1))
    if panel.y_log:
        axes.set_yscale("log")
        axes.set_ylim(_log_limits(ys))
        _log_ticks(axes, "y", axes.get_ylim(), 7)


def mark_undrawable(axes: "Axes", panel: Panel, colours: dict[str, str]) -> set[str]:
    """Mark at the panel's edge every value that the axis cannot show; return which kinds there were."""
    seen: set[str] = set()
    for series in panel.series:
        if series.style == "bars":
            continue
        for kind, (height, marker, _) in UNDRAWABLE.items():
            at = [
                x
                for x, y in zip(series.x, series.y, strict=True)
                if fate(y, panel.y_log) == kind and fate(x, panel.x_log) is None
            ]
            if not at:
                continue
            seen.add(kind)
            # Three dozen marks are a row; more would be a smear, and the first is the one that tells when it began.
            kept = at if len(at) <= 36 else [at[0], *at[:: len(at) // 35]]
            axes.plot(
                kept,
                [height] * len(kept),
                linestyle="none",
                marker=marker,
                markersize=6,
                color=colours.get(series.label, FAINT),
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                zorder=5,
            )
    return seen
