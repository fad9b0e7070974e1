"""What to draw, as data: any room can say it, only ``report`` draws it."""

from dataclasses import dataclass
from typing import Literal

from initwell.records import Record


@dataclass(frozen=True)
class Series(Record):
    """One line, set of points, band or histogram of a chart.

    Attributes:
        label: the legend's text.
        x: horizontal positions; for ``bars`` the bin centres.
        y: values, as many as ``x``.
        low: lower edge of the band over seeds, as many as ``x``, or empty for no band.
        high: upper edge of the band, or empty.
        style: ``line`` for theory or curves, ``points`` for measurements, ``both``, ``dashed`` or ``bars``.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    style: Literal["line", "points", "both", "dashed", "bars"] = "line"


@dataclass(frozen=True)
class Panel(Record):
    """One set of axes: a title, two labels with units, and its series."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    x_log: bool = False
    y_log: bool = False


@dataclass(frozen=True)
class Chart(Record):
    """One figure: a file-name-safe ``name``, a title, a caption that says what to see, and panels side by side."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
