"""Naming things on the command line: callables, models, inputs, data and lists."""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from initwell.errors import ArgumentError, InitwellError, ModelError

HOW = (
    "Name it as path.py:callable, package.module:callable, zoo:NAME, timm:NAME, torchvision:NAME or hf:NAME; "
    "options of a zoo net follow after another colon, as in zoo:mlp:depth=20,width=128."
)


def names(text: str) -> list[str]:
    """Read a comma-separated list of names.

    >>> names("xavier, kaiming")
    ['xavier', 'kaiming']
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"got {text!r}; write names with commas between them, such as xavier,kaiming")
    return found


def numbers(text: str) -> list[float]:
    """Read a comma-separated list of finite numbers above zero.

    >>> numbers("0.1,1e-3")
    [0.1, 0.001]
    """
    try:
        found = [float(part) for part in names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; write numbers with commas between them, such as 0.1,0.01"
        ) from None
    if not all(0 < v < float("inf") for v in found):
        raise argparse.ArgumentTypeError(f"got {text!r}; every number must be above zero and finite")
    return found


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; write a whole number of at least 1")
    return int(text)


def seed(text: str) -> int:
    """Read a seed: a whole number from 0 to 2⁶⁴ − 1."""
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"got {text!r}; write a whole number from 0 to 2**64 - 1")
    return int(text)


def counts(text: str) -> list[int]:
    """Read a comma-separated list of whole numbers of at least 1."""
    return [count(part) for part in names(text)]


def options(text: str, argument: str) -> dict[str, Any]:
    """Read ``key=value`` pairs; a value that reads as a number or as true, false or none is one.

    >>> options("depth=20,bias=false,activation=relu", "model")
    {'depth': 20, 'bias': False, 'activation': 'relu'}
    """
    words = {"true": True, "false": False, "none": None}
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ArgumentError(argument, repr(text), "Write options as key=value with commas between them.")
        value = value.strip()
        found[key.strip()] = words[value.lower()] if value.lower() in words else _number(value)
    return found


def _number(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def is_callable_name(text: str) -> bool:
    """Tell ``path.py:callable`` and ``package.module:callable`` from a plain name with options."""
    place, colon, attribute = text.rpartition(":")
    return bool(colon) and attribute.replace(".", "").isidentifier() and (place.endswith(".py") or _dotted(place))


def _dotted(place: str) -> bool:
    return bool(place) and all(part.isidentifier() for part in place.split("."))


def load_callable(text: str, argument: str) -> Callable[..., Any]:
    """Import what ``path.py:callable`` or ``package.module:callable`` names.

    Args:
        text: the name.
        argument: what it was given for, for the error.

    Raises:
        ArgumentError: when there is no such file, module or attribute, or it cannot be called.
        ModelError: when the file's own code fails.
    """
    place, _, attribute = text.rpartition(":")
    module = _module_of(place, text, argument)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            offered = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
            raise ArgumentError(
                argument, repr(text), f"{place} has no {part!r}; it has {', '.join(offered) or 'nothing to call'}."
            )
        found = getattr(found, part)
    if not callable(found):
        raise ArgumentError(
            argument, repr(text), f"{attribute} is of type {type(found).__name__}; name something to call."
        )
    result: Callable[..., Any] = found
    return result


def _module_of(place: str, text: str, argument: str) -> ModuleType:
    path = Path(place)
    if place.endswith(".py"):
        if not path.is_file():
            raise ArgumentError(argument, repr(text), f"There is no file {place}.")
        return _import(lambda: _from_file(path), text, argument)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return _import(lambda: importlib.import_module(place), text, argument, missing=place)


def _from_file(path: Path) -> ModuleType:
    # As `python path.py` would: its neighbours can be imported, now and when its functions run later.
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _import(load: Callable[[], ModuleType], text: str, argument: str, missing: str = "") -> ModuleType:
    try:
        return load()
    except InitwellError:
        raise
    except ModuleNotFoundError as error:
        if missing and error.name and (missing == error.name or missing.startswith(f"{error.name}.")):
            raise ArgumentError(argument, repr(text), f"There is no module {error.name!r}. {HOW}") from error
        raise ModelError(
            f"{argument} {text!r}: its import of {error.name!r} failed; install that module first."
        ) from error
    except Exception as error:
        raise ModelError(
            f"{argument} {text!r} failed while it was imported: {type(error).__name__}: {error}"
        ) from error


def split_name(text: str) -> tuple[str, Mapping[str, Any]]:
    """Split ``name:key=value,…`` into the name and its options.

    >>> split_name("leaky_relu:slope=0.2")
    ('leaky_relu', {'slope': 0.2})
    """
    name, _, rest = text.partition(":")
    return name, options(rest, text)
