"""From numbers over seeds to a verdict: an interval, what it says against a threshold, and what all of them say."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from initwell.errors import ArgumentError
from initwell.experiments.statistics import Verdict, judge, mean_interval, together

Judgement = Literal["holds", "fails", "open"]

# A part of a claim holds or fails; the claim as a whole is confirmed or refuted. The rule is the same.
_OF_VERDICT: Mapping[Verdict, Judgement] = {"confirmed": "holds", "refuted": "fails", "depends": "open"}
_TO_VERDICT: Mapping[Judgement, Verdict] = {judgement: verdict for verdict, judgement in _OF_VERDICT.items()}


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Return ``value`` (mean), ``low`` and ``high`` (95 % Student-t interval) over seeds, the unit of repetition.

    >>> {k: round(v, 3) for k, v in over_seeds([1.0, 2.0, 3.0]).items()}
    {'value': 2.0, 'low': -0.484, 'high': 4.484}
    """
    found = mean_interval(values)
    return {"value": found.value, "low": found.low, "high": found.high}


def ratio_over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Return the geometric mean and its 95 % interval: for sizes and ratios, whose scatter is multiplicative.

    A seed whose value is 0 or infinite has no logarithm; the interval is then the range of the values themselves.

    >>> {k: round(v, 3) for k, v in ratio_over_seeds([0.5, 1.0, 2.0]).items()}
    {'value': 1.0, 'low': 0.179, 'high': 5.595}
    """
    if any(v <= 0 or not math.isfinite(v) for v in values):
        ordered = sorted(values)
        return {"value": ordered[len(ordered) // 2], "low": ordered[0], "high": ordered[-1]}
    return {key: math.exp(v) for key, v in over_seeds([math.log(v) for v in values]).items()}


def judged(low: float, high: float, *, above: float | None = None, below: float | None = None) -> Judgement:
    """Judge one piece of evidence by its interval, as ``statistics.judge`` does, in the words of a part.

    >>> judged(0.1, 0.3, above=0.0), judged(-0.3, -0.1, above=0.0), judged(-0.1, 0.1, above=0.0)
    ('holds', 'fails', 'open')
    """
    return _OF_VERDICT[judge(low, high, above=above, below=below)]


def within(low: float, high: float, floor: float, ceiling: float) -> Judgement:
    """Judge an interval against a band: inside it holds, outside it fails, astride an edge it stays open.

    >>> within(0.99, 1.01, 0.95, 1.05), within(1.2, 1.3, 0.95, 1.05), within(0.9, 1.0, 0.95, 1.05)
    ('holds', 'fails', 'open')
    """
    return judged(low, high, above=floor, below=ceiling)


def verdict_of(judgements: Sequence[Judgement]) -> Verdict:
    """Give the verdict of several judgements: all hold, all fail, or anything else.

    Raises:
        ArgumentError: without a judgement there is no verdict.

    >>> verdict_of(["holds", "holds"]), verdict_of(["fails"]), verdict_of(["holds", "open"])
    ('confirmed', 'refuted', 'depends')
    """
    if not judgements:
        raise ArgumentError("judgements", "none", "Give at least one piece of evidence.")
    return together(_TO_VERDICT[j] for j in judgements)
