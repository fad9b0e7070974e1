"""One self-contained HTML page for a run: no script, no outside resource, every name escaped."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path

from initwell.charts import Chart
from initwell.files import write
from initwell.records import Record, Row, TableRecord, cell
from initwell.report.files import safe_name
from initwell.report.plots import inline_svg, printable

# A longer table is folded away behind one line, so that the page can be read before it is studied.
FOLD = 30
_BADGES = {"confirmed", "refuted", "depends"}


@dataclass(frozen=True)
class Section(Record):
    """One part of a page.

    Attributes:
        title: its heading.
        words: paragraphs, what was found before how.
        badge: ``confirmed``, ``refuted`` or ``depends``, shown beside the heading; empty for none.
        summary: the table that is read before the pictures.
        tables: the evidence.
        charts: the pictures, drawn into the page.
        conditions: name to value, below everything.
    """

    title: str
    words: tuple[str, ...] = ()
    badge: str = ""
    tables: tuple[TableRecord, ...] = ()
    charts: tuple[Chart, ...] = ()
    conditions: Mapping[str, object] = field(default_factory=dict)
    summary: TableRecord | None = None


@dataclass(frozen=True)
class Page(Record):
    """A run's page.

    Attributes:
        title: what was run.
        lead: one line below the title.
        verdict: what came out, in plain words; the first thing that is read.
        sections: the parts, in order.
        conditions: versions, seeds, data, threads: what another would need to get the same.
        commands: shell lines that make this page again.
    """

    title: str
    lead: str
    verdict: tuple[str, ...]
    sections: tuple[Section, ...]
    conditions: Mapping[str, object]
    commands: tuple[str, ...]


def render(page: Page) -> str:
    """Return the page as one HTML document; the same page gives the same bytes.

    >>> text = render(Page("<i>", "", ("all well",), (), {"seed": 0}, ("initwell demo",)))
    >>> "<i>" in text, "&lt;i&gt;" in text, "http" in text
    (False, True, False)
    """
    style = resources.files("initwell.report").joinpath("static/page.css").read_text(encoding="utf-8")
    anchors = [f"s{i}-{safe_name(section.title).lower()}" for i, section in enumerate(page.sections, 1)]
    body = [
        f"<h1>{_text(page.title)}</h1>",
        f'<p class="lead">{_text(page.lead)}</p>' if page.lead else "",
        _list("verdict", page.verdict),
        _navigation(page.sections, anchors),
        *(_section(section, anchor) for section, anchor in zip(page.sections, anchors, strict=True)),
        f"<h2>Conditions</h2>{_conditions(page.conditions)}" if page.conditions else "",
        f"<h2>Make this page again</h2><pre>{_text_lines(page.commands)}</pre>" if page.commands else "",
        "<footer>Made by initwell. This page needs no network and runs no script.</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(page.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def save(page: Page, path: str | Path) -> Path:
    """Write the page to a file, whole or not at all; return its path."""
    return write(Path(path), render(page))


def _text(value: object) -> str:
    return escape(printable(str(value), longest=100_000), quote=True)


def _text_lines(lines: Iterable[str]) -> str:
    return "\n".join(_text(line) for line in lines)


def _list(kind: str, items: Sequence[str]) -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{_text(item)}</li>" for item in items) + "</ul>" if items else ""


def _navigation(sections: Sequence[Section], anchors: Sequence[str]) -> str:
    if len(sections) < 4:
        return ""
    items = "".join(
        f'<li><a href="#{anchor}">{_text(section.title)}</a> {_badge(section.badge)}</li>'
        for section, anchor in zip(sections, anchors, strict=True)
    )
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'


def _badge(badge: str) -> str:
    return f'<span class="badge {badge if badge in _BADGES else ""}">{_text(badge)}</span>' if badge else ""


def _section(section: Section, anchor: str) -> str:
    figures = (_figure(chart, f"{anchor}-f{i}") for i, chart in enumerate(section.charts, 1))
    parts = [
        f'<section id="{anchor}"><h2>{_text(section.title)} {_badge(section.badge)}</h2>',
        *(f"<p>{_text(words)}</p>" for words in section.words),
        table_html(section.summary) if section.summary else "",
        *figures,
        *(table_html(table) for table in section.tables),
        _conditions(section.conditions),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _figure(chart: Chart, prefix: str) -> str:
    words = f"<figcaption><b>{_text(chart.title)}</b>{_text(chart.caption)}</figcaption>"
    return f"<figure>{words}{inline_svg(chart, prefix)}</figure>"


def _conditions(conditions: Mapping[str, object]) -> str:
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(cell(value))}</dd>" for name, value in conditions.items())
    return f"<dl>{rows}</dl>" if rows else ""


def table_html(table: TableRecord) -> str:
    """Return a record's table as HTML, numbers to the right; one longer than a screen is folded away."""
    columns, rows = table.table_columns(), table.table_rows()
    kinds = {column: _column_class(column, rows) for column in columns}
    head = "".join(f'<th scope="col"{kinds[c]}>{_text(c.replace("_", " "))}</th>' for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td{kinds[c]}>{_text(cell(row.get(c)))}</td>" for c in columns) + "</tr>" for row in rows
    )
    title = _text(table.table_title())
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in table.table_notes())
    core = f'<div class="scroll" role="region" aria-label="{title}" tabindex="0"><table><caption>{title}</caption>'
    core += f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{notes}"
    return f"<details><summary>{title}: {len(rows)} rows</summary>{core}</details>" if len(rows) > FOLD else core


def _column_class(column: str, rows: Sequence[Row]) -> str:
    values = [row.get(column) for row in rows]
    if any(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return ' class="n"'
    return ' class="w"' if any(isinstance(v, str) and len(v) > 40 for v in values) else ""
