"""Imports run down the rooms only; this parses every import in src and fails on one that points up."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "initwell"

# Lowest first; a room may import from itself and from the rooms before it.
ROOMS = [
    ["_version", "errors"],
    ["files"],
    ["records"],
    ["charts"],
    ["theory"],
    ["initializers"],
    ["sampling"],
    ["trace"],
    ["propagate"],
    ["measurement"],
    ["diagnose"],
    ["apply"],
    ["experiments"],
    ["report"],
    ["cli", "__main__"],
]
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
WITHOUT_TORCH = {"theory", "initializers", "sampling", "records", "errors", "files", "charts"}


def room_of(path: Path, root: Path = SRC) -> str:
    return path.relative_to(root).with_suffix("").parts[0]


def imported_modules(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import, those inside functions included; a relative one is refused."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the whole path"
            module = node.module or ""
            # `from initwell import theory` names a room too.
            if module == "initwell":
                yield from ((node.lineno, f"initwell.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def upward_imports(path: Path, root: Path = SRC) -> list[str]:
    here = room_of(path, root)
    faults = []
    for line, name in imported_modules(path.read_text(encoding="utf-8")):
        parts = name.split(".")
        if parts[0] == "torch" and here in WITHOUT_TORCH:
            faults.append(f"{path}:{line}: {here} imports torch")
        if parts[0] != "initwell" or len(parts) < 2:
            continue
        there = parts[1]
        if there == "integrations" and here != "integrations":
            faults.append(f"{path}:{line}: nothing imports integrations")
        elif here not in ("__init__", "integrations") and RANK[there] > RANK[here]:
            faults.append(f"{path}:{line}: {here} imports {there}, which lies above it")
    return faults


FILES = sorted(SRC.rglob("*.py"))


def test_there_are_files_to_check() -> None:
    assert len(FILES) > 3


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_down(path: Path) -> None:
    assert upward_imports(path) == []


@pytest.mark.parametrize(
    ("room", "source", "fault"),
    [
        ("theory", "from initwell.apply.plan import Plan", "lies above"),
        ("theory", "def f():\n    import torch", "imports torch"),
        ("report", "import initwell.integrations.timm", "nothing imports"),
        ("measurement", "from initwell import cli", "lies above"),
    ],
)
def test_a_faulty_import_is_caught(tmp_path: Path, room: str, source: str, fault: str) -> None:
    (tmp_path / room).mkdir()
    path = tmp_path / room / "bad.py"
    path.write_text(source, encoding="utf-8")
    assert any(fault in f for f in upward_imports(path, tmp_path))
