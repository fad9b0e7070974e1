"""What ``predict`` returns: one row a value, one row a parameter, and what could not be known."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from initwell.charts import Chart
from initwell.propagate.engine import Walk
from initwell.propagate.moments.signal import Signal
from initwell.propagate.result.growth import Growth, growths
from initwell.propagate.result.likeness import overlap_depth, overlap_note
from initwell.propagate.result.pictures import depth_chart, growth_chart
from initwell.records import Row, TableRecord, plain
from initwell.trace.failure import where
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, Trace, functional

# How many ops a note names; all are in ``Walk.unknown``.
_NAMED = 8


@dataclass(frozen=True)
class Prediction(TableRecord):
    """The expected size of every activation and gradient of a model, without running data.

    Attributes:
        rows: one mapping for each forward op that makes a new floating value, in order, the same ops as ``measure``
            has rows for, with keys ``value`` (its id in the trace), ``path``, ``op``, ``call``, ``shape``,
            ``forward_rms``, ``gradient_rms`` (None where no gradient arrives, or it is unknown), ``mean``, ``overlap``
            (moment between samples over q) and ``fidelity`` ("exact" under mean-field's independence, "approximate"
            or "unknown": the worse of forward and backward, so that an unknown row can have a known ``forward_rms``).
        inputs: the same for the floating tensors of the batch; their ``op`` is "input".
        parameters: one mapping for each parameter, tied ones under the first of their names: ``parameter``, ``shape``,
            ``weight_rms``, ``gradient_rms``, ``update_ratio`` (learning rate × gradient rms / weight rms; None without
            a learning rate, a gradient, or for a weight that is all 0) and ``fidelity``.
        growth: how sizes change from block to block, one Growth for each chain of repeated modules.
        overlap_depth: the row, counted from 1, from which on samples are indistinguishable: their overlap is next to 1
            in every later layer. None where they stay apart.
        unsupported: ops without a rule → how often they ran.
        trace: the ops themselves.
        notes: what could not be known, and what was approximated, in words.
    """

    rows: tuple[Row, ...]
    inputs: tuple[Row, ...]
    parameters: tuple[Row, ...]
    unsupported: Mapping[str, int]
    trace: Trace = field(repr=False)
    notes: tuple[str, ...] = ()
    growth: tuple[Growth, ...] = ()
    overlap_depth: int | None = None

    def table_title(self) -> str:
        """Say what was predicted."""
        mode = "training" if self.trace.training else "eval"
        return f"Prediction: {len(self.rows)} values, {len(self.parameters)} parameters, {mode} mode"

    def table_columns(self) -> Sequence[str]:
        """Name the columns."""
        return ("path", "op", "call", "shape", "forward_rms", "gradient_rms", "mean", "overlap", "fidelity")

    def table_rows(self) -> Sequence[Row]:
        """Return the rows of values."""
        return self.rows

    def table_notes(self) -> Sequence[str]:
        """Return the notes."""
        return self.notes

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data; the trace is left out."""
        names = ("rows", "inputs", "parameters", "unsupported", "growth", "overlap_depth", "notes")
        return {name: plain(getattr(self, name)) for name in names}

    def charts(self) -> tuple[Chart, ...]:
        """Return the charts: sizes and overlap by depth, and growth by block.

        Returns:
            The chart by depth, without the panels that no value is known for; then one for each of ``growth``.
        """
        whole = depth_chart(self.rows, self.overlap_depth)
        charts = [whole, *(growth_chart(growth, number) for number, growth in enumerate(self.growth, 1))]
        return tuple(chart for chart in charts if chart is not None)


def prediction(trace: Trace, walk: Walk, notes: Sequence[str], learning_rate: float | None = None) -> Prediction:
    """Put together what a walk found.

    Args:
        trace: that was walked.
        walk: over it.
        notes: of what came before the walk.
        learning_rate: for the update-to-weight ratios, or None.
    """
    moving = trace.dependents(v.id for v in trace.values if v.kind in ("input", "parameter", "buffer"))
    rows = [
        _row(trace, walk, value, op) for op in trace.forward_ops if (value := _shown(trace, op, moving)) is not None
    ]
    inputs = [
        _numbers(trace, walk, value) | {"path": "", "op": "input", "call": 0, "name": name}
        for name, value in trace.inputs.items()
        if trace.values[value].is_floating
    ]
    growth, depth = growths(trace, walk.signals), overlap_depth(trace, rows)
    first: dict[int, str] = {}
    for name, value in trace.parameters.items():
        first.setdefault(value, name)
    parameters = tuple(_parameter(trace, walk, name, value, learning_rate) for value, name in first.items())
    said = [*(text for found in growth if (text := found.said())), *overlap_note(rows, depth)]
    return Prediction(
        rows=tuple(rows),
        inputs=tuple(inputs),
        parameters=parameters,
        unsupported=walk.unsupported,
        trace=trace,
        notes=(
            *said,
            *_update_note(parameters, learning_rate),
            *notes,
            *trace.notes,
            *trace.tied_notes,
            *_notes(walk, rows),
            *_unfollowed(trace, walk, rows),
        ),
        growth=growth,
        overlap_depth=depth,
    )


