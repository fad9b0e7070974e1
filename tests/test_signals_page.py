"""docs/signals.md: its code runs and prints what is shown, and the files it names are there, all of them."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "signals.md").read_text(encoding="utf-8")
ROOM = ROOT / "src" / "initwell" / "propagate"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_python_runs_and_prints_what_is_shown() -> None:
    names: dict[str, object] = {}
    found = [(match[1], match[2]) for match in FENCE.finditer(PAGE)]
    pairs = list(zip(found[::2], found[1::2], strict=True))
    assert len(pairs) >= 5
    for (language, code), (following, output) in pairs:
        assert (language, following) == ("python", "text")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "signals.md", "exec"), names)
        assert printed.getvalue() == output


def test_every_file_of_the_table_exists_and_every_file_of_rules_is_in_it() -> None:
    table = PAGE.split("\n## Where it stands\n")[1]
    named = set(re.findall(r"`([\w/]+\.py)`", table))
    assert [name for name in named if not (ROOM / name).exists()] == []
    rules = {f"rules/{path.name}" for path in (ROOM / "rules").glob("*.py") if path.name != "__init__.py"}
    assert rules - named == set()


@pytest.mark.parametrize("page", ["signals.md", "architecture.md"])
def test_every_link_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert links
    for target, place in links:
        file = ROOT / "docs" / (target or page)
        assert file.exists(), target
        titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert not place or place in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


def test_every_file_of_both_rooms_is_on_this_page_or_that_of_the_house() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [path for room in ("trace", "propagate") for path in (ROOT / "src" / "initwell" / room).rglob("*.py")]
    missing = [
        path.name
        for path in rooms
        if path.name != "__init__.py" and not re.search(rf"`(\w+/)?{path.name}`", page + PAGE)
    ]
    assert missing == []
