"""What ``measure`` returns: one row a value, one row a parameter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from initwell.records import Row, TableRecord, plain
from initwell.trace.trace import Trace


@dataclass(frozen=True)
class Measurement(TableRecord):
    """One real forward and backward, in numbers.

    Args:
        rows: one mapping for each forward op that made a new floating value, in order, with keys ``value`` (its id in
            the trace), ``path``, ``op``, ``call``, ``shape``, ``activation`` (its name, where the op is one),
            ``forward_rms``, ``gradient_rms`` (None where no gradient arrived), ``mean``, ``std``, ``abs_mean``,
            ``gradient_abs_mean``, ``zeros`` (share), ``saturated`` (share; None where the op does not saturate),
            ``dead_units`` (share; None where the op is no rectifier), ``overlap`` (moment between samples over q; None
            where there is no sample axis or one sample) and ``fidelity`` ("exact").
        inputs: the same for the tensors of the batch that are floating; their ``op`` is "input".
        parameters: one mapping for each parameter, with keys ``parameter``, ``shape``, ``weight_rms``, ``weight_std``,
            ``weight_abs_mean``, ``gradient_rms``, ``gradient_abs_mean`` and ``update_ratio`` (learning rate ×
            gradient rms / weight rms; None without a learning rate, a gradient, or for a weight that is all 0).
        loss: the value of the loss, when one was given.
        skipped: ops that got no row on purpose → how often: views and copies make no new number; masks, constants and
            index arithmetic depend on neither batch nor parameters, or are not floating.
        trace: the ops themselves.
        notes: unused and frozen parameters, outputs without a gradient, …
    """

    rows: tuple[Row, ...]
    inputs: tuple[Row, ...]
    parameters: tuple[Row, ...]
    loss: float | None
    skipped: Mapping[str, int]
    trace: Trace = field(repr=False)
    notes: tuple[str, ...] = ()

    def table_title(self) -> str:
        """Say what was measured."""
        loss = "" if self.loss is None else f", loss {self.loss:.6g}"
        mode = "training" if self.trace.training else "eval"
        return f"Measurement: {len(self.rows)} values, {len(self.parameters)} parameters, {mode} mode{loss}"

    def table_columns(self) -> Sequence[str]:
        """Name the columns shown; every row holds more."""
        sizes = ("forward_rms", "gradient_rms", "mean", "abs_mean", "zeros", "saturated", "dead_units", "overlap")
        return ("path", "op", "call", "shape", *sizes)

    def table_rows(self) -> Sequence[Row]:
        """Return the rows of values."""
        return self.rows

    def table_notes(self) -> Sequence[str]:
        """Return the notes, and how many ops got no row."""
        count = sum(self.skipped.values())
        return (*self.notes, f"No row on purpose for {count} ops that make no new number (see .skipped).")

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data; the trace is left out."""
        names = ("rows", "inputs", "parameters", "loss", "skipped", "notes")
        return {name: plain(getattr(self, name)) for name in names}
