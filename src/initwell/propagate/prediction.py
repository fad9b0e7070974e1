"""What ``predict`` returns: one row a value, one row a parameter, and what could not be known."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from initwell.charts import Chart, Panel, Series
from initwell.propagate.engine import Walk
from initwell.propagate.signal import Signal
from initwell.records import Row, TableRecord, plain
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, Trace


@dataclass(frozen=True)
class Prediction(TableRecord):
    """The expected size of every activation and gradient of a model, without running data.

    Attributes:
        rows: one mapping for each forward op that makes a new floating value, in order, the same ops as ``measure``
            has rows for, with keys ``value`` (its id in the trace), ``path``, ``op``, ``call``, ``shape``,
            ``forward_rms``, ``gradient_rms`` (None where no gradient arrives, or it is unknown), ``mean``, ``overlap``
            (moment between samples over q) and ``fidelity`` ("exact" under mean-field's independence, "approximate"
            or "unknown", of forward and backward together).
        inputs: the same for the floating tensors of the batch; their ``op`` is "input".
        parameters: one mapping for each parameter: ``parameter``, ``shape``, ``weight_rms``, ``gradient_rms``,
            ``fidelity``.
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
        names = ("rows", "inputs", "parameters", "unsupported", "notes")
        return {name: plain(getattr(self, name)) for name in names}

    def charts(self) -> tuple[Chart, ...]:
        """Return the chart of sizes by depth, both directions, and of the overlap between samples.

        Returns:
            One chart; a panel without a known value is left out, and there is no chart without a panel.
        """
        named = (
            ("forward_rms", "Signal", "rms of each op's output", True),
            ("gradient_rms", "Gradient", "rms of the gradient with respect to it", True),
            ("overlap", "Overlap of samples", "moment between samples over q", False),
        )
        panels = []
        for key, title, label, log in named:
            points = [(float(i), row[key]) for i, row in enumerate(self.rows, 1) if _drawable(row[key], log=log)]
            if points:
                x, y = zip(*points, strict=True)
                series = (Series("predicted", x, y, style="line"),)
                panels.append(Panel(title, "op, in order of execution", label, series, y_log=log))
        caption = (
            "Predicted from moments alone. A healthy start is level in both directions; "
            "an overlap that goes to 1 means that inputs become indistinguishable."
        )
        return (Chart("predicted-by-depth", "Predicted size by depth", caption, tuple(panels)),) if panels else ()


def _drawable(value: float | None, *, log: bool) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not log)


def prediction(trace: Trace, walk: Walk, notes: Sequence[str]) -> Prediction:
    """Put together what a walk found."""
    moving = trace.dependents(v.id for v in trace.values if v.kind in ("input", "parameter", "buffer"))
    rows = [
        _row(trace, walk, value, op) for op in trace.forward_ops if (value := _shown(trace, op, moving)) is not None
    ]
    inputs = [
        _numbers(trace, walk, value) | {"path": "", "op": "input", "call": 0, "name": name}
        for name, value in trace.inputs.items()
        if trace.values[value].is_floating
    ]
    return Prediction(
        rows=tuple(rows),
        inputs=tuple(inputs),
        parameters=tuple(_parameter(trace, walk, name, value) for name, value in trace.parameters.items()),
        unsupported=walk.unsupported,
        trace=trace,
        notes=(*notes, *trace.notes, *_notes(walk, rows)),
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


def _parameter(trace: Trace, walk: Walk, name: str, value: int) -> dict[str, Any]:
    numbers = _numbers(trace, walk, value)
    return {
        "parameter": name,
        "shape": numbers["shape"],
        "weight_rms": numbers["forward_rms"],
        "gradient_rms": numbers["gradient_rms"],
        "fidelity": numbers["fidelity"],
    }


def _notes(walk: Walk, rows: Sequence[Row]) -> list[str]:
    found = []
    if walk.unsupported:
        ops = ", ".join(f"{name} ({n}×)" for name, n in walk.unsupported.items())
        found.append(f"No rule, so what they make is unknown: {ops}.")
    unknown = sum(row["fidelity"] == "unknown" for row in rows)
    if unknown:
        ops = ", ".join(f"{name} ({n}×)" for name, n in walk.unknown.items())
        found.append(f"Unknown: {unknown} of {len(rows)} values" + (f", through {ops}." if ops else "."))
    reasons = dict.fromkeys(reason for signal in walk.signals.values() for reason in signal.reasons)
    return found + [f"Approximate: {reason}." for reason in reasons]
