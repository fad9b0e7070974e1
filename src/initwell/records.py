"""What every returned record can do: print in a terminal, show itself in a notebook, give its numbers as data."""

import dataclasses
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Row = Mapping[str, Any]


def plain(value: Any) -> Any:
    """Turn a record's value into dicts, lists, strings, numbers, booleans and None.

    Args:
        value: a dataclass, mapping, sequence, NumPy scalar or array, or a plain value.

    Returns:
        The same value in JSON's types; a float stays a float, NaN and infinities included.

    >>> plain({"shape": (2, 3), "std": 0.5})
    {'shape': [2, 3], 'std': 0.5}
    """
    if isinstance(value, Record):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if not f.name.startswith("_")}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, (bool, int, float)):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Iterable):
        return [plain(v) for v in value]
    # A function goes by its name; its address would differ from run to run.
    return getattr(value, "__qualname__", None) or str(value)


def _finite(value: Any) -> Any:
    # JSON has no NaN or infinity; a string keeps what happened, where null would hide it.
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value


def number(value: float) -> str:
    """Format a number for a table: four significant digits, the exponent only where it is needed.

    >>> number(0.123456), number(1.0), number(6.1e-40), number(1024)
    ('0.1235', '1', '6.1e-40', '1024')
    """
    return f"{value:.4g}"


def cell(value: Any) -> str:
    """Format one table cell."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, (tuple, list)):
        return "×".join(cell(v) for v in value)
    return str(value)


class Record:
    """A frozen dataclass that gives its numbers as plain data."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data: dicts, lists, strings and numbers."""
        fields = dataclasses.fields(cast(Any, self))
        return {f.name: plain(getattr(self, f.name)) for f in fields if not f.name.startswith("_")}

    def to_json(self, indent: int | None = None) -> str:
        """Return ``to_dict()`` as JSON; NaN and infinities become the strings 'nan', 'inf' and '-inf'."""
        return json.dumps(_finite(self.to_dict()), indent=indent, ensure_ascii=False, allow_nan=False)


class TableRecord(Record):
    """A record whose heart is a list of rows; it prints as a Rich table and shows as an HTML table."""

    def table_title(self) -> str:
        """Return the line above the table."""
        raise NotImplementedError

    def table_columns(self) -> Sequence[str]:
        """Return the row keys to show, in order."""
        raise NotImplementedError

    def table_rows(self) -> Sequence[Row]:
        """Return the rows to show, as mappings from column name to value."""
        raise NotImplementedError

    def table_notes(self) -> Sequence[str]:
        """Return the lines below the table: whatever must not stay silent."""
        return ()

    def __rich__(self) -> "RenderableType":
        """Render for a Rich console."""
        from rich.console import Group
        from rich.text import Text

        return Group(rich_table(self), *(Text(note) for note in self.table_notes()))

    def __str__(self) -> str:
        """Render as plain text, as wide as the table needs."""
        from rich.console import Console

        console = Console(width=200, no_color=True, highlight=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())

    def _repr_html_(self) -> str:
        columns = self.table_columns()
        head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell(row.get(c)))}</td>" for c in columns) + "</tr>"
            for row in self.table_rows()
        )
        notes = "".join(f"<p>{html.escape(n)}</p>" for n in self.table_notes())
        title = html.escape(self.table_title())
        return f"<table><caption>{title}</caption><tr>{head}</tr>{body}</table>{notes}"


def rich_table(record: TableRecord) -> "Table":
    """Build the Rich table of a record: text columns to the left, numbers to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(record.table_title()), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    rows = record.table_rows()
    for column in record.table_columns():
        numeric = any(isinstance(r.get(column), (int, float)) and not isinstance(r.get(column), bool) for r in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(row.get(c))) for c in record.table_columns()))
    return table
