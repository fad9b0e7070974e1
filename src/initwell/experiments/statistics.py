"""Intervals over seeds, and the verdicts that follow from them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from initwell.errors import ArgumentError
from initwell.records import Record

Verdict = Literal["confirmed", "refuted", "depends"]


@dataclass(frozen=True)
class Interval(Record):
    """An estimate and the interval around it.

    Attributes:
        value: the estimate.
        low: lower end; -inf where one value alone gives no interval.
        high: upper end.
        count: how many values it rests on.
        level: the share of such intervals that hold the truth, if the assumptions do.
    """

    value: float
    low: float
    high: float
    count: int
    level: float = 0.95

    def within(self, least: float, greatest: float) -> "Interval":
        """Return the part of it that lies in the quantity's range, as 0 to 1 of an accuracy.

        The truth lies in that range, so the part holds it as often as the whole. Infinite ends stay: they say that
        there is no interval.

        >>> print(mean_interval([0.5, 0.9, 1.0]).within(0, 1))
        0.8 [0.1428, 1]
        """
        if not math.isfinite(self.low) or not math.isfinite(self.high):
            return self
        return replace(self, low=max(self.low, least), high=min(self.high, greatest))

    def __str__(self) -> str:
        """Write value and ends, four digits each."""
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def mean_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Student's t interval of a mean.

    Args:
        values: independent measurements, one a seed.
        level: between 0 and 1.

    Returns:
        The mean and its interval; infinite ends for a single value, NaN where a value is not finite.

    Raises:
        ArgumentError: no values.

    Source: Student (1908), "The probable error of a mean".

    >>> print(mean_interval([1.0, 2.0, 3.0]))
    2 [-0.4841, 4.484]
    """
    kept = _checked("values", values)
    count, mean = len(kept), math.fsum(kept) / len(kept)
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1, level)
    variance = math.fsum((v - mean) ** 2 for v in kept) / (count - 1)
    half = _student(count - 1, level) * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half, count, level)


def paired_difference(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Interval:
    """Interval of the mean of ``first - second``, value by value (the same seed in both).

    >>> print(paired_difference([2.0, 3.1, 4.0], [1.0, 2.0, 3.0]))
    1.033 [0.8899, 1.177]
    """
    _same_length(first, second)
    return mean_interval((a - b for a, b in zip(first, second, strict=True)), level)


def welch_difference(first: Iterable[float], second: Iterable[float], level: float = 0.95) -> Interval:
    """Interval of the difference of two means, of independent values with variances of their own.

    Source: Welch (1947), "The generalization of 'Student's' problem when several different population variances are
    involved".
    """
    a, b = _checked("first", first), _checked("second", second)
    mean_a, mean_b = math.fsum(a) / len(a), math.fsum(b) / len(b)
    count = min(len(a), len(b))
    if count == 1:
        return Interval(mean_a - mean_b, -math.inf, math.inf, 1, level)
    error_a = math.fsum((v - mean_a) ** 2 for v in a) / (len(a) - 1) / len(a)
    error_b = math.fsum((v - mean_b) ** 2 for v in b) / (len(b) - 1) / len(b)
    total = error_a + error_b
    spread = error_a**2 / (len(a) - 1) + error_b**2 / (len(b) - 1)
    half = _student(total**2 / spread, level) * math.sqrt(total) if total > 0 else total
    return Interval(mean_a - mean_b, mean_a - mean_b - half, mean_a - mean_b + half, count, level)


def ratio_interval(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Interval:
    """Interval of the geometric mean of ``first / second``, value by value: Student's t on the logarithms.

    Raises:
        ArgumentError: a value is not positive, or the lengths differ.

    >>> ratio_interval([2.0, 4.0], [1.0, 2.0]).value
    2.0
    """
    _same_length(first, second)
    for name, values in (("first", first), ("second", second)):
        if any(v <= 0 for v in values):
            raise ArgumentError(name, min(values), "A ratio on the log scale needs positive values.")
    logs = mean_interval((math.log(a / b) for a, b in zip(first, second, strict=True)), level)
    return Interval(_exp(logs.value), _exp(logs.low), _exp(logs.high), logs.count, level)


def wilson_interval(successes: int, count: int, level: float = 0.95) -> Interval:
    """Interval of a proportion.

    Args:
        successes: how often it happened.
        count: how often it could have.
        level: between 0 and 1.

    Raises:
        ArgumentError: ``count`` is not positive or ``successes`` not within it.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    >>> print(wilson_interval(9, 10))
    0.9 [0.5958, 0.9821]
    """
    if count < 1 or not 0 <= successes <= count:
        raise ArgumentError("successes", f"{successes} of {count}", "Give 0 ≤ successes ≤ count, and a count from 1.")
    from scipy.special import ndtri

    z = float(ndtri(0.5 + level / 2))
    share = successes / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), count, level)


def judge(
    low: float,
    high: float,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Verdict:
    """Judge a claim about a quantity by its interval.

    Args:
        low: the interval's lower end.
        high: the interval's upper end.
        above: the claim says that the quantity exceeds this.
        below: the claim says that it is under this; both together claim a range.

    Returns:
        ``confirmed`` where the whole interval lies where the claim says, ``refuted`` where all of it lies elsewhere,
        ``depends`` where it reaches across or is not a number.

    Raises:
        ArgumentError: no claim was given.

    >>> judge(0.2, 0.4, above=0.0), judge(-0.4, -0.2, above=0.0), judge(-0.1, 0.1, above=0.0)
    ('confirmed', 'refuted', 'depends')
    >>> judge(0.9, 1.1, above=0.8, below=1.2)
    'confirmed'
    """
    if above is None and below is None:
        raise ArgumentError("above, below", "neither", "State what is claimed: above=, below=, or both for a range.")
    floor = -math.inf if above is None else above
    roof = math.inf if below is None else below
    if (above is None or low > floor) and (below is None or high < roof):
        return "confirmed"
    if high < floor or low > roof:
        return "refuted"
    return "depends"


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """Join the verdicts on the parts of a claim: the one they share, else ``depends``.

    >>> together(["confirmed", "confirmed"]), together(["confirmed", "refuted"])
    ('confirmed', 'depends')
    """
    distinct = set(verdicts)
    return distinct.pop() if len(distinct) == 1 else "depends"


def _student(freedom: float, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + level / 2))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _checked(argument: str, values: Iterable[float]) -> list[float]:
    kept = [float(v) for v in values]
    if not kept:
        raise ArgumentError(argument, "nothing", "Give at least one value.")
    if not all(math.isfinite(v) for v in kept):
        # fsum refuses to add infinities of both signs; NaN says the same in every sum.
        return [math.nan] * len(kept)
    return kept


def _same_length(first: Sequence[float], second: Sequence[float]) -> None:
    if len(first) != len(second):
        got = f"{len(first)} and {len(second)} values"
        raise ArgumentError("first, second", got, "Pair the values: the same seeds in both.")
