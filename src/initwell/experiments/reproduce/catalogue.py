"""The claims there are: every module of this package that defines ``CLAIM``."""

import importlib
import pkgutil

from initwell.errors import InitwellError, UnknownNameError
from initwell.experiments import reproduce
from initwell.experiments.reproduce.claim import Claim


def claims() -> tuple[Claim, ...]:
    """List the claims by name; adding one is adding one file.

    Raises:
        InitwellError: a module's ``CLAIM`` is no Claim, or its name does not match its file.

    >>> all(claim.title for claim in claims())
    True
    """
    found = []
    for info in pkgutil.iter_modules(reproduce.__path__):
        module = importlib.import_module(f"{reproduce.__name__}.{info.name}")
        if not hasattr(module, "CLAIM"):
            continue
        entry = module.CLAIM
        if not isinstance(entry, Claim):
            raise InitwellError(f"{module.__name__}.CLAIM: is a {type(entry).__name__}. Make it a Claim.")
        if entry.name.replace("-", "_") != info.name:
            raise InitwellError(f"{module.__name__}: holds the claim {entry.name!r}. Name file and claim alike.")
        found.append(entry)
    return tuple(sorted(found, key=lambda entry: entry.name))


def claim(name: str) -> Claim:
    """Return one claim by its name.

    Raises:
        UnknownNameError: there is none, with the nearest names.
    """
    catalogue = {entry.name: entry for entry in claims()}
    if name not in catalogue:
        raise UnknownNameError.among("name", name, catalogue)
    return catalogue[name]
