"""What the benchmark prints: by model, in total, by op, ops without a rule, what was wrongly called exact."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from initwell.records import Row, TableRecord
from predict_bench.compare import Direction, Outcome, Value

SHARES = (0.5, 0.9, 0.99)
BARS: Mapping[Direction, tuple[float, float, float]] = {"forward": (0.5, 4.0, 12.0), "backward": (2.0, 10.0, 30.0)}
LIE = 0.05


@dataclass(frozen=True)
class Table(TableRecord):
    """A table of the benchmark."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    def table_title(self) -> str:
        return self.title

    def table_columns(self) -> tuple[str, ...]:
        return self.columns

    def table_rows(self) -> tuple[Row, ...]:
        return self.rows

    def table_notes(self) -> tuple[str, ...]:
        return self.notes


def percentiles(errors: Iterable[float]) -> tuple[float, ...]:
    """Return the shares' errors in percent; nothing known gives nan.

    >>> percentiles([0.01, 0.02, math.nan])
    (2.0, 2.0, 2.0)
    """
    known = sorted(100 * e for e in errors if not math.isnan(e))
    if not known:
        return (math.nan,) * len(SHARES)
    return tuple(known[min(len(known) - 1, int(share * len(known)))] for share in SHARES)


def written(errors: Iterable[float]) -> str:
    """Write percentiles with one digit after the point."""
    return "/".join(f"{p:.1f}" for p in percentiles(errors))


def both(values: Sequence[Value]) -> str:
    """Write percentiles of what counts, and of the raw errors in brackets."""
    return f"{written(v.error for v in values)} ({written(v.raw for v in values)})" if values else "–"


def unknown(values: Sequence[Value]) -> float:
    """Return the share of unknown values, in percent."""
    return 100 * sum(v.predicted is None for v in values) / len(values) if values else 0.0


def counting(outcomes: Iterable[Outcome], direction: Direction | None = None) -> list[Value]:
    """Return all values that count, of one direction or of both."""
    return [v for o in outcomes for v in o.values if v.counts and direction in (None, v.direction)]


def by_model(outcomes: Sequence[Outcome]) -> Table:
    """One row a model and start."""
    columns = ("model", "start", "forward p50/p90/p99", "backward p50/p90/p99", "unknown %", "values", "worst")
    title = "predict against measure: |predicted/measured − 1| of rms, in %, beyond two standard errors (raw)"
    failed = [f"{o.model}, {o.start}: {o.error}" for o in outcomes if o.error]
    unmatched = [f"{o.model}, {o.start}: {o.mismatched} rows without a partner" for o in outcomes if o.mismatched]
    dropped = sum(o.dropped for o in outcomes)
    notes = (*failed, *unmatched, f"{dropped} values were no numbers when measured, or rounding about a zero.")
    return Table(title, columns, tuple(_model_row(o) for o in outcomes), notes)


def _model_row(o: Outcome) -> Row:
    counted = [v for v in o.values if v.counts]
    known = [v for v in counted if v.predicted is not None]
    worst = max(known, key=lambda v: v.error, default=None)
    return {
        "model": o.model,
        "start": o.start,
        "forward p50/p90/p99": both([v for v in counted if v.direction == "forward"]),
        "backward p50/p90/p99": both([v for v in counted if v.direction == "backward"]),
        "unknown %": round(unknown(counted), 1),
        "values": len(counted),
        "worst": o.error[:60] if o.error else worst.place if worst and worst.error > 0 else "",
    }


def totals(outcomes: Sequence[Outcome]) -> Table:
    """Both directions against the bars, and what of it is known at all."""
    columns = ("values of", "forward/backward", "p50", "p90", "p99", "bar", "reached", "raw", "known %", "n")
    rows = []
    for direction, bar in BARS.items():
        found = counting(outcomes, direction)
        places = percentiles(v.error for v in found)
        reached = reaches(places, bar)
        rows.append(
            _total("the bar's ops", direction, found) | {"bar": "/".join(f"{b:g}" for b in bar), "reached": reached}
        )
    for direction in BARS:
        found = [v for o in outcomes for v in o.values if not v.counts and v.direction == direction]
        rows.append(_total("other ops", direction, found))
    models = {o.model for o in outcomes}
    whole = {o.model for o in outcomes if not o.error} - {o.model for o in outcomes if o.error}
    full = {m for m in whole if not unknown(counting(o for o in outcomes if o.model == m))}
    note = f"{len(models)} models, {len(whole)} of them predicted and measured, {len(full)} with nothing unknown."
    within = [f"{direction}: {_within(outcomes, direction)}" for direction in BARS]
    each = f"Models within the bars by themselves, at all starts together, nothing unknown: {', '.join(within)}."
    return Table("All models together, errors in %", columns, tuple(rows), (note, each))


def _within(outcomes: Sequence[Outcome], direction: Direction) -> int:
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for o in outcomes:
        groups[o.model].append(o)
    found = [counting(group, direction) for group in groups.values() if not any(o.error for o in group)]
    known = [values for values in found if values and not unknown(values)]
    return sum(reaches(percentiles(v.error for v in values), BARS[direction]) for values in known)


