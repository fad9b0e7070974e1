"""The public face: every name loads, types and table agree, and importing stays cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import initwell as iw

SOURCE = Path(iw.__file__)


def typed_names() -> dict[str, str]:
    found = {}
    for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If):
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                for alias in line.names:
                    whole = f"{line.module}.{alias.name}"
                    found[alias.name] = whole if whole == iw._PUBLIC[alias.name] else str(line.module)
    return found


def test_type_checkers_are_told_the_same() -> None:
    assert typed_names() == iw._PUBLIC


@pytest.mark.parametrize("name", sorted(iw._PUBLIC))
def test_every_public_name_loads_and_says_what_it_is(name: str) -> None:
    assert getattr(iw, name).__doc__
    assert name in dir(iw)


def test_a_star_imports_the_public_names_and_nothing_else() -> None:
    space: dict[str, object] = {}
    exec("from initwell import *", space)
    assert space.keys() - {"__builtins__"} == iw._PUBLIC.keys()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="kaimin_"):
        _ = iw.kaimin_


def test_importing_initwell_loads_neither_torch_nor_scipy_nor_matplotlib() -> None:
    heavy = ("torch", "numpy", "scipy", "matplotlib", "rich")
    code = f"import sys, initwell; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_init_loads_no_plotting_and_no_quadrature() -> None:
    # What a training script pays beyond torch itself.
    code = (
        "import sys, initwell; initwell.init_; print([m for m in ('scipy', 'matplotlib', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
