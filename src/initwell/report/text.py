"""What a person sees in the terminal: tables as wide as the window allows, and progress with the time left."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from initwell.records import Row, TableRecord, cell

if TYPE_CHECKING:
    from rich.console import Console

# A text longer than this is wrapped within its column; shorter ones are never broken.
WRAP = 24
# Spaces between two columns, and at both ends of a line.
GAP, EDGES = 3, 2
# How often a log file (not a terminal) hears of progress, in seconds.
QUIET = 10.0


@dataclass(frozen=True)
class Fitted(TableRecord):
    """A table without the columns that the terminal has no room for, which it names below.

    Attributes:
        table: the whole table.
        columns: the columns that fit, in order.
    """

    table: TableRecord
    columns: tuple[str, ...]

    def table_title(self) -> str:
        """Return the title of the whole table."""
        return self.table.table_title()

    def table_columns(self) -> Sequence[str]:
        """Return the columns that fit."""
        return self.columns

    def table_rows(self) -> Sequence[Row]:
        """Return the rows of the whole table."""
        return self.table.table_rows()

    def table_notes(self) -> Sequence[str]:
        """Return the notes of the whole table, and which columns are not shown."""
        left_out = [c for c in self.table.table_columns() if c not in self.columns]
        said = (f"No room here for: {', '.join(left_out)}. A wider terminal or --json shows all.",) if left_out else ()
        return (*self.table.table_notes(), *said)


def fitted(table: TableRecord, width: int, first: Sequence[str] = ()) -> TableRecord:
    """Return the table with as many of its columns as ``width`` characters hold.

    Args:
        table: what to show.
        width: characters in a line of the terminal.
        first: the columns that are wanted most, most wanted first; the others follow in the table's order.

    Returns:
        The table itself when all of it fits.
    """
    rows = table.table_rows()
    columns = list(table.table_columns())
    kept: set[str] = set()
    left = width - EDGES + GAP
    for column in dict.fromkeys([*(c for c in first if c in columns), *columns]):
        need = GAP + max([len(column), *(min(len(cell(row.get(column))), WRAP) for row in rows)])
        if need <= left or not kept:
            kept.add(column)
            left -= need
    return table if len(kept) == len(columns) else Fitted(table, tuple(c for c in columns if c in kept))


class Progress(Protocol):
    """Hears what was done; shows it as it goes."""

    def __call__(self, done: int, total: int, message: str) -> None:
        """Say that ``done`` of ``total`` pieces of work are over, and what the last one was."""


@contextmanager
def progress(console: "Console", title: str) -> Iterator[Progress]:
    """Show a bar with the time left while the block runs; a log file gets a line now and then instead.

    Args:
        console: where to; the one of stderr, so that stdout holds results only.
        title: what is being done.
    """
    if not console.is_terminal:
        yield _Lines(console, title)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    layout = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[message]}", markup=False),
    )
    with Bars(*layout, console=console, transient=True, expand=True) as bars:
        task = bars.add_task(title, total=None, message="")

        def hear(done: int, total: int, message: str) -> None:
            bars.update(task, completed=done, total=total, message=_short(message, console.width // 3))

        yield hear


class _Lines:
    """Progress as plain lines: the first, the last, and one every ten seconds between."""

    def __init__(self, console: "Console", title: str) -> None:
        self._console, self._title = console, title
        self._began = self._said = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int, message: str) -> None:
        """Write a line if it is time for one."""
        now = time.monotonic()
        if self._first is None:
            # What an earlier run had finished says nothing of this one's speed.
            self._first = done
        elif done < total and now - self._said < QUIET:
            return
        self._said = now
        fresh = done - self._first
        left = f", {duration((now - self._began) / fresh * (total - done))} left" if fresh > 0 and done < total else ""
        line = f"{self._title}: {done}/{total}{left}" + (f" · {message}" if message else "")
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: max(1, longest - 1)] + "…"


def duration(seconds: float) -> str:
    """Write a time as a person says it.

    >>> duration(4.2), duration(75), duration(3700)
    ('4 s', '1 min 15 s', '1 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