def reaches(places: Sequence[float], bar: Sequence[float]) -> bool:
    """Whether every percentile is known and at or below its bar.

    >>> reaches((0.1, 4.0, 5.0), BARS["forward"]), reaches((math.nan,) * 3, BARS["forward"])
    (True, False)
    """
    return all(p <= b for p, b in zip(places, bar, strict=True))


def _total(what: str, direction: Direction, values: Sequence[Value]) -> dict[str, object]:
    places = percentiles(v.error for v in values)
    return {
        "values of": what,
        "forward/backward": direction,
        **{f"p{round(100 * s)}": f"{p:.2f}" for s, p in zip(SHARES, places, strict=True)},
        "raw": written(v.raw for v in values),
        "known %": round(100 - unknown(values), 1),
        "n": len(values),
    }


def by_start(outcomes: Sequence[Outcome]) -> Table:
    """The totals of each start."""
    columns = ("start", "forward p50/p90/p99", "backward p50/p90/p99", "known %")
    rows = []
    for start in dict.fromkeys(o.start for o in outcomes):
        mine = [o for o in outcomes if o.start == start]
        parts = {f"{d} p50/p90/p99": both(counting(mine, d)) for d in BARS}
        rows.append({"start": start, **parts, "known %": round(100 - unknown(counting(mine)), 1)})
    return Table("By start", columns, tuple(rows))


def by_op(outcomes: Sequence[Outcome]) -> Table:
    """One row an op and direction, the worst at p99 first; an op that does not count for the bars is in brackets."""
    groups: dict[tuple[str, Direction], list[Value]] = defaultdict(list)
    for value in (v for o in outcomes for v in o.values):
        groups[value.op, value.direction].append(value)
    found = sorted(groups.items(), key=lambda item: -_or_zero(percentiles(v.error for v in item[1])[2]))
    rows = [
        {
            "op": op if values[0].counts else f"({op})",
            "direction": direction,
            "n": len(values),
            "p50/p90/p99": both(values),
            "unknown %": round(unknown(values), 1),
        }
        for (op, direction), values in found
    ]
    return Table("By op, the worst at p99 first", ("op", "direction", "n", "p50/p90/p99", "unknown %"), tuple(rows))


def _or_zero(number: float) -> float:
    return 0.0 if math.isnan(number) else number


def worst_places(outcomes: Sequence[Outcome], count: int = 40) -> Table:
    """The worst values that count, three a model and start at most."""
    columns = ("model", "start", "place", "error %", "predicted", "measured", "fidelity")
    rows: list[Row] = []
    for o in outcomes:
        known = [v for v in o.values if v.counts and v.predicted is not None and v.error > 0]
        for v in sorted(known, key=lambda v: -v.error)[:3]:
            row = {"model": o.model, "start": o.start, "place": v.place, "error %": round(100 * v.error, 1)}
            rows.append({**row, "predicted": v.predicted, "measured": v.measured, "fidelity": v.fidelity})
    rows.sort(key=lambda row: -row["error %"])
    return Table("The worst values", columns, tuple(rows[:count]))


def without_rule(outcomes: Sequence[Outcome]) -> Table:
    """Ops without a rule, and in how many models."""
    models: dict[str, set[str]] = defaultdict(set)
    for o in outcomes:
        for op in o.unsupported:
            models[op].add(o.model)
    rows = [
        {"op": op, "models": len(names), "such as": ", ".join(sorted(names)[:5])}
        for op, names in sorted(models.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return Table("Ops without a rule", ("op", "models", "such as"), tuple(rows))


def called_exact(outcomes: Sequence[Outcome]) -> Table:
    """Values called exact that are off by more than 5 % beyond two standard errors, by op and direction."""
    wrong = [(o.model, v) for o in outcomes for v in o.values if v.fidelity == "exact" and v.error > LIE]
    count = Counter((v.op, v.direction) for _, v in wrong)
    rows = []
    for (op, direction), n in count.most_common():
        group = [(m, v) for m, v in wrong if (v.op, v.direction) == (op, direction)]
        model, value = max(group, key=lambda pair: pair[1].error)
        row = {"op": op, "direction": direction, "n": n, "models": len({m for m, _ in group})}
        rows.append({**row, "worst %": round(100 * value.error, 1), "where": f"{model}: {value.path}"})
    exact = sum(v.fidelity == "exact" for o in outcomes for v in o.values)
    title = f"Called exact, but more than {LIE:.0%} off: {len(wrong)} of {exact}"
    return Table(title, ("op", "direction", "n", "models", "worst %", "where"), tuple(rows))


def slowest(outcomes: Sequence[Outcome], count: int = 10) -> Table:
    """The models that take longest to predict."""
    columns = ("model", "start", "trace s", "walk s", "values")
    order = sorted(outcomes, key=lambda o: -(o.trace_seconds + o.walk_seconds))
    rows = [
        {
            "model": o.model,
            "start": o.start,
            "trace s": o.trace_seconds,
            "walk s": o.walk_seconds,
            "values": len(o.values),
        }
        for o in order[:count]
    ]
    return Table("The slowest to predict", columns, tuple(rows))


TABLES: tuple[Callable[[Sequence[Outcome]], Table], ...] = (
    by_model,
    by_op,
    worst_places,
    without_rule,
    called_exact,
    slowest,
    by_start,
    totals,
)
"""In the order in which they are printed: what matters most comes last."""
