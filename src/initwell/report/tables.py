"""A table that is made where it is shown, for results that have no record of their own."""

from collections.abc import Sequence
from dataclasses import dataclass

from initwell.records import Row, TableRecord


@dataclass(frozen=True)
class Table(TableRecord):
    """Rows under a title.

    Attributes:
        title: what the table is of.
        columns: row keys to show, the most wanted first; ``rows`` may hold more.
        rows: the numbers.
        notes: whatever must not stay silent.

    >>> print(Table("Gains", ("name", "gain"), ({"name": "relu", "gain": 2**0.5},)))
    Gains
    <BLANKLINE>
     name    gain
     ────────────
     relu   1.414
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def table_title(self) -> str:
        """Return the title."""
        return self.title

    def table_columns(self) -> Sequence[str]:
        """Return the columns."""
        return self.columns

    def table_rows(self) -> Sequence[Row]:
        """Return the rows."""
        return self.rows

    def table_notes(self) -> Sequence[str]:
        """Return the notes."""
        return self.notes
