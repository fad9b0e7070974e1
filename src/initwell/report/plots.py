"""Charts drawn with matplotlib: PNG files to keep, SVG text to put into a page.

Nothing global is touched: figures are objects of their own and the settings hold inside one context. Series of one
chart whose labels differ only in 'theory' and 'measured' share a colour, so a line runs through its own points.
"""

import io
import itertools
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initwell.charts import Chart, Panel, Series
from initwell.errors import ArgumentError
from initwell.files import write
from initwell.report.axes import UNDRAWABLE, drawable, mark_undrawable, set_scales
from initwell.report.files import safe_name
from initwell.report.palette import FAINT, MARKERS, series_colours, stem, style_rc, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
# Up to so many joined points each get a whisker; more get a band.
WHISKERS = 8


def printable(text: str, longest: int = 80) -> str:
    """Make a name fit for a figure: no control characters, which XML forbids, and no line longer than the figure.

    >>> printable("a" + chr(0) + "b"), printable("x" * 9, longest=5)
    ('a b', 'xxxx…')
    """
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def checked(chart: Chart) -> Chart:
    """Return the chart if it can be drawn.

    Raises:
        ArgumentError: for a chart without panels, a panel without series, or a series that is empty or uneven.
    """
    name = f"chart {chart.name!r}"
    if not chart.panels:
        raise ArgumentError(name, "no panels", "Give it at least one.")
    for panel in chart.panels:
        if not panel.series:
            raise ArgumentError(f"{name}, panel {panel.title!r}", "no series", "Give it at least one.")
        for series in panel.series:
            _check_series(f"{name}, panel {panel.title!r}, series {series.label!r}", series)
    return chart


def _check_series(where: str, series: Series) -> None:
    if not series.x:
        raise ArgumentError(where, "no points", "Leave the series out, or give it its points.")
    for field in ("y", "low", "high"):
        count = len(getattr(series, field))
        if count != len(series.x) and (field == "y" or count):
            raise ArgumentError(where, f"{count} values in {field} for {len(series.x)} in x", "Give as many.")


def draw(chart: Chart, path: str | Path) -> Path:
    """Draw a chart into a PNG file (an SVG file when the path ends in .svg), its caption below.

    Args:
        chart: what to draw.
        path: the file; its folder is made when it is not there.

    Returns:
        The path.

    Raises:
        ArgumentError: for a chart that has nothing to draw, or a place that cannot be written.
    """
    target = Path(path)
    if target.suffix == ".svg":
        return write(target, _svg(chart, caption=True))
    buffer = io.BytesIO()
    with _figure(checked(chart), caption=True) as figure:
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return write(target, buffer.getvalue())


def inline_svg(chart: Chart, prefix: str) -> str:
    """Draw a chart as SVG text for a page: colours follow the page's theme, every id begins with ``prefix``.

    Args:
        chart: what to draw; its title and caption are left to the page.
        prefix: makes ids unique within the page, and the same each time.

    Returns:
        An ``<svg>`` element.
    """
    svg = themed(_svg(chart, caption=False))
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    mark = safe_name(prefix)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{mark}-", svg)
    size = re.search(r'viewBox="0 0 ([\d.]+) ', svg)
    # Points are 4/3 of a CSS pixel: this width shows the text at the size it was set in, and no larger.
    width = round(float(size.group(1)) * 4 / 3) if size else 960
    label = _attribute(f"{chart.title}. {chart.caption}")
    opening = f'<svg role="img" aria-label="{label}" style="width:100%;max-width:{width}px;height:auto"'
    return re.sub(r'<svg(?: width="[^"]*"| height="[^"]*")?', lambda _: opening, svg, count=1)


def _attribute(text: str) -> str:
    import html

    return html.escape(printable(text, longest=1000), quote=True)


def _svg(chart: Chart, *, caption: bool) -> str:
    buffer = io.StringIO()
    with _figure(checked(chart), caption=caption) as figure:
        if not caption:
            figure.patch.set_alpha(0.0)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


@contextmanager
def _figure(chart: Chart, *, caption: bool) -> "Iterator[Figure]":
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A letter that no installed font has is drawn as a box in the PNG; the page's SVG keeps it as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style_rc())
        columns = len(chart.panels) if len(chart.panels) <= 3 else 2 if len(chart.panels) == 4 else 3
        rows = -(-len(chart.panels) // columns)
        width = {1: 7.0, 2: 9.4, 3: 11.0}[columns]
        height = {1: 3.9, 2: 3.5, 3: 3.2}[columns] * rows
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06, wspace=0.03, hspace=0.04)  # type: ignore[union-attr,call-arg]
        _fill(figure, chart, rows, columns, caption=caption)
        yield figure


def _fill(figure: "Figure", chart: Chart, rows: int, columns: int, *, caption: bool) -> None:
    stems = {s.label: stem(s.label) for p in chart.panels for s in p.series}
    palette = series_colours(list(stems.values()))
    colours = {label: palette[name] for label, name in stems.items()}
    markers = dict(zip(palette, itertools.cycle(MARKERS), strict=False))
    handles: dict[str, Any] = {}
    marks: set[str] = set()
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, chart.panels, strict=False):
        set_scales(axes, panel, {1: 9, 2: 7, 3: 4}[columns])
        for series in panel.series:
            handle = _draw_series(axes, panel, series, colours[series.label], markers[stems[series.label]])
            handles.setdefault(series.label, handle)
        marks |= mark_undrawable(axes, panel, colours)
        axes.set_title(printable(panel.title, 60))
        axes.set_xlabel(printable(panel.x_label))
        axes.set_ylabel(printable(panel.y_label))
    for axes in grid[len(chart.panels) :]:
        axes.set_axis_off()
    _words(figure, chart, handles, marks, caption=caption)


