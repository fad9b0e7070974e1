"""Turning a failure inside a walk into one error that names the module and the line."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from torch import nn

from initwell.errors import ModelError

_TORCH = str(Path(nn.__file__).parents[1])
_HERE = str(Path(__file__).parent)


class NeedsValuesError(ModelError):
    """A model whose forward looks at the numbers in a tensor, which a meta tensor does not have.

    Attributes:
        place: where it does so, in words: "net.py:12 (module 'gate')"; "" as long as that is not known.
    """

    def __init__(self, message: str, place: str = "") -> None:
        """Keep the place apart from the message."""
        super().__init__(message)
        self.place = place


def misses_numbers(error: BaseException) -> bool:
    """Whether PyTorch says that it wants the numbers of a meta tensor.

    >>> misses_numbers(RuntimeError("Tensor.item() cannot be called on meta tensors"))
    True
    """
    return any(words in str(error) for words in ("meta tensor", "meta device type tensor"))


def failing_path(error: BaseException, paths: Mapping[int, str]) -> str | None:
    """Return the path of the innermost module on an error's traceback; None where no module was running.

    Args:
        error: what was raised.
        paths: id of a module → its path.
    """
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = _owner(frame)
        if owner is not None and id(owner) in paths:
            found = paths[id(owner)]
    return found


def _owner(frame: FrameType) -> nn.Module | None:
    owner = frame.f_locals.get("self")
    return owner if isinstance(owner, nn.Module) else None


def failing_line(error: BaseException) -> str:
    """Return "file:line" of the innermost frame that is neither PyTorch's nor this room's; "" if there is none."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, _HERE)):
            place = f"{name}:{line}"
    return place


def where(path: str | None) -> str:
    """Name a module by its path.

    >>> where("layer1.0.conv1"), where(""), where(None)
    ("module 'layer1.0.conv1'", 'the model itself', 'the model')
    """
    if path is None:
        return "the model"
    return f"module {path!r}" if path else "the model itself"


def forward_failure(error: Exception, paths: Mapping[int, str], model: str) -> ModelError:
    """Compose the error for a forward that failed, naming the module path; raise it ``from`` the original."""
    line = failing_line(error)
    at = f" ({line})" if line else ""
    place = where(failing_path(error, paths))
    if isinstance(error, NeedsValuesError) or misses_numbers(error):
        return NeedsValuesError(
            f"{model} cannot be walked on meta tensors: {place}{at} looks at the numbers in a tensor ({error}). "
            "Data-dependent control flow needs real weights and a real batch: use device='real'.",
            f"{line} ({place})" if line else place,
        )
    return ModelError(
        f"The forward of {model} failed in {place}{at}: {type(error).__name__}: {_sentence(error)} "
        "Check that the batch is what this model's forward takes: a tensor, a tuple of positional arguments, "
        "or a dict of keyword arguments."
    )


def _sentence(error: Exception) -> str:
    said = str(error).strip()
    return said if said.endswith((".", "!", "?")) else f"{said}."
