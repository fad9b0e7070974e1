"""Writing files so that a reader never meets half of one."""

import os
from collections.abc import Callable
from pathlib import Path

from initwell.errors import ArgumentError


def write(path: Path, content: bytes | str, argument: str = "out") -> Path:
    """Write a file whole or not at all: into a neighbour first, then renamed over the old one.

    Args:
        path: the file; its folder is made when it is not there.
        content: bytes, or text that is written as UTF-8.
        argument: the argument that named the place, for the error.

    Returns:
        The path.

    Raises:
        ArgumentError: when the place cannot be written (a full disk, no permission, a file where a folder should be);
            what stood there before still does.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content

    def put(neighbour: Path) -> None:
        with neighbour.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    return write_with(path, put, argument)


def check_folder(folder: Path, argument: str = "out") -> None:
    """Make a folder and try it, before hours of work go into what would be written there at the end.

    Args:
        folder: made when it is not there.
        argument: the argument that named it, for the error.

    Raises:
        ArgumentError: as for ``write``.
    """
    write(folder / ".try", b"", argument).unlink()


def write_with(path: Path, put: Callable[[Path], object], argument: str = "out") -> Path:
    """Have ``put`` write a neighbour of the file, then rename that over it; the rest as ``write`` does."""
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            put(neighbour)
            neighbour.replace(path)
        finally:
            neighbour.unlink(missing_ok=True)
    except OSError as error:
        raise ArgumentError(
            argument,
            str(path),
            f"It cannot be written ({error.strerror or error}). Name a place you may write to with space left on it.",
        ) from error
    return path