def _draw_series(axes: "Axes", panel: Panel, series: Series, colour: str, marker: str) -> Any:
    x = [drawable(v, panel.x_log) for v in series.x]
    y = [drawable(v, panel.y_log) for v in series.y]
    if series.style == "bars":
        crowded = sum(s.style == "bars" for s in panel.series) > 1
        return _draw_bars(axes, panel, x, y, colour, crowded=crowded)
    if series.low and series.high:
        _draw_band(axes, panel, x, series, colour)
    line = {"points": "none", "dashed": (0, (4, 2))}.get(series.style, "-")
    # A single point has no line to be seen by.
    dots = marker if series.style in ("points", "both") or len(x) == 1 else ""
    return axes.plot(x, y, linestyle=line, marker=dots, color=colour, markeredgewidth=0, alpha=0.95)[0]


def _draw_band(axes: "Axes", panel: Panel, x: Sequence[float], series: Series, colour: str) -> None:
    floor = axes.get_ylim()[0] if panel.y_log else None
    low = [max(v, floor) if floor is not None else v for v in series.low]
    keep = range(0, len(x), max(1, len(x) // 600))
    if series.style == "points" or (series.style == "both" and len(x) <= WHISKERS):
        # Points with an interval carry whiskers: a filled band would claim to know what lies between them.
        axes.vlines(x, low, series.high, color=colour, linewidth=1.4, alpha=0.6)
        return
    axes.fill_between(
        [x[i] for i in keep],
        [drawable(low[i], panel.y_log) for i in keep],
        [drawable(series.high[i], panel.y_log) for i in keep],
        color=colour,
        alpha=0.18,
        linewidth=0,
    )


def _draw_bars(
    axes: "Axes", panel: Panel, x: Sequence[float], y: Sequence[float], colour: str, *, crowded: bool
) -> Any:
    if len(x) == 1:
        return axes.bar(x, y, width=0.8, color=colour, alpha=0.85)
    edges = _edges(x, log=panel.x_log)
    baseline = axes.get_ylim()[0] if panel.y_log else 0.0
    if not crowded:
        return axes.stairs(y, edges, baseline=baseline, fill=True, color=colour, alpha=0.85)
    axes.stairs(y, edges, baseline=baseline, fill=True, color=colour, alpha=0.12)
    return axes.stairs(y, edges, baseline=None, color=colour, linewidth=1.6)


def _edges(centres: Sequence[float], *, log: bool) -> list[float]:
    """Return the edges of bins between their centres, halfway on the axis as it is drawn."""
    if log:
        return [10.0**edge for edge in _edges([math.log10(c) for c in centres], log=False)]
    inner = [(a + b) / 2 for a, b in itertools.pairwise(centres)]
    return [2 * centres[0] - inner[0], *inner, 2 * centres[-1] - inner[-1]]


def _legend_entries(handles: dict[str, Any]) -> dict[str, Any]:
    """Give the line and the points of one thing one entry between them."""
    together: dict[str, list[str]] = {}
    for label in handles:
        together.setdefault(stem(label) or label, []).append(label)
    entries: dict[str, Any] = {}
    for name, labels in together.items():
        if len(labels) == 1:
            entries[labels[0]] = handles[labels[0]]
        else:
            entries[name] = tuple(handles[label] for label in labels)
    return {label: handle for label, handle in entries.items() if label}


def _words(figure: "Figure", chart: Chart, handles: dict[str, Any], marks: set[str], *, caption: bool) -> None:
    """Put the title above, and below the panels, where they cover no data, the legend and the caption."""
    width = figure.get_figwidth()
    entries = _legend_entries(handles)
    lines = textwrap.wrap(printable(chart.caption, 2000), int(width * 13.2)) if caption else []
    if any(isinstance(handle, tuple) for handle in entries.values()):
        lines.append("Line: theory. Points: measured.")
    if marks:
        lines.append("At the edge: " + ", ".join(UNDRAWABLE[kind][2] for kind in UNDRAWABLE if kind in marks) + ".")
    texts = [printable(label, 60) for label in entries]
    columns = max(1, min(len(texts), int(width * 11 / (max(map(len, texts), default=0) + 7))))
    rows = -(-len(texts) // columns)
    # All in inches, then as shares of the figure: the panels keep their height whatever stands around them.
    text, legend, title = 0.18 * len(lines) + 0.06, 0.215 * rows + 0.06, 0.36 if caption else 0.02
    height = figure.get_figheight() + text + legend + title
    figure.set_figheight(height)
    figure.get_layout_engine().set(rect=(0, (text + legend) / height, 1, 1 - (text + legend + title) / height))  # type: ignore[union-attr,call-arg]
    if caption:
        title_text = printable(chart.title, int(width * 10))
        figure.text(0.012, 1 - 0.09 / height, title_text, va="top", fontsize=13, fontweight="bold")
    if lines:
        figure.text(0.012, 0.05 / height, "\n".join(lines), va="bottom", fontsize=9.5, color=FAINT)
    if texts:
        _place_legend(figure, list(entries.values()), texts, columns, text / height)


def _place_legend(figure: "Figure", handles: list[Any], texts: list[str], columns: int, bottom: float) -> None:
    from matplotlib.legend_handler import HandlerTuple

    numbers = [str(i) for i in range(len(handles))]
    legend = figure.legend(
        handles,
        numbers,
        loc="lower center",
        bbox_to_anchor=(0.5, bottom),
        ncols=columns,
        borderaxespad=0.0,
        handler_map={tuple: HandlerTuple(ndivide=1)},
    )
    legend.set_in_layout(False)
    # Set afterwards: matplotlib would drop a label that begins with an underscore.
    for entry, label in zip(legend.get_texts(), texts, strict=True):
        entry.set_text(label)
