"""From evidence to what is drawn: one series of values with the band of their intervals."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from initwell.charts import Series
from initwell.experiments.reproduce.evidence import over_seeds, ratio_over_seeds

Point = Mapping[str, Any]  # with ``value``, ``low`` and ``high``: a row of evidence is one


def band(
    label: str,
    x: Iterable[float],
    points: Sequence[Point],
    style: Literal["line", "points", "both"] = "line",
    *,
    scale: float = 1.0,
) -> Series:
    """Return a series of values and their intervals.

    Args:
        label: the legend's text.
        x: horizontal positions, one a point.
        points: mappings with ``value``, ``low`` and ``high``.
        style: as in ``Series``.
        scale: multiplies all three, such as 100 for percent.

    >>> band("s", [1.0], [{"value": 0.5, "low": 0.25, "high": 1.0}], scale=100)
    Series(label='s', x=(1.0,), y=(50.0,), low=(25.0,), high=(100.0,), style='line')
    """
    value, low, high = (tuple(scale * float(p[key]) for p in points) for key in ("value", "low", "high"))
    return Series(label, tuple(x), value, low, high, style)


def points_over_seeds(curves: Iterable[Sequence[float]], *, ratios: bool = False) -> list[dict[str, float]]:
    """Return mean, low and high (95 % interval over seeds) place by place, as far as all curves reach.

    Args:
        curves: one a seed.
        ratios: on the logarithms, for sizes that scatter by factors, and for losses on a logarithmic axis, which a
            single seed's burst would else own.

    >>> [point["value"] for point in points_over_seeds([[1.0, 2.0], [3.0, 2.0], [2.0]])]
    [2.0]
    """
    interval = ratio_over_seeds if ratios else over_seeds
    return [interval(values) for values in zip(*curves, strict=False)]
