"""Calling an op again, with the arguments that a trace keeps of it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from initwell.trace.trace import Op, ValueRef

_TEXT = ("str", "Optional[str]")
# Arguments that say where a result is to lie: here, on the CPU.
_ELSEWHERE: Mapping[str, Any] = {"device": torch.device("cpu"), "pin_memory": None}


class UnfitError(Exception):
    """An op that cannot be run from what a trace keeps of its arguments, or gave something else than it did there."""


def overload(op: Op) -> torch._ops.OpOverload:
    """Return the overload of PyTorch's own that an op is a call of."""
    _, packet, overload = op.name.split(".")
    found: torch._ops.OpOverload = getattr(getattr(torch.ops.aten, packet), overload)
    return found


def called(
    func: Any,
    arguments: Mapping[str, Any],
    real: Callable[[ValueRef], Tensor],
    fresh: Callable[[ValueRef], Tensor] | None = None,
) -> Any:
    """Call an overload with the arguments that an Op has of it, on the CPU and without gradients.

    Args:
        func: the overload.
        arguments: as an Op has them.
        real: reference → the numbers that it stands for.
        fresh: reference → those that are to be written; as others, if none.

    Returns:
        What it returns.
    """
    args, kwargs = _arguments(func, arguments, real, real if fresh is None else fresh)
    with torch.no_grad():
        return func(*args, **kwargs)


def _arguments(
    func: Any, given: Mapping[str, Any], real: Callable[[ValueRef], Tensor], fresh: Callable[[ValueRef], Tensor]
) -> tuple[list[Any], dict[str, Any]]:
    """Turn an op's arguments back into what the op takes."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument in func._schema.arguments:
        written = argument.alias_info is not None and argument.alias_info.is_write
        if argument.name in _ELSEWHERE:
            value = _ELSEWHERE[argument.name]
        else:
            value = _resolved(given.get(argument.name), fresh if written else real, str(argument.type) in _TEXT)
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return args, kwargs


def _resolved(value: Any, tensor: Callable[[ValueRef], Tensor], text: bool) -> Any:
    if isinstance(value, ValueRef):
        return tensor(value)
    if isinstance(value, tuple):
        return [_resolved(v, tensor, text) for v in value]
    return _from_text(value) if isinstance(value, str) and not text else value


def _from_text(text: str) -> Any:
    found = getattr(torch, text.removeprefix("torch."), None)
    if not isinstance(found, (torch.dtype, torch.layout, torch.memory_format)):
        raise UnfitError(f"an argument {text}")
    return found
