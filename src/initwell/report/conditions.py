"""What another would need to get the same numbers."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "numpy", "scipy", "matplotlib")


def conditions() -> dict[str, str]:
    """Return the versions, processor and thread settings of this process, by name.

    >>> list(conditions())[:3]
    ['initwell', 'Python', 'torch']
    """
    from initwell._version import __version__

    found = {"initwell": __version__, "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    found["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "not set")
    return found
