"""A Plan as data: one row for every parameter, comparable, savable, replayable."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from initwell.initializers.distributions import Distribution
from initwell.records import Record, TableRecord

COLUMNS = ("parameter", "shape", "initializer", "fan", "gain", "std", "reason")


class TableRow(Record, Mapping[str, Any]):
    """A row that reads as a record (``row.std``) and as a mapping of its columns (``row["std"]``, ``dict(row)``)."""

    columns: ClassVar[tuple[str, ...]]

    def __getitem__(self, column: str) -> Any:
        """Return one column."""
        if column not in self.columns:
            raise KeyError(column)
        return getattr(self, column)

    def __iter__(self) -> Iterator[str]:
        """Go through the columns."""
        return iter(self.columns)

    def __len__(self) -> int:
        """Count the columns."""
        return len(self.columns)


@dataclass(frozen=True)
class PlanRow(TableRow):
    """What is decided for one parameter.

    Attributes:
        parameter: its dotted name.
        shape: its shape.
        initializer: what is drawn, in a few words; "left alone" for nothing.
        fan: the fan that the standard deviation was made from, if any.
        gain: the gain it was made from, if any.
        std: of the entries; None where nothing is drawn.
        reason: why, in plain words.
        distribution: what is drawn; None where nothing is.
        key: the name that the random stream is made from.
        tied_to: other names of the same tensor.
        zero_row: an embedding's padding row, which stays 0.
        norm_of: the parameter whose norm this one is set to; "" for none.
        norm_axis: the axis that this norm keeps; -1 for the norm of the whole.
    """

    columns: ClassVar[tuple[str, ...]] = COLUMNS

    parameter: str
    shape: tuple[int, ...]
    initializer: str
    fan: float | None
    gain: float | None
    std: float | None
    reason: str
    distribution: Distribution | None = None
    key: str = ""
    tied_to: tuple[str, ...] = ()
    zero_row: int | None = None
    norm_of: str = ""
    norm_axis: int = -1

    @property
    def written(self) -> bool:
        """Whether the parameter is written at all."""
        return self.distribution is not None or bool(self.norm_of)


@dataclass(frozen=True)
class Plan(TableRecord):
    """What is to be written into a model, and why; made by ``plan``, carried out by ``init_``.

    Attributes:
        scheme: what was asked for.
        seed: of the weights.
        rows: one for every parameter, in the model's order, those left alone included.
        notes: what must not stay silent.
        citations: BibTeX entries of what is used.
    """

    scheme: str
    seed: int
    rows: tuple[PlanRow, ...]
    notes: tuple[str, ...] = ()
    citations: tuple[str, ...] = ()

    def diff(self, other: "Plan") -> tuple[Mapping[str, Any], ...]:
        """List where two plans differ.

        Args:
            other: another plan.

        Returns:
            One mapping for each difference: parameter ("" for the plan itself), field, this, other. A parameter that
            one of them lacks has the field "parameter". The words of notes and reasons are not compared.
        """
        found = [_change("", name, getattr(self, name), getattr(other, name)) for name in ("scheme", "seed")]
        mine, theirs = ({row.parameter: row for row in p.rows} for p in (self, other))
        for name in dict.fromkeys([*mine, *theirs]):
            if name not in mine or name not in theirs:
                found.append(
                    _change(name, "parameter", name if name in mine else None, name if name in theirs else None)
                )
                continue
            compared = [f.name for f in fields(PlanRow) if f.name not in ("parameter", "reason")]
            found += [_change(name, f, getattr(mine[name], f), getattr(theirs[name], f)) for f in compared]
        return tuple(change for change in found if change["this"] != change["other"])

    def citation(self) -> str:
        """Return BibTeX of the papers behind what is drawn; "" where there is none."""
        return "\n\n".join(self.citations)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; the file is either whole or not there.

        Args:
            path: the file; its folder must exist.
        """
        from initwell.apply.saved import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan that ``save`` wrote.

        Args:
            path: the file.

        Returns:
            A plan that equals the one saved.

        Raises:
            DataFormatError: not such a file, of another version, or with keys or values that are not a plan's.
        """
        from initwell.apply.saved import load

        return load(path)

    def table_title(self) -> str:
        """Say what the plan is."""
        return f"Plan: {self.scheme}, seed {self.seed}"

    def table_columns(self) -> Sequence[str]:
        """Name the columns."""
        return COLUMNS

    def table_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows."""
        return self.rows

    def table_notes(self) -> Sequence[str]:
        """Return the notes."""
        return self.notes


def _change(parameter: str, field: str, this: Any, other: Any) -> Mapping[str, Any]:
    return {"parameter": parameter, "field": field, "this": this, "other": other}
