"""Schemes by name: every module of this package that lists ENTRIES; a new scheme is a new file."""

import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module

from initwell.apply import schemes
from initwell.apply.schemes.base import Entry, Scheme
from initwell.apply.schemes.everywhere import Everywhere
from initwell.errors import ArgumentError, UnknownNameError
from initwell.initializers.base import Initializer


def collect(entries: Iterable[Entry]) -> Mapping[str, Entry]:
    """Make a table of entries by name.

    Args:
        entries: the entries, in any order.

    Returns:
        The table, sorted by name.

    Raises:
        TypeError: something else than an Entry is among them.
        ValueError: two entries have one name.
    """
    table: dict[str, Entry] = {}
    for entry in entries:
        if not isinstance(entry, Entry):
            raise TypeError(f"a scheme's ENTRIES hold {Entry.__qualname__} records, not {entry!r}")
        if entry.name in table:
            raise ValueError(f"two schemes are called {entry.name!r}; give one of them another name")
        table[entry.name] = entry
    return dict(sorted(table.items()))


@cache
def entries() -> Mapping[str, Entry]:
    """Return every scheme that initwell knows, by name."""
    names = sorted(info.name for info in pkgutil.iter_modules(schemes.__path__))
    modules = [import_module(f"{schemes.__name__}.{name}") for name in names]
    return collect(entry for module in modules for entry in getattr(module, "ENTRIES", ()))


def scheme_names() -> tuple[str, ...]:
    """Return the names of all schemes.

    >>> "kaiming" in scheme_names()
    True
    """
    return tuple(entries())


def scheme(spec: object) -> Scheme:
    """Turn what a caller may write for a scheme into one.

    Args:
        spec: a name, a scheme such as ``Kaiming(mode="fan_out")``, or any initializer.

    Returns:
        The scheme.

    Raises:
        UnknownNameError: no scheme has that name; the message lists the nearest.
        ArgumentError: neither a name, a scheme nor an initializer.

    >>> scheme("xavier").describe()
    'xavier uniform, fan average'
    """
    if isinstance(spec, Scheme):
        return spec
    if isinstance(spec, Initializer):
        return Everywhere(spec)
    if isinstance(spec, str):
        if spec not in entries():
            raise _unknown(spec)
        return entries()[spec].build()
    cure = "Give a name such as 'kaiming', a scheme such as Kaiming(slope=0.25), or an initializer."
    raise ArgumentError("scheme", repr(spec), cure)


# Other libraries' word for a scheme → the name here; those of families may end in a distribution: he_uniform.
_ELSEWHERE: Mapping[str, str] = {
    "he": "kaiming",
    "kaiming": "kaiming",
    "msra": "kaiming",
    "glorot": "xavier",
    "xavier": "xavier",
    "lecun": "lecun",
    "trunc_normal": "truncated_normal",
    "gaussian": "normal",
    "random_normal": "normal",
    "random_uniform": "uniform",
    "eye": "identity",
    "default": "pytorch",
    "torch": "pytorch",
}
_DRAWS: Mapping[str, str] = {"kaiming": "normal", "xavier": "uniform", "lecun": "normal"}
_OTHERWISE: Mapping[str, str] = {"kaiming": "Kaiming", "xavier": "Xavier", "lecun": "lecun"}


def _unknown(spec: str) -> UnknownNameError:
    bare = spec.strip().lower().replace("-", "_").strip("_")
    family, _, drawn = bare.partition("_")
    drawn = "truncated_normal" if drawn == "trunc_normal" else drawn
    family = bare if bare in _ELSEWHERE else family
    name = _ELSEWHERE.get(family, "")
    if family == bare and name:
        return UnknownNameError("scheme", repr(spec), f"Did you mean {name!r}?")
    if name not in _DRAWS or drawn not in ("uniform", "normal", "truncated_normal"):
        return UnknownNameError.among("scheme", spec, entries())
    other = f" In Python, {_OTHERWISE[name]}(distribution={drawn!r}) draws as you ask; {name!r} is {_DRAWS[name]}."
    return UnknownNameError("scheme", repr(spec), f"Did you mean {name!r}?{other if drawn != _DRAWS[name] else ''}")
