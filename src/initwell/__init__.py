"""initwell gives every layer of a deep network a healthy start.

The public names are loaded on first use, so that ``import initwell`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from initwell._version import __version__

# name -> (module, attribute); an empty attribute stands for the module itself.
_PUBLIC: dict[str, tuple[str, str]] = {}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'initwell' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = import_module(module)
    value = getattr(value, attribute) if attribute else value
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
