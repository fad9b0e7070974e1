"""Numbers written into a forward, as in ``torch.tensor([0.5], device=x.device)``: on meta they would be lost."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Function → place and name of its data among the arguments.
_MAKERS: dict[Any, tuple[int, str]] = {
    torch.tensor: (0, "data"),
    torch.as_tensor: (0, "data"),
    torch.asarray: (0, "obj"),
    Tensor.new_tensor: (1, "data"),
}
_INDEXED = (Tensor.__getitem__, Tensor.__setitem__)
# What reads entries without an op.
_READS = (Tensor.numpy, Tensor.__array__, Tensor.__format__)


class Literals(TorchFunctionMode):
    """Tells of every meta tensor that is made from numbers what they are, and reads those that are known."""

    def __init__(self, told: Callable[[Tensor, Any], None], known: Callable[[Tensor], Tensor | None]) -> None:
        """Tell and ask.

        Args:
            told: gets a meta tensor and the numbers it was made from, plain or nested in lists.
            known: gives the real tensor that a meta one stands for, or None.
        """
        super().__init__()
        self._told, self._known = told, known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, and look at what it made if it makes tensors of numbers."""
        kwargs = kwargs or {}
        if func in _INDEXED and args[0].is_meta:
            args = args[0], _as_tensors(args[1]), *(_as_tensor(value, args[0].dtype) for value in args[2:])
        elif func in _READS and args[0].is_meta:
            args = self._real(args[0]), *args[1:]
        place = _MAKERS.get(func)
        if place is None:
            return func(*args, **kwargs)
        at, name = place
        given = args[at] if len(args) > at else kwargs[name]
        data = given if isinstance(given, Tensor) else tree_map_only(Tensor, self._real, given)
        if len(args) > at:
            args = *args[:at], data, *args[at + 1 :]
        else:
            kwargs = kwargs | {name: data}
        out = func(*args, **kwargs)
        if out.is_meta and not isinstance(data, Tensor):
            self._told(out, data)
        return out

    def _real(self, tensor: Tensor) -> Tensor:
        real = self._known(tensor) if tensor.is_meta else tensor
        return tensor if real is None else real


def _as_tensor(value: Any, dtype: torch.dtype) -> Any:
    """Write a number that is set as PyTorch would on the CPU; for meta tensors it takes more ops to do so."""
    return torch.tensor(value, dtype=dtype, device="cpu") if isinstance(value, (bool, int, float)) else value


def _as_tensors(index: Any) -> Any:
    """Write lists of numbers within an index as the real tensors that PyTorch would make of them, unseen."""
    if isinstance(index, tuple):
        return tuple(_as_tensors(part) for part in index)
    if isinstance(index, list) and index and all(isinstance(n, (bool, int)) for n in tree_leaves(index)):
        return torch.tensor(index, device="cpu")
    return torch.from_numpy(index) if isinstance(index, np.ndarray) else index
