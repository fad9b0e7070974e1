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
            raise UnknownNameError.among("scheme", spec, entries())
        return entries()[spec].build()
    cure = "Give a name such as 'kaiming', a scheme such as Kaiming(slope=0.25), or an initializer."
    raise ArgumentError("scheme", repr(spec), cure)
