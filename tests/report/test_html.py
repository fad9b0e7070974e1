"""The page holds everything it shows, escapes every name, and is the same each time."""

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

from initwell.charts import Chart, Panel, Series
from initwell.errors import ArgumentError
from initwell.records import Row, TableRecord
from initwell.report.html import FOLD, Page, Section, render, save, table_html

EVIL = "</title><script>alert('x')</script><img src=x onerror=alert(1)>\"' & ünï 初始化"


@dataclass(frozen=True)
class Table(TableRecord):
    rows: tuple[Row, ...]
    title: str = "table"

    def table_title(self) -> str:
        return self.title

    def table_columns(self) -> list[str]:
        return list(self.rows[0])

    def table_rows(self) -> tuple[Row, ...]:
        return self.rows

    def table_notes(self) -> tuple[str, ...]:
        return (self.title,)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def page(name: str) -> Page:
    chart = Chart(name, name, name, (Panel(name, name, name, (Series(name, (0.0, 1.0), (1.0, 2.0)),)),))
    table = Table(({name: name, "n": 1.0},), name)
    section = Section(name, (name,), name, (table,), (chart, chart), {name: name})
    return Page(name, name, (name,), (section, section, section, section), {name: name}, (f"initwell {name}",))


def test_every_name_is_escaped() -> None:
    tags = parsed(render(page(EVIL)))
    assert {tag for tag, _ in tags.found}.isdisjoint({"script", "img", "iframe", "object"})
    assert not [a for _, attributes in tags.found for a in attributes if a.startswith("on")]
    # Each place that was given the name shows it, letter by letter.
    assert sum(EVIL in text for text in tags.text) >= 20


def test_nothing_is_fetched_from_elsewhere() -> None:
    text = render(page("plain"))
    for tag, attributes in parsed(text).found:
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_ids_are_unique_links_lead_somewhere_and_figures_have_words() -> None:
    found = parsed(render(page("plain"))).found
    ids = [a["id"] for _, a in found if a.get("id")]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for tag, a in found if tag == "a"}
    assert len(targets) == 4
    assert targets <= {f"#{i}" for i in ids}
    figures = [a for tag, a in found if tag == "svg"]
    assert len(figures) == 8
    assert all(a["role"] == "img" and "plain" in (a["aria-label"] or "") for a in figures)


def test_the_same_page_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (save(page("p"), tmp_path / f"{i}.html").read_bytes() for i in range(2))
    assert first == second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.html", "1.html"]


def test_numbers_stand_right_and_a_long_table_is_folded() -> None:
    row = {"name": "a", "std": 0.5, "note": "w" * 60, "done": True}
    short = table_html(Table((row,) * FOLD))
    assert '<td class="n">0.5</td>' in short
    assert "<td>a</td>" in short and "<td>yes</td>" in short
    assert "<details>" not in short
    assert f"{FOLD + 1} rows</summary>" in table_html(Table((row,) * (FOLD + 1)))


def test_a_full_disk_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(page("old"), tmp_path / "index.html")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ArgumentError, match="No space left"):
        save(page("new"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]
