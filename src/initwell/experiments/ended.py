"""How a job ended."""

import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from initwell.errors import InitwellError


class JobError(InitwellError):
    """A job whose process died, or whose own exception cannot be sent between processes."""


@dataclass(frozen=True)
class Ended:
    """One job that ended.

    Attributes:
        index: its place among the items.
        item: what it was given.
        result: what the function returned, None if it failed.
        error: what it raised, or a JobError if its process died; None if all went well.
        note: what the caller should not keep silent about, such as why it ran in this process; empty for nothing.
    """

    index: int
    item: Any
    result: Any = None
    error: Exception | None = None
    note: str = ""


def call(function: Callable[..., Any], index: int, item: Any, shared: Any, note: str = "") -> Ended:
    """Call ``function(item)``, or ``function(shared, item)``, and keep what came of it."""
    try:
        result = function(item) if shared is None else function(shared, item)
    except Exception as error:
        return Ended(index, item, error=error, note=note)
    return Ended(index, item, result, note=note)


def call_here(function: Callable[..., Any], index: int, item: Any, shared: Any, note: str = "") -> Ended:
    """Call it in this process with one torch thread, as the workers have, and give the threads back."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call(function, index, item, shared, note)
    finally:
        torch.set_num_threads(threads)


def sendable(error: Exception) -> Exception:
    """Return the exception if it survives the trip between processes, else a JobError with its traceback."""
    text = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))  # our own bytes, made one line ago
    except Exception:
        return JobError(f"{type(error).__name__}: {error}\n{text}")
    if type(copy) is not type(error) or str(copy) != str(error):
        return JobError(f"{type(error).__name__}: {error}\n{text}")
    error.add_note(f"Raised in a worker process:\n{text}")
    return error
