"""initwell gives every layer of a deep network a healthy start.

The public names are loaded on first use, so that ``import initwell`` costs next to nothing.
"""

from importlib import import_module
from typing import Any

from initwell._version import __version__ as __version__

# name -> the module that defines it; a module that has the name's own spelling at its end is handed out itself.
_PUBLIC: dict[str, str] = {}


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'initwell' has no attribute {name!r}")
    module = import_module(_PUBLIC[name])
    value = getattr(module, name, module)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(["__version__", *_PUBLIC])