def _shown(trace: Trace, op: Op, moving: set[int]) -> int | None:
    """Return the value that gets this op's row: the first floating one, unless the op makes no new number."""
    if op.functional in VIEWS or op.functional in COPIES or not op.inputs:
        return None
    first = next((v for v in op.outputs if trace.values[v].is_floating), None)
    return first if first in moving else None


def _row(trace: Trace, walk: Walk, value: int, op: Op) -> dict[str, Any]:
    return {"value": value, "path": op.path, "op": op.packet, "call": op.call} | _numbers(trace, walk, value)


def _numbers(trace: Trace, walk: Walk, value: int) -> dict[str, Any]:
    forward = walk.signals.get(value)
    arrives = value in trace.gradients
    gradient = walk.signals.get(trace.gradients[value]) if arrives else None
    return {
        "value": value,
        "shape": trace.values[value].shape,
        "forward_rms": None if forward is None else forward.rms,
        "gradient_rms": None if gradient is None else gradient.rms,
        "mean": None if forward is None else forward.mean,
        "overlap": None if forward is None else forward.overlap,
        "fidelity": _fidelity([forward, *([gradient] if arrives else [])]),
    }


def _fidelity(signals: Sequence[Signal | None]) -> str:
    if any(s is None for s in signals):
        return "unknown"
    return "approximate" if any(s is not None and s.fidelity == "approximate" for s in signals) else "exact"


def _parameter(trace: Trace, walk: Walk, name: str, value: int, learning_rate: float | None) -> dict[str, Any]:
    numbers = _numbers(trace, walk, value)
    weight, gradient = numbers["forward_rms"], numbers["gradient_rms"]
    known = learning_rate is not None and gradient is not None and weight
    return {
        "parameter": name,
        "shape": numbers["shape"],
        "weight_rms": weight,
        "gradient_rms": gradient,
        "update_ratio": learning_rate * gradient / weight if known else None,
        "fidelity": numbers["fidelity"],
    }


def _update_note(parameters: Sequence[Row], learning_rate: float | None) -> list[str]:
    ratios = sorted((row["update_ratio"], row["parameter"]) for row in parameters if row["update_ratio"] is not None)
    if not ratios:
        return []
    (low, first), (middle, _), (high, last) = ratios[0], ratios[len(ratios) // 2], ratios[-1]
    return [
        f"One step of gradient descent at learning rate {learning_rate:g} changes a weight by {middle:.2g} of its size "
        f"(median); least {first} by {low:.2g}, most {last} by {high:.2g}."
    ]


def _valueless(rows: Sequence[Row]) -> Mapping[str, int]:
    """Count the ops of unknown values: where no rule is to blame, of known numbers that are infinite or no numbers."""
    return Counter(row["op"] for row in rows if row["forward_rms"] is None)


def _unfollowed(trace: Trace, walk: Walk, rows: Sequence[Row]) -> list[str]:
    """Name the gradients that no op of the trace made: autograd carries those of a part by the whole tensor."""
    ids = [(row["path"], trace.gradients.get(row["value"], -1)) for row in rows]
    paths = [where(path) for path, g in ids if g >= 0 and trace.values[g].kind == "constant" and g not in walk.signals]
    if not paths:
        return []
    return [
        f"Gradients of parts that are written into a tensor are not followed: {len(paths)} "
        f"({', '.join(list(dict.fromkeys(paths))[:3])})."
    ]


def _notes(walk: Walk, rows: Sequence[Row]) -> list[str]:
    found = []
    if walk.unsupported:
        ops = ", ".join(f"{name} ({n}×)" for name, n in walk.unsupported.items())
        found.append(f"No rule, so what they make is unknown: {ops}.")
    unknown = sum(row["fidelity"] == "unknown" for row in rows)
    if unknown:
        # Views and copies only where nothing else is to blame.
        plain_ops = {*VIEWS, *COPIES}
        blamed = (
            {k: n for k, n in walk.unknown.items() if functional(k) not in plain_ops}
            or walk.unknown
            or _valueless(rows)
        )
        through = [f"{name} ({n}×)" for name, n in blamed.items()]
        more = f" and {len(through) - _NAMED} more" if len(through) > _NAMED else ""
        ops = ", through " + ", ".join(through[:_NAMED]) + more if through else ""
        found.append(f"Unknown: {unknown} of {len(rows)} values{ops}.")
        found += [f"Not known is {why}: {where_first}." for why, where_first in walk.causes.items()]
    reasons = dict.fromkeys(reason for signal in walk.signals.values() for reason in signal.reasons)
    return found + [f"Approximate: {reason}." for reason in reasons]
