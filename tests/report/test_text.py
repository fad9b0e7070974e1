"""Tables fit the terminal and say what they leave out; progress degrades to lines and never reaches stdout."""

import io

import pytest
from rich.console import Console

from initwell.report.tables import Table
from initwell.report.text import Fitted, duration, fitted, progress

WIDE = Table(
    "title", ("name", "first", "second", "third"), ({"name": "a" * 10, "first": 1.5, "second": 2, "third": "c"},)
)


def printed(table: Table | Fitted, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue()


@pytest.mark.parametrize("width", [20, 30, 40, 80, 200])
def test_what_fits_is_shown_unbroken_and_the_rest_is_named(width: int) -> None:
    table = fitted(WIDE, width)
    shown, said = list(table.table_columns()), " ".join(table.table_notes())
    assert shown[0] == "name"
    assert all((column in shown) != (column in said) for column in WIDE.columns[1:])
    out = printed(table, width)  # type: ignore[arg-type]
    assert max(map(len, out.splitlines())) <= width
    assert "a" * 10 in out
    for column in shown:
        assert column in out


def test_a_table_that_fits_is_itself() -> None:
    assert fitted(WIDE, 80) is WIDE


def test_the_columns_wanted_most_stay_and_keep_their_order() -> None:
    table = fitted(WIDE, 32, ("third", "nothere", "name"))
    assert list(table.table_columns()) == ["name", "first", "third"]


def test_a_column_alone_is_shown_however_narrow_the_window() -> None:
    assert list(fitted(WIDE, 3).table_columns()) == ["name"]


def test_a_log_gets_the_first_and_the_last_line_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with progress(Console(file=stream), "train") as hear:
        for done in range(11):
            hear(done, 10, f"[bold]run {done}[/bold]")
            now[0] += 4.0
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train: 0/10 · [bold]run 0[/bold]"
    assert lines[1] == "train: 3/10, 28 s left · [bold]run 3[/bold]"
    assert lines[-1] == "train: 10/10 · [bold]run 10[/bold]"
    assert len(lines) == 5


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    stream = io.StringIO()
    with progress(Console(file=stream, force_terminal=True, width=80), "train") as hear:
        hear(1, 2, "a very long message that cannot all be shown in a third of the line")
    assert "train" in stream.getvalue()
    assert "1/2" in stream.getvalue()


def test_durations_read_as_a_person_says_them() -> None:
    assert [duration(s) for s in (0.4, 59.4, 59.6, 3599.6)] == ["0 s", "59 s", "1 min 0 s", "1 h 0 min"]
