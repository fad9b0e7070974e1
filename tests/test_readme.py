"""The READMEs do what they say: their Python runs and prints what they show, their commands parse, and both agree."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from initwell.apply.schemes.registry import scheme_names
from initwell.cli.main import parser
from initwell.experiments.reproduce.catalogue import claims

ROOT = Path(__file__).parents[1]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[str, str]]:
    return [(match[1], match[2]) for match in FENCE.finditer(text)]


def without_comments(code: str) -> str:
    return re.sub(r"\s*# .*$", "", code, flags=re.MULTILINE)


def test_python_runs_and_prints_what_is_shown() -> None:
    names: dict[str, object] = {}
    found = blocks(ENGLISH)
    shown = 0
    for (language, code), (following, output) in zip(found, [*found[1:], ("", "")], strict=True):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), names)
        if following == "text":
            assert printed.getvalue() == output
            shown += 1
    assert shown == 2


def test_the_first_example_ends_by_line_35() -> None:
    lines = ENGLISH.splitlines()
    assert lines.index("```python") < 20
    assert next(k for k, line in enumerate(lines) if "print(receipt" in line) < 35


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_every_command_parses(text: str) -> None:
    commands = [
        without_comments(line)
        for language, code in blocks(text)
        if language == "bash"
        for line in code.splitlines()
        if line.startswith("initwell ")
    ]
    assert len(commands) >= 7
    for command in commands:
        parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_every_scheme_and_claim_is_named(text: str) -> None:
    assert [name for name in scheme_names() if f"`{name}`" not in text] == []
    assert [claim.name for claim in claims() if f"`{claim.name}`" not in text] == []


def test_both_languages_show_the_same_code_and_figures() -> None:
    same = [[(kind, without_comments(code)) for kind, code in blocks(text)] for text in (ENGLISH, CHINESE)]
    assert same[0] == same[1]
    for pattern in (r"^#+ ", r"\]\([^)]+\)", r"^\| `"):
        counts = [len(re.findall(pattern, text, re.MULTILINE)) for text in (ENGLISH, CHINESE)]
        assert counts[0] == counts[1], pattern


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_every_link_leads_somewhere(text: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
